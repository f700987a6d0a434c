#include "storage_case.h"

#include "golden_case.h"

enum { ROWS = 3, LENGTH = 16, TOKENS = ROWS * LENGTH };

struct model *storage_open(struct tensor_source *source, struct mesh *mesh, enum weight_storage storage) {
  struct model *model;
  struct shard shard;
  golden_must(shard_plan(&source->facts, mesh->n_tp, mesh->tp_rank, &shard));
  struct model_options options = {.act = DTYPE_F32, .storage = storage, .n_positions = LENGTH, .shard = &shard};
  golden_must(model_create(golden_device(), source, mesh->tp, mesh->pp, &options, &model));
  golden_must(model_prepare(model, &(struct prepare_options){.max_tokens = TOKENS}));
  return model;
}

double storage_loss(struct model *model) {
  int32_t ids[TOKENS], labels[TOKENS], positions[TOKENS];
  int64_t row_ids[TOKENS];
  struct segment segments[ROWS];
  for (int i = 0; i < TOKENS; i++) {
    ids[i] = (int32_t)((i * 37 + 5) % model->facts.n_vocab);
    labels[i] = (int32_t)(((i + 1) * 37 + 5) % model->facts.n_vocab);
    positions[i] = i % LENGTH;
    row_ids[i] = i;
  }
  for (int i = 0; i < ROWS; i++) segments[i] = (struct segment){i * LENGTH, LENGTH, i * LENGTH, LENGTH};
  struct batch batch = {.M = TOKENS,
                        .ids = ids,
                        .positions = positions,
                        .labels = labels,
                        .row_ids = row_ids,
                        .segments = segments,
                        .n_segments = ROWS};
  double loss = 0;
  golden_must(transformer_loss(model, &batch, &loss, NULL));
  return loss / TOKENS;
}
