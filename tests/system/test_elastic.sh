#!/usr/bin/env bash
# Going on from any checkpoint in any layout: sharded steps and gathered files, with --resume and --resume-from; what
# differs from the checkpoint is refused or said; signals, and what status.json tells.
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOT
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 64}
lora: {r: 2, targets: [q, v, down], dropout: 0.1}
train: {steps: 12, global_batch: 4, micro_batch: 2, lr: 1e-3, warmup_steps: 2}
checkpoint: {every: 6, keep_last: 0}
output: run
EOT
status_is() { # STATE STEP
  checks=$((checks + 1))
  [ "$(cat run/status.json)" = "{\"state\": \"$1\", \"step\": $2, \"steps\": ${3-12}}" ] ||
    fault "status.json: $(cat run/status.json), not $1 at $2"
}
losses() { grep -o '"loss":[^,]*' run/metrics.jsonl | tail -6; }
# same_curve TEXT: losses of steps 7 to 12 are those of the undisturbed run (f32 sums in another order).
same_curve() {
  checks=$((checks + 1))
  paste -d: reference <(losses) | awk -F: -v what="$1" '
    { d = $2 - $4; if (d < 0) d = -d; if (NF != 4 || d > 1e-5 * $2) { print what ": " $0; bad = 1 } }
    END { exit bad || NR != 6 }' || fault "$1: not the curve of the undisturbed run"
}

# --- the undisturbed run, and its state after six steps ---

works 'saved     run/step-000012' train job.yaml
status_is finished 12
losses >reference
works 'step 12' gather run -o whole.h5 --with-optimizer
cp -r run/step-000006 six
works 'step 6' gather six -o six.h5 --with-optimizer
works 'step 6' gather six -o weights.h5

export OMPI_MCA_mpi_yield_when_idle=1 # four ranks on a machine of two cores

# --- one layout to another, and back ---

works 'resume    from six.h5: step 6, epoch ' train job.yaml --resume-from six.h5 --overwrite
works 'step 12' gather run -o got.h5 --with-optimizer
cmp -s whole.h5 got.h5 || fault "from a gathered file: other bits than the run that never stopped"
[ -e run/step-000006/manifest.json ] || fault "--resume-from leaves nothing that --resume could go on from"
works 'nothing left to do: step 12 of 12' train job.yaml --resume
rm -rf run
launch 4
works 'resume    from six: step 6, ' train job.yaml --resume-from six --set parallel.tp=2
same_curve 'tp 1 to tp 2 x dp 2'
cp -r run/step-000006 six-of-two
works 'resume    from six-of-two: step 6, ' train job.yaml --resume-from six-of-two --overwrite --set parallel.tp=2 \
  --set parallel.pp=2
same_curve 'tp 2 x dp 2 to tp 2 x pp 2'
[ "$(ls -d run/step-000006/shard-* | wc -l)" -eq 4 ] || fault "tp 2 x pp 2 writes $(ls run/step-000006)"
launch
works 'step 6' gather run/step-000006 -o moved.h5 --with-optimizer
rm -rf run
works 'resume    from moved.h5: step 6, ' train job.yaml --resume-from moved.h5
works 'step 12' gather run -o back.h5
works 'step 12' gather whole.h5 -o bare.h5
cmp -s bare.h5 back.h5 || fault "by way of tp 2 and pp 2: other bits than the run that never stopped"

# --- what is refused, and what is said ---

from() { # CODE PATTERN ARGUMENTS...
  refused "$1" "$2" train job.yaml --set output=other "${@:3}"
  [ ! -e other/config.yaml ] || fault "a refused --resume-from begins a run"
  rm -rf other
}
from 2 'weights.h5 holds no optimizer state .*--with-optimizer.*lora.adapter' --resume-from weights.h5
works 'peft: ' export weights.h5 --to peft -o peft
from 2 'peft is a PEFT adapter, .*lora.adapter' --resume-from peft
from 2 'absent: no such adapter' --resume-from absent
from 2 'six.h5 was trained with lora.dropout 0.1, not 0.2: resume with that value' --resume-from six.h5 --set lora.dropout=0.2
from 2 'six.h5 holds 15 adapters but the configuration asks for 10' --resume-from six.h5 --set 'lora.targets=[q, v]'
refused 2 'run holds another run' train job.yaml --resume-from six.h5
refused 2 'run/step-000006 lies in the output directory that --overwrite clears' train job.yaml --resume-from run/step-000006 --overwrite
refused 2 '--resume and --resume-from exclude' train job.yaml --resume-from six.h5 --resume
refused 2 'step-000012 was trained with lora.dropout 0.1, not 0: resume' train job.yaml --resume --set lora.dropout=0
works 'warning: run/step-000012 was trained with train.global_batch 4, from here on it is 3' train job.yaml --resume \
  --set train.global_batch=3 --set train.steps=14
status_is finished 14 14

# --- signals ---

# start COMMAND...: in the background, $job
start() {
  rm -f pid.*
  : >err # what is looked for there is this run's
  timeout 200 "${launch[@]+"${launch[@]}"}" bash -c 'echo $$ >pid.${OMPI_COMM_WORLD_RANK:-0}; exec "$@"' - \
    "$LORASHARD" train job.yaml "$@" >out 2>err </dev/null &
  job=$!
}
until_said() { # PATTERN FILE
  local n
  for ((n = 0; n < 6000; n++)); do
    grep -q "$1" "$2" 2>/dev/null && return
    sleep 0.01
  done
  fault "'$1' is not in $2: $(said)"
}
ended() { # CODE WHAT
  { wait $job; } 2>/dev/null
  code=$?
  checks=$((checks + 1))
  [ $code -eq "$1" ] || fault "$2: exit code $code, not $1: $(said)"
}
long=(--overwrite --set train.steps=100000 --set checkpoint.every=0)
rm run/metrics.jsonl
start "${long[@]}"
until_said '"step":3,' run/metrics.jsonl
kill -TERM "$(cat pid.0)" && kill -TERM "$(cat pid.0)" # as timeout(1) does it: one request
ended 0 'SIGTERM, twice at once'
at=$(sed -n 's/.*stopping at step \([0-9]*\).*/\1/p' err)
status_is stopped "$at" 100000
# While the data is read: nothing to save, nothing begun.
for ((i = 0; i < 20000; i++)); do echo "Once upon a time there was a little girl number $i who liked to read."; done >long.txt
# It takes a second or less: once more if the signal came too late.
for _ in 1 2 3; do
  rm -rf other
  start --set output=other --set data.train=long.txt
  until_said 'lorashard: adapters' err
  kill -USR1 "$(cat pid.0)"
  ended 0 'SIGUSR1 while the data is read'
  grep -q 'stopped before the first step' err && break
done
grep -q 'stopped before the first step, as asked by a signal; start it again as before' err || fault "not said: $(said)"
[ ! -e other/config.yaml ] || fault 'a run that was stopped before its first step has begun'

# A second signal, within a step that lasts minutes: the end, one line, whoever gets it. Those that come soon after the
# first one are the same request, so that it is enough to send some until the job is gone.
slow=(--overwrite --set train.global_batch=100000 --set train.micro_batch=64)
at_once() { # SIGNAL CODE WHAT RANK...
  start "${slow[@]}" "${layout[@]+"${layout[@]}"}"
  until_said 'lorashard: memory' err
  local rank n
  for ((n = 0; n < 150; n++)); do
    for rank in "${@:4}"; do kill "-$1" "$(cat "pid.$rank")" 2>/dev/null; done
    sleep 0.4
    kill -0 $job 2>/dev/null || break
  done
  ended "$2" "$3"
  [ "$(grep -c 'lorashard: error: ' err)" -eq 1 ] || fault "$3: not one line: $(said)"
  grep -q 'error: stopped at once by a second signal' err || fault "$3: not said: $(said)"
  status_is running 0
  [ -z "$(find run -name 'step-*')" ] || fault "$3: leaves $(find run -name 'step-*')"
}
at_once INT 130 'two SIGINT' 0
launch 2
layout=(--set parallel.tp=2)
at_once TERM 143 'two SIGTERM to both ranks' 0 1
at_once USR1 138 'two SIGUSR1 to the second rank' 1
finish
