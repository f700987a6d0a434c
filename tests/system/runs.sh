# shellcheck shell=bash
# Sourced by the scripts here: training runs of the small fixture and comparisons of what they leave. awk and od only.
set -u
faults=0
fault() {
  echo "fault: $*"
  faults=$((faults + 1))
}
finish() {
  echo "$faults faults"
  [ "$faults" -eq 0 ]
  exit
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LC_ALL=C

# A run's settings; what differs is given by --set.
head -50 "$SOURCE_DIR/launch/data/e2e-train.txt" >"$scratch/data.txt"
cat >"$scratch/job.yaml" <<EOF
base: $FIXTURES/stories260K
data: {train: [$scratch/data.txt], format: text, seq_len: 96}
lora: {r: 4, alpha: 8, targets: all, dropout: 0.1}
train: {steps: 12, global_batch: 5, lr: 5e-3, warmup_steps: 2, seed: 3, clip_norm: 1}
checkpoint: {keep_last: 0}
output: run
EOF

# train FOLDER RANKS [ARGUMENTS]: in FOLDER, output below FOLDER/run. `output` is the same path in every folder, as it
# is kept in checkpoints.
train() {
  local folder=$scratch/$1 ranks=$2
  shift 2
  mkdir -p "$folder"
  # shellcheck disable=SC2086  # MPIRUN is words
  (cd "$folder" && $MPIRUN -n "$ranks" "$LORASHARD" train "$scratch/job.yaml" "$@" >>log 2>&1 </dev/null)
}
must_train() {
  train "$@" || {
    fault "training in $1 failed: $*"
    tail -5 "$scratch/$1/log"
  }
}

# flat FOLDER [STEP]: FOLDER/adapter/adapter_model.safetensors, the gathered adapter of the newest (or that) step.
flat() {
  local folder=$scratch/$1
  rm -rf "$folder/adapter" "$folder/adapter.h5"
  { "$LORASHARD" gather "$folder/run${2:+/$2}" -o "$folder/adapter.h5" &&
    "$LORASHARD" export "$folder/adapter.h5" --to peft -o "$folder/adapter"; } >"$scratch/flat.log" 2>&1 || {
    fault "gather and export of $1 failed: $(tail -1 "$scratch/flat.log")"
    return 1
  }
}

# The numbers of an exported adapter, one a line.
numbers() {
  local file=$scratch/$1/adapter/adapter_model.safetensors header
  header=$(od -An -tu8 -N8 "$file")
  tail -c +$((header + 9)) "$file" | od -An -v -tf4 -w4
}

same_bytes() { cmp -s "$scratch/$1" "$scratch/$2" || fault "$1 and $2 differ${3:+ ($3)}"; }

# same_curve REFERENCE FOLDER: every step there, loss within 1e-5 relative and gradient norm within 1e-4 (f32 sums in
# another order; AdamW amplifies them a little from step to step), the same learning rates and samples.
same_curve() {
  awk -v name="$2" '
    function value(key,   text) {
      if (!match($0, "\"" key "\":[^,}]*")) return "none"
      text = substr($0, RSTART, RLENGTH)
      sub(/^[^:]*:/, "", text)
      return text
    }
    function far(a, b, tolerance,   d) { d = a - b; if (d < 0) d = -d; return !(d <= tolerance * (b < 0 ? -b : b)) }
    FNR == NR { step = value("step"); loss[step] = value("loss"); norm[step] = value("grad_norm"); lr[step] = value("lr")
                tokens[step] = value("tokens"); epoch[step] = value("epoch"); n++; next }
    { step = value("step"); seen++
      if (!(step in loss)) { print name ": step " step " is not in the reference"; bad = 1; exit 1 }
      if (far(value("loss"), loss[step], 1e-5)) { print name ": step " step ": loss " value("loss") ", not " loss[step]; bad = 1 }
      if (far(value("grad_norm"), norm[step], 1e-4)) { print name ": step " step ": norm " value("grad_norm") ", not " norm[step]; bad = 1 }
      if (value("lr") != lr[step] || value("tokens") != tokens[step] || value("epoch") != epoch[step]) {
        print name ": step " step ": other samples or learning rate: " $0; bad = 1 } }
    END { if (seen != n || n == 0) { print name ": " seen + 0 " steps, not " n + 0; bad = 1 } exit bad }
  ' "$scratch/$1/run/metrics.jsonl" "$scratch/$2/run/metrics.jsonl" || fault "the curve of $2 is not that of $1"
}

# near_adapter REFERENCE FOLDER TOLERANCE: the numbers agree within TOLERANCE of the largest.
near_adapter() {
  paste <(numbers "$1") <(numbers "$2") | awk -v name="$2" -v tolerance="$3" '
    { d = $1 - $2; if (d < 0) d = -d; a = $1 < 0 ? -$1 : $1; if (!(d <= worst)) worst = d; if (a > most) most = a; if (NF != 2) bad = 1 }
    END { if (NR < 1000 || bad) print name ": " NR " numbers";
          else if (worst > tolerance * most) print name ": worst difference " worst " of " most; else exit 0; exit 1 }
  ' || fault "the adapter of $2 is not that of $1"
}

# metrics.jsonl without what is measured.
lines() { sed -E 's/"(tokens_per_second|step_seconds|peak_rss_bytes)":[^,}]*//g' "$scratch/$1/run/metrics.jsonl"; }
same_lines() { cmp -s <(lines "$1") <(lines "$2") || fault "the metrics of $1 and $2 differ: $(diff <(lines "$1") <(lines "$2") | head -3)"; }

trainable() { sed -n 's/^lorashard: adapters *//p' "$scratch/$1/log" | sort -u; }
same_trainable() {
  [[ $(trainable "$1") == ?* && $(trainable "$1") == "$(trainable "$2")" ]] ||
    fault "trainable parameters of $1: $(trainable "$1"); of $2: $(trainable "$2")"
}
