#!/usr/bin/env bash
# Runs that are cut off: whatever ends them and whenever, --resume goes on from the newest whole checkpoint and the
# final adapter equals that of an undisturbed run byte for byte.
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOF
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 128}
lora: {r: 4, targets: [q, v, down], dropout: 0.1}
train: {steps: 40, global_batch: 3, micro_batch: 2, lr: 1e-3, warmup_steps: 5}
checkpoint: {every: 4}
output: run
EOF

layout=() # what every run of a part is given

# start ARGUMENTS...: a run in the background, $job; the ranks' process ids in pid.0, pid.1, ...
start() {
  rm -f pid.*
  timeout 100 ${launch[@]+"${launch[@]}"} bash -c \
    'echo $$ >pid.tmp.$$; mv pid.tmp.$$ pid.${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec "$@"' - \
    "$LORASHARD" train job.yaml ${layout[@]+"${layout[@]}"} "$@" >out 2>err </dev/null &
  job=$!
  eventually 20 [ -e pid.0 ] && eventually 20 [ ${#launch[@]} -eq 0 -o -e pid.1 ] || fault "the program does not start"
}
finishes() { # PATTERN ARGUMENTS...: a run to its end
  works "$1" train job.yaml ${layout[@]+"${layout[@]}"} "${@:2}"
}
# eventually SECONDS COMMAND...: true once the command is.
eventually() {
  local ends=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do
    [ $SECONDS -le $ends ] || return 1
    sleep 0.01
  done
}
# ended SECONDS: the job ends within them; its exit code goes to $code.
ended() {
  checks=$((checks + 1))
  { # the shell reports killed jobs
    eventually "$1" gone || fault "the job has not ended after $1 s: $(said)"
    wait $job
    code=$?
  } 2>/dev/null
}
gone() { ! kill -0 $job; }
reached() { [ "$(wc -l <run/metrics.jsonl)" -ge "$1" ]; }
# A checkpoint is being written, by the present run.
writing() {
  local step
  for step in run/step-*.tmp; do [ "$step" -nt pid.0 ] && return; done
  return 1
}
published() { [ -n "$(newest)" ]; }
newest() { ls -d run/step-?????? | tail -1; }
# same_as REFERENCE: the run's last step, gathered, equals that file.
same_as() {
  works 'modules' gather run -o got.h5 --with-optimizer --overwrite
  cmp -s "$1" got.h5 || fault "the adapter differs from the undisturbed run's: $2"
}

# --- references, and pruning ---

finishes 'saved     run/step-000040'
[ "$(echo run/step-*)" = 'run/step-000036 run/step-000040' ] || fault "keep_last 2 keeps $(echo run/step-*)"
[ "$(cat run/latest)" = step-000040 ] || fault "latest names $(cat run/latest)"
works 'step 40' gather run -o one.h5 --with-optimizer
cp run/metrics.jsonl metrics.one
rm -r run
finishes 'saved' --set train.steps=5 --set checkpoint.every=2 --set checkpoint.keep_last=0
[ "$(echo run/step-*)" = 'run/step-000002 run/step-000004 run/step-000005' ] || fault "keep_last 0 keeps $(echo run/step-*)"
finishes 'saved' --resume --set train.steps=6 --set checkpoint.keep_last=1
[ "$(echo run/step-*)" = 'run/step-000006' ] || fault "keep_last 1 keeps $(echo run/step-*)"
rm -r run

# --- kill -9 of one process at ten moments, half of them within a checkpoint ---

start
half=0
for moment in 3 writing 10 writing 15 writing 23 writing 30 writing; do
  if [ $moment = writing ]; then
    eventually 20 writing || fault "no checkpoint is being written"
  else
    eventually 20 reached $moment || fault "step $moment is not reached: $(said)"
  fi
  kill -9 "$(cat pid.0)"
  ended 10
  [ $code -eq 137 ] || fault "the run had ended before it was killed at $moment: $(said)"
  writing && half=$((half + 1))
  start "$(compgen -G 'run/step-??????' >/dev/null && echo --resume || echo --overwrite)"
done
echo "killed 10 times, $half times within a checkpoint"
ended 60
[ $code -eq 0 ] || fault "the last resume ended with $code: $(said)"
grep -q 'resume    from run/step-' err || fault "no line says where the run resumed: $(said)"
same_as one.h5 'kill -9 of one process'
[ -z "$(find run -name '*.tmp*')" ] || fault "the killed runs leave $(find run -name '*.tmp*')"
# Every step has one line, with the loss of the undisturbed run.
losses() { sed 's/"grad_norm".*//' "$1"; }
losses run/metrics.jsonl >a && losses metrics.one >b && cmp -s a b || fault "metrics.jsonl differs from the undisturbed run's"

# --- damaged checkpoints: the newest whole one is used, and that is said ---

damaged() { # NAME: the run stands at 40 with step 36 beside it; resume from 36
  finishes 'resume    from run/step-000036' --resume
  grep -Eq "warning: skipping run/step-000040: .*$2" err || fault "$1: not said: $(said)"
  same_as one.h5 "$1"
}
echo step-000777 >run/latest
finishes 'resume    from run/step-000040' --resume
grep -q 'warning: run/latest: names "step-000777"; the newest whole step is 40' err || fault "a wrong 'latest' is not named: $(said)"
rm run/latest
finishes 'resume    from run/step-000040' --resume
poke run/step-000040/shard-tp0000-pp0000.h5 30000 'XXXX'
damaged 'a changed byte' 'shard-tp0000-pp0000.h5'
truncate -s -1 run/step-000040/shard-tp0000-pp0000.h5
damaged 'a truncated shard' 'shard-tp0000-pp0000.h5'
rm run/step-000040/adapter.h5
damaged 'a missing file' 'adapter.h5'
: >run/step-000040/manifest.json
damaged 'an empty manifest' 'manifest.json'
mv run/step-000040 run/step-000040.tmp
finishes 'resume    from run/step-000036' --resume
same_as one.h5 'a leftover step-000040.tmp'
[ ! -e run/step-000040.tmp ] || fault "step-000040.tmp was not removed"
rm -r run

# --- signals: the step is finished, a checkpoint written, exit code 0 ---

stops() { # SIGNAL RANK REFERENCE [ARGUMENTS...]: that signal to that rank of a run with these arguments
  rm -rf run
  start "${@:4}"
  eventually 30 reached 4 || fault "no step is reached: $(said)"
  kill "-$1" "$(cat "pid.$2")"
  ended 20
  [ $code -eq 0 ] || fault "SIG$1 to rank $2: exit code $code: $(said)"
  grep -q 'stopping at step [0-9]* as asked by a signal; go on with: lorashard train .* --resume' err ||
    fault "SIG$1 to rank $2: no line how to go on: $(said)"
  local at
  at=$(sed -n 's/.*stopping at step \([0-9]*\).*/\1/p' err)
  [ "$(newest)" = "$(printf 'run/step-%06d' "$at")" ] || fault "SIG$1: stopped at $at, newest is $(newest)"
  finishes "resume    from $(newest)" --resume
  same_as "$3" "SIG$1 to rank $2"
}
stops INT 0 one.h5
stops TERM 0 one.h5
stops USR1 0 one.h5 --set checkpoint.every=0

# --- two ranks ---

launch 2
layout=(--set parallel.tp=2)
rm -rf run
finishes 'saved'
works 'step 40' gather run -o two.h5 --with-optimizer
stops TERM 1 two.h5

# A killed rank ends the job; so does one that does not answer, with one line that names it
# and where the others wait.
rm -rf run
start
eventually 30 published || fault "no checkpoint is published: $(said)"
kill -9 "$(cat pid.1)"
ended 10
[ $code -ne 0 ] || fault "the job of a killed rank ended with 0"
start --resume
eventually 30 reached 12 || fault "no step is reached: $(said)"
eventually 30 writing
kill -9 "$(cat pid.0)"
ended 10
start --resume --set dist.timeout_s=3
eventually 30 reached 20 || fault "no step is reached: $(said)"
kill -STOP "$(cat pid.1)"
ended 15
[ $code -eq 1 ] || fault "the job of a stuck rank ended with $code: $(said)"
[ "$(grep -c 'lorashard: error: ' err)" -eq 1 ] || fault "not one line for a stuck rank: $(said)"
grep -Eq 'error: (all-reduce|broadcast|all-gather|barrier|agreement) over group (tp|control|stage|dp) has not finished after [0-9]+ s at step [0-9]+: rank 1 \(host [^ ]+\) does not answer \(limit: dist.timeout_s\)' err ||
  fault "a stuck rank: $(said)"
finishes 'resume    from run/step-' --resume
same_as two.h5 'two killed ranks and a stuck one'
finish
