/* ranks: 1 4 6 */
/*
 * What plan says a rank needs is what a job then allocates, to the byte: weights,
 * adapters, activations, and all that the device holds. Families, layouts, sequence
 * parallelism, recomputation and number types in turn; a job is opened as train opens
 * it, up to its buffers.
 */
#include <stdio.h>
#include <string.h>

#include "golden_case.h"
#include "golden_device.h"
#include "launch/batcher.h"
#include "launch/job.h"
#include "launch/planner.h"

struct planned {
  int ranks;
  const char *base;
  const char *settings[8]; /* as --set takes them */
};

static const struct planned cases[] = {
    {1, "tests/golden/gpt2", {"lora.targets=[q, v]"}},
    {1, "tests/golden/opt-post-norm", {"train.compute=bf16", "train.base_dtype=f32"}},
    {1, "tests/golden/llama", {"train.recompute=full", "train.base_dtype=fp8", "lora.targets=all"}},
    {1, "tests/golden/llama", {"train.base_dtype=nf4", "lora.layers=[1]", "train.recompute=selective"}},
    {1, "tests/golden/bloom", {"train.base_dtype=int8", "train.compute=bf16"}},
    {1, "tests/fixtures/stories260K-q.gguf", {"lora.overrides=[{modules: [up], layers: [1, 3], r: 5}]"}},
    {4, "tests/golden/gpt2", {"parallel.tp=4", "parallel.sequence=true", "lora.targets=all"}},
    {4, "tests/golden/llama", {"parallel.tp=2", "parallel.pp=2", "train.global_batch=9"}},
    {4, "tests/golden/llama", {"parallel.tp=2", "parallel.pp=2", "train.global_batch=1", "train.base_dtype=bf16"}},
    {4, "tests/golden/bloom", {"parallel.tp=4", "train.compute=bf16", "train.recompute=selective"}},
    {4, "tests/golden/gptj", {"parallel.tp=2", "parallel.pp=1", "parallel.sequence=true", "train.recompute=full"}},
    {4, "tests/golden/qwen3", {"parallel.tp=4", "parallel.sequence=true", "train.compute=bf16", "lora.targets=[k, o]"}},
    {4, "tests/golden/gpt2", {"parallel.tp=2", "train.base_dtype=nf4", "lora.targets=all"}},
    {4, "tests/golden/neox", {"parallel.tp=2", "train.base_dtype=int8"}},
    {4,
     "tests/golden/opt-post-norm",
     {"parallel.tp=1", "parallel.pp=2", "lora.layers=[1]", "train.recompute=selective"}},
    {4, "synthetic:smollm2-135m,layers=3", {"parallel.tp=2", "parallel.pp=2", "parallel.sequence=true"}},
    {6, "tests/golden/llama-uneven", {"parallel.tp=2", "parallel.pp=1", "lora.targets=all", "parallel.sequence=true"}},
    {6, "tests/golden/qwen2", {"parallel.tp=2", "parallel.pp=3", "train.recompute=full", "train.global_batch=7"}},
    {6, "tests/golden/qwen2", {"parallel.tp=1", "parallel.pp=3", "train.compute=bf16", "lora.layers=[0, 2]"}},
};

static void configure(const struct planned *one, struct config *config) {
  char text[600];
  golden_must(config_init(config));
  bool own = strncmp(one->base, "synthetic:", 10) != 0;
  snprintf(text, sizeof text, "base=%s%s%s", own ? SOURCE_DIR : "", own ? "/" : "", one->base);
  golden_must(config_set(config, text));
  golden_must(config_set(config, "data.seq_len=48"));
  golden_must(config_set(config, "train.micro_batch=2"));
  golden_must(config_set(config, "lora.r=3"));
  for (int i = 0; one->settings[i]; i++) golden_must(config_set(config, one->settings[i]));
}

/* A cluster of this machine's kind: only the kind matters to memory. */
static struct cluster make_cluster(const struct job *job) {
  struct cluster cluster;
  cluster_init(&cluster);
  cluster.device.kind = job->device->host_memory ? CLUSTER_CPU : CLUSTER_GPU;
  cluster.device.per_node = job->mesh->world;
  cluster.device.memory = 1e12;
  cluster.device.bandwidth = 1e10;
  for (int i = 0; i < CLUSTER_MATRICES; i++) cluster.device.matrix[i].achieved = 1e10;
  for (int i = 0; i < CLUSTER_PATTERNS; i++) cluster.links[CLUSTER_NODE].line[i].beta = 1e9;
  return cluster;
}

static void equal(const char *base, const char *what, size_t planned, size_t real) {
  golden_check(planned == real, "%s: %s: planned %zu bytes, the job has %zu", base, what, planned, real);
}

/* The same micro-batches as launch/train_loop.c makes. */
static void prepare(struct job *job, const struct config *config) {
  int64_t rows =
      batcher_rows_at_once(config->train.micro_batch, config->data.seq_len, job->mesh->n_tp, job->device->host_memory);
  int64_t unit = batcher_unit(job->mesh->n_tp, config->parallel.sequence);
  golden_must(job_prepare_model(job, batcher_max_tokens(config->data.seq_len, rows, unit), true,
                                batcher_most_micro_batches(config->train.global_batch, job->mesh->n_dp, rows)));
}

static size_t run_case(const struct planned *one) {
  struct config config;
  struct job job;
  struct planner *planner;
  struct plan_memory memory;
  configure(one, &config);
  const struct job_options options = {.fresh_adapters = true, .no_text = true};
  golden_must(job_open(&config, &options, &job));
  golden_must(job_load(&job));
  prepare(&job, &config);
  struct cluster cluster = make_cluster(&job);
  golden_must(planner_create(&config, &cluster, job.source, &planner));
  const struct plan_job size = planner_job(&cluster, job.mesh->world, config.train.global_batch);
  const struct plan_layout layout = planner_configured(planner, size.ranks);
  golden_must(planner_check(planner, &size, &layout));
  golden_must(planner_rank_memory(planner, &size, &layout, job.mesh->tp_rank, job.mesh->pp_rank, &memory));
  equal(one->base, "weights", memory.base, job.model->weights.memory.total);
  equal(one->base, "adapters", memory.adapters + memory.optimizer, job.adapters.params.memory_bytes);
  equal(one->base, "activations, buffers and tables", memory.activations + memory.buffers,
        job.model->acts.memory.total + job.model->tables.total);
  equal(one->base, "all that the device holds", memory.total, job.device->allocated);

  /* The largest rank is one of these: no rank holds more than plan says. */
  struct plan_result result;
  double most = (double)memory.total;
  golden_must(comm_all_reduce_f64(job.mesh->control, &most, 1, REDUCE_MAX));
  golden_must(planner_state(planner, &size, &layout, &result));
  golden_check((double)result.memory.total == most, "%s: the largest rank holds %.0f bytes, planned %zu", one->base,
               most, result.memory.total);
  planner_destroy(&planner);
  job_close(&job);
  config_free(&config);
  return memory.total;
}

int main(void) {
  int world, rank, n = 0;
  golden_start(&world, &rank);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    if (cases[i].ranks != world) continue;
    size_t bytes = run_case(&cases[i]);
    n++;
    if (rank == 0) printf("%s: rank 0 holds %zu bytes, as planned\n", cases[i].base, bytes);
  }
  golden_check(n > 0, "no case for %d ranks", world);
  golden_stop();
  return 0;
}
