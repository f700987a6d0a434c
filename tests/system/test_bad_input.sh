#!/usr/bin/env bash
# What a user can get wrong: each is one line on stderr that names the thing, with exit code 2 for a wrong request
# and 1 for a fault, from one rank whatever their number, and nothing half-written stays behind.
# cores: 1
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOF
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 128}
train: {steps: 2, global_batch: 2}
output: run
EOF

# train_refused CODE PATTERN ARGUMENTS...: no file is left in the output directory, but for whole token caches.
train_refused() {
  local code=$1 pattern=$2 left
  shift 2
  refused "$code" "$pattern" train job.yaml "$@"
  left=$(find run -type f ! -path '*/cache/*.tok' 2>/dev/null)
  [ -z "$left" ] || fault "'$*' leaves $left"
  rm -rf run
}
# copy: a fresh, writable copy of the model in ./base.
copy() {
  rm -rf base
  cp -r "$stories" base
  chmod -R u+w base
}
# edited EXPRESSION [FILE]: such a copy with a sed expression applied to config.json or FILE.
edited() {
  copy
  sed -i "$1" "base/${2-config.json}"
  cmp -s "$stories/${2-config.json}" "base/${2-config.json}" && fault "the expression '$1' changes nothing"
}

# --- the command line ---

refused 2 'no command given'
refused 2 "unknown command 'trian'; the nearest is 'train'" trian job.yaml
refused 2 "unknown option '--resum'; the nearest is '--resume'" train job.yaml --resum
refused 2 "unknown option '--quiet'" train job.yaml --quiet
refused 2 "unexpected 'more'; usage" train job.yaml more
refused 2 'operand is missing; usage: lorashard train' train
refused 2 '--set needs a value' train job.yaml --set
refused 2 '--resume and --overwrite exclude' train job.yaml --resume --overwrite
refused 2 'absent.yaml: cannot open' train absent.yaml
refused 2 'stories260K: cannot read the configuration: Is a directory' train "$FIXTURES/stories260K"
printf 'train: {lr: 1\n' >bad.yaml
refused 2 'bad.yaml:2: not valid YAML' train bad.yaml
printf 'base: x\ntrian: {lr: 1}\n' >bad.yaml
refused 2 "bad.yaml:2: unknown key 'trian'; the nearest" train bad.yaml
printf 'base: x\ntrain:\n  lrr: 1\n' >bad.yaml
refused 2 "bad.yaml:3: unknown key 'train.lrr'; the nearest is 'train.lr'" train bad.yaml
refused 2 'base is not set' train /dev/null

train_refused 2 "unknown key 'train.lrr'; the nearest is 'train.lr'" --set train.lrr=1
train_refused 2 'write KEY=VALUE' --set train.lr
train_refused 2 'train.lr: needs a number; found fast' --set train.lr=fast
train_refused 2 'train.lr: 1e30 is out of range' --set train.lr=1e30
train_refused 2 'lora.r: needs a whole number; found eight' --set lora.r=eight
train_refused 2 'data.seq_len: needs a whole number; found 1.5' --set data.seq_len=1.5
train_refused 2 'data.packing: needs true or false; found maybe' --set data.packing=maybe
train_refused 2 'train.schedule: needs one of linear, cosine, constant' --set train.schedule=square
train_refused 2 'train.betas: .*' --set train.betas=0.9
train_refused 2 'parallel.tp 1 x parallel.pp 2 does not divide the number of ranks, 1' --set parallel.pp=2
train_refused 2 'train.steps and train.epochs are both 0' --set train.steps=0 --set train.epochs=0
train_refused 2 'data.train is empty' --set 'data.train=[]'
train_refused 2 "device.*needs one of auto, cpu, cuda" --set device=tpu

# --- the base ---

train_refused 2 'absent: no such base model; name a Hugging Face folder, a .gguf file or synthetic:MODEL' --set base=absent
train_refused 2 'job.yaml: not a GGUF file; name' --set base=job.yaml
copy && rm base/model.safetensors
train_refused 2 'base: no model.safetensors .*; download' --set base=base
copy && rm base/config.json
train_refused 2 'base: no config.json; name' --set base=base
copy && truncate -s -1 base/model.safetensors
train_refused 1 'base/model.safetensors: .*truncated.*; copy or download the file again' --set base=base
: >base/model.safetensors
train_refused 1 'base/model.safetensors: shorter than 8 bytes.*again' --set base=base
copy && echo >>base/model.safetensors
train_refused 1 'base/model.safetensors: longer than its tensors need; .*again' --set base=base
copy && mv base/model.safetensors base/pytorch_model.bin
train_refused 2 'only pytorch_model.bin, a pickle.*save_pretrained' --set base=base
edited 's/"F32"/"I32"/' model.safetensors
train_refused 2 'model.safetensors: tensor model.* is I32 .*must be F32, F16 or BF16' --set base=base
edited 's/{/[/'
train_refused 1 'base/config.json:[0-9]*: not valid JSON' --set base=base
edited 's/"llama"/"mamba"/'
train_refused 2 'config.json: model_type "mamba" is not supported \(gpt2, ' --set base=base
edited 's/"intermediate_size": 172/"intermediate_size": 170/'
train_refused 1 "tensor 'model.*proj.weight' has shape .* but config.json says \[170, 64\]" --set base=base
edited 's/"num_hidden_layers": 5/"num_hidden_layers": 6/'
train_refused 1 "tensor 'model.layers.5.*' is missing: the download is incomplete or config.json" --set base=base
edited 's/"hidden_size": 64/"hidden_size": -64/'
train_refused 1 'config.json: "hidden_size" must be positive' --set base=base
edited 's/"silu"/"mish"/'
train_refused 2 'activation "mish" is not supported' --set base=base
edited 's/"rope_scaling": null/"rope_scaling": {"rope_type": "longrope"}/'
train_refused 2 'rotary scaling "longrope" is not supported' --set base=base
edited 's/"use_cache": true/"quantization_config": {"quant_method": "gptq"}/'
train_refused 2 'quantization_config" \(gptq\) is not supported; take' --set base=base
edited 's/"num_hidden_layers": 5/"num_hidden_layers": 4/'
works "warning: base: 9 tensors are not part.*'model.layers.4" eval --base base --data "$FIXTURES/data/alpaca.jsonl"

cp -r "$golden/opt-post-norm" sharded && chmod -R u+w sharded
train_refused 2 '128 positions is longer than the 64 learned positions of sharded: lower data.seq_len' --set base=sharded
truncate -s -1 sharded/model-00002-of-00003.safetensors
train_refused 1 'sharded/model-00002-of-00003.safetensors: .*truncated' --set base=sharded
rm sharded/model-00002-of-00003.safetensors
train_refused 1 'index.json: model-00002-of-00003.safetensors is not in the folder .*; download it' --set base=sharded
head -c 1000 "$FIXTURES/stories260K-q.gguf" >short.gguf
train_refused 1 'short.gguf: .*; copy or download the file again' --set base=short.gguf
mkdir folder.gguf
train_refused 2 'folder.gguf: no config.json' --set base=folder.gguf

# --- tokenizer ---

copy && rm base/tokenizer*
train_refused 2 'the base has no tokenizer; use .bin' --set base=base
train_refused 2 'synthetic:gpt2: a synthetic base has no tokenizer; give it .bin data' --set base=synthetic:gpt2
refused 2 'base has no tokenizer' tokenize --base base
refused 2 'base has no tokenizer, which generate needs' generate --base base --prompt x
megatron tokens '1 403 407 261 378 432 383' '1 2' '1 286 261 376 298'
launch=(bash -c 'ulimit -v 16000000 && exec "$@"' limited)
train_refused 1 'weights: no memory for [0-9]+ MB .*; use a larger parallel.tp or parallel.pp, or train.base_dtype' \
  --set base=synthetic:gpt3-175b --set data.train=tokens.bin --set lora.r=1 --set lora.targets=q
launch
works 'saved ' train job.yaml --set base=base --set data.train=tokens.bin
rm -r run
works '"logprobs": \[null, -' score --base base --ids '1 403 407'
edited 's/"type": *"BPE"/"type": "Unigram"/' tokenizer.json
train_refused 1 'tokenizer.json: model "Unigram" is not supported' --set base=base
works 'without a tokenizer: .*"Unigram" is not supported' train job.yaml --set base=base --set data.train=tokens.bin
rm -r run
edited 's/"type": *"Prepend"/"type": "Precompiled"/' tokenizer.json
train_refused 1 'tokenizer.json: normalizer "Precompiled" is not supported' --set base=base
copy && mv base/tokenizer.json base/tokenizer.model
train_refused 1 'tokenizer.model: only tokenizer.json is supported; write it with transformers' --set base=base
copy && cp "$FIXTURES/tokenizers/gpt2/tokenizer.json" base
train_refused 1 "outside the base's vocabulary of 512; use the base's own tokenizer" --set base=base

# --- data ---

train_refused 2 'absent.jsonl: cannot open' --set data.train=absent.jsonl
mkdir folder.jsonl
train_refused 2 'folder.jsonl: not a regular file' --set data.train=folder.jsonl
mkfifo pipe.jsonl
train_refused 2 'pipe.jsonl: not a regular file' --set data.train=pipe.jsonl
train_refused 2 'job.yaml: unknown ending; use .jsonl, .txt or .bin' --set data.train=job.yaml
# with LINES...: d.jsonl holds these lines.
with() { printf '%s\n' "$@" >d.jsonl; }
with '{"text": "a"}' '{"text": "b"' '{"text": "c"}'
train_refused 1 'd.jsonl:2: not valid JSON: byte 12' --set data.train=d.jsonl
with '{"text": "a"}' '' '[1]'
train_refused 1 'd.jsonl:3: not a JSON object; one object a line' --set data.train=d.jsonl
with '{"txt": "a"}'
train_refused 1 'd.jsonl:1: no known keys; use text, or' --set data.train=d.jsonl
with '{"text": "a"}' '{"prompt": "a", "completion": "b"}'
train_refused 1 'd.jsonl:2: a prompt_completion record in a file of text records' --set data.train=d.jsonl
with '{"text": 7}'
train_refused 1 "d.jsonl:1: the value of 'text' is not a string" --set data.train=d.jsonl
printf '{"text": "\xff"}\n' >d.jsonl
train_refused 1 'd.jsonl:1: not valid JSON: .*decode' --set data.train=d.jsonl
printf '{"text": "a\0"}\n' >d.jsonl
train_refused 1 'd.jsonl:1: holds a NUL byte' --set data.train=d.jsonl
: >d.jsonl
train_refused 1 'd.jsonl: no samples; give a file' --set data.train=d.jsonl
with '' ''
train_refused 1 'd.jsonl: no samples; give a file' --set data.train=d.jsonl
: >d.txt
train_refused 1 'd.txt: no samples; give a file' --set data.train=d.txt
printf 'a||b\nc\n' >d.txt
train_refused 1 "d.txt:2: holds '\|\|' 0 times" --set data.train=d.txt --set data.format=e2e
with '{"messages": [{"role": "boss", "content": "a"}]}'
train_refused 1 "d.jsonl:1: message 1: unknown role 'boss'" --set data.train=d.jsonl
with '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
train_refused 2 'd.jsonl: messages need a chat template .*; set data.chat_template' --set data.train=d.jsonl
train_refused 2 'data.chat_template: needs one of auto, none, chatml' --set data.train=d.jsonl --set data.chat_template=jinja
train_refused 2 'has no token <\|im_start\|>; choose another' --set data.train=d.jsonl --set data.chat_template=chatml
edited 's/"legacy": true/"chat_template": "{{ odd }}"/' tokenizer_config.json
train_refused 1 'tokenizer.json: its chat template is none of .*; set data.chat_template' --set base=base --set data.train=d.jsonl
cp tokens.bin odd.bin && head -c 100 /dev/zero >odd.idx
train_refused 1 'odd.idx: not a Megatron index' --set data.train=odd.bin
rm odd.idx
train_refused 2 'odd.idx: cannot open' --set data.train=odd.bin
megatron odd '1 900 2'
train_refused 1 "odd.bin: token 1 has an id outside the base's vocabulary of 512" --set data.train=odd.bin
# A prompt that fills the row leaves nothing to learn; a long completion is cut. Both are counted, and if nothing is
# left the run does not start.
with '{"prompt": "a", "completion": "b"}' '{"prompt": "one two three four five", "completion": "c"}' \
  '{"prompt": "a", "completion": "one two three four five"}'
works 'warning: data: 2 samples are longer than data.seq_len 8 and were cut' train job.yaml --set data.train=d.jsonl --set data.seq_len=8
grep -q 'warning: data: 1 samples have no target left to learn and were skipped' err || fault "no count of skipped: $(said)"
grep -q '3 documents,' err || fault "no count of documents: $(said)"
rm -r run
works '"truncated": 2, "without_target": 1' eval --json --base "$stories" --data d.jsonl --set data.seq_len=8
train_refused 1 'none of 3 samples has a target .*; raise data.seq_len' --set data.train=d.jsonl --set data.seq_len=1

# --- adapters: places and sizes ---

train_refused 2 "unknown module 'gatee', the nearest is 'gate'" --set 'lora.targets=[q, gatee]'
train_refused 2 "lora.targets: a gpt2 model has no linear 'gate'; it has q, k, v, o, up, down" --set base="$golden/gpt2" \
  --set data.seq_len=64 --set lora.targets=gate
train_refused 2 'lora.layers: layer 5 is not in the model, whose layers are 0 to 4' --set lora.layers=3-9
train_refused 2 'lora.overrides: layer 7 is not in the model' --set 'lora.overrides=[{layers: 7, r: 2}]'
train_refused 2 'leave no adapter to train' --set 'lora.overrides=[{off: true}]'
train_refused 2 'lora.r: 0 is out of range' --set lora.r=0

# --- layouts ---

train_refused 2 'parallel.tp 2 does not divide the number of ranks, 1: start 2' --set parallel.tp=2
for variable in OMPI_COMM_WORLD_SIZE SLURM_NTASKS; do
  launch=(env $variable=4)
  train_refused 2 "$variable is 4 but MPI sees a world of 1: start lorashard through mpirun or srun"
done
launch

# --- the output directory ---

train_refused 2 'output job.yaml is not a directory' --set output=job.yaml
train_refused 1 'cannot create output directory job.yaml/run: Not a directory' --set output=job.yaml/run
refused 2 '--resume: run holds no run to go on with' train job.yaml --resume
[ ! -e run ] || fault "--resume made a directory"
if [ "$(id -u)" -ne 0 ]; then
  mkdir -m 555 locked
  train_refused 1 'locked.*: Permission denied' --set output=locked/run
  train_refused 1 'locked.* cannot be written: Permission denied' --set output=locked
fi
mkdir run && echo mine >run/notes
works 'saved ' train job.yaml
refused 2 'run holds another run: give another output, --resume .*, or --overwrite' train job.yaml
[ "$(cat run/notes)" = mine ] && [ -e run/step-000002/adapter.h5 ] || fault "a refused run changed the directory"
# A run is replaced only when its successor can begin.
refused 2 'absent.jsonl: cannot open' train job.yaml --overwrite --set data.train=absent.jsonl
[ -e run/step-000002/adapter.h5 ] || fault "--overwrite removed the old run before the new one could begin"

# --- resuming ---

works 'nothing left to do: step 2 of 2' train job.yaml --resume
resume() { # CODE PATTERN ARGUMENTS...
  local code=$1 pattern=$2
  shift 2
  refused "$code" "$pattern" train job.yaml --resume "$@"
}
resume 2 "step-000002: adapter layers/0/q differs .*own lora" --set lora.r=4
resume 2 "step-000002: adapter layers/0/q differs .*own lora" --set lora.alpha=4
resume 2 "step-000002: adapter layers/0/q differs .*own lora" --set lora.rslora=true
resume 2 "step-000002: adapter layers/0/k differs .*absent.*own lora" --set 'lora.targets=[q, k]'
resume 2 'step-000002 holds 10 adapters but the configuration asks for 35: .*own lora' --set lora.targets=all
resume 2 'trained on other data .*resume with the same' --set data.train="$FIXTURES/data/alpaca.jsonl"
resume 2 'trained on other data \(or another data.seq_len' --set data.seq_len=64
resume 2 'trained with train.seed 0, not 3: resume with that seed' --set train.seed=3
edited 's/"rope_theta": 10000.0/"rope_theta": 20000.0/'
resume 2 'trained on another base \(.*stories260K\): resume with that base' --set base=base
mkdir empty
resume 2 '--resume: empty holds no run' --set output=empty
cp -r run broken && poke broken/step-000002/shard-tp0000-pp0000.h5 40000 'XXXX'
resume 2 '--resume: broken holds no whole checkpoint' --set output=broken
grep -q 'warning: skipping broken/step-000002: ' err || fault "the broken step is not named: $(said)"

# --- adapter files ---

works 'a.h5: step 2' gather run -o a.h5
evaluate=(eval --base "$stories" --data "$FIXTURES/data/alpaca.jsonl")
refused 2 'a.h5: exists; name another file or give --overwrite' gather run -o a.h5
refused 2 'gather needs -o' gather run
refused 2 'empty: neither a step directory nor an adapter' gather empty -o b.h5
refused 2 "absent: no such adapter; name a step directory, a run's output directory or an adapter.h5$" gather absent -o b.h5
refused 1 'job.yaml: not an HDF5 file; name a step directory' gather job.yaml -o b.h5
refused 2 'llama: a PEFT folder has nothing to gather; name a step directory' gather "$FIXTURES/peft/llama" -o b.h5
refused 1 '/nonexistent/b.h5.*: cannot create' gather run -o /nonexistent/b.h5
refused 2 'absent.h5: no such adapter; name' "${evaluate[@]}" --adapter absent.h5
refused 1 'job.yaml: not an HDF5 file; name' "${evaluate[@]}" --adapter job.yaml
refused 2 'stories260K: neither a step directory nor an adapter' "${evaluate[@]}" --adapter "$stories"
refused 2 'a.h5 was trained on another base \(.*fingerprint .*--any-base' eval --base base --adapter a.h5 --data "$FIXTURES/data/alpaca.jsonl"
refused 2 'a.h5: was trained on another base .*--any-base' merge --base base --adapter a.h5 -o merged
works '^loss ' eval --base base --adapter a.h5 --any-base --data "$FIXTURES/data/alpaca.jsonl"
train_from() { refused 2 "$1" train job.yaml --set output=fresh "${@:2}"; }
train_from 'absent.h5: no such adapter' --set lora.adapter=absent.h5
train_from 'a.h5 was trained on another base' --set lora.adapter=a.h5 --set base=base
[ ! -e fresh ] || fault "a refused adapter leaves an output directory"
cp a.h5 short.h5 && truncate -s -100 short.h5
refused 1 'short.h5: .*truncated.*copy it again' "${evaluate[@]}" --adapter short.h5
cp a.h5 flipped.h5 && poke flipped.h5 $(($(stat -c %s a.h5) / 2)) 'XXXXXXXX'
refused 1 'flipped.h5: .*checksum.*copy it again' "${evaluate[@]}" --adapter flipped.h5
works 'saved ' train job.yaml --set output=gate --set lora.targets=gate
refused 2 'layers/0/gate \[64 -> 172\] does not fit the base' eval --base "$golden/gpt2" --adapter gate --any-base --data tokens.bin --set data.seq_len=16
refused 2 'layers/0/v \[64 -> 32\] does not fit the base \(2 layers, \[64 -> 64\]' eval --base "$golden/gpt2" --adapter a.h5 --any-base --data tokens.bin --set data.seq_len=16

works 'peft: 10 modules' export a.h5 --to peft -o peft
refused 2 'peft: holds a PEFT adapter; name another folder or give --overwrite' export a.h5 --to peft -o peft
refused 2 '--to onnx: must be peft' export a.h5 --to onnx -o other
refused 2 'does not say how its base is built; give --base' export peft --to peft -o other
refused 2 'holds a model; name another folder' export a.h5 --to peft -o base
peft() { # EXPRESSION FILE PATTERN
  rm -rf changed
  cp -r peft changed
  sed -i "$1" "changed/$2"
  cmp -s "peft/$2" "changed/$2" && fault "the expression '$1' changes nothing"
  refused 1 "$3" "${evaluate[@]}" --adapter changed
}
works '^loss ' "${evaluate[@]}" --adapter peft
peft 's/"bias": "none"/"bias": "all"/' adapter_config.json 'adapter_config.json: bias is all; only "none"'
peft 's/"use_dora": false/"use_dora": true/' adapter_config.json 'adapter_config.json: use_dora is true, which is not supported'
peft 's/"bias": "none"/"bias": "none", "next_idea": 3/' adapter_config.json 'next_idea is 3, which is not supported'
peft 's/"LORA"/"IA3"/' adapter_config.json 'peft_type is IA3; only "LORA"'
peft 's/"q_proj"/"k_proj"/' adapter_config.json 'layers.0.self_attn.q_proj.lora_A.weight: target_modules in .* does not select it'
peft 's/layers.0.self_attn.q_proj.lora_A.weight/layers.0.self_attn.q_proj.lora_Z.weight/' adapter_model.safetensors 'q_proj.lora_Z.weight: is not understood'
peft 's/layers.0.self_attn/layers.9.self_attn/g' adapter_model.safetensors 'the base has no module model.layers.9.self_attn.q_proj'
refused 1 'the base has no module transformer.h.0.attn.c_attn' "${evaluate[@]}" --adapter "$FIXTURES/peft/gpt2"
rm -rf changed && cp -r peft changed && mv changed/adapter_model.safetensors changed/adapter_model.bin
refused 1 'adapter_model.bin: a pickle' "${evaluate[@]}" --adapter changed
rm changed/adapter_model.bin
refused 2 'changed/adapter_model.safetensors: cannot open' "${evaluate[@]}" --adapter changed

# --- the other commands ---

refused 2 'no data given: --data FILE' eval --base "$stories"
refused 2 'no base model given: --base BASE' eval --data d.jsonl
refused 2 'give either --ids or --text' score --base "$stories"
refused 2 'at least two tokens' score --base "$stories" --ids 1
refused 2 "'x' is not a token id" score --base "$stories" --ids '1 x'
refused 2 'token id 512 is outside the vocabulary of 512' score --base "$stories" --ids '1 512'
refused 2 '65 positions is longer than the 64 learned' score --base "$golden/gpt2" --ids "$(printf '1 %.0s' $(seq 66))"
refused 2 'no prompt given' generate --base "$stories"
refused 2 '--max-tokens 0 is out of range' generate --base "$stories" --prompt x --max-tokens 0
refused 2 "--temperature needs a number; found 'hot'" generate --base "$stories" --prompt x --temperature hot
refused 2 'the base has no chat template; choose one' generate --base "$stories" --prompt x --chat
refused 2 'give --base BASE' tokenize
refused 2 'absent: no such file or folder' inspect absent
refused 2 'job.yaml: neither safetensors nor GGUF nor HDF5' inspect job.yaml
refused 2 'gpt3-175: no built-in model .*did you mean gpt3-175b' inspect synthetic:gpt3-175
refused 2 'empty: neither a model .* nor a run with a whole step' inspect empty
refused 2 'merge needs --base, --adapter and -o' merge --base "$stories"
refused 2 '--dtype f8: must be' merge --base "$stories" --adapter a.h5 -o merged --dtype f8
refused 2 'is the base model itself' merge --base base --adapter a.h5 -o base
refused 2 'empty/..: is not empty; name another folder' merge --base "$stories" --adapter a.h5 -o empty/..
[ ! -e merged ] && [ -z "$(find . -name '*lorashard-tmp*')" ] || fault "a refused merge leaves files"

# --- losses that are not finite ---

copy && poke base/model.safetensors "$(tensor_at base/model.safetensors model.layers.2.mlp.up_proj.weight)" '\0\0\200\177'
rm -rf run
refused 1 "step 1: loss nan.*appear in layer 2: .*check the base's weights" train job.yaml --set base=base
[ -z "$(find run -name 'step-*')" ] || fault "a run without a finite loss leaves a checkpoint"
refused 1 'the loss is not finite: weights of base are damaged' eval --base base --data d.jsonl
refused 1 'log-probabilities are not finite' score --base base --ids '1 403 407'
refused 1 'the logits are not finite' generate --base base --prompt Once
launch 2
refused 1 'log-probabilities are not finite' score --base base --ids '1 403 407' --set parallel.pp=2
launch
rm -rf run
refused 1 'step [0-9]*: loss .*not finite.*lower train.lr' train job.yaml --set train.lr=1000 --set lora.alpha=1e9 --set train.steps=20 --set train.schedule=constant
# Only rows of more than 40 tokens meet the infinite position: 1 of 6. The others still train.
rm -rf run && cp -r "$golden/gpt2" positions && chmod -R u+w positions
poke positions/model.safetensors $(($(tensor_at positions/model.safetensors transformer.wpe.weight) + 40 * 64 * 2)) '\200\177'
short="$(seq -s ' ' 1 20)"
megatron rows "$short" "$short" "$(seq -s ' ' 1 50)" "$short" "$short" "$short"
rows=(train job.yaml --set base=positions --set data.train=rows.bin --set data.seq_len=64 --set data.packing=false --set train.steps=6 --set train.global_batch=1)
refused 1 "step [1-6]: loss is not finite .*embeddings already are not: the base's weights are damaged" "${rows[@]}"
rm -rf run
works 'warning: step [1-6]: .*skipped \(1 so far\)' "${rows[@]}" --set train.skip_nan=true
[ "$(grep -c '"loss":null' run/metrics.jsonl)" -eq 1 ] || fault "not one skipped step: $(cut -c1-60 run/metrics.jsonl)"
[ "$(grep -c '"loss":[0-9]' run/metrics.jsonl)" -eq 5 ] || fault "not five finite steps: $(cut -c1-60 run/metrics.jsonl)"
works '^loss ' eval --base "$golden/gpt2" --any-base --adapter run --data rows.bin --set data.seq_len=16

# --- a full disk ---

# full ARGUMENTS...: refused for lack of room; no half checkpoint stays.
full() {
  local where=$1
  shift
  refused 1 "$where/.*(No space left on device|File too large)" "$@"
  [ -z "$(find "$where" -name '*tmp*')" ] || fault "a full disk leaves $(find "$where" -name '*tmp*')"
}
rm -rf run && mkdir small
if mount -t tmpfs -o size=300k tmpfs small 2>/dev/null; then
  mounts=("$work/small")
  full small train job.yaml --set output=small/run --set checkpoint.every=1 --set checkpoint.keep_last=0 --set train.steps=5
  [ -e small/run/step-000001/manifest.json ] || fault "no first checkpoint fitted: $(find small)"
  full small train job.yaml --set output=small/run --resume --set train.steps=3
  grep -q 'resume    from small/run/step-000001' err || fault "did not resume from the last whole step: $(said)"
  head -c 300k /dev/zero >small/fill 2>/dev/null
  full small gather a.h5 -o small/b.h5
  full small export a.h5 --to peft -o small/peft
  [ ! -e small/peft ] || fault "export leaves an empty folder"
  full small merge --base "$stories" --adapter a.h5 -o small/merged
  # Of two ranks' parts only one fits.
  rm -r small/*
  head -c 150k /dev/zero >small/fill
  launch 2
  full small train job.yaml --set parallel.tp=2 --set output=small/run --set checkpoint.every=1
  launch
else
  echo "no right to mount a small disk; the limit on file sizes has to do"
fi
mkdir limited
(
  faults=0
  ulimit -f 64 # blocks of 1 KiB; a checkpoint's shard has more
  full limited train job.yaml --set output=limited/run --set checkpoint.every=1
  full limited merge --base "$stories" --adapter a.h5 -o limited/merged
  [ "$faults" -eq 0 ]
) || fault "a limit on file sizes, see above"

# --- one voice of several ranks ---

rm -rf run
launch 3
refused 2 'parallel.tp 2 does not divide the number of ranks, 3' train job.yaml --set parallel.tp=2
refused 2 'absent.yaml: cannot open' train absent.yaml
with '{"text": "a"}' '{"text": "b"'
refused 1 'd.jsonl:2: not valid JSON' train job.yaml --set data.train=d.jsonl
copy && poke base/model.safetensors "$(tensor_at base/model.safetensors model.layers.2.mlp.up_proj.weight)" '\0\0\200\177'
refused 1 'step 1: loss nan.*layer 2' train job.yaml --set base=base
rm -rf run
launch 5
refused 2 "parallel.tp 5 is more than the model's 4 attention heads" train job.yaml --set base="$golden/gpt2" --set parallel.tp=5 --set data.seq_len=64
launch 2
refused 2 "unknown command 'trian'" trian
refused 2 'absent: no such adapter' gather absent -o c.h5
refused 2 'absent: no such file' inspect absent
refused 2 'train.lr: needs a number' train job.yaml --set train.lr=x
refused 2 '--resume: run holds no run' train job.yaml --resume
refused 2 'absent.jsonl: cannot open' train job.yaml --set data.train=absent.jsonl
refused 1 'the loss is not finite' eval --base base --data "$FIXTURES/data/alpaca.jsonl" --set parallel.tp=2
refused 1 'the logits are not finite' generate --base base --prompt Once --set parallel.tp=2
truncate -s -1 base/model.safetensors
refused 1 'base/model.safetensors: .*truncated' train job.yaml --set base=base --set parallel.tp=2
edited 's/"rope_theta": 10000.0/"rope_theta": 20000.0/'
refused 2 'a.h5 was trained on another base' eval --base base --adapter a.h5 --data "$FIXTURES/data/alpaca.jsonl"
works 'saved ' train job.yaml
refused 2 'run holds another run' train job.yaml
refused 2 'differs from the configuration' train job.yaml --resume --set lora.r=4
works 'merged: .* tensors changed' merge --base "$stories" --adapter a.h5 -o merged
finish
