#include "launch/evaluate.h"

#include <math.h>
#include <string.h>

#include "dist/mesh_compare.h"
#include "dist/watchdog.h"
#include "io/synthetic.h"
#include "launch/ranks.h"

bool evaluate_only_ids(const struct string_list *files) {
  for (int i = 0; i < files->n; i++) {
    size_t length = strlen(files->items[i]);
    if (length < 4 || strcmp(files->items[i] + length - 4, ".bin") != 0) return false;
  }
  return true;
}

/* Ranks that read other data would train on it without a word, or wait for each other. */
static enum status compare_data(const struct mesh *mesh, uint64_t hash) {
  const struct mesh_input data = {"content of the data files", hash, "copy the same files to every host"};
  return mesh_compare(mesh, &data, 1);
}

/* All have written their part of the cache, or one has failed, and says so itself. */
static enum status meet(void *context, uint64_t key) {
  const struct mesh *mesh = context;
  double failed = key == 0;
  TRY(comm_all_reduce_f64(mesh->control, &failed, 1, REDUCE_MAX));
  if (failed == 0) return compare_data(mesh, key);
  return status_set(STATUS_PEER, "another rank cannot read the data files");
}

enum status evaluate_open_data(const struct job *job, const struct string_list *files, const char *cache_dir,
                               struct dataset **data_p) {
  const struct config *config = job->config;
  if (synthetic_is_name(config->base) && !evaluate_only_ids(files))
    return ranks_agree(status_set(STATUS_USAGE,
                                  "%s: a synthetic base has no tokenizer; give it .bin data (docs/files.md, "
                                  "\"Synthetic models\", makes some)",
                                  config->base));
  struct dataset_options options = {
      .files = (const char *const *)files->items,
      .n_files = files->n,
      .format = config->data.format,
      .chat_template = config->data.chat_template,
      .seq_len = config->data.seq_len,
      .packing = config->data.packing,
      .tokenizer = job->tokenizer,
      .n_vocab = job->source->facts.n_vocab,
      .cache_dir = cache_dir,
      .worker = cache_dir ? job->mesh->rank : 0,
      .n_workers = cache_dir ? job->mesh->world : 1,
      .meet = cache_dir ? meet : NULL,
      .meet_context = job->mesh,
  };
  const char *task = watchdog_set_task("reads the data");
  TRY(ranks_agree(dataset_open(&options, data_p)));
  watchdog_set_task(task);
  const char *digest = dataset_digest(*data_p);
  return ranks_agree(compare_data(job->mesh, mesh_hash(0, digest, strlen(digest))));
}

/* Micro-batches between two looks at the stop flag. */
#define ROUNDS_BETWEEN_LOOKS 8

enum status evaluate_run(struct job *job, struct batcher *batcher, bool (*stop_asked)(void),
                         struct evaluation *result) {
  const struct mesh *mesh = job->mesh;
  int64_t rows = dataset_rows(batcher->data), size = batcher->micro_batch, first, count;
  double loss = 0;
  *result = (struct evaluation){0};
  batcher_deal(rows, mesh->n_dp, mesh->dp_rank, &first, &count);
  int64_t most = (rows + mesh->n_dp - 1) / mesh->n_dp; /* rows of the rank that has most: all look equally often */
  for (int64_t i = 0, round = 0; i < most; i += size, round++) {
    if (stop_asked && round % ROUNDS_BETWEEN_LOOKS == 0) {
      double asked = stop_asked();
      TRY(comm_all_reduce_f64(mesh->control, &asked, 1, REDUCE_MAX));
      result->interrupted = asked > 0;
      if (result->interrupted) return STATUS_OK;
    }
    int64_t n = count - i < size ? count - i : size;
    if (n <= 0) continue;
    struct batch batch;
    batcher_fill(batcher, first + i, n, first + i, &batch);
    TRY(transformer_loss(job->model, &batch, &loss, NULL));
  }
  if (mesh->tp_rank != 0) loss = 0; /* each replica's loss is counted once; it is on the last stage */
  TRY(comm_all_reduce_f64(mesh->control, &loss, 1, REDUCE_SUM)); /* partial over the replicas -> whole */
  batcher_count(batcher, 0, rows, &result->targets, &result->tokens);
  result->loss = isnan(loss) ? NAN : loss / (double)result->targets; /* a NaN's sign means nothing */
  return STATUS_OK;
}
