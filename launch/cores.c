#include "launch/cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

/* Cores [first, first + n) of those in `from`. */
static cpu_set_t pick(const cpu_set_t *from, int first, int n) {
  cpu_set_t picked;
  CPU_ZERO(&picked);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, from)) continue;
    if (seen >= first && seen < first + n) CPU_SET(cpu, &picked);
    seen++;
  }
  return picked;
}

int cores_take_share(int node_rank, int node_size) {
  const char *wanted = getenv("OMP_NUM_THREADS");
  cpu_set_t bound, all;
  CPU_ZERO(&all);
  if (sched_getaffinity(0, sizeof bound, &bound) != 0) return 1;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) CPU_SET(cpu, &all);
  /* The kernel cuts this down to what the job's cpuset allows. */
  if (sched_setaffinity(0, sizeof all, &all) != 0 || sched_getaffinity(0, sizeof all, &all) != 0) all = bound;
  sched_setaffinity(0, sizeof bound, &bound);
  int total = CPU_COUNT(&all), own = CPU_COUNT(&bound), share = total / node_size < 1 ? 1 : total / node_size;
  bool under_mpirun = getenv("OMPI_COMM_WORLD_SIZE") != NULL;
  /* A binding that the user or Slurm chose stands; one that leaves all cores to all ranks is shared. */
  int threads = own == total || under_mpirun ? share : own;
  if (wanted && atoi(wanted) > 0) threads = atoi(wanted);
  if (own >= threads || !under_mpirun || node_size > total) return threads;
  cpu_set_t mine = pick(&all, node_rank * share, share);
  if (CPU_COUNT(&mine) > 0) sched_setaffinity(0, sizeof mine, &mine);
  return threads;
}
