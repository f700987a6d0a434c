# shellcheck shell=bash
# shellcheck disable=SC2154  # tasks_per_node and cpus_per_task: the script that sources this one sets them
# Sourced by the job scripts of this folder, in the batch shell, with tasks_per_node and cpus_per_task set. Starts the
# ranks; puts the job back into the queue when they stopped early; goes on where they stopped when it is started again.
#
#   arguments              RUN.yaml OUTPUT [--set KEY=VALUE ...]
#   LORASHARD_ROOT         the repository (default: where sbatch was called)
#   LORASHARD              the program (default: build/lorashard of the repository)
#   LORASHARD_IDLE_STARTS  starts that may come and go without a new checkpoint before the job gives up (default: 3)
#   SLURM_MPI_TYPE         how srun and MPI find each other (default: pmix; srun --mpi=list)
set -u
program=${LORASHARD:-${LORASHARD_ROOT:-$SLURM_SUBMIT_DIR}/build/lorashard}
export SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmix} OMP_NUM_THREADS=$cpus_per_task

say() { echo "slurm job $SLURM_JOB_ID: $*"; }
die() {
  local code=$1
  shift
  say "error: $*" >&2
  exit "$code"
}

[ $# -ge 2 ] || die 2 "usage: sbatch [OPTIONS OF SBATCH] launch/slurm/NAME.sbatch RUN.yaml OUTPUT [--set KEY=VALUE ...]"
config=$1 output=$2
shift 2
for argument; do
  case $argument in
    --resume | --overwrite) die 2 "$argument: the job goes on by itself if OUTPUT holds a checkpoint; to begin anew give another OUTPUT" ;;
  esac
done
[ -x "$program" ] || die 2 "no program at $program: call sbatch in the repository, or set LORASHARD_ROOT or LORASHARD"
mkdir -p "$output" || die 1 "cannot make $output"

newest_step() {
  local manifests=("$output"/step-*/manifest.json)
  [ -e "${manifests[0]}" ] && printf '%s\n' "${manifests[@]}" | sort -V | tail -n 1
}

# A job that is stopped again and again before it has saved anything would be started for ever. So each start writes
# down what it found, and how many starts before it found the same.
starts=$output/slurm-$SLURM_JOB_ID.starts
newest=$(newest_step)
# The number of a step that is damaged stays the highest; `latest` is replaced with every checkpoint.
latest=$(cat "$output/latest" 2>/dev/null)
mode=()
idle=0
if [ -e "$starts" ]; then
  { read -r idle && read -r found; } <"$starts" || die 1 "$starts is not what a start left there: remove it"
  if [ "$found" = "$latest" ]; then idle=$((idle + 1)); else idle=0; fi
  # Without a checkpoint there is only the metrics of this job's own lost steps to replace.
  mode=(--overwrite)
fi
# An OUTPUT of an earlier run may say "finished"; only what this start writes is to be believed at its end.
[ -z "$newest" ] || { mode=(--resume) && rm -f "$output/status.json"; }
[ "$idle" -lt "${LORASHARD_IDLE_STARTS:-3}" ] ||
  die 1 "$idle starts ended without a new checkpoint: give the job more --time, or a smaller checkpoint.every"
printf '%s\n' "$idle" "$latest" >"$starts" || die 1 "cannot write $starts"

# USR1 (the time is nearly over) goes to the ranks, TERM (Slurm ends the job) to this shell too. Both let the ranks
# finish a step and save; the shell waits for that.
trap : USR1 TERM
nodes=$SLURM_JOB_NUM_NODES
say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: $nodes x $tasks_per_node ranks, $cpus_per_task threads each"
srun --nodes="$nodes" --ntasks=$((nodes * tasks_per_node)) --ntasks-per-node="$tasks_per_node" \
  --cpus-per-task="$cpus_per_task" --kill-on-bad-exit=1 \
  "$program" train "$config" "$@" --set "output='${output//\'/\'\'}'" ${mode[@]+"${mode[@]}"}
code=$?

case $code in
  0)
    if grep -qs '"state": "finished"' "$output/status.json"; then
      rm -f "$starts"
      say "finished"
      exit 0
    fi
    ;;
  138 | 143) ;; # killed by USR1 or TERM: it came before the program could save, or twice
  *) die "$code" "training failed with exit code $code" ;;
esac

# Stopped early. If Slurm is ending the job, coming back is up to Slurm: after a preemption it does, after scancel it
# must not.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) ||
  die 1 "cannot ask Slurm for the job's state: call sbatch again with the same arguments to go on"
if [ "$state" != RUNNING ]; then
  say "stopped early, and Slurm is ending the job${state:+ ($state)}"
  exit 0
fi
say "stopped early; back into the queue"
scontrol requeue "$SLURM_JOB_ID" || die 1 "cannot requeue the job: call sbatch again with the same arguments to go on"
