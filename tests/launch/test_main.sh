#!/usr/bin/env bash
# The binary's front: help, version, exit codes, one line for a failure, documentation that equals the program.
# cores: 1
set -u
faults=0
fault() {
  echo "fault: $*"
  faults=$((faults + 1))
}
out=$(mktemp) err=$(mktemp)
trap 'rm -f "$out" "$err"' EXIT

# expect CODE PATTERN ARGUMENTS...: exit code; for a failure nothing on stdout and one line on stderr that matches,
# for a success nothing on stderr and a match on stdout.
expect() {
  local code=$1 pattern=$2
  shift 2
  "$LORASHARD" "$@" >"$out" 2>"$err"
  local got=$?
  [ "$got" -eq "$code" ] || fault "'$*' ended with $got, not $code: $(cat "$err")"
  if [ "$code" -eq 0 ]; then
    [ ! -s "$err" ] || fault "'$*' wrote to stderr: $(cat "$err")"
    grep -q -- "$pattern" "$out" || fault "'$*' does not print '$pattern'"
  else
    [ ! -s "$out" ] || fault "'$*' wrote to stdout: $(head -1 "$out")"
    [ "$(wc -l <"$err")" -eq 1 ] || fault "'$*' did not print one line: $(cat "$err")"
    grep -q -- "^lorashard: error: .*$pattern" "$err" || fault "'$*' printed: $(cat "$err")"
  fi
}

expect 0 '^usage: lorashard COMMAND' --help
expect 0 '^usage: lorashard COMMAND' help
expect 0 '^lorashard [0-9]*\.[0-9]*\.[0-9]*$' --version
expect 2 'no command given'
expect 2 "unknown command 'trian'; the nearest is 'train'" trian
expect 2 "unknown option '--verison'" --verison
expect 2 "nearest is '--help'" doctor --hepl
expect 2 "unexpected 'x'" doctor x
expect 2 'No such file' train /nonexistent/job.yaml
expect 0 '^libraries$' doctor

# Every command has its own help, by both spellings.
commands=$("$LORASHARD" --help | sed -n '/^commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')
[ "$(wc -w <<<"$commands")" -ge 11 ] || fault "--help lists too few commands: $commands"
for command in $commands; do
  expect 0 "^usage: lorashard $command" "$command" --help
  expect 0 "^usage: lorashard $command" help "$command"
done

# A full disk is an error, not a silent success.
if [ -e /dev/full ]; then
  "$LORASHARD" help-config >/dev/full 2>"$err"
  [ $? -eq 1 ] || fault "writing to a full device did not fail"
  grep -q 'standard output' "$err" || fault "full device: $(cat "$err")"
fi

"$LORASHARD" help-config >"$out"
diff -u "$SOURCE_DIR/docs/configuration.md" "$out" ||
  fault "docs/configuration.md is stale: lorashard help-config > docs/configuration.md"

# The committed runs are valid and complete but for base and output.
for run in "$SOURCE_DIR"/cluster-configs/runs/*.yaml; do
  "$LORASHARD" train "$run" >"$out" 2>"$err"
  code=$?
  [ $code -eq 2 ] && grep -q 'base is not set' "$err" || fault "$run without base: code $code, $(cat "$err")"
done

echo "$faults faults"
[ "$faults" -eq 0 ]
