#!/usr/bin/env bash
# The rules that a compiler does not check: headers compile alone, includes point down, nothing below launch/
# prints or ends the program, files stay short, the format is the committed one.
# cores: 1
set -u
cd "$SOURCE_DIR" || exit 1
CC=${CC:-cc}
faults=0
fault() {
  echo "fault: $*"
  faults=$((faults + 1))
}

mapfile -t sources < <(find io dist model lora launch tests -name '*.[ch]' | sort)
mapfile -t kernels < <(find model tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' | sort)
mapfile -t program < <(printf '%s\n' "${sources[@]}" | grep -v '^tests/')

# Which target a file belongs to.
layer_of() {
  case $1 in
    io/status.* | io/log.* | io/dtype.* | io/quant.* | io/plugin.* | io/thread.* | io/tensor_source.h | io/model_facts.h | model/arch.* | dist/rng.h)
      echo base ;;
    model/ops.h | model/adamw_step.h | model/device*.[ch] | model/cpu/* | model/cuda/*) echo ops ;;
    */*) echo "${1%%/*}" ;;
    *) echo none ;;
  esac
}
# Arrows: launch -> (lora, model, io) -> (dist, ops) -> base; io stays free of both.
allowed() {
  case $1 in
    base) echo " base " ;;
    ops) echo " ops base " ;;
    dist) echo " dist base " ;;
    io) echo " io base " ;;
    model) echo " model ops dist base " ;;
    lora) echo " lora ops dist base " ;;
    launch) echo " launch lora model io ops dist base " ;;
  esac
}

# --- includes ---
for file in "${program[@]}" $(printf '%s\n' "${kernels[@]}" | grep '^model/'); do
  layer=$(layer_of "$file")
  while read -r included; do
    [ -f "$included" ] || { fault "$file includes \"$included\", which is no path from the root"; continue; }
    target=$(layer_of "$included")
    case $(allowed "$layer") in
      *" $target "*) ;;
      *) fault "$file ($layer) includes $included ($target): arrows point down" ;;
    esac
  done < <(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$file")
  grep -q '#[[:space:]]*include[[:space:]]*<mpi' "$file" && [[ $layer != dist && $file != launch/cmd_doctor.c ]] &&
    fault "$file includes mpi.h; only dist/ speaks MPI"
  grep -q '#[[:space:]]*include[[:space:]]*<\(oneapi/dnnl/\)\?dnnl' "$file" &&
    [[ $layer != ops && $file != launch/cmd_doctor.c ]] && fault "$file includes dnnl.h; only model/cpu/ speaks oneDNN"
  grep -q '#[[:space:]]*include[[:space:]]*<\(cuda\|cublas\|nccl\)' "$file" &&
    [[ $file != model/cuda/* && $file != dist/comm_nccl.c ]] &&
    fault "$file includes CUDA's headers; only model/cuda/ and dist/comm_nccl.c speak CUDA"
done

# --- headers compile alone ---
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
flags=$( (pkg-config --cflags jansson yaml-0.1 libpcre2-8 libutf8proc libxxhash && {
  pkg-config --cflags hdf5-serial || pkg-config --cflags hdf5
} && pkg-config --cflags ompi-c) 2>/dev/null | tr '\n' ' ')
export CC flags scratch
compile_alone() { # HEADER
  local source=$scratch/${1//\//-}.c
  printf '#include "%s"\n#include "%s"\n' "$1" "$1" >"$source"
  # shellcheck disable=SC2086  # flags are words
  "$CC" -std=gnu11 -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 -Wall -Wextra -Werror -fopenmp -fsyntax-only -I. \
    -Itests/gpu_emulation/include $flags "$source" >"$source.errors" 2>&1 && rm "$source.errors"
}
export -f compile_alone
mapfile -t headers < <(printf '%s\n' "${program[@]}" | grep '\.h$')
printf '%s\n' "${headers[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile_alone {}'
for header in "${headers[@]}"; do
  errors=$scratch/${header//\//-}.c.errors
  [ ! -e "$errors" ] || { fault "$header does not compile alone:" && head -5 "$errors"; }
done
[ "$(find "$scratch" -name '*.c' | wc -l)" -eq ${#headers[@]} ] || fault "not every header was compiled"

# --- no output and no exit below launch/ ---
# -fpreprocessed keeps the text and only takes comments out.
for file in "${program[@]}"; do
  [[ $file == launch/* ]] && continue
  "$CC" -fpreprocessed -dD -E -P "$file" 2>/dev/null >"$scratch/bare.c"
  if grep -nE '(^|[^_[:alnum:].>])(exit|_exit|abort|quick_exit|printf|vprintf|puts|putchar|perror)[[:space:]]*\(' \
      "$scratch/bare.c" >"$scratch/calls" || grep -nE '\b(stdout|stderr)\b' "$scratch/bare.c" >"$scratch/calls"; then
    # The logger writes; mesh_abort is how a rank, told so by launch/, ends a job whose peers hang.
    [[ $file == io/log.c || ($file == dist/mesh.c && $(wc -l <"$scratch/calls") -eq 1) ]] || fault "$file prints or ends the program: $(head -1 "$scratch/calls")"
  fi
done

# --- size ---
for file in "${sources[@]}" "${kernels[@]}"; do
  lines=$(wc -l <"$file")
  [ "$lines" -le 600 ] || fault "$file has $lines lines; split it by topic (600 at most)"
done

# --- format ---
formatter=$(command -v clang-format || command -v clang-format-14 || true)
if [ -n "$formatter" ]; then
  for file in "${sources[@]}" "${kernels[@]}"; do
    "$formatter" --dry-run -Werror "$file" >"$scratch/format" 2>&1 ||
      fault "$file is not in the committed format: clang-format -i $file"
  done
else
  echo "clang-format is not installed; formatting not checked"
fi

echo "$((${#sources[@]} + ${#kernels[@]})) files checked, $faults faults"
[ "$faults" -eq 0 ]
