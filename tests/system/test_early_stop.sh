#!/usr/bin/env bash
# A signal to one of four ranks before anything is trained: nothing is begun, and one line says how to go on.
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOF
base: $stories
data: {train: [long.txt], seq_len: 64}
lora: {r: 2}
train: {steps: 1000, global_batch: 4}
parallel: {tp: 2}
output: run
EOF
# Tokens of 20000 lines take a while; the signal comes as soon as the adapters are planned.
for ((i = 0; i < 20000; i++)); do echo "Once upon a time there was a little girl number $i who liked to read."; done >long.txt

checks=$((checks + 1))
# shellcheck disable=SC2016,SC2086  # the shells of the ranks expand it; MPIRUN is words
timeout 60 $MPIRUN -n 4 bash -c 'echo $$ >pid.$OMPI_COMM_WORLD_RANK; exec "$@"' - \
  "$LORASHARD" train job.yaml >out 2>err </dev/null &
job=$!
for ((n = 0; n < 3000; n++)); do
  grep -q '^lorashard: adapters' err && break
  sleep 0.01
done
kill -TERM "$(cat pid.2)" || fault "rank 2 is gone: $(said)"
{ wait $job; } 2>/dev/null
code=$?
[ $code -eq 0 ] || fault "a signal to rank 2 while the data is read: exit code $code: $(said)"
[ "$(grep -c 'stopped before the first step, as asked by a signal; start it again as before' err)" -eq 1 ] ||
  fault "not one line about the stop: $(said)"
grep -Eq 'step 1/|error: ' err && fault "trained, or failed: $(said)"
[ ! -e run/config.yaml ] && [ ! -e run/metrics.jsonl ] || fault "a run that was stopped before its first step has begun: $(ls run)"
finish
