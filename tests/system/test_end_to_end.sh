#!/usr/bin/env bash
# A user's way from a base model to a trained, exported and merged one, and the same numbers at every stop.
. "$(dirname "$0")/harness.sh"

e2e=$SOURCE_DIR/launch/data
answers=$stories/golden.json

# loss_of ARGUMENTS...: what eval says with --json
loss_of() {
  works '"loss": ' eval --json "$@"
  field out loss
}
# same TOLERANCE WHAT A B
same() {
  checks=$((checks + 1))
  close_to "$3" "$4" "$1" || fault "$2: $3 and $4 differ by more than $1"
}

# --- the base alone, against float64 (golden.json: made without an ML library) ---

ids_of() { sed -n "$1" "$answers" | grep -o '"ids": \[[^]]*' | tr -cd '0-9 ' | sed 's/^ *//'; }
works '^403 407 261' generate --base "$stories" --prompt '' --max-tokens 120 --ids
wanted=$(ids_of '/greedy_from_bos/p')
[ "$(cat out)" = "$wanted" ] || fault "greedy ids: $(cat out), golden $wanted"
launch 2
works '^403 407 261' generate --base "$stories" --prompt '' --max-tokens 120 --ids --set parallel.tp=2
[ "$(cat out)" = "$wanted" ] || fault "greedy ids on two ranks: $(cat out)"
launch
works 'Once upon a time' generate --base "$stories" --prompt '' --max-tokens 120
text=$(grep -o '"text": " Once.*"}' "$answers" | sed 's/^"text": "//; s/"},*$//; s/\\"/"/g')
[ " $(sed ':a; N; $!ba; s/\n/<0x0A>/g' out | sed 's/^ //')" = "$text" ] || fault "greedy text: $(cat out), golden $text"
for sequence in 'Once upon a time, there' 'The cat sat'; do
  line=$(grep "\"text\": \"$sequence" "$answers")
  text=$(sed 's/.*"text": "//; s/", "ids".*//; s/\\"/"/g' <<<"$line")
  works '"logprobs": \[null, -' score --base "$stories" --text "$text"
  [ "$(grep -o '"ids": \[[^]]*' out)" = "$(grep -o '"ids": \[[^]]*' <<<"$line")" ] || fault "ids of '$text'"
  # The golden values have six decimals, and f32 over five layers adds about 1e-5.
  paste -d ' ' <(grep -o 'null.*' out | tr -d '],}' | tr ' ' '\n' | tail -n +2) \
    <(grep -o '"nll_per_token": \[[^]]*' <<<"$line" | sed 's/.*\[//' | tr -d ',' | tr ' ' '\n') >pairs
  awk 'NF != 2 || $1 + $2 > 3e-5 || $1 + $2 < -3e-5 { print "token", NR, $0; bad = 1 } END { exit bad || NR < 30 }' pairs ||
    fault "log-probabilities of '$text'"
done

# --- tokens and back ---

for tokenizer in "$stories" "$FIXTURES/stories260K-q.gguf" "$FIXTURES"/tokenizers/{gpt2,llama3,smollm2}; do
  "$LORASHARD" tokenize --base "$tokenizer" --lines <"$e2e/e2e-eval.txt" >ids.txt &&
    "$LORASHARD" tokenize --base "$tokenizer" --lines --decode --no-special <ids.txt >back.txt &&
    cmp -s back.txt "$e2e/e2e-eval.txt" || fault "tokenize --decode does not give the text back: $tokenizer"
  [ "$(wc -l <ids.txt)" -eq "$(wc -l <"$e2e/e2e-eval.txt")" ] || fault "not a line of ids a line of text: $tokenizer"
done

# --- train on two ranks, and evaluate every form of the adapter ---

cat >job.yaml <<EOF
base: $stories
data: {train: [$e2e/e2e-train.txt], eval: [$e2e/e2e-eval.txt], seq_len: 192}
lora: {targets: all, overrides: [{modules: [q, v], layers: "1-3", r: 4, alpha: 12}, {layers: 4, modules: o, off: true}]}
train: {steps: 30, global_batch: 8, micro_batch: 4, lr: 1e-2}
parallel: {tp: 2}
output: run
EOF
launch 2
works 'adapters  34,' train job.yaml
seen=$(field run/metrics.jsonl eval_loss)
launch
works 'run.h5: step 30, 34 modules' gather run -o run.h5
works 'peft: 34 modules of llama' export run.h5 --to peft -o peft
works 'merged: 34 of .* tensors changed' merge --base "$stories" --adapter run.h5 -o merged
data=(--data "$e2e/e2e-eval.txt" --set data.seq_len=192)
before=$(loss_of --base "$stories" "${data[@]}")
after=$(loss_of --base "$stories" --adapter run.h5 "${data[@]}")
# 4.56 nats at first; 30 steps of 8 rows take it below 2.2.
awk -v b="$before" -v a="$after" 'BEGIN { exit !(b > 4.5 && a < 2.2) }' || fault "loss before $before, after $after"
same 1e-6 'eval in the run, adapter.h5 after it' "$seen" "$after"
same 1e-6 'step directory' "$(loss_of --base "$stories" --adapter run/step-000030 "${data[@]}")" "$after"
same 1e-6 'output directory' "$(loss_of --base "$stories" --adapter run "${data[@]}")" "$after"
same 1e-6 'PEFT folder' "$(loss_of --base "$stories" --adapter peft "${data[@]}")" "$after"
same 1e-5 'merged folder' "$(loss_of --base merged "${data[@]}")" "$after"
launch 2
same 1e-6 'two ranks' "$(loss_of --base "$stories" --adapter run.h5 "${data[@]}" --set parallel.tp=2)" "$after"
launch
mv run moved
same 1e-6 'a moved run' "$(loss_of --base "$stories" --adapter moved/step-000030 "${data[@]}")" "$after"
mv moved run
works 'again: 34 modules' export peft --base "$stories" --to peft -o again
cmp -s peft/adapter_model.safetensors again/adapter_model.safetensors || fault "an exported adapter changes when it is exported again"

prompt='name : Blue Spice | Type : pub | area : city centre'
works '[0-9]' generate --base "$stories" --adapter run.h5 --prompt "$prompt" --e2e --max-tokens 40 --ids
cp out greedy
works '[0-9]' score --base "$stories" --adapter run.h5 --text "$prompt"
cp out scores
for form in 'peft' 'run/step-000030'; do
  works '[0-9]' generate --base "$stories" --adapter $form --prompt "$prompt" --e2e --max-tokens 40 --ids
  cmp -s out greedy || fault "$form generates other ids: $(cat out), not $(cat greedy)"
done
works '[0-9]' generate --base merged --prompt "$prompt" --e2e --max-tokens 40 --ids
cmp -s out greedy || fault "the merged model generates other ids: $(cat out), not $(cat greedy)"
works '[0-9]' generate --base "$stories" --prompt "$prompt" --e2e --max-tokens 40 --ids
cmp -s out greedy && fault "the base alone generates what the adapter does"
sampled=(generate --base "$stories" --adapter run.h5 --prompt "$prompt" --e2e --max-tokens 40 --ids --temperature 0.9 --top-p 0.8 --seed 7)
works '[0-9]' "${sampled[@]}"
cp out sampled
cmp -s sampled greedy && fault "sampling gives the greedy ids"
launch 2
works '[0-9]' "${sampled[@]}" --set parallel.tp=2
cmp -s out sampled || fault "two ranks sample other ids: $(cat out), not $(cat sampled)"
works '[0-9]' generate --base "$stories" --adapter run.h5 --prompt "$prompt" --e2e --max-tokens 40 --ids --set parallel.tp=2
cmp -s out greedy || fault "two ranks generate other ids: $(cat out), not $(cat greedy)"
works '[0-9]' score --base "$stories" --adapter run.h5 --text "$prompt" --set parallel.tp=2
# Rounding of f32 sums in another order.
paste -d ' ' <(grep -o 'null.*' scores | tr -d '],}' | tr ' ' '\n' | tail -n +2) \
  <(grep -o 'null.*' out | tr -d '],}' | tr ' ' '\n' | tail -n +2) |
  awk 'NF != 2 || $1 - $2 > 2e-5 || $2 - $1 > 2e-5 { bad = 1 } END { exit bad || NR < 20 }' || fault "two ranks score otherwise"

# --- inspect ---

looks() { # PATH PATTERN PATTERN_OF_JSON
  works "$2" inspect "$1"
  works "$3" inspect "$1" --json
  awk '{ n += gsub(/[{[]/, "") - gsub(/[]}]/, "") } END { exit n != 0 }' out || fault "inspect --json $1: brackets do not match"
  works '"tensors": \[' inspect "$1" --json --tensors
}
launch
looks "$stories" '^family  *llama' '"kind": "model"'
looks merged '^family  *llama' '"kind": "model"'
looks "$FIXTURES/stories260K-q.gguf" '^family  *llama' '"format": "gguf"'
looks "$stories/model.safetensors" '^F32  *47 tensors' '"kind": "tensors"'
looks synthetic:gpt3-175b '^layers  *96$' '"parameters": 174604259328'
looks run.h5 '^modules  *34' '"n_modules": 34'
looks run/step-000030 '^step  *30' '"n_modules": 34'
looks run '^step  *30' '"n_modules": 34'
looks peft '^modules  *34' '"kind": "adapter"'

# --- the script of docs/files.md that makes data for synthetic bases ---

if command -v python3 >/dev/null; then
  sed -n '/^```python$/,/^```$/p' "$SOURCE_DIR/docs/files.md" | sed '/^```$/q' | grep -v '^```' >random_ids.py
  python3 random_ids.py || fault "the script of docs/files.md failed"
  # Random ids have nothing to learn: the loss begins at ln(50257) = 10.8 and what random logits add.
  works 'step 1/1  loss 1[01]\.' train /dev/null --set base=synthetic:gpt2,layers=1 --set data.train=tokens.bin \
    --set data.seq_len=16 --set train.steps=1 --set train.global_batch=1 --set output=made-up
  grep -q '64 documents' err || fault "not the 64 documents of the script: $(said)"
fi

# --- messages and plain text, in the other layout ---

sed -n 's/.*||//p' "$e2e/e2e-train.txt" | head -200 >plain.txt
for kind in "$FIXTURES/data/messages.jsonl" plain.txt; do
  rm -rf other
  set -- --set "data.train=$kind" --set "data.eval=$kind" --set output=other --set parallel.tp=1 --set train.steps=12 \
    --set data.chat_template=llama2
  launch 2
  works 'saved ' train job.yaml "$@"
  launch
  first=$(head -1 other/metrics.jsonl | sed 's/.*"loss":\([^,]*\).*/\1/')
  seen=$(field other/metrics.jsonl eval_loss)
  # A fifth lower after 12 steps.
  awk -v a="$first" -v b="$seen" 'BEGIN { exit !(b < 0.8 * a) }' || fault "$kind: loss $first, then $seen"
  works 'step 12' gather other -o other.h5 --overwrite
  same 1e-6 "$kind" "$(loss_of --base "$stories" --adapter other.h5 --data "$kind" --set data.seq_len=192 --set data.chat_template=llama2)" "$seen"
done

# A turn of generate --chat has the ids that training sees: both are those of this text.
turn=$'<|user|>\nWhat does the cat say?</s>\n<|assistant|>\n'
draw=(generate --base "$stories" --max-tokens 40 --ids --temperature 0.9 --seed 7)
works '[0-9]' "${draw[@]}" --prompt "$turn"
cp out drawn
works '[0-9]' "${draw[@]}" --chat --set data.chat_template=zephyr --prompt 'What does the cat say?'
cmp -s out drawn || fault "generate --chat continues another prompt: $(cat out), not $(cat drawn)"
cat >chat.jsonl <<'EOF'
{"messages": [{"role": "user", "content": "What does the cat say?"}, {"role": "assistant", "content": "The cat says meow."}]}
EOF
before=$(loss_of --base "$stories" --data chat.jsonl --set data.seq_len=64 --set data.chat_template=zephyr)
ids=$(printf %s "${turn}The cat says meow.</s>" | "$LORASHARD" tokenize --base "$stories")
targets=$(($(wc -w <<<"$ids") - $(printf %s "$turn" | "$LORASHARD" tokenize --base "$stories" | wc -w)))
[ "$(field out targets)" = $targets ] || fault "a chat has $(field out targets) targets, its text $targets"
works '"logprobs": \[null, -' score --base "$stories" --ids "$ids"
same 1e-6 'loss of a chat and of its text' "$before" "$(grep -o 'null.*' out | tr -d '],}' | tr ' ' '\n' | tail -$targets |
  awk '{ sum -= $1 } END { printf "%.9g", sum / NR }')"

# --- documents of a row do not see each other ---

cat >short.jsonl <<'EOF'
{"text": "Once upon a time there was a cat."}
{"text": "The dog ran to the park."}
{"text": "Lily had a red ball, and she liked it a lot."}
{"text": "They all played until it was dark, and then they went home to sleep."}
EOF
same 1e-6 'packed and single documents' "$(loss_of --base "$stories" --data short.jsonl --set data.seq_len=128 --set data.packing=true)" \
  "$(loss_of --base "$stories" --data short.jsonl --set data.seq_len=128 --set data.packing=false)"

# --- on from an adapter: its modules, ranks and loss, whatever lora.* says ---

rm -rf other
works 'adapters  34,' train job.yaml --set parallel.tp=1 --set lora.adapter=run.h5 --set lora.targets=q --set output=other \
  --set data.eval='[]' --set "data.train=$e2e/e2e-eval.txt" --set train.steps=0 --set train.epochs=1 \
  --set train.global_batch=100000 --set train.lr=0
same 1e-6 'the first loss of a run that goes on' "$(field other/metrics.jsonl loss)" "$after"
works 'still: 34 modules' export other --to peft -o still
cmp -s peft/adapter_model.safetensors still/adapter_model.safetensors || fault "lr 0 changes the adapter that a run starts from"
rm -rf other
works 'saved ' train job.yaml --set parallel.tp=1 --set lora.adapter=peft --set output=other --set train.lr=3e-3
seen=$(field other/metrics.jsonl eval_loss)
awk -v a="$after" -v b="$seen" 'BEGIN { exit !(b < 0.97 * a) }' || fault "30 more steps: loss $after, then $seen"

# --- four samples by heart: the text, and then the end ---

# This base has never met its end token </s>, whose frozen row in the head cannot be told from those of other unused
# tokens; stories end with <s>.
cp -r "$stories" base && chmod -R u+w base
sed -i 's/"eos_token": "<\/s>"/"eos_token": "<s>"/' base/tokenizer_config.json
sed -i 's/"eos_token_id": 2/"eos_token_id": 1/' base/config.json
cat >four.jsonl <<'EOF'
{"prompt": "What does the cat say?", "completion": " The cat says meow."}
{"prompt": "What does the dog say?", "completion": " The dog says woof."}
{"prompt": "Where is the ball?", "completion": " The ball is red and it is in the park."}
{"prompt": "Who is Lily?", "completion": " Lily is a girl."}
EOF
rm -rf other
works 'saved ' train job.yaml --set base=base --set parallel.tp=1 --set data.train=four.jsonl --set data.eval='[]' --set data.seq_len=64 \
  --set data.packing=false --set train.steps=60 --set train.global_batch=4 --set train.lr=5e-3 --set output=other
awk -v a="$(field other/metrics.jsonl loss)" 'BEGIN { exit !(a < 0.01) }' || fault "not learnt by heart: loss $(field other/metrics.jsonl loss)"
while IFS= read -r sample; do
  prompt=$(sed 's/.*"prompt": "\([^"]*\)".*/\1/' <<<"$sample")
  completion=$(sed 's/.*"completion": "\([^"]*\)".*/\1/' <<<"$sample")
  works . generate --base base --adapter other --prompt "$prompt" --max-tokens 64
  [ "$(cat out)" = "$completion" ] || fault "'$prompt' is continued by '$(cat out)', not by '$completion'"
done <four.jsonl
finish
