#!/usr/bin/env bash
# Stopping and going on: the same layout gives the bits of a run that never stopped, other layouts its curve; a signal
# to one rank ends all of them with a checkpoint.
# shellcheck source=tests/system/runs.sh
. "$(dirname "$0")/runs.sh"
export OMPI_MCA_mpi_yield_when_idle=1 # a rank that waits leaves its core to the others

# keep_steps FOLDER STEP...: as if the run had ended with the last of these checkpoints.
keep_steps() {
  local run=$scratch/$1/run step
  shift
  for step in "$run"/step-*; do
    case " $* " in *" $(basename "$step") "*) ;; *) rm -rf "$step" ;; esac
  done
}
copy() {
  rm -rf "${scratch:?}/$2"
  cp -r "$scratch/$1" "$scratch/$2"
  : >"$scratch/$2/log"
  rm -f "$scratch/$2/state.h5"
}

# --- the same layout ---

common=(--set parallel.tp=2 --set train.micro_batch=2 --set checkpoint.every=5)
must_train whole 4 "${common[@]}"
"$LORASHARD" gather "$scratch/whole/run" -o "$scratch/whole/state.h5" --with-optimizer >/dev/null || fault "gather failed"
flat whole

copy whole stopped
keep_steps stopped step-000005
must_train stopped 4 "${common[@]}" --resume
grep -q 'resume .*step 5, epoch 0, 25 of 73 rows used' "$scratch/stopped/log" || fault "resumed elsewhere: $(grep resume "$scratch/stopped/log")"
"$LORASHARD" gather "$scratch/stopped/run" -o "$scratch/stopped/state.h5" --with-optimizer >/dev/null || fault "gather failed"
same_bytes whole/state.h5 stopped/state.h5 "12 steps, and 5 + 7"
same_lines whole stopped
same_trainable whole stopped

# --- other layouts, twice on the way ---

copy whole moved
keep_steps moved step-000005
must_train moved 2 --set checkpoint.every=5 --set train.micro_batch=4 --resume
keep_steps moved step-000005 step-000010
must_train moved 4 --set parallel.tp=4 --set train.micro_batch=3 --set checkpoint.every=5 --resume
grep -q 'resume .*step 10' "$scratch/moved/log" || fault "resumed elsewhere: $(grep resume "$scratch/moved/log")"
same_curve whole moved
same_trainable whole moved
flat moved && near_adapter whole moved 1e-3

# Stops inside the second epoch (15 rows, 5 a step; epochs of 3 steps), dp 1, 2, 1.
head -15 "$SOURCE_DIR/launch/data/e2e-train.txt" >"$scratch/few.txt"
few=(--set "data.train=[$scratch/few.txt]" --set checkpoint.every=1 --set train.micro_batch=2)
must_train epochs 1 "${few[@]}"
copy epochs epochs-moved
keep_steps epochs-moved step-000004
must_train epochs-moved 2 "${few[@]}" --resume
keep_steps epochs-moved step-000004 step-000005
must_train epochs-moved 1 "${few[@]}" --resume
same_curve epochs epochs-moved
rows=$(sed -n 's/.*targets in \([0-9]*\) rows.*/\1/p' "$scratch/epochs/log" | head -1)
[[ $rows -ge 11 && $rows -le 19 ]] || fault "$rows rows: the stops are not inside the second epoch"

# --- a checkpoint that lacks a part, and none ---

copy whole torn
keep_steps torn step-000005 step-000010
rm "$scratch/torn/run/step-000010"/shard-tp0001-pp0000.h5
must_train torn 4 "${common[@]}" --resume
grep -q 'resume .*step 5' "$scratch/torn/log" || fault "a torn step was used: $(grep resume "$scratch/torn/log")"
grep -q 'warning: .*step-000010' "$scratch/torn/log" || fault "a torn step was skipped without a word"
flat torn && same_bytes whole/adapter.h5 torn/adapter.h5 "resumed from the step before a torn one"
copy whole bare
keep_steps bare
train bare 2 "${common[@]}" --resume
[ $? -eq 2 ] || fault "--resume without a checkpoint did not end with 2"
[ "$(grep -c 'error: ' "$scratch/bare/log")" -eq 1 ] || fault "not one line of error: $(cat "$scratch/bare/log")"

# --- signals: mpirun starts each rank through a shell that leaves its process id ---

# start FOLDER RANKS [ARGUMENTS]: in the background; $! is mpirun.
start() {
  local folder=$scratch/$1 ranks=$2
  shift 2
  mkdir -p "$folder"
  rm -f "$folder"/pid.*
  # shellcheck disable=SC2016,SC2086  # the shells of the ranks expand it; MPIRUN is words
  (cd "$folder" && exec $MPIRUN -n "$ranks" sh -c 'echo $$ >"pid.${OMPI_COMM_WORLD_RANK:-$PMI_RANK}"; exec "$@"' rank \
    "$LORASHARD" train "$scratch/job.yaml" "$@" >>log 2>&1 </dev/null) &
}
# wait_for SECONDS FILE PATTERN COUNT: until so many lines of the file match.
wait_for() {
  local n
  for ((n = $1 * 20; n > 0; n--)); do
    [ "$(grep -cs -- "$3" "$2")" -ge "$4" ] 2>/dev/null && return 0
    sleep 0.05
  done
  fault "no '$3' in $2"
  return 1
}
# stop_rank FOLDER MPIRUN_PID RANK SIGNAL: one rank is told to stop; all end in good order within a minute.
stop_rank() {
  local folder=$scratch/$1 code=0 n
  kill "-$4" "$(cat "$folder/pid.$3")" || fault "$1: rank $3 is gone"
  for ((n = 1200; n > 0; n--)); do
    kill -0 "$2" 2>/dev/null || break
    sleep 0.05
  done
  [ "$n" -gt 0 ] || {
    fault "$1: still running a minute after the signal"
    kill -KILL "$2"
  }
  wait "$2" || code=$?
  [ "$code" -eq 0 ] || fault "$1: ended with $code after $4: $(tail -3 "$folder/log")"
  [ "$(grep -c 'stopping at step [0-9]* as asked by a signal' "$folder/log")" -eq 1 ] || fault "$1: no line about the stop: $(tail -3 "$folder/log")"
  step=$(sed -n 's/.*stopping at step \([0-9]*\) as.*/\1/p' "$folder/log" | tail -1)
  [ -f "$folder/run/$(printf 'step-%06d' "$step")/manifest.json" ] || fault "$1: no checkpoint of step $step"
  [ "$(cat "$folder/run/latest")" = "$(printf 'step-%06d' "$step")" ] || fault "$1: latest is $(cat "$folder/run/latest")"
}

# Runs without an end that a signal might come too late for. The learning rate does not depend on it: the last part and
# the undisturbed run end a little after the second stop, wherever that is.
long=(--set train.schedule=constant --set train.global_batch=16 --set train.micro_batch=2 --set parallel.tp=2)
endless=(--set train.steps=1000000)
start told 2 "${long[@]}" "${endless[@]}"
wait_for 60 "$scratch/told/run/metrics.jsonl" '"step"' 5 && stop_rank told $! 1 TERM
: >"$scratch/told/log"
start told 2 "${long[@]}" "${endless[@]}" --resume
wait_for 60 "$scratch/told/run/metrics.jsonl" '"step"' $((step + 3)) && stop_rank told $! 0 USR1
end=$((step + 5))
must_train told 2 "${long[@]}" --set train.steps=$end --resume
must_train uninterrupted 2 "${long[@]}" --set train.steps=$end
flat uninterrupted
flat told && same_bytes uninterrupted/adapter.h5 told/adapter.h5 "stopped twice by signals"
same_lines uninterrupted told

# One of four ranks, while an evaluation runs (it is most of the time).
start evaluating 4 "${long[@]}" "${endless[@]}" --set eval.every=1 --set "data.eval=[$SOURCE_DIR/launch/data/e2e-eval.txt]"
wait_for 60 "$scratch/evaluating/log" 'eval loss' 2 && stop_rank evaluating $! 3 TERM

finish
