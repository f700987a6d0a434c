/* ranks: 1 2 3 4 */
/*
 * A base of int8 or nf4: what a rank reads is, to the bit, its part of the whole
 * matrix of the file quantised in one piece, however heads and columns are cut; the
 * loss is the same for every layout and close to the f32 base's.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "io/quant.h"
#include "io/synthetic.h"
#include "storage_case.h"
#include "synthetic_case.h"

/* Between layouts sums of f32 products have another order. */
#define LAYOUT_TOLERANCE 1e-5

/* Separate; fused and transposed; GGUF, plain and quantised. Their rows of 64 and more are cut inside blocks and tiles.
 */
static const char *const bases[] = {"golden/llama", "golden/gpt2", "fixtures/stories260K",
                                    "fixtures/stories260K-q.gguf"};
/* Fused per head, with tiles that reach over heads. */
static const char fused[] =
    "{\"model_type\": \"bloom\", \"hidden_size\": 192, \"n_head\": 4, \"n_layer\": 1, \"vocab_size\": 97}";
/* As published models are: whole tiles on 1, 2 and 4 ranks. Below, nothing is a multiple of anything. */
static const struct synthetic_dims shapes[] = {{"whole tiles", 2, 256, 4, 4, 64, 1024, 97},
                                               {"cut tiles", 2, 128, 6, 3, 40, 448, 97}};

static char *fetch(const void *data, size_t bytes) {
  char *host = malloc(bytes + 1);
  golden_check(host != NULL, "out of memory");
  golden_must(device_copy_out(golden_device(), host, data, bytes));
  return host;
}

/* Everything that a weight holds, as f32 [n_out, n_in]. */
static float *values(const struct weight *w) {
  int64_t rows = w->n_out, columns = w->n_in, blocks = columns / QUANT_NF4_BLOCK;
  float *all = malloc((size_t)(rows * columns) * sizeof *all);
  char *data = fetch(w->data, dtype_bytes(w->dtype, rows * columns)), *codes = NULL, *scales = NULL;
  if (w->dtype == DTYPE_NF4) {
    codes = fetch(w->codes, (size_t)(rows * blocks));
    scales = fetch(w->scales, (size_t)(2 * ((rows + QUANT_NF4_TILE - 1) / QUANT_NF4_TILE) * blocks) * sizeof(float));
    struct quant_nf4 planes = {(uint8_t *)data, (uint8_t *)codes, (float *)scales};
    for (int64_t r = 0; r < rows; r++) quant_expand_nf4(&planes, columns, r, 0, columns, all + r * columns);
  } else if (w->dtype == DTYPE_INT8) {
    scales = fetch(w->scales, (size_t)rows * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
      quant_expand_int8((int8_t *)data + r * columns, columns, ((float *)scales)[r], all + r * columns);
  } else {
    quant_expand_f32(w->dtype, data, rows * columns, all);
  }
  free(data);
  free(codes);
  free(scales);
  return all;
}

/* A whole matrix [rows, columns] quantised and expanded again, in place. */
static void round_whole(enum weight_storage storage, float *matrix, int64_t rows, int64_t columns) {
  if (storage == STORE_INT8) {
    int8_t *numbers = malloc((size_t)columns);
    for (int64_t r = 0; r < rows; r++) {
      float scale = quant_int8_scale(quant_largest(matrix + r * columns, columns));
      quant_pack_int8(matrix + r * columns, columns, scale, numbers);
      quant_expand_int8(numbers, columns, scale, matrix + r * columns);
    }
    free(numbers);
    return;
  }
  size_t n = (size_t)(rows * columns);
  struct quant_nf4 planes = {malloc(n), malloc(n), malloc(n * sizeof(float))}; /* more than enough */
  quant_pack_nf4(matrix, rows, columns, &planes);
  for (int64_t r = 0; r < rows; r++) quant_expand_nf4(&planes, columns, r, 0, columns, matrix + r * columns);
  free(planes.numbers);
  free(planes.codes);
  free(planes.tiles);
}

struct bases_open {
  struct model *part, *f32, *kept; /* the last two on this rank alone; kept: as in the file */
};

/* Returns whether the linear is quantised here and not kept as values. */
static bool check_linear(const char *name, enum weight_storage storage, const struct bases_open *b, int layer,
                         enum module module) {
  const struct weight *part = &b->part->weights.layers[layer].linear[module];
  enum dtype file = b->kept->weights.layers[layer].linear[module].dtype;
  enum dtype as = storage == STORE_INT8 ? DTYPE_INT8 : DTYPE_NF4;
  struct linear_dims d = shard_linear(&b->part->shard, &b->part->facts, module);
  float *got = values(part), *want = values(&b->f32->weights.layers[layer].linear[module]);
  bool quantised = !dtype_quantised(file) && (storage == STORE_INT8 || d.in % QUANT_NF4_BLOCK == 0);
  if (quantised) round_whole(storage, want, d.out, d.in);
  bool cut = storage == STORE_NF4 && (d.in_t.first % 64 || d.in_t.n % 64 || d.out_t.first % 32 ||
                                      (d.out_t.n % 32 && d.out_t.first + d.out_t.n < d.out));
  golden_check((part->dtype == as) == (quantised && !cut), "%s: %s of layer %d is kept as %s", name,
               module_names[module], layer, dtype_name(part->dtype));
  for (int64_t r = 0; r < part->n_out; r++) {
    const float *row = want + (d.out_t.first + r) * d.in + d.in_t.first;
    if (memcmp(got + r * part->n_in, row, (size_t)part->n_in * sizeof *row) != 0)
      golden_check(false, "%s: %s of layer %d: row %lld is not the whole matrix's", name, module_names[module], layer,
                   (long long)r);
  }
  free(got);
  free(want);
  return part->dtype == as;
}

static void check_storage(const char *name, struct tensor_source *source, enum weight_storage storage,
                          struct mesh *mesh, struct mesh *single, bool all) {
  int n = 0, n_linears = 0;
  struct bases_open b = {storage_open(source, mesh, storage), storage_open(source, single, STORE_F32),
                         storage_open(source, single, STORE_AS_FILE)};
  struct model *alone = storage_open(source, single, storage);
  for (int64_t i = 0; i < source->facts.n_layers * MODULE_COUNT; i++) {
    int layer = (int)(i / MODULE_COUNT), module = (int)(i % MODULE_COUNT);
    if (b.part->weights.layers[layer].linear[module].n_in == 0) continue;
    n += check_linear(name, storage, &b, layer, (enum module)module);
    n_linears++;
  }
  golden_check(!all || n == n_linears, "%s: %d of %d linears are quantised", name, n, n_linears);
  golden_check(!dtype_in_planes(b.part->weights.embed.dtype) && !dtype_in_planes(b.part->weights.head.dtype),
               "%s: the embedding or the head is quantised", name);
  double loss = storage_loss(b.part), want = storage_loss(alone), exact = storage_loss(b.f32);
  if (mesh->rank == 0)
    printf("%s: %d of %d linears as %s; loss %.6f, alone %.1e off; of the f32 base %.6f\n", name, n, n_linears,
           storage == STORE_INT8 ? "int8" : "nf4", loss, fabs(loss - want) / want, exact);
  golden_check(fabs(loss - want) <= LAYOUT_TOLERANCE * want, "%s: loss %.9g, alone %.9g", name, loss, want);
  model_destroy(&b.part);
  model_destroy(&b.f32);
  model_destroy(&b.kept);
  model_destroy(&alone);
}

/* A dry run has the same table as the real one and no memory. */
static void check_dry(struct tensor_source *source, struct mesh *mesh, enum weight_storage storage,
                      const struct shard *shard) {
  struct weights dry, real;
  struct weights_options options = {.storage = storage, .compute = DTYPE_BF16, .tp = NULL, .dry = true};
  uint64_t read = source->bytes_read;
  golden_must(weights_load(golden_device(), source, shard, &options, &dry));
  golden_check(!dry.memory.arena && source->bytes_read == read && dry.layers[0].linear[MODULE_Q].n_in > 0,
               "a dry run reads or allocates");
  options.dry = false;
  options.tp = mesh->tp;
  golden_must(weights_load(golden_device(), source, shard, &options, &real));
  golden_check(real.memory.total == dry.memory.total && real.memory.n == dry.memory.n, "a dry run has other sizes");
  weights_release(&dry, golden_device());
  weights_release(&real, golden_device());
}

static void check_source(const char *name, struct tensor_source *source, struct mesh *mesh, struct mesh *single,
                         bool all) {
  static const enum weight_storage storages[] = {STORE_INT8, STORE_NF4};
  struct shard shard;
  golden_must(shard_plan(&source->facts, mesh->n_tp, mesh->tp_rank, &shard));
  for (int i = 0; i < 2; i++) {
    check_storage(name, source, storages[i], mesh, single, all);
    check_dry(source, mesh, storages[i], &shard);
  }
  base_model_close(&source);
}

static void check_base(const char *name, const char *path, struct mesh *mesh, struct mesh *single, bool all) {
  struct tensor_source *source;
  golden_must(base_model_open(path, &source));
  check_source(name, source, mesh, single, all);
}

int main(void) {
  int world, rank;
  char path[600];
  golden_start(&world, &rank);
  log_setup(rank, world, LOG_ERROR); /* the warnings of what does not fit */
  struct mesh *mesh = golden_mesh(world), *single = golden_mesh(1);
  for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
    snprintf(path, sizeof path, "%s/tests/%s", SOURCE_DIR, bases[i]);
    check_base(bases[i], path, mesh, single, false);
  }
  struct model_facts facts;
  struct tensor_source *source;
  golden_must(model_facts_parse(fused, strlen(fused), "fused", &facts));
  golden_must(synthetic_from_facts("fused", &facts, DTYPE_BF16, 1, &source));
  check_source("fused", source, mesh, single, false);
  for (int i = 0; i < 2; i++) {
    struct golden_case synthetic;
    synthetic_open(&shapes[i], mesh, &synthetic);
    check_base(shapes[i].name, synthetic.folder, mesh, single, i == 0 && world != 3);
    synthetic_close(mesh, &synthetic);
  }
  golden_mesh_close(&mesh);
  golden_mesh_close(&single);
  golden_stop();
  return 0;
}
