#include "launch/evaluate.h"

#include "launch/ranks.h"

static enum status wait_for_all(void *control) { return comm_barrier(control); }

enum status evaluate_open_data(const struct job *job, const struct string_list *files, const char *cache_dir,
                               struct dataset **data_p) {
  const struct config *config = job->config;
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
      .barrier = cache_dir ? wait_for_all : NULL,
      .barrier_context = job->mesh->control,
  };
  return ranks_agree(dataset_open(&options, data_p));
}

enum status evaluate_run(struct job *job, struct batcher *batcher, struct evaluation *result) {
  const struct mesh *mesh = job->mesh;
  int64_t first, count;
  double loss = 0;
  batcher_count(batcher, 0, dataset_rows(batcher->data), &result->targets, &result->tokens);
  batcher_deal(dataset_rows(batcher->data), mesh->n_dp, mesh->dp_rank, &first, &count);
  for (int64_t i = 0; i < count; i += batcher->micro_batch) {
    int64_t n = count - i < batcher->micro_batch ? count - i : batcher->micro_batch;
    struct batch batch;
    batcher_fill(batcher, first + i, n, first + i, &batch);
    TRY(transformer_loss(job->model, &batch, &loss, NULL));
  }
  if (mesh->tp_rank != 0) loss = 0; /* each replica's loss is counted once */
  TRY(comm_all_reduce_f64(mesh->control, &loss, 1, REDUCE_SUM));
  result->loss = loss / (double)result->targets;
  return STATUS_OK;
}
