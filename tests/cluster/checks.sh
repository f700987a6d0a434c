#!/usr/bin/env bash
# What tests/cluster/run checks; run starts it in namespaces of its own.
here=$SOURCE_DIR/tests/cluster
# shellcheck source=tests/cluster/hosts.sh
. "$here/hosts.sh"
make_hosts || {
  echo "the hosts cannot be made (above)"
  exit 1
}
# shellcheck source=tests/system/runs.sh
. "$SOURCE_DIR/tests/system/runs.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export OMPI_MCA_mpi_yield_when_idle=1 # a rank that waits leaves its core to the others
started=$SECONDS
part() { printf '%3d s  %s\n' $((SECONDS - started)) "$*"; }

settings=(--set device=cpu --set train.steps=16 --set checkpoint.every=2)
four=(--set parallel.tp=2)

# start FOLDER HOST... -- ARGUMENTS...: training in the background, $job; its output in FOLDER/log.
start() {
  local folder=$scratch/$1 on=()
  shift
  while [ "$1" != -- ]; do
    on+=("$1")
    shift
  done
  shift
  mkdir -p "$folder"
  : >"$folder/log" # what is looked for there is this run's
  (cd "$folder" && over "${on[@]}" -- "$LORASHARD" train "$scratch/job.yaml" "${settings[@]}" "$@" >log 2>&1) &
  job=$!
}
gone() { ! kill -0 "$job" 2>/dev/null; }
# ended FOLDER SECONDS: the job ends within them; its exit code is $code.
ended() {
  await "$2" gone || {
    said "$1" "the job has not ended after $2 s"
    pkill -KILL -P "$job"
  }
  { # the shell reports killed jobs
    wait "$job"
    code=$?
  } 2>/dev/null
}
well() { # FOLDER SECONDS: it ends, and well
  ended "$@"
  [ "$code" -eq 0 ] || hopeless "$1" "exit code $code"
}
said() { # FOLDER FAULT: with what it said
  fault "$1: $2"
  tail -n 25 "$scratch/$1/log"
}
hopeless() {
  said "$@"
  finish
}
steps() { [ "$(cat "$scratch/$1"/run/metrics.jsonl 2>/dev/null | wc -l)" -ge "$2" ]; }
newest() { (cd "$scratch/$1/run" && printf '%s\n' step-?????? | tail -1) 2>/dev/null; }
none_left() { # HOST NAME...
  local name
  for name in "${@:2}"; do [ -z "$(process "$1" "$name")" ] || return; done
}

# went FOLDER STEPS: it has done so many since it was started. metrics.jsonl has the lines of the run before until it
# says "memory".
went() {
  local from
  grep -q '^lorashard: memory ' "$scratch/$1/log" || return
  from=$(sed -n 's/^lorashard: resume .*: step \([0-9]*\),.*/\1/p' "$scratch/$1/log")
  steps "$1" $((${from:-0} + $2))
}
# reach FOLDER: the run has done three steps, and what it saved last is $saved.
reach() {
  await 90 went "$1" 3 || hopeless "$1" "it does no three steps"
  await 60 published "$1" || hopeless "$1" "nothing is saved"
  saved=$(newest "$1")
  gone && hopeless "$1" "it has ended"
}
published() { [[ $(newest "$1") == step-0* ]]; }
# broke FOLDER SECONDS PATTERN [LINES]: the job ends within them, not well, and one line, or at most LINES, says why:
# this one. No host that can be reached keeps a process of it.
broke() {
  local since=$SECONDS lines host
  ended "$1" "$2"
  [ "$code" -ne 0 ] || said "$1" "exit code 0"
  lines=$(grep -E '^lorashard: error: |^ORTE has lost|^mpi(run|exec) noticed|Remote daemon:' "$scratch/$1/log" | sed '/^ORTE has lost/{N;s/\n */ /}')
  [ "$(wc -l <<<"$lines")" -le "${4:-1}" ] || said "$1" "not ${4:-1} message"
  grep -Eqv "$3" <<<"$lines" && said "$1" "a line that is not '$3'"
  for host in "${hosts[@]}"; do
    [ "$host" = "${unreachable-}" ] || await 20 none_left "$host" lorashard orted || fault "$1: processes are left on $host"
  done
  part "ended after $((SECONDS - since)) s, code $code: $(sed 's/  */ /g' <<<"$lines")"
}
# resumes FOLDER: the run that was started went on from what was whole when the one before broke, or newer.
resumes() {
  local from
  await 90 grep -q '^lorashard: resume ' "$scratch/$1/log" || hopeless "$1" "it does not resume"
  from=$(sed -n 's/^lorashard: resume  *from run\/\(step-[0-9]*\):.*/\1/p' "$scratch/$1/log")
  [[ ! $from < $saved ]] || said "$1" "it resumes from '$from', but $saved was whole"
}
# The time of the fastest of the last four steps: whatever else the machine does makes some of them longer.
least_seconds() { tail -n 4 "$scratch/$1/run/metrics.jsonl" | sed -n 's/.*"step_seconds":\([^,]*\).*/\1/p' | sort -g | head -1; }

# --- four hosts are one ---

must_train one 1 "${settings[@]}"
must_train packed 4 "${settings[@]}" "${four[@]}"
part "trained on one host, with 1 and with 4 ranks"
start spread "${hosts[@]}" -- "${four[@]}"
well spread 120
same_curve one spread
same_lines packed spread
flat one && flat packed && flat spread && near_adapter one spread 1e-3 &&
  same_bytes packed/adapter/adapter_model.safetensors spread/adapter/adapter_model.safetensors "the layout is the same"
part "four hosts: the curve of one rank, the bits of four ranks on one host"

# --- who shares a node ---

over "${hosts[@]}" -- "$LORASHARD" doctor >"$scratch/doctor" 2>&1 || fault "doctor over four hosts: $(tail -5 "$scratch/doctor")"
[ "$(grep -c 'Open MPI, 4 ranks, 1 on this node' "$scratch/doctor")" -eq 4 ] || fault "doctor does not see four nodes"
per_host=2
over node-01 node-02 -- "$LORASHARD" doctor >"$scratch/doctor" 2>&1 || fault "doctor over two hosts: $(tail -5 "$scratch/doctor")"
per_host=1
[ "$(grep -c 'Open MPI, 4 ranks, 2 on this node' "$scratch/doctor")" -eq 2 ] || fault "doctor does not see two nodes with two ranks"
# The threads of a rank are its share of the node's cores: MPI_Comm_split_type tells the hosts apart.
cores=$(nproc --all)
unset OMP_NUM_THREADS
start threads "${hosts[@]}" -- --set train.steps=1
well threads 60
export OMP_NUM_THREADS=1
threads=$(sed -n 's/^lorashard: device .* \([0-9]*\) threads\?;.*/\1/p' "$scratch/threads/log")
[ "$threads" = "$cores" ] || said threads "a host's only rank has ${threads:-no} threads of $cores cores"
part "four nodes; a host's only rank uses its $cores cores"

# --- a slow link ---

slowness='netem: 4 ms, 50 Mbit/s'
slow_down node-02 netem delay 4ms rate 50mbit 2>/dev/null || {
  echo '*** NOT TESTED: a link with a delay; this kernel has no netem. Only a lower rate is ***'
  slowness='tbf: 20 Mbit/s'
  slow_down node-02 tbf rate 20mbit burst 64kb latency 1s || fault "no link can be slowed down"
}
mkdir -p "$scratch/slow"
cp -r "$scratch/spread/run" "$scratch/slow/run"
rm -r "$scratch"/slow/run/step-00001[46] "$scratch/slow/run/latest"
start slow "${hosts[@]}" -- "${four[@]}" --resume
well slow 120
speed_up node-02
same_lines spread slow
flat slow && same_bytes spread/adapter/adapter_model.safetensors slow/adapter/adapter_model.safetensors "a slow link"
ratio=$(awk -v a="$(least_seconds slow)" -v b="$(least_seconds spread)" 'BEGIN { printf "%.1f", a / b }')
awk -v r="$ratio" 'BEGIN { exit !(r > 1) }' || fault "the slow link does not make it slower: ratio $ratio"
part "one host's link slowed ($slowness): the same bits, a step takes $ratio times as long"

# --- one run that is broken four times ---

# It has no end that it might come to before: the last part is given one. The learning rate does not depend on it.
saved=
settings+=(--set train.schedule=constant --set train.steps=1000000)
timeout_s=10
start broken "${hosts[@]}" -- "${four[@]}" --set dist.timeout_s=$timeout_s
reach broken
link data node-03 down
# Either side of the cut may say that the other one does not come.
broke broken $((timeout_s + 45)) "error: .* has not finished after [0-9]+ s at step" 2
start broken node-01 node-02 node-04 -- --resume
resumes broken
link data node-03 up
part "the data link of one host cut; goes on over three hosts, tp 1 x dp 3"

reach broken
kill -KILL "$(process node-04 lorashard)"
broke broken 30 'mpi(run|exec) noticed that process rank 2 .* on node node-04 exited on signal 9'
start broken "${hosts[@]}" -- "${four[@]}" --resume
resumes broken
part "a rank killed; goes on over four hosts, tp 2 x dp 2"

reach broken
kill -KILL "$(process node-02 orted)"
broke broken 30 'lost communication .* on node node-02'
timeout_s=20
start broken "${hosts[@]}" -- --set parallel.tp=4 --set dist.timeout_s=$timeout_s --resume
resumes broken
part "mpirun's daemon on one host killed; goes on over four hosts, tp 4"

reach broken
link data node-01 down
link control node-01 down
unreachable=node-01
broke broken 30 'lost communication .* on node node-01'
end=$(($(wc -l <"$scratch/broken/run/metrics.jsonl") + 4)) # beyond all that may have been saved
start broken node-02 node-03 node-04 -- --set train.steps=$end --resume
resumes broken
part "the first host, with rank 0, cut off; goes on over the other three"
well broken 120
await $((timeout_s + 30)) none_left node-01 lorashard || fault "the host that was cut off still computes"
link data node-01 up
link control node-01 up
await 40 none_left node-01 lorashard orted || fault "the host that was cut off keeps a daemon after it came back"
must_train undisturbed 1 "${settings[@]}" --set train.steps=$end
same_curve undisturbed broken
flat undisturbed && flat broken && near_adapter undisturbed broken 1e-3
part "broken four times: every step once, the curve of the undisturbed run"
finish
