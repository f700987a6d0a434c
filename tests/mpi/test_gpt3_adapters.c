/* ranks: 16 */
/*
 * The adapters of GPT-3 175B in their real shapes: r = 4 on q and v of all 96
 * layers, 18,874,368 parameters. 8 x 2 ranks (tp x pp), none with any base weight,
 * checkpoint them; `lorashard gather` makes one file of 16-bit numbers, of at most
 * 38 MB with at most 200 MB of memory; 4 x 1 ranks read it, and the checkpoint itself
 * with its moments.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dist/rng.h"
#include "golden_case.h"
#include "io/quant.h"
#include "launch/adapter_plan.h"
#include "launch/saver.h"

#define PARAMETERS      INT64_C(18874368) /* 96 layers x 2 x 4 x (12288 + 12288) */
#define LARGEST_FILE    38000000          /* bytes */
#define LARGEST_PROCESS 200000            /* KB */

static const struct run_state state_written = {
    .step = 100, .samples = 1600, .rows = 1000, .tokens_seen = INT64_C(3276800), .data_digest = "of no data"};

/* --- a process that starts gather and sees its memory --- */

/* The peak of a process counts what it was forked from, so the one that starts gather is made while this one is small.
 */
struct helper {
  int request, answer; /* pipes */
};

/* What the helper finds out about one gather. */
struct gather_result {
  int status;      /* of waitpid */
  long largest_kb; /* peak resident memory */
};

static void serve(int request, int answer) {
  char step[512], program[512];
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n <= 0 || read(request, step, sizeof step) != sizeof step) _exit(0);
  program[n] = 0;
  /* BUILD/tests/test_mpi_gpt3_adapters or BUILD/tests/emulated/... : the program is above tests/. */
  char *tests = strstr(program, "/tests/");
  if (tests) strcpy(tests, "/lorashard");
  struct gather_result result = {0};
  struct rusage usage;
  pid_t child = fork();
  if (child == 0) {
    char output[600], *end = strrchr(step, '/'); /* the file lies beside the step, not in it */
    snprintf(output, sizeof output, "%.*s/gathered.h5", (int)(end - step), step);
    execl(program, program, "gather", step, "-o", output, "--dtype", "f16", (char *)NULL);
    _exit(127);
  }
  if (wait4(child, &result.status, 0, &usage) == child) result.largest_kb = usage.ru_maxrss;
  if (write(answer, &result, sizeof result) != sizeof result) _exit(1);
  _exit(0);
}

static struct helper start_helper(void) {
  int request[2], answer[2];
  if (pipe(request) != 0 || pipe(answer) != 0) exit(1);
  pid_t helper = fork();
  if (helper < 0) exit(1);
  if (helper == 0) {
    close(request[1]);
    close(answer[0]);
    serve(request[0], answer[1]);
  }
  close(request[0]);
  close(answer[1]);
  return (struct helper){request[1], answer[0]};
}

static void gather(const struct helper *helper, const char *step) {
  char message[512] = "";
  struct gather_result result;
  snprintf(message, sizeof message, "%s", step);
  golden_check(write(helper->request, message, sizeof message) == sizeof message &&
                   read(helper->answer, &result, sizeof result) == sizeof result,
               "the helper that starts gather is gone");
  golden_check(WIFEXITED(result.status) && WEXITSTATUS(result.status) == 0, "lorashard gather ended with status %d",
               result.status);
  golden_check(result.largest_kb <= LARGEST_PROCESS, "gather took %ld KB of memory", result.largest_kb);
  printf("gather: peak memory %ld KB\n", result.largest_kb);
}

/* Sixteen ranks on few cores: who waits in MPI's own barrier takes the time of those that work. */
static void meet(void) {
  MPI_Request request;
  int all_here = 0;
  golden_check(MPI_Ibarrier(MPI_COMM_WORLD, &request) == MPI_SUCCESS, "MPI_Ibarrier");
  while (!all_here) {
    golden_check(MPI_Test(&request, &all_here, MPI_STATUS_IGNORE) == MPI_SUCCESS, "MPI_Test");
    if (!all_here) usleep(10000);
  }
}

/* --- the adapters --- */

/* One replica is enough to see: the ranks of others get a mesh only, which is false. */
static bool open_job(struct config *config, int n_tp, int n_pp, const char *adapter, struct job *job) {
  const struct device_options cpu = {.name = "cpu", .n_threads = 1};
  const struct job_options options = {.fresh_adapters = true, .adapter = adapter};
  struct adapter_set set = {0};
  memset(job, 0, sizeof *job);
  job->config = config;
  golden_must(mesh_create(n_tp, n_pp, &job->mesh));
  if (job->mesh->dp_rank != 0) return false;
  golden_must(device_open(&cpu, &job->device));
  golden_must(base_model_open(config->base, &job->source));
  golden_must(base_model_fingerprint(job->source, job->fingerprint));
  golden_must(shard_plan(&job->source->facts, n_tp, job->mesh->tp_rank, &job->shard));
  golden_must(adapter_plan_choose(job, &options, &set));
  golden_must(shard_plan_stage(&job->source->facts, job->first_adapted, n_pp, job->mesh->pp_rank, &job->shard));
  golden_must(adapter_plan_make(job, &set));
  adapter_set_free(&set);
  golden_check(adapter_plan_parameters(job) == PARAMETERS, "%lld parameters", (long long)adapter_plan_parameters(job));
  return true;
}

static void configure(const char *output, struct config *config) {
  static const char *const settings[] = {"base=synthetic:gpt3-175b", "lora.r=4", "lora.alpha=8", "lora.targets=[q, v]",
                                         "lora.dropout=0"};
  char text[600];
  golden_must(config_init(config));
  for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) golden_must(config_set(config, settings[i]));
  snprintf(text, sizeof text, "output=%s", output);
  golden_must(config_set(config, text));
}

/* The number at a place of a whole matrix: a function of the place alone. array 0: value, 1 and 2: moments. Values have
 * up to 24 significant bits, so that rounding to 16 shows. */
static float number_at(const struct param *p, int array, int64_t i) {
  int layer = atoi(p->group_name + strlen("layers/"));
  uint32_t which = (uint32_t)(p->name[0] == 'B') << 1 | (strrchr(p->group_name, '/')[1] == 'v');
  return (float)(rng_uniform(7, RNG_SYNTHETIC, which, (uint32_t)layer, (uint32_t)array, (uint64_t)i) - 0.5);
}

/* Fill this rank's parts, or count what is different. */
static int64_t visit(struct job *job, bool fill, int n_arrays, bool halved) {
  struct param_list *params = &job->adapters.params;
  int64_t different = 0;
  for (int k = 0; k < params->n; k++) {
    const struct param *p = &params->items[k];
    float *const arrays[3] = {p->w, p->m, p->v};
    for (int a = 0; a < n_arrays; a++)
      for (int64_t row = 0; row < p->part_rows; row++)
        for (int64_t col = 0; col < p->part_cols; col++) {
          float number = number_at(p, a, (p->row + row) * p->cols + p->col + col);
          if (halved) number = f16_to_f32(f32_to_f16(number));
          float *place = &arrays[a][row * p->part_cols + col];
          if (fill) *place = number;
          different += *place != number;
        }
  }
  return different;
}

static void write_checkpoint(struct config *config) {
  struct job job;
  struct saver *saver;
  open_job(config, 8, 2, NULL, &job);
  visit(&job, true, 3, false);
  golden_must(saver_create(&job, config->output, 0, &saver));
  golden_must(saver_begin(saver, &state_written));
  golden_must(saver_finish(saver));
  golden_check(!saver_pending(saver), "the checkpoint is not published");
  golden_check(job.source->bytes_read == 0, "%llu bytes of base weights were made",
               (unsigned long long)job.source->bytes_read);
  saver_destroy(&saver);
  job_close(&job);
}

static void check_file(const char *path) {
  struct checkpoint *checkpoint = NULL;
  const struct checkpoint_array *arrays;
  struct stat info;
  int64_t numbers = 0;
  golden_must(checkpoint_open(path, &checkpoint));
  int n = checkpoint_arrays(checkpoint, &arrays);
  for (int i = 0; i < n; i++) numbers += arrays[i].rows * arrays[i].cols;
  checkpoint_close(&checkpoint);
  golden_check(n == 96 * 2 * 2 && numbers == PARAMETERS, "%d matrices with %lld numbers", n, (long long)numbers);
  golden_check(stat(path, &info) == 0 && info.st_size <= LARGEST_FILE, "%s has %lld bytes", path,
               (long long)info.st_size);
  printf("gathered: %lld bytes\n", (long long)info.st_size);
}

static void read_back(struct config *config, const char *step, const char *file) {
  struct job job;
  struct run_state state;
  if (open_job(config, 4, 1, file, &job)) {
    int64_t different = visit(&job, false, 1, true);
    golden_check(different == 0, "%lld numbers of the gathered file are others", (long long)different);
    golden_must(saver_restore(&job, step, state_written.rows, state_written.data_digest, &state));
    different = visit(&job, false, 3, false);
    golden_check(different == 0, "%lld numbers of the checkpoint are others", (long long)different);
    golden_check(state.step == state_written.step && state.samples == state_written.samples &&
                     state.tokens_seen == state_written.tokens_seen,
                 "the run stands at step %lld, sample %lld", (long long)state.step, (long long)state.samples);
  }
  meet();
  job_close(&job);
}

int main(void) {
  const struct helper helper = mesh_launcher_rank() == 0 ? start_helper() : (struct helper){-1, -1};
  int world, rank;
  char root[64] = "/tmp/test_gpt3_XXXXXX", output[96], step[128], file[128];
  struct config config;
  struct mesh *mesh;
  golden_must(mesh_start(&world, &rank));
  golden_must(mesh_create(1, 1, &mesh));
  if (rank == 0) golden_check(mkdtemp(root) != NULL, "no directory in /tmp");
  golden_must(comm_broadcast(mesh->control, root, sizeof root, 0));
  snprintf(output, sizeof output, "%s/run", root);
  if (rank == 0) golden_check(mkdir(output, 0777) == 0, "no directory %s", output);
  snprintf(step, sizeof step, "%s/step-000100", output);
  snprintf(file, sizeof file, "%s/gathered.h5", output);
  configure(output, &config);

  write_checkpoint(&config);
  if (rank == 0) gather(&helper, step);
  meet();
  if (rank == 0) check_file(file);
  read_back(&config, step, file);

  meet();
  if (rank == 0) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    golden_check(system(command) == 0, "%s is left", root);
  }
  config_free(&config);
  mesh_destroy(&mesh);
  mesh_stop();
  return 0;
}
