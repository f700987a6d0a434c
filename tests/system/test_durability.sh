#!/usr/bin/env bash
# Runs that are cut off: whatever ends them and whenever, --resume goes on from the newest whole checkpoint and the
# final adapter equals that of an undisturbed run byte for byte.
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOF
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 128}
lora: {r: 4, targets: [q, v, down], dropout: 0.1}
train: {steps: 40, global_batch: 3, micro_batch: 2, lr: 1e-3, warmup_steps: 5}
checkpoint: {every: 1}
output: run
EOF

# start ARGUMENTS...: the program in the background, $job; the ranks' process ids in pid.0, pid.1, ...
start() {
  rm -f pid.*
  timeout 100 ${launch[@]+"${launch[@]}"} bash -c \
    'echo $$ >pid.tmp.$$; mv pid.tmp.$$ pid.${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec "$@"' - \
    "$LORASHARD" "$@" >out 2>err </dev/null &
  job=$!
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
  eventually "$1" gone || fault "the job has not ended after $1 s: $(cat err)"
  wait $job
  code=$?
}
gone() { ! kill -0 $job; }
reached() { [ "$(wc -l <run/metrics.jsonl)" -ge "$1" ]; }
writing() { compgen -G 'run/step-*.tmp' >/dev/null; }
newest() { ls -d run/step-?????? | tail -1; }
# same_as REFERENCE: the run's last step, gathered, equals that file.
same_as() {
  works 'modules' gather run -o got.h5 --with-optimizer --overwrite
  cmp -s "$1" got.h5 || fault "the adapter differs from the undisturbed run's: $2"
}

# --- references, and pruning ---

works 'saved     run/step-000040' train job.yaml
[ "$(echo run/step-*)" = 'run/step-000039 run/step-000040' ] || fault "keep_last 2 keeps $(echo run/step-*)"
[ "$(cat run/latest)" = step-000040 ] || fault "latest names $(cat run/latest)"
works 'step 40' gather run -o one.h5 --with-optimizer
cp run/metrics.jsonl metrics.one
rm -r run
works 'saved' train job.yaml --set train.steps=5 --set checkpoint.every=2 --set checkpoint.keep_last=0
[ "$(echo run/step-*)" = 'run/step-000002 run/step-000004 run/step-000005' ] || fault "keep_last 0 keeps $(echo run/step-*)"
works 'saved' train job.yaml --resume --set train.steps=6 --set checkpoint.keep_last=1
[ "$(echo run/step-*)" = 'run/step-000006' ] || fault "keep_last 1 keeps $(echo run/step-*)"
rm -r run

# --- kill -9 of one process at ten moments, half of them within a checkpoint ---

start train job.yaml
for moment in 2 writing 6 writing 12 writing 18 writing 26 writing; do
  if [ $moment = writing ]; then
    eventually 20 writing || fault "no checkpoint is being written"
  else
    eventually 20 reached $moment || fault "step $moment is not reached: $(cat err)"
  fi
  kill -9 "$(cat pid.0)"
  wait $job
  [ $? -eq 137 ] || fault "the run had ended before it was killed at $moment: $(cat err)"
  checks=$((checks + 1))
  start train job.yaml $([ -e run/latest ] && echo --resume || echo --overwrite)
done
ended 60
[ $code -eq 0 ] || fault "the last resume ended with $code: $(cat err)"
grep -q 'resume    from run/step-' err || fault "no line says where the run resumed: $(cat err)"
same_as one.h5 'kill -9 of one process'
[ -z "$(find run -name '*.tmp*')" ] || fault "the killed runs leave $(find run -name '*.tmp*')"
# Every step has one line, with the loss of the undisturbed run.
losses() { sed 's/"grad_norm".*//' "$1"; }
losses run/metrics.jsonl >a && losses metrics.one >b && cmp -s a b || fault "metrics.jsonl differs from the undisturbed run's"

# --- damaged checkpoints: the newest whole one is used, and that is said ---

damaged() { # NAME: the run stands at 40 with step 39 beside it; resume from 39
  works 'resume    from run/step-000039' train job.yaml --resume
  grep -Eq "warning: skipping run/step-000040: .*$2" err || fault "$1: not said: $(cat err)"
  same_as one.h5 "$1"
}
echo step-000777 >run/latest
works 'resume    from run/step-000040' train job.yaml --resume
grep -q 'warning: run/latest: names "step-000777"; the newest whole step is 40' err || fault "a wrong 'latest' is not named: $(cat err)"
rm run/latest
works 'resume    from run/step-000040' train job.yaml --resume
poke run/step-000040/shard-tp0000-pp0000.h5 30000 'XXXX'
damaged 'a changed byte' 'shard-tp0000-pp0000.h5'
truncate -s -1 run/step-000040/shard-tp0000-pp0000.h5
damaged 'a truncated shard' 'shard-tp0000-pp0000.h5'
rm run/step-000040/adapter.h5
damaged 'a missing file' 'adapter.h5'
: >run/step-000040/manifest.json
damaged 'an empty manifest' 'manifest.json'
mv run/step-000040 run/step-000040.tmp
works 'resume    from run/step-000039' train job.yaml --resume
same_as one.h5 'a leftover step-000040.tmp'
[ ! -e run/step-000040.tmp ] || fault "step-000040.tmp was not removed"
rm -r run

# --- signals: the step is finished, a checkpoint written, exit code 0 ---

stops() { # SIGNAL RANK: that signal to that rank
  rm -rf run
  start train job.yaml "${@:3}"
  eventually 30 reached 4 || fault "no step is reached: $(cat err)"
  kill "-$1" "$(cat "pid.$2")"
  ended 20
  [ $code -eq 0 ] || fault "SIG$1 to rank $2: exit code $code: $(cat err)"
  grep -q 'stopping at step [0-9]* as asked by a signal; go on with: lorashard train .* --resume' err ||
    fault "SIG$1 to rank $2: no line how to go on: $(cat err)"
  local at
  at=$(sed -n 's/.*stopping at step \([0-9]*\).*/\1/p' err)
  [ "$(newest)" = "$(printf 'run/step-%06d' "$at")" ] || fault "SIG$1: stopped at $at, newest is $(newest)"
  works "resume    from $(newest)" train job.yaml --resume "${@:3}"
}
stops INT 0
same_as one.h5 'SIGINT'
stops TERM 0
same_as one.h5 'SIGTERM'
stops USR1 0 --set checkpoint.every=0
same_as one.h5 'SIGUSR1' 2>/dev/null

# --- two ranks ---

launch 2
two='--set parallel.tp=2'
rm -rf run
works 'saved' train job.yaml $two
launch
works 'step 40' gather run -o two.h5 --with-optimizer
launch 2
stops TERM 1 $two
launch
same_as two.h5 'SIGTERM to one of two ranks'
launch 2

# A killed rank ends the job; so does one that does not answer, with one line that names where the others wait.
rm -rf run
start train job.yaml $two
eventually 30 reached 6 || fault "no step is reached: $(cat err)"
kill -9 "$(cat pid.1)"
ended 10
[ $code -ne 0 ] || fault "the job of a killed rank ended with 0"
start train job.yaml $two --resume
eventually 30 reached 12 || fault "no step is reached: $(cat err)"
eventually 30 writing
kill -9 "$(cat pid.0)"
ended 10
start train job.yaml $two --resume --set dist.timeout_s=3
eventually 30 reached 20 || fault "no step is reached: $(cat err)"
kill -STOP "$(cat pid.1)"
ended 15
[ $code -eq 1 ] || fault "the job of a stuck rank ended with $code: $(cat err)"
[ "$(grep -c 'lorashard: error: ' err)" -eq 1 ] || fault "not one line for a stuck rank: $(cat err)"
grep -Eq 'error: (all-reduce|broadcast|all-gather|barrier) over group (tp|control|stage|dp) has not finished after [34] s at step [0-9]+: .*dist.timeout_s' err ||
  fault "a stuck rank: $(cat err)"
works 'resume    from run/step-' train job.yaml --resume $two
launch
same_as two.h5 'two killed ranks and a stuck one'
finish
