#!/usr/bin/env bash
# kill -9 at 200 random moments (the same ones for a seed): SEED=N, KILLS=N, PAIR_KILLS=N change them, and LONGEST=N after
# how many seconds either kind of life is enough. Most lives are one rank, whose start takes a tenth of a second; some
# are two ranks under mpirun, of which one is killed. Whenever a run gets to its end, its adapter with all moments is
# that of an undisturbed run to the bit, and it begins anew.
. "$(dirname "$0")/harness.sh"

seed=${SEED:-4}
RANDOM=$seed
kills=${KILLS:-194} pair_kills=${PAIR_KILLS:-6}
cat >job.yaml <<EOT
base: $stories
data: {train: [$FIXTURES/data/prompt_completion.jsonl], seq_len: 64}
lora: {r: 2, targets: [q, v], dropout: 0.1}
train: {steps: 60, global_batch: 2, micro_batch: 1, lr: 1e-3}
checkpoint: {every: 1}
output: run
EOT

now() { echo "${EPOCHREALTIME/./}"; } # microseconds
newest() { # number of the newest step, -1: none
  local steps=(run/step-??????)
  [ -e "${steps[0]}" ] && echo $((10#${steps[-1]#run/step-})) || echo -1
}
gathered() { "$LORASHARD" gather run -o "$1" --with-optimizer --overwrite >/dev/null 2>&1 || fault "gather failed: $1"; }

# life RANKS MICROSECONDS: start, or go on, and kill a random rank after that time. $ended: it came to its end before.
life() {
  local ranks=$1 delay=$2 before how job victim began took
  before=$(newest)
  [ "$before" -ge 0 ] && how=--resume || how=--overwrite
  : >life
  rm -f pid.*
  if [ "$ranks" -eq 1 ]; then
    "$LORASHARD" train job.yaml $how >out 2>err </dev/null &
    job=$! victim=$!
  else
    # shellcheck disable=SC2016
    timeout -s KILL 120 $MPIRUN -n "$ranks" bash -c 'echo $$ >pid.$OMPI_COMM_WORLD_RANK; exec "$@"' - \
      "$LORASHARD" train job.yaml $how --set parallel.tp=2 >out 2>err </dev/null &
    job=$!
    until [ -s pid.0 ] && [ -s pid.1 ] || ! kill -0 $job 2>/dev/null; do sleep 0.01; done
    victim=$(cat pid.$((RANDOM % ranks)) 2>/dev/null) || fault "mpirun has not started the ranks: $(said)"
  fi
  sleep "$(printf '%d.%06d' $((delay / 1000000)) $((delay % 1000000)))"
  began=$(now)
  kill -9 "$victim" 2>/dev/null
  { wait $job; } 2>/dev/null
  code=$?
  took=$(($(now) - began))
  checks=$((checks + 1))
  [ $took -lt 10000000 ] || fault "a job of $ranks ranks ended $took microseconds after the kill"
  # What is lost are the steps since the last whole checkpoint.
  if [ $how = --resume ] && grep -q 'resume ' err; then
    grep -q "resume    from run/step-$(printf %06d "$before"): step $before," err ||
      fault "resumed elsewhere than at step $before: $(said)"
  fi
  grep -q 'skipping' err && fault "a step that is not whole: $(said)"
  ended=false
  if [ $code -eq 0 ]; then
    ended=true
  elif [ "$ranks" -eq 1 ]; then
    [ $code -eq 137 ] || fault "a life ended with $code: $(said)"
  else
    # One line of ours, unless the rank was killed before the ranks knew each other or when all was saved.
    [ "$(grep -c 'lorashard: error: ' err)" -le 1 ] || fault "more than one message: $(said)"
    if grep -q 'lorashard: base' err && [ "$(newest)" -lt $steps ]; then
      told=$((told + 1))
      grep -Eq 'lorashard: error: (rank 1: )?rank [01] \(process [0-9]+\) is gone' err || fault "a killed rank is not named: $(said)"
    fi
  fi
  $ended || [ ! "$(find run -maxdepth 1 -name 'step-*.tmp' -newer life 2>/dev/null)" ] || within=$((within + 1))
  [ "$(newest)" -gt "$before" ] && progress=$((progress + 1)) && idle=0 || idle=$((idle + 1))
}

# Whether the kills were at moments of every kind.
varied() { # RANKS
  if [ "$1" -eq 1 ]; then [ $within -gt 0 ] && [ $progress -gt $((killed / 5)) ]; else [ $told -gt 0 ]; fi
}

# torture RANKS KILLS MICROSECONDS REFERENCE: lives of at most that time, at first. A machine may be so quick or so slow
# that one kind of moment is rare: up to twice as many lives, then. On a very slow one some minutes are enough.
torture() {
  local ranks=$1 left=$2 span=$3 reference=$4 whole=0 latest=$((SECONDS + ${LONGEST:-150}))
  within=0 progress=0 idle=0 told=0 killed=0
  rm -rf run
  while { [ "$left" -gt 0 ] && [ $SECONDS -lt $latest ]; } || { [ "$left" -gt "-$2" ] && ! varied "$ranks"; }; do
    life "$ranks" $((span * RANDOM / 32768))
    if $ended; then
      gathered got.h5
      cmp -s "$reference" got.h5 || fault "the adapter differs from the undisturbed run's"
      whole=$((whole + 1))
      rm -rf run
      continue
    fi
    left=$((left - 1)) killed=$((killed + 1))
    # A machine that is busy starts more slowly.
    if [ $idle -ge 6 ]; then span=$((span * 3 / 2)) idle=0; fi
  done
  # Whatever the last kill left.
  launch $([ "$ranks" -eq 1 ] || echo "$ranks")
  works "(saved|newest) +run/step-0000$steps" train job.yaml $([ "$ranks" -eq 1 ] || echo --set parallel.tp=2) \
    "$([ "$(newest)" -ge 0 ] && echo --resume || echo --overwrite)"
  launch
  gathered got.h5
  cmp -s "$reference" got.h5 || fault "the adapter differs from the undisturbed run's"
  grep -q '"state": "finished", "step": '$steps run/status.json || fault "status.json: $(cat run/status.json)"
  [ -z "$(find run -name '*.tmp*')" ] || fault "the killed runs leave $(find run -name '*.tmp*')"
  [ "$(wc -l <run/metrics.jsonl)" -eq $steps ] || fault "metrics.jsonl has $(wc -l <run/metrics.jsonl) lines"
  echo "$ranks ranks: $killed kills, $within within a checkpoint, $progress lives got further, $((whole + 1)) whole runs"
}

# at_once WAYS KILLS ARGUMENTS...: torture, so many of them side by side, each in a folder and with chances of its own.
at_once() {
  local ways=$1 kills=$2 way sums
  shift 2
  for ((way = 1; way <= ways; way++)); do
    (
      mkdir "way-$way" && cd "way-$way" && cp ../job.yaml . || exit
      RANDOM=$((seed + 1000 * way)) faults=0 checks=0
      torture 1 "$((kills / ways))" "$@"
      echo "$faults $checks $killed $within $progress" >sums
    ) >"way-$way.log" 2>&1 &
  done
  wait
  killed=0 within=0 progress=0
  for ((way = 1; way <= ways; way++)); do
    cat "way-$way.log"
    read -r -a sums <"way-$way/sums" || fault "torture $way did not come to its end"
    faults=$((faults + sums[0])) checks=$((checks + sums[1])) killed=$((killed + sums[2]))
    within=$((within + sums[3])) progress=$((progress + sums[4]))
  done
}

export OMPI_MCA_mpi_yield_when_idle=1

# How long a life lasts: twice a start, within which a handful of steps is done. A start of a cold machine is no measure.
start=$((1 << 40))
for _ in 1 2 3; do
  began=$(now)
  works 'saved' train job.yaml --set train.steps=1
  took=$(($(now) - began))
  [ $took -ge $start ] || start=$took
  rm -rf run
done
works 'saved' train job.yaml
gathered one.h5
steps=60
at_once 2 "$kills" $((2 * start)) ../one.h5
[ $within -gt 0 ] || fault "no kill hit the writing of a checkpoint"
[ $progress -gt $((killed / 5)) ] || fault "only $progress of $killed lives got further"

rm -rf run
steps=20
sed -i "s/steps: 60/steps: $steps/" job.yaml
launch 2
began=$(now)
works 'saved' train job.yaml --set parallel.tp=2
span=$(($(now) - began))
launch
gathered two.h5
torture 2 "$pair_kills" $span two.h5
[ $told -gt 0 ] || fault "no kill was after the start of both ranks"
finish
