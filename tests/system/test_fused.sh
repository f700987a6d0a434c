#!/usr/bin/env bash
# Bases whose q, k and v are one matrix, transposed (gpt2: Conv1D) or cut per head (bloom), through the program: what
# is trained on two ranks means the same gathered, as a PEFT folder and merged, for a part of that matrix and for all
# linears, with rsLoRA's scale alpha / sqrt(r) = 4.
. "$(dirname "$0")/harness.sh"

documents=()
for ((d = 0; d < 6; d++)); do
  ids=
  for ((i = 0; i < 25; i++)); do ids+="$(((d * 31 + i * i * 7 + i * 3 + 5) % 61)) "; done
  documents+=("$ids")
done
megatron tokens "${documents[@]}"

# loss_of ARGUMENTS...: what eval says with --json
loss_of() {
  works '"loss": ' eval --json --data tokens.bin --set data.seq_len=24 "$@"
  field out loss
}
same() { # TOLERANCE WHAT A B
  checks=$((checks + 1))
  close_to "$3" "$4" "$1" || fault "$2: $3 and $4 differ by more than $1"
}

for family in gpt2 bloom; do
  base=$golden/$family
  before=$(loss_of --base "$base")
  for targets in '[q, v]' all; do
    what="$family, targets $targets"
    rm -rf run run.h5 peft merged
    cat >job.yaml <<EOF
base: $base
data: {train: [tokens.bin], eval: [tokens.bin], seq_len: 24}
lora: {targets: $targets, r: 4, alpha: 8, rslora: true}
train: {steps: 8, global_batch: 6, micro_batch: 3, lr: 2e-2}
parallel: {tp: 2}
output: run
EOF
    launch 2
    works 'saved ' train job.yaml
    launch
    seen=$(field run/metrics.jsonl eval_loss)
    # A wrong place or scale of the adapter must show: 8 steps take off a quarter and more.
    awk -v b="$before" -v a="$seen" 'BEGIN { exit !(a < 0.8 * b) }' || fault "$what: loss $before before, $seen after"
    works 'step 8' gather run -o run.h5
    works 'peft: ' export run.h5 --to peft -o peft
    works 'merged: ' merge --base "$base" --adapter run.h5 --dtype f32 -o merged
    # f32 sums in another order: about 1e-7 a product, two layers.
    after=$(loss_of --base "$base" --adapter run.h5)
    same 1e-6 "$what: eval in the run on two ranks, adapter.h5 after it" "$seen" "$after"
    same 1e-6 "$what: PEFT folder" "$(loss_of --base "$base" --adapter peft)" "$after"
    same 1e-5 "$what: merged" "$(loss_of --base merged)" "$after"
  done
done
finish
