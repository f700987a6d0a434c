#!/usr/bin/env bash
# Runs that are cut off: whatever ends them and whenever, --resume goes on from the newest whole checkpoint and the
# final adapter equals that of an undisturbed run byte for byte.
. "$(dirname "$0")/harness.sh"
export OMPI_MCA_mpi_yield_when_idle=1 # a rank that waits leaves its core to the others

# The learning rate does not depend on the number of steps: what is cut off has no end of its own that it might reach
# before, however slow this script is; where it got to decides how long the last part is.
cat >job.yaml <<EOF
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 128}
lora: {r: 4, targets: [q, v, down], dropout: 0.1}
train: {steps: 24, global_batch: 3, micro_batch: 2, lr: 1e-3, warmup_steps: 5, schedule: constant}
checkpoint: {every: 4}
output: run
EOF
endless=(--set train.steps=1000000)

layout=() # what every run of a part is given

# start ARGUMENTS...: a run without end in the background, $job; the ranks' process ids in pid.0, pid.1, ...
start() {
  rm -f pid.*
  : >err # what is looked for there is this run's
  timeout 300 ${launch[@]+"${launch[@]}"} bash -c \
    'echo $$ >pid.tmp.$$; mv pid.tmp.$$ pid.${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}; exec "$@"' - \
    "$LORASHARD" train job.yaml ${layout[@]+"${layout[@]}"} "${endless[@]}" "$@" >out 2>err </dev/null &
  job=$!
  eventually 60 [ -e pid.0 ] && eventually 60 [ ${#launch[@]} -eq 0 -o -e pid.1 ] || fault "the program does not start"
}
finishes() { # PATTERN ARGUMENTS...: a run to its end
  works "$1" train job.yaml ${layout[@]+"${layout[@]}"} "${@:2}"
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
# did STEPS: the present run has done so many. metrics.jsonl has the lines of the one before until it says "memory".
did() {
  local from
  grep -q '^lorashard: memory ' err || return
  from=$(sed -n 's/^lorashard: resume .*: step \([0-9]*\),.*/\1/p' err)
  [ "$(wc -l <run/metrics.jsonl)" -ge $((${from:-0} + $1)) ]
}
# A checkpoint is being written, by the present run.
writing() {
  local step
  for step in run/step-*.tmp; do [ "$step" -nt pid.0 ] && return; done
  return 1
}
saved_since() { [ "$(newest)" != "$1" ]; }
newest() { ls -d run/step-?????? | tail -1; }
# end_after STEP: where a run that has got there is to end: at 24, or a little later.
end_after() { echo $(($1 < 24 ? 24 : $1 + 4)); }
# undisturbed STEPS: $reference is the adapter of a run that nothing cut off; its metrics lie beside it.
undisturbed() {
  reference=$work/undisturbed.${#launch[@]}.$1
  [ ! -e "$reference" ] || return
  mkdir -p elsewhere
  cp job.yaml elsewhere
  cd elsewhere || exit
  finishes 'saved' --overwrite --set train.steps="$1"
  works 'modules' gather run -o "$reference" --with-optimizer
  cp run/metrics.jsonl "$reference.metrics"
  cd ..
}
# same_as STEPS WHAT: the run's last step, gathered, equals that of an undisturbed run of so many.
same_as() {
  undisturbed "$1"
  works 'modules' gather run -o got.h5 --with-optimizer --overwrite
  cmp -s "$reference" got.h5 || fault "the adapter differs from the undisturbed run's: $2"
}
# goes_on STEP WHAT: from that one to the end, and is the same as if nothing had been.
goes_on() {
  local end
  end=$(end_after "$1")
  finishes "resume    from $(newest)" --resume --set train.steps="$end"
  same_as "$end" "$2"
}

# --- an undisturbed run ---

finishes 'saved     run/step-000024'
[ "$(echo run/step-*)" = 'run/step-000020 run/step-000024' ] || fault "keep_last 2 keeps $(echo run/step-*)"
[ "$(cat run/latest)" = step-000024 ] || fault "latest names $(cat run/latest)"
same_as 24 'another run'

# --- damaged checkpoints: the newest whole one is used, and that is said ---

damaged() { # NAME: the run stands at 24 with step 20 beside it; resume from 20
  finishes 'resume    from run/step-000020' --resume
  grep -Eq "warning: skipping run/step-000024: .*$2" err || fault "$1: not said: $(said)"
  same_as 24 "$1"
}
echo step-000777 >run/latest
finishes 'resume    from run/step-000024' --resume
grep -q 'warning: run/latest: names "step-000777"; the newest whole step is 24' err || fault "a wrong 'latest' is not named: $(said)"
rm run/latest
finishes 'resume    from run/step-000024' --resume
poke run/step-000024/shard-tp0000-pp0000.h5 30000 'XXXX'
damaged 'a changed byte' 'shard-tp0000-pp0000.h5'
truncate -s -1 run/step-000024/shard-tp0000-pp0000.h5
damaged 'a truncated shard' 'shard-tp0000-pp0000.h5'
rm run/step-000024/adapter.h5
damaged 'a missing file' 'adapter.h5'
: >run/step-000024/manifest.json
damaged 'an empty manifest' 'manifest.json'
mv run/step-000024 run/step-000024.tmp
finishes 'resume    from run/step-000020' --resume
same_as 24 'a leftover step-000024.tmp'
[ ! -e run/step-000024.tmp ] || fault "step-000024.tmp was not removed"
rm -r run

# --- pruning ---

finishes 'saved' --set train.steps=5 --set checkpoint.every=2 --set checkpoint.keep_last=0
[ "$(echo run/step-*)" = 'run/step-000002 run/step-000004 run/step-000005' ] || fault "keep_last 0 keeps $(echo run/step-*)"
finishes 'saved' --resume --set train.steps=6 --set checkpoint.keep_last=1
[ "$(echo run/step-*)" = 'run/step-000006' ] || fault "keep_last 1 keeps $(echo run/step-*)"
rm -r run

# --- kill -9 of one process at ten moments, half of them within a checkpoint ---

half=0
for moment in 3 writing saved writing 6 writing saved writing 2 writing; do
  before=$(newest 2>/dev/null)
  how=${before:+--resume}
  how=${how:---overwrite}
  case $moment in
    writing)
      start "$how" --set checkpoint.every=1
      eventually 60 writing || fault "no checkpoint is being written: $(said)"
      ;;
    saved)
      start "$how"
      eventually 60 saved_since "$before" || fault "no checkpoint is saved: $(said)"
      ;;
    *)
      start "$how"
      eventually 60 did $moment || fault "$moment steps are not done: $(said)"
      ;;
  esac
  kill -9 "$(cat pid.0)"
  ended 30
  [ $code -eq 137 ] || fault "the run had ended with $code before it was killed at $moment: $(said)"
  writing && half=$((half + 1))
done
at=$(newest)
echo "killed 10 times, $half times within a checkpoint; the newest one is $at"
goes_on $((10#${at#run/step-})) 'kill -9 of one process'
[ -z "$(find run -name '*.tmp*')" ] || fault "the killed runs leave $(find run -name '*.tmp*')"
# Every step has one line, with the loss of the undisturbed run.
losses() { sed 's/"grad_norm".*//' "$1"; }
losses run/metrics.jsonl >a && losses "$reference.metrics" >b && cmp -s a b ||
  fault "metrics.jsonl differs from the undisturbed run's"

# --- signals: the step is finished, a checkpoint written, exit code 0 ---

stops() { # SIGNAL RANK [ARGUMENTS...]: that signal to that rank of a run with these arguments
  local at
  rm -rf run
  start "${@:3}"
  eventually 60 did 4 || fault "no step is reached: $(said)"
  kill "-$1" "$(cat "pid.$2")"
  ended 60
  [ $code -eq 0 ] || fault "SIG$1 to rank $2: exit code $code: $(said)"
  grep -q 'stopping at step [0-9]* as asked by a signal; go on with: lorashard train .* --resume' err ||
    fault "SIG$1 to rank $2: no line how to go on: $(said)"
  at=$(sed -n 's/.*stopping at step \([0-9]*\).*/\1/p' err)
  [ "$(newest)" = "$(printf 'run/step-%06d' "$at")" ] || fault "SIG$1: stopped at $at, newest is $(newest)"
  goes_on "${at:-0}" "SIG$1 to rank $2"
}
stops INT 0
stops TERM 0
stops USR1 0 --set checkpoint.every=0

# --- two ranks ---

launch 2
layout=(--set parallel.tp=2)
stops TERM 1

# A killed rank ends the job; so does one that does not answer, with one line that names it
# and where the others wait.
rm -rf run
start
eventually 60 saved_since '' || fault "no checkpoint is published: $(said)"
kill -9 "$(cat pid.1)"
ended 30
[ $code -ne 0 ] || fault "the job of a killed rank ended with 0"
start --resume --set checkpoint.every=1
eventually 60 writing || fault "no checkpoint is being written: $(said)"
kill -9 "$(cat pid.0)"
ended 30
# Without checkpoints: to write one may take the other rank long, too.
start --resume --set dist.timeout_s=10 --set checkpoint.every=0
eventually 60 did 3 || fault "no step is reached: $(said)"
kill -STOP "$(cat pid.1)"
ended 60
[ $code -eq 1 ] || fault "the job of a stuck rank ended with $code: $(said)"
[ "$(grep -c 'lorashard: error: ' err)" -eq 1 ] || fault "not one line for a stuck rank: $(said)"
# Whatever the step was doing when the rank was stopped.
grep -Eq 'error: [a-z -]+ over group [a-z]+ has not finished after [0-9]+ s at step [0-9]+: rank 1 \(host [^ ]+\) does not answer \(limit: dist.timeout_s\)' err ||
  fault "a stuck rank: $(said)"
at=$(newest)
goes_on $((10#${at#run/step-})) 'two killed ranks and a stuck one'
finish
