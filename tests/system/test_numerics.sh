#!/usr/bin/env bash
# Precision, losses and masks through the program: bf16 bases still move every f32 weight, steps that are not finite
# are skipped and counted, samples without a target are reported, the end token is learnt, and the loss of a saved
# adapter is the loss before it was saved.
# shellcheck source=tests/system/runs.sh
. "$(dirname "$0")/runs.sh"

tail -12 "$SOURCE_DIR/launch/data/e2e-train.txt" >"$scratch/few.txt"

# --- small steps on a bf16 base move every weight; 16-bit weights or moments would swallow them ---

small=(--set train.steps=100 --set train.lr=1e-5 --set train.schedule=constant --set train.warmup_steps=0
  --set lora.dropout=0 --set train.micro_batch=5 --set data.seq_len=64 --set train.base_dtype=bf16)
must_train f32 1 "${small[@]}"
must_train bf16 1 "${small[@]}" --set train.compute=bf16
must_train start 1 "${small[@]}" --set train.steps=1 --set train.lr=0
for run in f32 bf16 start; do flat $run; done
cmp -s "$scratch/f32/adapter/adapter_model.safetensors" "$scratch/bf16/adapter/adapter_model.safetensors" &&
  fault "train.compute=bf16 computes in f32"
paste <(numbers start) <(numbers bf16) <(numbers f32) | awk '
  $1 == $2 { same++ }
  { d = $2 - $3; difference += d * d; size += $3 * $3; d = $3 - $1; moved += d * d }
  END { if (NR != 23120 || same > 0) { print NR " weights, " same + 0 " of them did not move"; exit 1 }
        if (difference > 1e-4 * size) { print "bf16 is off by " sqrt(difference / size) " of the adapter"; exit 1 }
        # The updates themselves: bf16 errs by a few percent of a gradient, and more in the sign of tiny ones.
        print "bf16 against f32: " sqrt(difference / size) " of the adapter, " sqrt(difference / moved) " of its change" }
' || fault "bf16 training"

# --- steps that are not finite ---

wild=(--set train.lr=1000 --set train.steps=6 --set train.micro_batch=5 --set train.warmup_steps=0 --set lora.alpha=1e9 --set checkpoint.every=3)
train wild 1 "${wild[@]}"
[ $? -eq 1 ] || fault "a loss that is not finite did not end the run with 1"
[ "$(grep -c 'error: step 2: loss .*not finite' "$scratch/wild/log")" -eq 1 ] || fault "not one line that names the step: $(cat "$scratch/wild/log")"
[ "$(wc -l <"$scratch/wild/run/metrics.jsonl")" -eq 1 ] || fault "a step that failed is in the metrics"

# Step 1 is good and leaves huge weights; 2 to 6 are skipped and leave the adapters as they are.
skipping=("${wild[@]}" --set train.skip_nan=true --set parallel.tp=2)
must_train skipping 2 "${skipping[@]}"
skipped() { sed -n 's/.*skipped (\([0-9]*\) so far).*/\1/p' "$scratch/skipping/log" | tr '\n' ' '; }
[ "$(skipped)" = "1 2 3 4 5 " ] || fault "skipped: $(skipped)"
flat skipping step-000003
mv "$scratch/skipping/adapter" "$scratch/skipping/adapter-3"
flat skipping step-000006 && same_bytes skipping/adapter-3/adapter_model.safetensors skipping/adapter/adapter_model.safetensors "a skipped step"
# The count survives a stop.
rm -rf "$scratch/skipping/run/step-000006"
: >"$scratch/skipping/log"
must_train skipping 2 "${skipping[@]}" --resume
[ "$(skipped)" = "3 4 5 " ] || fault "skipped after --resume: $(skipped)"

# --- adapters that cannot learn are named: nothing of layer 4's attention gets through a zero o ---

cp -r "$FIXTURES/stories260K" "$scratch/idle-base" && chmod -R u+w "$scratch/idle-base"
file=$scratch/idle-base/model.safetensors
header=$(od -An -tu8 -N8 "$file" | tr -d ' ')
read -r first end < <(head -c $((8 + header)) "$file" | grep -ao '"model.layers.4.self_attn.o_proj.weight":{[^}]*}' |
  sed 's/.*"data_offsets": *\[ *\([0-9]*\), *\([0-9]*\).*/\1 \2/')
head -c $((end - first)) /dev/zero | dd of="$file" bs=1 seek=$((8 + header + first)) conv=notrunc status=none
must_train idle 1 --set "base=$scratch/idle-base" --set lora.targets='[q, k, v]' --set train.steps=4 --set train.warmup_steps=0
sed -n 's/.*warning: adapter \([^ ]*\) has had a gradient of exactly 0 for 2 steps.*/\1/p' "$scratch/idle/log" | sort | tr '\n' ' ' >"$scratch/idle/named"
[ "$(cat "$scratch/idle/named")" = 'layers/4/k layers/4/q layers/4/v ' ] || fault "adapters without a gradient: $(cat "$scratch/idle/named")"

# --- three of eight prompts leave no room for a target ---

long=$(head -c 2000 "$SOURCE_DIR/launch/data/e2e-eval.txt" | tr -d '"\n|')
for i in 1 2 3 4 5 6 7 8; do
  case $i in 2 | 3 | 7) prompt=$long ;; *) prompt="Number $i is" ;; esac
  printf '{"prompt": "%s", "completion": " a number."}\n' "$prompt"
done >"$scratch/long.jsonl"
must_train overlong 1 --set "data.train=[$scratch/long.jsonl]" --set data.format=auto --set data.packing=false
grep -q '8 documents.* in 5 rows' "$scratch/overlong/log" || fault "rows: $(grep ' rows ' "$scratch/overlong/log")"
grep -q 'warning: data: 3 samples have no target left to learn and were skipped' "$scratch/overlong/log" ||
  fault "samples without a target were not reported: $(grep warning "$scratch/overlong/log")"
grep -q '"loss":\(0\.0*[,}]\|null\)' "$scratch/overlong/run/metrics.jsonl" && fault "a loss of 0 or none: $(head -1 "$scratch/overlong/run/metrics.jsonl")"

# --- the end token is learnt: four samples by heart, and generation stops after each ---

# The fixture's own end token shares its embedding with every token that its training never met; <s> has one of its own.
cp -r "$FIXTURES/stories260K" "$scratch/base"
sed -i 's#"eos_token": "</s>"#"eos_token": "<s>"#' "$scratch/base/tokenizer_config.json"
sed -i 's/"eos_token_id": 2/"eos_token_id": 1/' "$scratch/base/config.json"
sed -n '1p;40p;300p;700p' "$SOURCE_DIR/launch/data/e2e-train.txt" >"$scratch/four.txt"
must_train heart 1 --set "base=$scratch/base" --set "data.train=[$scratch/four.txt]" --set data.format=e2e --set data.seq_len=300 \
  --set lora.r=16 --set lora.alpha=32 --set lora.dropout=0 --set train.steps=60 --set train.lr=1e-2 --set train.global_batch=4 \
  --set train.micro_batch=4
while read -r line; do
  got=$("$LORASHARD" generate --base "$scratch/base" --adapter "$scratch/heart/run" --e2e --prompt "${line%%||*}" \
    --max-tokens 250 2>"$scratch/generate.log" </dev/null) || fault "generate: $(cat "$scratch/generate.log")"
  # shellcheck disable=SC2086,SC2116  # compared word by word
  [ "$(echo $got)" = "$(echo ${line#*||})" ] || fault "by heart: '$got', not '${line#*||}'"
done <"$scratch/four.txt"

# --- the loss of the saved adapter is the loss before it was saved ---

for tp in 1 2 4; do
  must_train "saved-$tp" $tp --set parallel.tp=$tp --set "data.eval=[$scratch/few.txt]" --set train.micro_batch=2
  before=$(sed -n 's/.*"eval_loss":\([^,}]*\).*/\1/p' "$scratch/saved-$tp/run/metrics.jsonl" | tail -1)
  # shellcheck disable=SC2086  # MPIRUN is words
  after=$($MPIRUN -n $tp "$LORASHARD" eval --base "$FIXTURES/stories260K" --adapter "$scratch/saved-$tp/run" --data "$scratch/few.txt" \
    --set parallel.tp=$tp --set data.format=text --set data.seq_len=96 --set train.micro_batch=2 --json 2>"$scratch/eval.log" \
    </dev/null | sed -n 's/^{"loss": \([^,]*\),.*/\1/p')
  # eval prints 9 digits
  [[ $after == ?* && $(awk -v x="$before" 'BEGIN { printf "%.9g", x }') == "$after" ]] ||
    fault "tp $tp: loss $before before saving, $after after loading: $(cat "$scratch/eval.log")"
done

finish
