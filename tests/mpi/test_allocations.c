/* ranks: 1 2 */
/*
 * After the second step the training loop allocates nothing: the device's
 * counter stands still, and on one rank (MPI itself takes memory for messages)
 * no block of 64 KiB or more is taken inside train_step. What oneDNN takes and
 * gives back within one product (2.6 packs operands of f32 products so) is not
 * in our hands and is counted apart. The frozen base has the same bytes before
 * and after.
 */
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../test_device.h"
#include "golden_case.h"
#include "golden_device.h"
#include "launch/evaluate.h"
#include "launch/train_step.h"

enum { STEPS = 6, LARGE = 64 << 10 };

/* --- every allocation of the process passes here --- */

static long n_in_products; /* large blocks within calls of oneDNN */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define COUNTS_BLOCKS 1
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static volatile bool counting;
static long n_large;
static __thread bool in_product;

static void count(size_t size) {
  if (!counting || size < LARGE) return;
  __atomic_fetch_add(in_product ? &n_in_products : &n_large, 1, __ATOMIC_RELAXED);
}

/* oneDNN's own, reached through here. */
int dnnl_primitive_execute(const void *primitive, void *stream, int n_args, const void *args) {
  static int (*execute)(const void *, void *, int, const void *);
  if (!execute) *(void **)&execute = dlsym(RTLD_NEXT, "dnnl_primitive_execute");
  in_product = true;
  int code = execute(primitive, stream, n_args, args);
  in_product = false;
  return code;
}

void *malloc(size_t size) {
  count(size);
  return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
  count(n * size);
  return __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) {
  count(size);
  return __libc_realloc(old, size);
}
void *memalign(size_t alignment, size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **memory, size_t alignment, size_t size) {
  *memory = memalign(alignment, size);
  return *memory ? 0 : ENOMEM;
}
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
  count(length);
  return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

static void count_blocks(bool on) { counting = on; }
static void check_blocks(const char *what, int step) {
  golden_check(n_large == 0, "%s, step %d: %ld blocks of %d KiB or more were taken in train_step", what, step, n_large,
               LARGE >> 10);
}
/* The counter itself works. */
static void check_counter(void) {
  counting = true;
  void *volatile block = malloc(LARGE);
  void *volatile mapped = mmap(NULL, LARGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  counting = false;
  golden_check(n_large == 2, "the counter of large blocks saw %ld of 2", n_large);
  free(block);
  munmap(mapped, LARGE);
  n_large = 0;
}
#else
static void count_blocks(bool on) { (void)on; }
static void check_blocks(const char *what, int step) { (void)what, (void)step; }
static void check_counter(void) {}
#endif

/* --- runs --- */

struct setting {
  const char *name, *base;
  const char *set[8];
};
static const struct setting settings[] = {
    {"f32, dropout", "stories260K", {"lora.targets=all", "lora.dropout=0.1"}},
    {"f32, q v of layer 3 on, uneven micro-batches", "stories260K", {"lora.layers=3-4", "train.micro_batch=3"}},
    {"bf16", "stories260K", {"lora.targets=all", "train.compute=bf16", "train.base_dtype=bf16"}},
    {"quantised base", "stories260K-q.gguf", {"lora.targets=all"}},
    {"quantised base, bf16", "stories260K-q.gguf", {"lora.targets=all", "train.compute=bf16"}},
};

static void configure(const struct setting *setting, int n_tp, struct config *config) {
  char base[600], data[600], tp[40], device[40];
  snprintf(base, sizeof base, "base=%s/tests/fixtures/%s", SOURCE_DIR, setting->base);
  snprintf(data, sizeof data, "data.train=[%s/launch/data/e2e-eval.txt]", SOURCE_DIR);
  snprintf(device, sizeof device, "device=%s", test_device());
  snprintf(tp, sizeof tp, "parallel.tp=%d", n_tp);
  /* 512 x 64 f32 of a residual stream are 128 KiB: a stray buffer shows. */
  const char *const common[] = {base,
                                data,
                                tp,
                                "data.format=text",
                                "data.seq_len=128",
                                "train.global_batch=8",
                                "train.micro_batch=4",
                                "train.steps=100",
                                "output=none",
                                device,
                                "dist.share_gpus=true"};
  /* Blocks of the host are not counted for a GPU: shorter rows do. */
  const bool gpu = strcmp(test_device(), "cpu") != 0;
  golden_must(config_init(config));
  for (size_t i = 0; i < sizeof common / sizeof common[0]; i++) golden_must(config_set(config, common[i]));
  if (gpu) golden_must(config_set(config, "data.seq_len=32"));
  if (gpu) golden_must(config_set(config, "train.global_batch=16"));
  for (int i = 0; i < 8 && setting->set[i]; i++) golden_must(config_set(config, setting->set[i]));
}

static void run(const struct setting *setting, int n_tp) {
  struct config config;
  struct job job;
  struct dataset *data;
  struct batcher batcher;
  struct job_options options = {.fresh_adapters = true};
  struct train_signals signals = {0};
  struct train_result result;
  uint64_t allocations = 0;
  configure(setting, n_tp, &config);
  golden_must(job_open(&config, &options, &job));
  golden_must(job_load(&job));
  golden_must(evaluate_open_data(&job, &config.data.train, NULL, &data));
  golden_must(batcher_create(data, config.data.seq_len, config.train.micro_batch, BATCH_TOKEN_UNIT, true,
                             config.train.seed, &batcher));
  golden_must(job_prepare_model(&job, batcher.max_tokens, true, 4));
  struct run_state state = {.rows = dataset_rows(data)};
  struct train_plan plan = train_plan(&config, &state);
  const struct memory_table *base = &job.model->weights.memory;
  char *kept = malloc(base->total), *now = malloc(base->total);
  golden_check(kept && now, "out of memory");
  golden_must(device_copy_out(job.device, kept, base->arena, base->total));
  for (int step = 1; step <= test_steps(STEPS); step++) {
    bool steady = step > 2;
    if (step == 3) allocations = job.device->allocations;
    count_blocks(steady && job.mesh->world == 1 && job.device->host_memory); /* emulated GPUs allocate */
    golden_must(train_step(&job, &batcher, &plan, &state, &signals, &result));
    count_blocks(false);
    golden_check(result.tokens > 400 && result.loss > 0, "%s: an empty step", setting->name);
    golden_check(!steady || job.device->allocations == allocations,
                 "%s, step %d: the device allocated %" PRIu64 " blocks", setting->name, step,
                 job.device->allocations - allocations);
    check_blocks(setting->name, step);
  }
  golden_must(device_copy_out(job.device, now, base->arena, base->total));
  golden_check(memcmp(kept, now, base->total) == 0, "%s: the frozen base changed", setting->name);
  free(kept);
  free(now);
  batcher_destroy(&batcher);
  dataset_close(&data);
  job_close(&job);
  config_free(&config);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  check_counter();
  for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) run(&settings[i], world);
  if (rank == 0)
    printf("tp %d: %d runs allocate nothing after the second step (oneDNN within its products: %ld large blocks)\n",
           world, (int)(sizeof settings / sizeof settings[0]), n_in_products);
  golden_stop();
  return 0;
}
