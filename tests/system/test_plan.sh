#!/usr/bin/env bash
# lorashard plan: every committed cluster and run, one layout by hand, sweeps, refusals, documentation.
# cores: 1
. "${BASH_SOURCE%/*}/harness.sh"

clusters=$SOURCE_DIR/cluster-configs

# number KEY: the first number of that key in `out`.
number() { grep -o "\"$1\": *[^,}]*" out | head -1 | sed 's/.*: *//'; }

# --- clusters and runs that come with the program ---
n=0
for cluster in "$clusters"/*.yaml; do
  case $(sed -n 's/^launcher: //p' "$cluster") in
    none) works 'it cannot be started: lorashard does not run' plan --model smollm2-135m --cluster "$cluster" ;;
    *) works '^start it$' plan --model smollm2-135m --cluster "$cluster" ;;
  esac
  grep -Eq '^ +note: ' out || fault "$cluster: plan does not print its note"
  n=$((n + 1))
done
[ "$n" -ge 6 ] || fault "only $n clusters"

# A run names its model and cluster in a comment, "plan: --model NAME --cluster FILE": its layout must fit there.
n=0
for run in "$clusters"/runs/*.yaml; do
  line=$(sed -n 's/^# plan: //p' "$run")
  [ -n "$line" ] || continue
  n=$((n + 1))
  # shellcheck disable=SC2086  # words
  (cd "$SOURCE_DIR" && "$LORASHARD" plan $line --config "$run" --layout config --json) >out 2>err ||
    fault "$run: $(cat err)"
  checks=$((checks + 1))
  grep -q '"fits": true' out || fault "$run does not fit: $(number total) bytes of $(number rank_memory)"
  # What the README says of it.
  row=$(grep -F "\`${run##*/}\`" "$clusters/README.md") || fault "${run##*/} is not in cluster-configs/README.md"
  layout="$(number tp) x $(number pp) x $(number dp)"
  [[ $row == *"| $layout |"* ]] || fault "cluster-configs/README.md: ${run##*/} is $layout"
  [[ $row == *" $(awk -v b="$(number total)" 'BEGIN { printf "%.1f", b / 1e9 }') of "* ]] ||
    fault "cluster-configs/README.md: ${run##*/} needs $(number total) bytes"
  speed=$(awk -v s="$(number step_s)" -v t="$(number tokens_per_s)" -v m="$(number mfu)" \
    'BEGIN { printf "| %.3g | %.0f | %.0f |", s, t, 100 * m }')
  [[ ${row//,/} == *" $speed" ]] || fault "cluster-configs/README.md: step, tokens/s and MFU of ${run##*/} are $speed"
done
[ "$n" -ge 12 ] || fault "only $n runs name a model and a cluster"

run plan --cluster-keys
sed -n '/^| key | value |/,/^$/p' "$clusters/README.md" | sed '/^$/d' | diff - out >difference ||
  fault "the keys in cluster-configs/README.md are stale (lorashard plan --cluster-keys): $(head -4 difference)"

# --- GPT-3 175B beside the LoRA paper ---
lora=(--set 'lora.targets=[q, v]' --set lora.r=4)
works 'LoRA +350 GB' plan --model gpt3-175b --cluster "$clusters/h100-16x8.yaml" "${lora[@]}"
grep -q '1\.2 TB to 350 GB' out || fault "gpt3-175b without the paper's numbers"
grep -Eq 'full fine-tuning +2\.79 TB' out || fault "gpt3-175b: full fine-tuning is not 16 bytes a parameter"
run plan --model gpt3-175b --cluster "$clusters/h100-16x8.yaml" --json "${lora[@]}"
[ "$(number trained_parameters)" = 18874368 ] || fault "r = 4 on q and v trains $(number trained_parameters)"

# --- one layout by hand ---
one=(plan --model gpt2 --cluster "$clusters/h100-1x8.yaml" --json --layout)
run "${one[@]}" tp=2,pp=2,micro_batch=4,sequence=on,recompute=selective
[ "$(number dp)" = 2 ] || fault "dp does not follow from the ranks"
[ "$(number recompute)" = '"selective"' ] || fault "recompute is $(number recompute)"
kept=$(number activations)
run "${one[@]}" tp=2,pp=2,micro_batch=4,sequence=on,recompute=full
[ "$(number activations)" -lt "$kept" ] || fault "full recomputation keeps no less than selective"
# Two all-reduces a layer each way, one of the embedding, one of the head's input, and two for each chunk of the
# loss; at the lowest layer one: 4 x 12 - 1 + 2 and the loss. GPT-2 at 1024 positions: one chunk of 2048 a micro-batch.
run "${one[@]}" tp=8,micro_batch=1 --set data.seq_len=1024 --set train.global_batch=1
[ "$(number calls)" = 51.0 ] || fault "a step of GPT-2 at tp 8 has $(number calls) calls over tp, not 51"

# Without tensor parallelism there is no sequence to split: off, as train has it.
run "${one[@]}" tp=1,sequence=on
[ $code -eq 0 ] && [ "$(number sequence)" = false ] || fault "sequence=on without tp: $(number sequence) $(said)"
# Full recomputation: a layer's products but those of down (4 of 12 D^2), and attention. Memory takes no time here.
cat >fast.yaml <<'END'
name: memory without limit
nodes: 1
device: {kind: cpu, per_node: 1, memory: 8e9, bandwidth: 1e15, f32: {achieved: 1e12}}
END
run plan --model gpt2 --cluster fast.yaml --json --layout recompute=full,micro_batch=1 --set data.seq_len=1024 \
  --set train.global_batch=1
again=$(awk -v a="$(number recompute_s)" -v b="$(number attention_s)" 'BEGIN { print a - b / 3.5 }')
close_to "$again" "$(awk 'BEGIN { print 12 * 2 * 1024 * 8 * 768 ^ 2 / 1e12 }')" 1e-3 ||
  fault "full recomputation of GPT-2 spends $again s on products"

# --- the type of the weights ---
base=$(sed 's/"bfloat16"/"float32"/' "$FIXTURES/configs/llama-3.2-1b.json") && echo "$base" >f32.json
grep -v torch_dtype f32.json >silent.json
for kind in "smollm2-135m|bf16 (assumed)" "silent.json|bf16 (assumed)" "f32.json|f32" \
  "$FIXTURES/configs/llama-3.2-1b.json|bf16" "synthetic:smollm2-135m,dtype=f32|f32" "$golden/gpt2-peft|f32"; do
  run plan --model "${kind%|*}" --cluster "$clusters/laptop.yaml" --layout tp=1 --set data.seq_len=32
  grep -Fq "parameters in ${kind#*|}, " out || fault "plan does not say ${kind#*|}: $(head -1 out) $(said)"
done
weights() { # MODEL: bytes of the base
  run plan --model "$1" --cluster "$clusters/h100-1x8.yaml" --json --layout tp=1
  number base
}
close_to "$(weights f32.json)" "$((2 * $(weights silent.json)))" 1e-3 || # but for norms, which are f32 in both
  fault "a base in f32 takes $(weights f32.json) bytes, in bf16 $(weights silent.json)"

# --- the command ---
starts() { # TEXT ARGUMENTS...: the command, after "start it", has the text
  local text=$1 command
  shift
  run plan "$@"
  command=$(sed -n '/^start it$/ { n; p }' out)
  grep -qF -- "$text" <<<"$command" || fault "'$*' does not say how to start it, '$text': $command $(said)"
}
starts "--set 'lora.targets=[q, v]' --set lora.r=4 --set parallel.tp=" --model gpt2 \
  --cluster "$clusters/laptop.yaml" "${lora[@]}"
# A key that the layout sets is left out of the user's.
run plan --model gpt2 --cluster "$clusters/laptop.yaml" --layout tp=2 --set lora.r=4 --set data.seq_len=128 \
  --set train.compute=f32 --set train.global_batch=4 --set train.micro_batch=2 --set parallel.tp=1
tail -n 1 out | grep -o -- '--set [^=]*' | sort | uniq -d >twice
[ ! -s twice ] && tail -n 1 out | grep -q -- '--set lora.r=4 .*--set parallel.tp=2 .*--set data.seq_len=128 ' ||
  fault "the command repeats $(tr '\n' ' ' <twice): $(tail -n 1 out) $(said)"
# Slurm starts as many ranks on each node: 12 are two nodes of 6, 13 are 13 of one.
starts '--nodes=2 --ntasks-per-node=6 --gpus-per-node=6 ' --model gpt2 --cluster "$clusters/h100-16x8.yaml" --ranks 12
starts '--nodes=13 --ntasks-per-node=1 ' --model gpt2 --cluster "$clusters/h100-16x8.yaml" --ranks 13
# The name of a model and a config.json name no weights: the run's own base stays, or BASE stands for it.
quickstart=(--config "$clusters/runs/quickstart.yaml" --cluster "$clusters/laptop.yaml" --layout config)
starts '--set base=BASE --set parallel.tp=2 ' --model smollm2-135m "${quickstart[@]}"
starts '--set base=BASE --set parallel.tp=2 ' --model f32.json "${quickstart[@]}"
starts "--set 'base=\"synthetic:smollm2-135m\"' --set parallel.tp=2 " --model synthetic:smollm2-135m "${quickstart[@]}"
starts "--set 'base=\"$golden/llama\"' --set parallel.tp=2 " --model "$golden/llama" "${quickstart[@]}"
echo "base: /data/mine" | cat - "$clusters/runs/quickstart.yaml" >own.yaml
starts ' own.yaml --set output=OUTPUT --set parallel.tp=2 ' --model smollm2-135m --config own.yaml \
  --cluster "$clusters/laptop.yaml" --layout config
[ "$(tail -n 1 out)" = "it trains the run's own base, /data/mine; the sizes above are smollm2-135m's" ] ||
  fault "plan does not say which base the command trains: $(tail -n 1 out)"
starts ' own.yaml --set output=OUTPUT ' --model "$golden/llama" --config own.yaml --cluster "$clusters/laptop.yaml" \
  --layout config --set data.seq_len=64
grep -q 'it trains the run' out && fault "the command trains another base than $golden/llama: $(tail -n 1 out)"
starts "OMP_NUM_THREADS=4 mpirun -n 2 --mca odls_base_sigkill_timeout 60 --bind-to none $LORASHARD train " --model gpt2 --cluster "$clusters/laptop.yaml"
links='{all_reduce: {beta: 1e9}, all_gather: {beta: 1e9}, point_to_point: {beta: 1e9}}'
sed -e 's/^nodes: 1/nodes: 2/' -e "\$a network: $links" "$clusters/laptop.yaml" >two-laptops.yaml
starts "mpirun -n 4 --mca odls_base_sigkill_timeout 60 --hostfile HOSTS --map-by ppr:2:node -x OMP_NUM_THREADS --mca oob_tcp_keepalive_time 10 " \
  --model gpt2 --cluster two-laptops.yaml

# --- a cluster without peak rates has no MFU ---
sed 's/peak: 384e9, //' "$clusters/laptop.yaml" >no-peak.yaml
works '^ +2 +1 +1 .*[0-9k] +-  +[0-9.]+' plan --model gpt2 --cluster no-peak.yaml --layout tp=2
grep -q 'MFU [0-9]' out && fault "an MFU without a peak: $(grep MFU out)"
works '^ +2 +[0-9]+ .*[0-9k] +-  +[0-9.]+' plan --model gpt2 --cluster no-peak.yaml --sweep 1..2
grep -q 'MFU [0-9]' out && fault "a sweep's MFU without a peak: $(grep 'MFU [0-9]' out)"
run plan --model gpt2 --cluster no-peak.yaml --json
[ "$(number mfu)" = null ] && [ "$(number peak_flops)" = null ] || fault "MFU without a peak: $(number mfu) $(said)"

# --- what travels within a node and over the network ---
# Two nodes of four, a slow network: the stages beside it are the slowest, whose messages plan prints.
cat >nodes.yaml <<'END'
name: two nodes
nodes: 2
device: {kind: cpu, per_node: 4, memory: 8e9, bandwidth: 20e9, f32: {achieved: 1e11}}
node: {all_reduce: {beta: 1e9}, all_gather: {beta: 1e9}, point_to_point: {alpha: 1e-3, beta: 1e9}}
network: {all_reduce: {beta: 1e6}, all_gather: {beta: 1e6}, point_to_point: {alpha: 2e-3, beta: 1e6}}
END
# splits LAYOUT GROUP NODE NETWORK: bytes that a rank sends in a step, awk expressions of b, the group's buffers.
splits() {
  run plan --model gpt2 --cluster nodes.yaml --json --set data.seq_len=1024 --set train.global_batch=8 \
    --layout "micro_batch=1,$1"
  tr -d ' \n' <out | grep -o '"traffic":{.*' | grep -o "\"$2\":{[^}]*}" | head -1 >group
  awk -v b="$(field group bytes)" -v n="$(field group node_bytes)" -v w="$(field group network_bytes)" \
    "BEGIN { e = 1e-9 * b; x = n - ($3); y = w - ($4); exit !(b > 0 && x * x <= e * e && y * y <= e * e) }" ||
    fault "$1, $2: not $3 in the node and $4 over the network of b: $(cat group) $(said)"
}
splits tp=4,dp=2 tp '2 * b * 3 / 4' 0
splits tp=4,dp=2 dp 0 'b'                         # two nodes: 2 b / 2
splits tp=4,dp=2 stage '2 * b * 3 / 4' 'b / 4'    # four here: a quarter of b crosses, twice the half of it
splits tp=1,dp=8 dp '2 * b * 3 / 4' 'b / 4'
splits tp=8 tp '2 * b * 3 / 4' 'b / 4'
# Stages of two ranks: of the three borders only the middle one is that of the nodes. The slowest stage is beside it
# and sends 8 micro-batches of 1024 x 768 f32 each way.
splits tp=2,pp=4 pp '8 * 1024 * 768 * 4' '8 * 1024 * 768 * 4'
close_to "$(field group seconds)" "$(awk 'BEGIN { n = 1024 * 768 * 4; printf "%.12g", 8 * (3e-3 + n / 1e9 + n / 1e6) }')" 1e-9 ||
  fault "messages between stages take $(field group seconds) s"
# Ranks 0 to 2 send to 3 to 5; 3 is beside 0, but 4 and 5 are on the other node.
splits tp=1,pp=2,dp=3 pp 0 'b'
# The second group of three is 3 | 4 5: rank 3 sums all of b with the other node, as in a ring of two, 2 b / 2.
splits tp=3,dp=2 tp 0 'b'
splits tp=3,dp=2 dp 0 'b' # 0 3 | and 1 | 4
splits tp=5,dp=1 tp 0 'b' # 0 1 2 3 | 4
splits tp=1,dp=7 dp '2 * b * 2 / 3' 'b / 3' # 0 1 2 3 | 4 5 6
seconds_of_b() { # SECONDS: of the last splits, an awk expression of b
  close_to "$(field group seconds)" "$(awk -v b="$(field group bytes)" "BEGIN { printf \"%.12g\", $1 }")" 1e-9 ||
    fault "$1 seconds for b bytes, not $(cat group)"
}
seconds_of_b 'b / 3 / 1e6 + 2 * b * 2 / 3 / 1e9'
# 0 1 2 3 | 4 5 6 7 | 8: nine ranks are on three nodes, not on nine because one of them is alone; in a ring of three.
sed -i 's/^nodes: 2/nodes: 3/' nodes.yaml
splits tp=9,dp=1 tp 0 '2 * b * 2 / 3'
seconds_of_b '2 * b * 2 / 3 / 1e6'
# Under Slurm 12 ranks are 6 and 6: the second group of four is 4 5 | 6 7.
sed -i '$a launcher: slurm' nodes.yaml
sed -i 's/per_node: 4/per_node: 8/' nodes.yaml
splits tp=4,dp=3 tp '2 * b / 2' 'b / 2'
starts '--nodes=2 --ntasks-per-node=6 ' --model gpt2 --cluster nodes.yaml --layout tp=4,dp=3

# --- what a run sends ---
# Every row is full, so that bytes can be compared: those of the loss depend on targets, one token in 64 has none.
documents=()
for ((i = 0; i < 16; i++)); do documents+=("$(seq -s ' ' $((i + 3)) $((i + 66)))"); done
megatron full "${documents[@]}"
cat >run.yaml <<END
base: $stories
data: {train: [full.bin], format: tokens, seq_len: 64, packing: true}
lora: {r: 4, targets: all}
train: {steps: 1, global_batch: 8, micro_batch: 2}
output: out-run
END
cat >cluster.yaml <<'END'
name: here
nodes: 1
device: {kind: cpu, per_node: 4, memory: 8e9, bandwidth: 20e9, f32: {achieved: 1e11}}
node:
  all_reduce: {alpha: 1e-6, beta: 1e9}
  all_gather: {alpha: 1e-6, beta: 1e9}
  point_to_point: {alpha: 1e-6, beta: 1e9}
END
# same_traffic SETTING...: two ranks send what plan says: equal calls, bytes within 2 %.
same_traffic() {
  local settings=() setting group calls bytes real
  for setting; do settings+=(--set "$setting"); done
  launch 2
  works 'step' train run.yaml --overwrite "${settings[@]}"
  launch
  run plan --config run.yaml --cluster cluster.yaml --ranks 2 --layout config --json "${settings[@]}"
  for group in tp pp stage dp control; do
    real=$(tail -1 out-run/metrics.jsonl | grep -o "\"$group\":{[^}]*}")
    tr -d ' \n' <out | grep -o "\"traffic\":{.*" | grep -o "\"$group\":{[^}]*}" | head -1 >planned
    calls=$(field planned calls) bytes=$(field planned bytes)
    grep -o '"calls":[0-9]*' <<<"$real" >real_calls
    grep -o '"bytes":[0-9]*' <<<"$real" >real_bytes
    close_to "$(cut -d: -f2 real_calls)" "$calls" 0 ||
      fault "$*: $group: plan says $calls calls, the run made $(cut -d: -f2 real_calls)"
    close_to "$(cut -d: -f2 real_bytes)" "$bytes" 0.02 ||
      fault "$*: $group: plan says $bytes bytes, the run sent $(cut -d: -f2 real_bytes)"
  done
}
same_traffic parallel.tp=2
same_traffic parallel.tp=2 parallel.sequence=true 'lora.targets=[q, v]' train.recompute=selective
same_traffic parallel.tp=2 parallel.sequence=true train.recompute=full 'lora.layers=[2, 3]'
same_traffic parallel.pp=2

# The printed line starts the run.
run plan --config run.yaml --cluster cluster.yaml --ranks 2 --layout config --set parallel.tp=2
line=$(tail -n 1 out)
(
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  mpirun() { command "${MPIRUN%% *}" "$@"; }
  eval "${line//OUTPUT/out-line}"
) >out 2>err </dev/null || fault "'$line' does not start: $(said)"
[ -s out-line/metrics.jsonl ] || fault "'$line' trains nothing"

# Weights that are made up are not taken for a model's: one rank says so.
launch 2
works 'warning: synthetic:smollm2-135m,layers=1: its weights are made up' train run.yaml --overwrite \
  --set base=synthetic:smollm2-135m,layers=1 --set train.global_batch=2 --set train.micro_batch=1
[ "$(grep -c 'made up' err)" -eq 1 ] || fault "made-up weights are reported $(grep -c 'made up' err) times"
launch

# --- sweeps ---
run plan --model gpt3-175b --cluster "$clusters/h100-16x8.yaml" --sweep 8..16384 --strong --json "${lora[@]}"
[ $code -eq 0 ] || fault "sweep: $(said)"
[ "$(grep -c '"stops_at_ranks"' out)" -eq 3 ] || fault "a sweep does not say where each way of growing stops"
works 'more of dp alone \(replicas\): never above' plan --model llama-3.1-70b --cluster "$clusters/h100-16x8.yaml" \
  --sweep 8..1024

# --- refusals ---
refused 2 '--cluster is missing' plan --model gpt2
refused 2 '--model or --config is missing' plan --cluster "$clusters/laptop.yaml"
refused 2 'gpt3-176b: no built-in model and no config.json; did you mean gpt3-175b' plan --model gpt3-176b --cluster "$clusters/laptop.yaml"
refused 2 'nothing fits: the smallest layout' plan --model llama-3.1-70b --cluster "$clusters/laptop.yaml"
refused 2 'tp 3 x pp 1 x dp 2 is not 8 ranks' plan --model gpt2 --cluster "$clusters/h100-1x8.yaml" --ranks 8 --layout tp=3
refused 2 'tp 8 x pp 2 x dp 1 is 16 ranks, but 1 node of 8 x H100 SXM has 8$' plan --model gpt2 \
  --cluster "$clusters/h100-1x8.yaml" --json --layout tp=8,pp=2
refused 2 'parallel.tp 16 is more than the model.s 12 attention heads' plan --model gpt2 \
  --cluster "$clusters/h100-16x8.yaml" --layout tp=16
refused 2 'parallel.pp 16 is more than the model.s 12 layers' plan --model gpt2 --cluster "$clusters/h100-16x8.yaml" \
  --layout pp=16
refused 2 "unknown 'foo'; there are tp, pp, dp, micro_batch, sequence, recompute, base_dtype$" plan --model gpt2 \
  --cluster "$clusters/h100-1x8.yaml" --layout tp=2,foo=3
refused 2 "unknown 'half'; there are none, selective, full$" plan --model gpt2 --cluster "$clusters/h100-1x8.yaml" \
  --layout recompute=half
refused 2 '127 ranks need 127 nodes, since Slurm .* has 16; the next numbers that fit are 120 and 128$' plan \
  --model llama-3.1-8b --cluster "$clusters/h100-16x8.yaml" --ranks 127
refused 2 '126 ranks need 18 nodes, .* 120 and 128$' plan --model llama-3.1-8b --cluster "$clusters/h100-16x8.yaml" \
  --layout tp=3
h100=(plan --model gpt2 --cluster "$clusters/h100-16x8.yaml")
refused 2 '--ranks and --sweep exclude each other' "${h100[@]}" --sweep 8..64 --ranks 8
refused 2 '--top and --sweep exclude each other' "${h100[@]}" --sweep 8..64 --top 3
refused 2 '--layout and --top exclude each other' "${h100[@]}" --layout tp=8 --top 3
refused 2 '--layout and --search-base-dtype exclude each other' "${h100[@]}" --layout tp=8 --search-base-dtype
refused 2 '--strong is about a sweep' "${h100[@]}" --strong
refused 2 '--share is about a sweep' "${h100[@]}" --share 0.2
refused 2 'FROM\.\.TO' plan --model gpt2 --cluster "$clusters/h100-1x8.yaml" --sweep 8
refused 2 'no section network' plan --model gpt2 --cluster "$clusters/h100-1x8.yaml" --sweep 8..64
refused 2 'no device.bf16.achieved' plan --model gpt2 --cluster "$clusters/laptop.yaml" --set train.compute=bf16
refused 2 'learned positions' plan --model gpt2 --cluster "$clusters/laptop.yaml" --set data.seq_len=4096
sed 's/peak: 384e9/peak: 84e9/' "$clusters/laptop.yaml" >fast.yaml
refused 2 'device.f32.achieved 2.3e\+11 is more than device.f32.peak 8.4e\+10' plan --model gpt2 --cluster fast.yaml
sed 's/  memory:/  memroy:/' "$clusters/laptop.yaml" >typo.yaml
refused 2 "unknown key 'device.memroy'; the nearest is 'device.memory'" plan --model gpt2 --cluster typo.yaml

# A model's folder with its weights, as train takes it.
works 'llama' plan --model "$golden/llama" --cluster "$clusters/laptop.yaml" --set data.seq_len=64
finish
