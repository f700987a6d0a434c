# Sourced by the scripts of this folder. Environment: LORASHARD, FIXTURES, SOURCE_DIR, MPIRUN (tests/CMakeLists.txt).
# VERBOSE=1 prints every refusal that is checked.
set -u
export LC_ALL=C OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The tests may themselves run in a job of a cluster.
unset ${!SLURM_@} ${!OMPI_COMM_@} ${!PMI_@} ${!PMIX_@} 2>/dev/null
faults=0 checks=0
fault() {
  echo "fault: $*"
  faults=$((faults + 1))
}
finish() {
  echo "$checks checks, $faults faults"
  [ "$faults" -eq 0 ]
}

work=$(mktemp -d)
mounts=()
clean_up() {
  local mount
  for mount in ${mounts[@]+"${mounts[@]}"}; do umount "$mount" 2>/dev/null; done
  rm -rf "$work"
}
trap clean_up EXIT
cd "$work" || exit 1

stories=$FIXTURES/stories260K
golden=$SOURCE_DIR/tests/golden

# launch RANKS: what stands in front of the program; no argument: nothing.
launch=()
launch() { launch=(${1+$MPIRUN -n "$1"}); }

# run ARGUMENTS...: the program's outputs go to `out` and `err`, its exit code to $code.
run() {
  timeout 180 ${launch[@]+"${launch[@]}"} "$LORASHARD" "$@" >out 2>err </dev/null
  code=$?
  checks=$((checks + 1))
}

# What matters of the last run's standard error.
said() { grep -Ev '^lorashard: (base|layout|device|adapters|data|memory) ' err | tail -n 12; }

# works PATTERN ARGUMENTS...: success, and a line of either output matches the extended expression.
works() {
  local pattern=$1
  shift
  run "$@"
  [ $code -eq 0 ] || fault "'$*' ended with $code: $(said)"
  cat out err | grep -Eq -- "$pattern" || fault "'$*' does not say '$pattern': $(head -c 500 out) $(said)"
}

# refused CODE PATTERN ARGUMENTS...: that exit code and one line, which matches. Beside it, without mpirun, only
# lines of our own are allowed.
refused() {
  local wanted=$1 pattern=$2 line
  shift 2
  run "$@"
  [ $code -eq "$wanted" ] || fault "'$*' ended with $code, not $wanted: $(said)"
  line=$(grep '^lorashard: error: ' err)
  [ "$(grep -c 'error: ' err)" -eq 1 ] || fault "'$*' did not print one error: $(said)"
  grep -Eq -- "$pattern" <<<"$line" || fault "'$*' does not say '$pattern': $(said)"
  [ ${#line} -le 600 ] || fault "'$*' prints ${#line} characters"
  if [ ${#launch[@]} -eq 0 ] && grep -qv '^lorashard: ' err; then fault "'$*' prints foreign lines: $(said)"; fi
  [ -z "${VERBOSE-}" ] || echo "$wanted $line"
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

# le VALUE BYTES: a number, little-endian.
le() {
  local i
  for ((i = 0; i < $2; i++)); do printf "\\x$(printf %02x $(($1 >> 8 * i & 255)))"; done
}

# poke FILE OFFSET BYTES: replace bytes, written as printf takes them.
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# tensor_at FILE NAME: where the data of a tensor begins in a safetensors file.
tensor_at() {
  local n
  n=$(od -An -t u8 -N8 "$1" | tr -d ' ')
  echo $((8 + n + $(head -c $((8 + n)) "$1" | tail -c "$n" | grep -ao "\"$2\":{[^}]*}" |
    sed 's/.*"data_offsets": *\[ *\([0-9]*\).*/\1/')))
}

# megatron NAME DOCUMENT...: NAME.bin and NAME.idx with 16-bit tokens; a document is numbers in quotes.
megatron() {
  local name=$1 at=0 id n document
  shift
  : >"$name.bin"
  {
    printf 'MMIDIDX\0\0'
    le 1 8
    le 8 1
    le $# 8
    le $(($# + 1)) 8
    for document; do le "$(wc -w <<<"$document")" 4; done
    for document; do
      le $at 8
      at=$((at + 2 * $(wc -w <<<"$document")))
    done
    for ((n = 0; n <= $#; n++)); do le $n 8; done
  } >"$name.idx"
  for document; do for id in $document; do le "$id" 2; done; done >"$name.bin"
}

# field FILE NAME: a number of the last JSON line that has it.
field() { grep -o "\"$2\": *[^,}]*" "$1" | tail -1 | sed 's/.*: *//'; }

# close_to A B RELATIVE
close_to() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; m = b < 0 ? -b : b; exit !(a != "" && b != "" && d <= t * m) }'; }
