#!/usr/bin/env bash
# lorashard probe: what it measures is a cluster file, and plan takes it.
# shellcheck source=tests/system/harness.sh
. "$(dirname "$0")/harness.sh"

# positive FILE KEY...: the file has these keys (by their last name) with numbers above 0.
positive() {
  local file=$1 key
  shift
  for key; do
    checks=$((checks + 1))
    awk -v key="$key:" '$1 == key { n++; if (!($2 + 0 > 0)) bad = 1 } END { exit bad || !n }' "$file" ||
      fault "$file: $key is missing or not above 0: $(tr '\n' ' ' <"$file")"
  done
}

has_plan=$("$LORASHARD" --help | grep -c '^  plan ')

for ranks in 1 2; do
  launch "$ranks"
  works 'products of' probe --quick --name "ours $ranks" -o "cluster-$ranks.yaml"
  positive "cluster-$ranks.yaml" nodes per_node memory reserved bandwidth achieved cores
  grep -q "name: \"ours $ranks\"" "cluster-$ranks.yaml" || fault "the name is not in the file"
  [ "$(awk '$1 == "per_node:" { print $2 }' "cluster-$ranks.yaml")" = "$ranks" ] || fault "not $ranks ranks a node"
  launch
  [ "$has_plan" -eq 0 ] || works . plan --model gpt2 --cluster "cluster-$ranks.yaml"
done
positive cluster-2.yaml beta
[ "$(grep -c 'beta:' cluster-2.yaml)" -eq 3 ] || fault "two ranks of a node have three kinds of link"

# To standard output; one rank speaks.
launch 2
works '^name: "measured"' probe --quick
[ "$(grep -c '^name:' out)" -eq 1 ] || fault "not one cluster on standard output"

refused 2 'cluster-1.yaml: exists' probe --quick -o cluster-1.yaml
launch
refused 2 'no_such/x.yaml' probe --quick -o no_such/x.yaml
mkdir folder
refused 2 "'folder/' names no file" probe --quick -o folder/
refused 2 "'new/' names no file" probe --quick -o new/
refused 2 'folder: exists and is not a file' probe --quick -o folder
grep -q 'products of' err && fault "the machine is measured before the output is looked at"
refused 2 "unknown key" probe --quick --set devise=cpu
works 'products of' probe --quick -o cluster-1.yaml --overwrite

finish
