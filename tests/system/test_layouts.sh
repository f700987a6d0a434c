#!/usr/bin/env bash
# The same run in other layouts: same initial adapters to the bit, same curve and adapters to rounding; in the same
# layout again: same files to the bit. Messages per step are those of docs/architecture.md.
# shellcheck source=tests/system/runs.sh
. "$(dirname "$0")/runs.sh"

# FOLDER RANKS TP MICRO_BATCH; the rest of the ranks are replicas. The global batch of 5 divides by none of them.
layouts="one 1 1 4
tp2 2 2 2
dp2 2 1 4
tp3 3 3 4
tp4 4 4 4
tp2-dp2 4 2 2
dp3 3 1 1"

# --- curves and adapters ---

few="tp3 3 3 4
tp2-dp2 4 2 2"
for dropout in 0.1 0; do
  must_train "reference-$dropout" 1 --set lora.dropout=$dropout --set train.micro_batch=1
  flat "reference-$dropout"
  while read -r name ranks tp micro; do
    folder=$name-$dropout
    must_train "$folder" "$ranks" --set lora.dropout=$dropout --set "parallel.tp=$tp" --set "train.micro_batch=$micro"
    same_curve "reference-$dropout" "$folder"
    same_trainable "reference-$dropout" "$folder"
    # AdamW's step is lr = 5e-3 times g / sqrt(v): where g is almost 0, rounding decides a share of it. 1e-3 of the
    # largest number (0.15) is 3 % of one such step.
    flat "$folder" && near_adapter "reference-$dropout" "$folder" 1e-3
  done <<<"$([ $dropout = 0 ] && echo "$few" || echo "$layouts")"
done
# Dropout acts at all.
cmp -s <(lines reference-0) <(lines reference-0.1) && fault "dropout changes nothing"

# 6 and 8 ranks on few cores are slow: few steps.
must_train short 1 --set train.steps=3
must_train tp3-dp2 6 --set train.steps=3 --set parallel.tp=3 --set train.micro_batch=4
must_train tp4-dp2 8 --set train.steps=3 --set parallel.tp=4 --set train.micro_batch=4
same_curve short tp3-dp2
same_curve short tp4-dp2

# --- a replica without a row: three rows a step, and one row to evaluate, over four ranks ---

head -1 "$SOURCE_DIR/launch/data/e2e-eval.txt" >"$scratch/row.txt"
few_rows=(--set train.steps=3 --set train.global_batch=3 --set "data.eval=[$scratch/row.txt]" --set data.format=e2e)
must_train rows 1 "${few_rows[@]}"
must_train rows-dp4 4 "${few_rows[@]}"
same_curve rows rows-dp4
eval_loss() { sed -n 's/.*"eval_loss":\([^,}]*\).*/\1/p' "$scratch/$1/run/metrics.jsonl"; }
# f32 sums in another order, as for the curve.
[ "$(eval_loss rows | wc -l)" -eq 1 ] && paste <(eval_loss rows) <(eval_loss rows-dp4) |
  awk '{ d = $1 - $2; exit !(NF == 2 && d <= 1e-5 * $1 && -d <= 1e-5 * $1) }' ||
  fault "one row's loss on four ranks: $(eval_loss rows-dp4), on one $(eval_loss rows)"

# --- the same again ---

must_train again 4 --set parallel.tp=2 --set train.micro_batch=2
flat again && same_bytes tp2-dp2-0.1/adapter.h5 again/adapter.h5 "the same layout twice"
same_lines tp2-dp2-0.1 again

# --- initial adapters: a step with learning rate 0 leaves them as they were ---

for init in kaiming gaussian; do
  while read -r name ranks tp pp; do
    must_train "$init-$name" "$ranks" --set train.steps=1 --set train.lr=0 --set lora.init=$init --set "parallel.tp=$tp" \
      --set "parallel.pp=${pp:-1}" --set train.micro_batch=4
    flat "$init-$name" && same_bytes "$init-one/adapter/adapter_model.safetensors" \
      "$init-$name/adapter/adapter_model.safetensors" "initial adapters"
  done <<<"one 1 1
tp2 2 2
tp3 3 3
tp4 4 4
dp2 2 1
pp2 2 1 2
tp2-dp2 4 2"
done
cmp -s "$scratch/kaiming-one/adapter/adapter_model.safetensors" "$scratch/gaussian-one/adapter/adapter_model.safetensors" &&
  fault "lora.init changes nothing"

# --- messages of a step on rank 0: 5 layers, 2 L + 1 forward, 2 for the loss, 2 L backward a micro-batch ---

# messages FOLDER GROUP CALLS [BYTES]
messages() {
  local want="\"$2\":{\"calls\":$3,\"bytes\":${4:-[0-9]*}}" n
  n=$(grep -c "$want" "$scratch/$1/run/metrics.jsonl")
  [ "$n" -eq 12 ] || fault "$1: $n of 12 steps have $want: $(tail -1 "$scratch/$1/run/metrics.jsonl")"
}
# A replicated: r x 64 of q k v gate up; B of o and down: 64 r. Sharded with tp 2 on rank 0: half of B's rows, A's columns.
replicated=$((4 * 5 * (5 * 4 * 64 + 2 * 4 * 64)))
messages tp2-0.1 tp $((3 * 23))
messages tp2-0.1 stage 1 $replicated
messages tp2-0.1 dp 0 0
messages tp2-0.1 control 1 40
messages tp2-dp2-0.1 tp $((2 * 23))
messages tp2-dp2-0.1 stage 1 $replicated
messages tp2-dp2-0.1 dp 1
messages dp2-0.1 tp 0 0
messages dp2-0.1 stage 0 0
messages dp2-0.1 dp 1 $((4 * 23120))
messages one-0.1 control 0 0

finish
