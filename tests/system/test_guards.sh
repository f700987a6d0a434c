#!/usr/bin/env bash
# What keeps jobs and ranks from harming each other: one job to an output, ranks with other inputs, ranks that hang
# before the first step, ranks whose disk is slow, folders of somebody else among the checkpoints.
# cores: 1
. "$(dirname "$0")/harness.sh"

cat >job.yaml <<EOT
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 64}
lora: {r: 2, targets: [q, v]}
train: {steps: 6, global_batch: 2, micro_batch: 1, lr: 1e-3, schedule: constant}
checkpoint: {every: 2}
output: $work/run
EOT
says() { grep -Eq -- "$2" "$1"; }

# --- one job to an output ---

"$LORASHARD" train job.yaml --set train.steps=1000000 >first 2>&1 </dev/null &
first=$!
eventually 30 [ -s run/metrics.jsonl ] || fault "the first job does not start: $(cat first)"
refused 2 'output directory .*/run holds another run' train job.yaml
refused 2 "output directory .*/run is being written by process $first on .*: give another output, or end that job" \
  train job.yaml --overwrite --set dist.timeout_s=1
timeout 60 "$LORASHARD" train job.yaml --resume --set train.steps=1000001 >second 2>&1 </dev/null &
second=$!
eventually 30 says second "is being written by process $first on .*: waiting up to 610 s" ||
  fault "a job that resumes does not wait for the other one: $(cat second)"
kill -TERM $first
wait $first || fault "the first job ended with $?: $(cat first)"
eventually 30 says second 'step [0-9]+/1000001' || fault "the second job does not go on: $(cat second)"
kill -TERM $second
wait $second || fault "the second job ended with $?: $(cat second)"
checks=$((checks + 4))
[ ! -e run/.lock ] || fault "the lock is left"
# It goes with the process, not with the file.
echo 'process 1 on nowhere' >run/.lock
works 'nothing left to do' train job.yaml --resume
grep -q '"state": "finished"' run/status.json || fault "status.json: $(cat run/status.json)"
grep -q 'steps: 6' run/config.yaml && fault "a run with nothing left to do replaces the configuration"

# --- mistakes show before the base is read ---

export LORASHARD_LOG=debug
early() { # PATTERN ARGUMENTS...
  refused 2 "$1" train job.yaml "${@:2}"
  grep -q 'bytes of weights read' err && fault "'${*:2}': the base was read first"
}
early 'nope.jsonl' --set data.train=nope.jsonl --set output=other
early 'holds another run'
early 'resume with that seed' --resume --set train.seed=77
early 'holds no run to go on with' --resume --set output=empty
unset LORASHARD_LOG

# --- folders among the checkpoints ---

rm -rf run
works 'saved ' train job.yaml
refused 2 'run: holds checkpoints; name another folder' export run --to peft -o run
refused 2 'step-000006: holds checkpoints; name another folder' export run --to peft -o run/step-000006
works 'modules' export run --to peft -o run/step-000004/peft
works 'warning: keeping an old checkpoint: .*step-000004/peft: a folder that is not of' train job.yaml --resume --set train.steps=10
[ -e run/step-000004/peft/adapter_config.json ] && [ -e run/step-000004/manifest.json ] && [ -e run/step-000010 ] ||
  fault "after pruning: $(ls run run/*)"
refused 1 'step-000004/peft: a folder that is not of .*; move it' train job.yaml --overwrite
[ -e run/step-000010/manifest.json ] || fault "a refused --overwrite removes checkpoints"
cp run/step-000004/peft/* run
for command in "eval --base $stories --data $FIXTURES/data/prompt_completion.jsonl --adapter run" 'export run --to peft -o peft' \
  'inspect run' 'train job.yaml --resume-from run --set output=other'; do
  # shellcheck disable=SC2086  # words
  refused 2 'run holds checkpoints and a PEFT adapter: name the step' $command
done
rm -rf run

# --- ranks with other inputs ---

# differ PATTERN: rank 1 is run by ./rank-1.
differ() {
  checks=$((checks + 1))
  # shellcheck disable=SC2086  # MPIRUN is words
  timeout 60 $MPIRUN -n 1 "$LORASHARD" train job.yaml "${arguments[@]}" : -n 1 bash ./rank-1 >out 2>err </dev/null
  code=$?
  [ $code -eq 2 ] || fault "'$1': exit code $code: $(said)"
  [ "$(grep -c 'error: ' err)" -eq 1 ] && grep -Eq "error: rank 1 .* has another $1" err || fault "no line '$1': $(said)"
  rm -rf run
}
arguments=(--overwrite)
echo 'exec "$LORASHARD" train job.yaml' >rank-1
differ 'command line than rank 0 .*: start every rank with the same options'
mkdir elsewhere
cp "$FIXTURES/data/prompt_completion.jsonl" mine.jsonl
head -30 mine.jsonl >elsewhere/mine.jsonl
arguments=(--set data.train=mine.jsonl)
echo 'cd elsewhere && exec "$LORASHARD" train job.yaml --set data.train=mine.jsonl' >rank-1
cp job.yaml elsewhere
differ 'content of the data files than rank 0 .*: copy the same files'
megatron mine '5 6 7 8 9' '10 11 12 13'
megatron elsewhere/mine '5 6 7 8 8' '10 11 12 13'
arguments=(--set data.train=mine.bin)
sed -i 's/mine.jsonl/mine.bin/' rank-1
differ 'content of the data files than rank 0 .*: copy the same files'
# The fingerprint of the base does not cover the tokenizer.
cp -r "$stories" base && cp -r "$stories" elsewhere/base && chmod -R u+w elsewhere/base
sed -i 's/{/{"extra": 1,/' elsewhere/base/tokenizer_config.json
sed -i '0,/"version"/s/"version"/"Version"/' elsewhere/base/tokenizer.json
arguments=(--set base=base)
echo 'cd elsewhere && exec "$LORASHARD" train job.yaml --set base=base' >rank-1
differ 'tokenizer than rank 0 .*: copy the same model'
# The same program of other sources.
id=$("$LORASHARD" doctor 2>/dev/null | sed -n 's/.* of sources \([0-9a-f]*\)$/\1/p')
[ ${#id} -eq 12 ] || fault "doctor does not tell the sources: '$id'"
sed "s/$id/0123456789ab/g" "$LORASHARD" >changed && chmod +x changed
arguments=()
echo 'exec ./changed train job.yaml' >rank-1
differ 'program version than rank 0 .*: install the same build'

# --- a rank that hangs before the first step ---

for ((i = 0; i < 40000; i++)); do echo "Once upon a time there was a little girl number $i who liked to read."; done >long.txt
hangs() { # COMMAND...: rank 1 is stopped once it reads data
  checks=$((checks + 1))
  rm -f pid.*
  # shellcheck disable=SC2016,SC2086  # the shells of the ranks expand it; MPIRUN is words
  timeout 60 $MPIRUN -n 2 bash -c 'echo $$ >pid.tmp.$$; mv pid.tmp.$$ pid.$OMPI_COMM_WORLD_RANK; exec "$@"' - \
    env LORASHARD_LOG=debug "$LORASHARD" "$@" --set parallel.tp=2 --set dist.timeout_s=2 >out 2>err </dev/null &
  local job=$!
  eventually 30 says err "$reading" || fault "'$1' does not begin to read: $(said)"
  kill -STOP "$(cat pid.1)"
  wait $job 2>/dev/null
  [ $? -eq 1 ] || fault "'$1' with a stuck rank ended otherwise: $(said)"
  grep -Eq 'error: .* has not finished after [0-9]+ s at step 0: rank 1 \(host [^ ]+\) does not answer' err ||
    fault "'$1': a stuck rank: $(said)"
  rm -rf run
}
reading='^lorashard: adapters'
hangs train job.yaml --set data.train=long.txt
reading='bytes of weights read'
hangs eval --base "$stories" --data long.txt

# --- a rank whose disk is slow is waited for ---

cat >slow.c <<'EOT'
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
/* The first file of a checkpoint on one rank takes seven seconds. */
int fsync(int fd) {
  static int done;
  char link[64], path[4096] = "";
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (!done && rank && *rank == '1' && readlink(link, path, sizeof path - 1) > 0 && strstr(path, "shard-")) done = 1, sleep(7);
  return (int)syscall(SYS_fsync, fd);
}
EOT
if "${CC:-cc}" -shared -fPIC -o slow.so slow.c 2>slow.log; then
  launch 2
  launch+=(env LD_PRELOAD="$work/slow.so")
  works 'saved ' train job.yaml --set parallel.tp=2 --set dist.timeout_s=2 --set checkpoint.every=0
  grep -Eq 'warning: .*waiting for rank 1 \(host [^ ]+\), which writes a checkpoint, for [0-9]+ s now' err ||
    fault "no word about the rank that is waited for: $(said)"
  launch
else
  fault "the slow fsync does not compile: $(cat slow.log)"
fi
finish
