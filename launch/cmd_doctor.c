#define PCRE2_CODE_UNIT_WIDTH 8 /* pcre2.h wants it before its include */
#include <dnnl.h>
#include <errno.h>
#include <hdf5.h>
#include <jansson.h>
#include <mpi.h>
#include <omp.h>
#include <pcre2.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <yaml.h>

#include "launch/build_id.h"
#include "launch/cli.h"
#include "model/device.h"

#ifndef LORASHARD_MARCH
#define LORASHARD_MARCH "?"
#endif

/* Shared memory that ranks on one node want at least. */
#define SHM_MIN_MIB 64

static int n_hints;

static void row(const char *name, const char *value) { printf("  %-16s %s\n", name, value); }

static void hint(const char *text) {
  printf("  hint: %s\n", text);
  n_hints++;
}

/* First line of a small file without its newline; false if there is none. */
static bool first_line(const char *path, char *text, int size) {
  FILE *file = fopen(path, "re");
  if (!file) return false;
  bool found = fgets(text, size, file) != NULL;
  fclose(file);
  if (found) text[strcspn(text, "\n")] = 0;
  return found;
}

/* --- build and libraries --- */

static void show_build(void) {
  printf("build\n");
  char version[64];
  snprintf(version, sizeof version, LORASHARD_VERSION " of sources %s", build_id);
  row("lorashard", version);
  row("compiler", __VERSION__);
  row("kernels for", LORASHARD_MARCH);
#if defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
  hint("this is a debugging build and slow; build with cmake --preset release");
#endif
}

static void show_libraries(void) {
  char text[128];
  printf("libraries\n");
  const dnnl_version_t *dnnl = dnnl_version();
  snprintf(text, sizeof text, "%d.%d.%d", dnnl->major, dnnl->minor, dnnl->patch);
  row("oneDNN", text);
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
  row("HDF5", text);
  /* Both MPI calls are allowed before MPI_Init. */
  char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(library, &length);
  library[strcspn(library, ",\n")] = 0;
  row("MPI", library);
  char pcre2[64] = "";
  pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
  row("PCRE2", pcre2);
  row("jansson", jansson_version_str());
  row("libyaml", yaml_get_version_string());
  row("utf8proc", utf8proc_version());
  unsigned xxhash = XXH_versionNumber();
  snprintf(text, sizeof text, "%u.%u.%u", xxhash / 10000, xxhash / 100 % 100, xxhash % 100);
  row("xxHash", text);
}

/* --- processor --- */

/* Cores of the affinity mask. */
static int cores_allowed(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : omp_get_num_procs();
}

/* Cores that a control group grants, 0 if it sets no limit. */
static double cores_granted(void) {
  char text[64];
  double quota = 0, period = 0;
  if (!first_line("/sys/fs/cgroup/cpu.max", text, sizeof text)) return 0;
  return sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0 ? quota / period : 0;
}

/* Value of a line "name : value" of /proc/cpuinfo; long enough for the flags. */
static bool cpuinfo(const char *name, char *text, size_t size) {
  FILE *file = fopen("/proc/cpuinfo", "re");
  if (!file) return false;
  char *line = NULL;
  size_t capacity = 0;
  bool found = false;
  while (!found && getline(&line, &capacity, file) > 0) {
    if (strncmp(line, name, strlen(name)) != 0) continue;
    const char *colon = strchr(line, ':');
    if (!colon) continue;
    snprintf(text, size, " %s ", colon + 1 + strspn(colon + 1, " "));
    text[strcspn(text, "\n")] = ' ';
    found = true;
  }
  free(line);
  fclose(file);
  return found;
}

static void show_flags(void) {
  static const char *const wanted[] = {"avx2",        "fma",         "f16c",     "avx512f", "avx512_vnni",
                                       "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"};
  char flags[8192], shown[256] = "";
  if (!cpuinfo("flags", flags, sizeof flags)) {
    row("instructions", "unknown (not an x86 processor, or no /proc)");
    return;
  }
  size_t used = 0;
  bool has[sizeof wanted / sizeof wanted[0]];
  for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
    char word[32];
    snprintf(word, sizeof word, " %s ", wanted[i]);
    has[i] = strstr(flags, word) != NULL;
    if (has[i]) used += (size_t)snprintf(shown + used, sizeof shown - used, "%s%s", used ? " " : "", wanted[i]);
  }
  row("instructions", used ? shown : "none of avx2, fma, avx512");
  bool avx2 = has[0] && has[1], bf16 = has[5] || has[8];
  if (!avx2) hint("without AVX2 and FMA the matrix products are several times slower");
  row("bf16", bf16 ? "in hardware: train.compute bf16 is the fast choice" : "emulated: train.compute f32 is faster");
}

static void show_processor(void) {
  char text[256];
  printf("processor\n");
  if (cpuinfo("model name", text, sizeof text)) row("model", text + 1);
  int cores = cores_allowed();
  double granted = cores_granted();
  const char *threads = getenv("OMP_NUM_THREADS");
  snprintf(text, sizeof text, "%d usable%s", cores, threads ? "" : ", OMP_NUM_THREADS not set");
  if (threads) snprintf(text, sizeof text, "%d usable, OMP_NUM_THREADS %.20s", cores, threads);
  row("cores", text);
  if (granted > 0 && granted < cores) {
    snprintf(text, sizeof text,
             "the control group grants %.1f of %d cores; set OMP_NUM_THREADS to ranks x threads <= %.0f", granted,
             cores, granted < 1 ? 1.0 : granted);
    hint(text);
  }
  if (threads && atoi(threads) > cores)
    hint("OMP_NUM_THREADS is above the usable cores; threads will wait for each other");
  show_flags();
}

/* --- ranks --- */

static int environment_number(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

static void show_launch(void) {
  int ranks = environment_number("OMPI_COMM_WORLD_SIZE"), local = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE");
  int slurm = environment_number("SLURM_NTASKS");
  char text[160];
  printf("launch\n");
  if (ranks > 0)
    snprintf(text, sizeof text, "Open MPI, %d ranks, %d on this node", ranks, local);
  else if (slurm > 0)
    snprintf(text, sizeof text, "Slurm, %d tasks", slurm);
  else
    snprintf(text, sizeof text, "no launcher: one rank");
  row("started by", text);
  if (local > 1 && cores_allowed() == 1) {
    hint("this rank is bound to one core; give mpirun --bind-to none, or --map-by slot:PE=N for N threads a rank");
  }
  struct statvfs shm;
  if (statvfs("/dev/shm", &shm) != 0) {
    hint("no /dev/shm; ranks on one node will exchange data more slowly");
    return;
  }
  unsigned long long mib = (unsigned long long)shm.f_bavail * shm.f_frsize >> 20;
  snprintf(text, sizeof text, "%llu MiB free in /dev/shm", mib);
  row("shared memory", text);
  if (mib < SHM_MIN_MIB) hint("little shared memory for MPI; in a container start it with --shm-size=1g");
}

/* --- GPUs --- */

static void show_gpus(void) {
  char text[160], reason[320];
  int n = device_gpu_count(reason, sizeof reason);
  printf("GPUs\n");
  snprintf(text, sizeof text, "%d", n);
  row("visible", text);
  if (n == 0) row("none because", reason);
}

/* --- memory --- */

/* A number of /proc/meminfo in KiB, -1 if it is not there. */
static long long meminfo(const char *name) {
  FILE *file = fopen("/proc/meminfo", "re");
  if (!file) return -1;
  char line[128];
  long long value = -1;
  size_t length = strlen(name);
  while (fgets(line, sizeof line, file))
    if (strncmp(line, name, length) == 0 && line[length] == ':') value = atoll(line + length + 1);
  fclose(file);
  return value;
}

static void show_memory(void) {
  char text[160];
  printf("memory\n");
  snprintf(text, sizeof text, "%.1f of %.1f GiB available", (double)meminfo("MemAvailable") / 1048576.0,
           (double)meminfo("MemTotal") / 1048576.0);
  row("main memory", text);
  if (!first_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) {
    row("huge pages", "not offered by this kernel");
    return;
  }
  row("huge pages", text);
  if (strstr(text, "[never]"))
    hint("transparent huge pages are off; 'madvise' in /sys/kernel/mm/transparent_hugepage/enabled speeds up weights");
}

enum status cmd_doctor(int argc, char **argv) {
  static const struct cli_help help = {
      .usage = "doctor",
      .summary = "Show the build, the libraries and this machine, with a hint for each problem seen.",
      .details =
          "Start it as a job would be started to see what its ranks see:\n"
          "  mpirun -n 2 --bind-to none lorashard doctor",
  };
  const struct cli_option options[] = {{NULL}};
  bool done;
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, NULL, &done));
  /* Started with several ranks: one of a node speaks. */
  if (done || environment_number("OMPI_COMM_WORLD_LOCAL_RANK") > 0) return STATUS_OK;
  show_build();
  show_libraries();
  show_processor();
  show_launch();
  show_gpus();
  show_memory();
  if (n_hints == 0) printf("no problem seen\n");
  return STATUS_OK;
}
