#!/usr/bin/env bash
# The program on GPUs, here emulated ones ($EMULATED/lorashard, tests/gpu_emulation): every layout and path of the
# collectives gives the CPU's curve, repeats and resumes are equal to the bit, and what cannot be is refused in a line.
# shellcheck source=tests/system/runs.sh
. "$(dirname "$0")/runs.sh"

cpu=$LORASHARD gpu=${EMULATED-}/lorashard
[ -n "${EMULATED-}" ] || { echo "this build has no emulated GPUs" && exit 77; }
quick=(--set train.steps=4 --set train.micro_batch=2)
export OMPI_MCA_rmaps_base_oversubscribe=1

# on_gpus NUMBER FOLDER RANKS [ARGUMENTS]: with that many emulated GPUs.
on_gpus() {
  local gpus=$1
  shift
  EMULATED_GPUS=$gpus LORASHARD=$gpu must_train "$1" "$2" "${quick[@]}" --set device=cuda "${@:3}"
}
says() { grep -Eq -- "$2" "$scratch/$1/log" || fault "$1 does not say '$2': $(tail -5 "$scratch/$1/log")"; }

# --- the CPU's curve in every layout ---

must_train cpu 1 "${quick[@]}" --set device=cpu
flat cpu
while read -r name gpus ranks arguments; do
  # shellcheck disable=SC2086  # arguments are words
  on_gpus "$gpus" "$name" "$ranks" $arguments
  same_curve cpu "$name"
  same_trainable cpu "$name"
  # See test_layouts.sh for the tolerance.
  flat "$name" && near_adapter cpu "$name" 1e-3
done <<<"one 1 1
tp2 2 2 --set parallel.tp=2
tp2-dp2 4 4 --set parallel.tp=2
stages 4 4 --set parallel.tp=2 --set parallel.pp=2 --set parallel.sequence=true --set train.recompute=full
staged 2 2 --set parallel.tp=2 --set dist.collectives=mpi
shared 1 2 --set parallel.tp=2 --set dist.share_gpus=true
graphs 2 2 --set parallel.tp=2 --set train.graphs=true"

says one 'device +cuda: emulated GPU'
! grep -q 'GPU memory travels' "$scratch/one/log" || fault "one rank tells how its GPU memory travels to others"
says tp2 'rank 1 on GPU 0000:02:00.0'
says tp2 'GPU memory travels by NCCL'
says staged 'GPU memory travels by MPI over pinned host buffers'
says shared 'GPU memory travels by MPI over pinned host buffers'
messages() { grep -o '"comm":{[^}]*}\|"tp":{[^}]*}\|"[a-z_]*\(calls\|bytes\)":[0-9]*' "$scratch/$1/run/metrics.jsonl" | grep -v rss; }
[ -n "$(messages tp2)" ] || fault "no messages are counted"
for name in staged graphs; do
  cmp -s <(messages tp2) <(messages $name) || fault "$name counts other messages than tp2"
done

# --- the same bits ---

on_gpus 2 again 2 --set parallel.tp=2
flat again && same_bytes tp2/adapter.h5 again/adapter.h5 "the same layout twice"
# Sums of two ranks have one order whatever carries them.
same_bytes tp2/adapter/adapter_model.safetensors staged/adapter/adapter_model.safetensors "NCCL and MPI"
same_bytes tp2/adapter/adapter_model.safetensors graphs/adapter/adapter_model.safetensors "with and without graphs"
on_gpus 2 stopped 2 --set parallel.tp=2 --set checkpoint.every=2
rm -r "$scratch/stopped/run/step-000004"
on_gpus 2 stopped 2 --set parallel.tp=2 --set checkpoint.every=2 --resume
flat stopped && same_bytes tp2/adapter/adapter_model.safetensors stopped/adapter/adapter_model.safetensors "2 + 2 steps"

# --- from the CPU to GPUs in the middle of a run, quantised base, bf16 ---

must_train moved 1 "${quick[@]}" --set device=cpu --set checkpoint.every=2
rm -r "$scratch/moved/run/step-000004"
on_gpus 2 moved 2 --set parallel.tp=2 --resume
same_curve cpu moved

quantised=(--set "base=$FIXTURES/stories260K-q.gguf")
must_train q-cpu 1 "${quick[@]}" "${quantised[@]}" --set device=cpu
on_gpus 2 q-gpu 2 "${quantised[@]}" --set parallel.tp=2
same_curve q-cpu q-gpu
# Emulated tensor cores are slow: two steps of short rows.
bf16=(--set train.compute=bf16 --set lora.dropout=0 --set train.steps=2 --set data.seq_len=48)
must_train bf16-cpu 1 "${quick[@]}" "${bf16[@]}" --set device=cpu
on_gpus 1 bf16-gpu 1 "${bf16[@]}"
# bf16 has 8 bits: losses agree to a few units of the last one, 2^-8, after two steps.
loss() { grep -o '"loss":[^,]*' "$scratch/$1/run/metrics.jsonl" | tail -1 | cut -d: -f2; }
awk -v a="$(loss bf16-cpu)" -v b="$(loss bf16-gpu)" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 0 && d < 4 / 256 * a) }' ||
  fault "bf16 loss $(loss bf16-gpu) on the GPU, $(loss bf16-cpu) on the CPU"

# --- the other commands ---

generate=(generate --base "$FIXTURES/stories260K" --prompt 'Once upon a time' --max-tokens 20 --ids)
EMULATED_GPUS=1 "$gpu" "${generate[@]}" --set device=cuda >"$scratch/gpu.txt" 2>"$scratch/log" || fault "generate: $(cat "$scratch/log")"
"$cpu" "${generate[@]}" --set device=cpu >"$scratch/cpu.txt" 2>"$scratch/log" || fault "generate: $(cat "$scratch/log")"
cmp -s "$scratch/gpu.txt" "$scratch/cpu.txt" || fault "generate differs: $(cat "$scratch/gpu.txt"), on the CPU $(cat "$scratch/cpu.txt")"

# --- refusals ---

# refuses CODE PATTERN GPUS RANKS ARGUMENTS
refuses() {
  local code=$1 pattern=$2 gpus=$3 ranks=$4 ended
  shift 4
  rm -rf "$scratch/refused"
  EMULATED_GPUS=$gpus LORASHARD=$gpu train refused "$ranks" "${quick[@]}" "$@"
  ended=$?
  [ $ended -eq "$code" ] || fault "'$*' ended with $ended, not $code: $(tail -3 "$scratch/refused/log")"
  [ "$(grep -c 'error: ' "$scratch/refused/log")" -eq 1 ] || fault "'$*' did not print one error: $(cat "$scratch/refused/log")"
  says refused "error: .*$pattern"
}
refuses 2 "2 of this machine's 2 ranks would share GPU 0000:01:00.0" 1 2 --set device=cuda
refuses 1 'device cuda: no GPU' 0 1 --set device=cuda
refuses 2 'share' 1 2 --set device=cuda --set dist.share_gpus=true --set dist.collectives=nccl
refuses 2 'train.graphs' 2 2 --set device=cuda --set parallel.tp=2 --set train.graphs=true --set dist.collectives=mpi
EMULATED_GPUS=0 LORASHARD=$gpu must_train auto 1 "${quick[@]}" --set device=auto
says auto 'device +cpu'
cp "$cpu" "$scratch/alone"
LORASHARD=$scratch/alone train no-plugin 1 "${quick[@]}" --set device=cuda
says no-plugin 'error: device cuda: this build has no liblorashard_cuda.so'

# --- a rank that dies ends the job, with its GPU's collectives under way ---

mkdir -p "$scratch/killed"
start=$SECONDS
(cd "$scratch/killed" && EMULATED_GPUS=2 timeout 60 $MPIRUN -n 2 "$gpu" train "$scratch/job.yaml" --set device=cuda \
  --set parallel.tp=2 --set train.steps=100000 >log 2>&1 </dev/null) &
for _ in $(seq 100); do [ -s "$scratch/killed/run/metrics.jsonl" ] && break || sleep 0.2; done
pkill -9 -n -f "$gpu train $scratch/job.yaml" || fault "no rank to kill: $(tail -3 "$scratch/killed/log")"
wait $! && fault "a job whose rank was killed ended well"
[ $((SECONDS - start)) -lt 55 ] || fault "a job whose rank was killed did not end"

# --- a rank that hangs: the others wait for its part of a collective, and say so ---

mkdir -p "$scratch/hung"
(cd "$scratch/hung" && EMULATED_GPUS=2 timeout 60 $MPIRUN -n 2 "$gpu" train "$scratch/job.yaml" --set device=cuda \
  --set parallel.tp=2 --set train.steps=100000 --set dist.timeout_s=3 >log 2>&1 </dev/null) &
for _ in $(seq 100); do [ -s "$scratch/hung/run/metrics.jsonl" ] && break || sleep 0.2; done
hung=$(pgrep -n -f "$gpu train $scratch/job.yaml") && kill -STOP "$hung" || fault "no rank to stop: $(tail -3 "$scratch/hung/log")"
wait $! && fault "a job with a rank that hangs ended well"
says hung 'error: .*(all-reduce|collective) over group tp has not finished after [0-9]+ s at step [0-9]+: rank [01] \(host [^ ]+\) does not answer'
kill -KILL "$hung" 2>/dev/null

finish
