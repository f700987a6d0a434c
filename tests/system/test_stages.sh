#!/usr/bin/env bash
# Pipeline stages, sequence parallelism and recomputation through the whole program: the same curve and adapter as one
# rank, all layers in what is exported, and the same answers of eval, score and generate.
. "$(dirname "$0")/runs.sh"
export OMPI_MCA_mpi_yield_when_idle=1

must_train one 1
flat one
reference=one
stage_runs() { # FOLDER RANKS ARGUMENTS...
  must_train "$@"
  same_curve $reference "$1"
  flat "$1"
  near_adapter $reference "$1" 1e-3 # as in test_layouts.sh
  same_trainable $reference "$1"
  cmp -s <(keys one) <(keys "$1") || fault "$1 exports other tensors than one rank: $(diff <(keys one) <(keys "$1") | head -3)"
}
keys() { tail -c +9 "$scratch/$1/adapter/adapter_model.safetensors" | grep -ao '"base_model[^"]*"' | sort; }
[ "$(keys one | wc -l)" -eq 70 ] || fault "one rank exports $(keys one | wc -l) tensors, not 70"

stage_runs pp5 5 --set parallel.pp=5 --set train.micro_batch=2

# Rows of several documents, with all of it.
packed=(--set data.format=e2e --set data.seq_len=384 --set train.steps=6)
reference=packed
must_train packed 1 "${packed[@]}" --set train.micro_batch=2
flat packed
sed -n 's/.*data  *\([0-9]*\) documents.* in \([0-9]*\) rows.*/\1 \2/p' "$scratch/packed/log" >"$scratch/counts"
awk '{ exit !($1 > 1.5 * $2 && $2 > 5) }' "$scratch/counts" || fault "documents and rows: $(cat "$scratch/counts")"
stage_runs tp2pp2 4 --set parallel.tp=2 --set parallel.pp=2 --set parallel.sequence=true --set train.recompute=full \
  --set train.micro_batch=1 "${packed[@]}"
reference=one

# Its shards merge to the same model on one rank and under mpirun, from the step and from the run.
merged() { # FOLDER RANKS ADAPTER
  # shellcheck disable=SC2086  # MPIRUN is words
  $MPIRUN -n "$2" "$LORASHARD" merge --base "$FIXTURES/stories260K" --adapter "$scratch/tp2pp2/$3" -o "$scratch/$1" \
    >"$scratch/merge.log" 2>&1 </dev/null || fault "merge of $3 on $2 ranks: $(tail -2 "$scratch/merge.log")"
}
merged merged 1 adapter.h5
merged merged-run 4 run
merged merged-step 1 run/step-000006
for folder in merged-run merged-step; do same_bytes merged/model.safetensors $folder/model.safetensors; done

stage_runs tp3 3 --set parallel.tp=3 --set parallel.sequence=true --set train.recompute=selective

# Recomputation changes no bit.
must_train again 1 --set train.recompute=full
must_train partly 1 --set train.recompute=selective
for folder in again partly; do flat $folder; done
same_bytes one/adapter/adapter_model.safetensors again/adapter/adapter_model.safetensors 'recompute full'
same_bytes one/adapter/adapter_model.safetensors partly/adapter/adapter_model.safetensors 'recompute selective'

# More stages than layers are refused before anything is read.
if train many 6 --set parallel.pp=6; then fault 'pp 6 of 5 layers trains'; fi
grep -q "parallel.pp 6 is more than the model's 5 layers" "$scratch/many/log" || fault "pp 6: $(tail -2 "$scratch/many/log")"

# A rank whose inputs differ is named before anything is trained.
mkdir -p "$scratch/differ"
(cd "$scratch/differ" && timeout 60 $MPIRUN -n 1 "$LORASHARD" train "$scratch/job.yaml" : \
  -n 2 "$LORASHARD" train "$scratch/job.yaml" --set train.lr=1e-3 >log 2>&1 </dev/null)
[ $? -eq 2 ] || fault 'a rank with another configuration trains'
[ "$(grep -c '^lorashard: error: .*rank 0 .* has another configuration' "$scratch/differ/log")" -eq 1 ] || fault "another configuration: $(tail -3 "$scratch/differ/log")"
[ ! -e "$scratch/differ/run/metrics.jsonl" ] || fault 'a rank with another configuration begins a run'

# answers RANKS ARGUMENTS...: loss, log-probabilities and text of the adapter, digits that rounding does not touch.
answers() {
  local ranks=$1
  shift
  # shellcheck disable=SC2086  # MPIRUN is words
  {
    $MPIRUN -n "$ranks" "$LORASHARD" eval --base "$FIXTURES/stories260K" --adapter "$scratch/one/adapter.h5" \
      --data "$scratch/data.txt" --set data.format=text --set data.seq_len=96 "$@" | grep '^loss' | cut -c1-18
    $MPIRUN -n "$ranks" "$LORASHARD" score --base "$FIXTURES/stories260K" --ids 1,403,407,261,378 "$@" |
      grep -o '\-[0-9.]*' | cut -c1-6
    $MPIRUN -n "$ranks" "$LORASHARD" generate --base "$FIXTURES/stories260K" --prompt 'Once upon' --max-tokens 12 "$@"
  } 2>/dev/null </dev/null
}
answers 1 >"$scratch/answers"
[ "$(wc -l <"$scratch/answers")" -ge 6 ] || fault "answers of one rank: $(cat "$scratch/answers")"
answers 4 --set parallel.tp=2 --set parallel.pp=2 | diff "$scratch/answers" - || fault 'tp 2 x pp 2 answers otherwise'
answers 3 --set parallel.pp=3 | diff "$scratch/answers" - || fault 'pp 3 answers otherwise'
finish
