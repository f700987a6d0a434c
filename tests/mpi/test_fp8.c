/* ranks: 1 2 */
/*
 * A base of 8-bit floating point: what a rank reads is the part of what one
 * rank alone reads, bit for bit, and that is the f32 base quantised; the loss is
 * close to the f32 base's and the same for every layout.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "io/quant.h"
#include "storage_case.h"
#include "synthetic_case.h"

/* Between layouts sums of f32 products have another order; from the f32 base every weight of the layers is off by up
 * to 1/16, by 2.4 % in the root mean square. */
#define LAYOUT_TOLERANCE 1e-5
#define BASE_TOLERANCE   0.01

static const char *const bases[] = {"tests/golden/llama", "tests/golden/gpt2", "tests/golden/opt",
                                    "tests/fixtures/stories260K"};

/* Every linear whose rows, and all parts of them, are multiples of 32. */
static const struct synthetic_dims whole_blocks = {"whole blocks", 2, 96, 4, 2, 32, 320, 97};

/* Row r of a linear, expanded. */
static void expand_row(const struct weight *w, int64_t r, int64_t column, int64_t n, float *row) {
  size_t row_bytes = dtype_bytes(w->dtype, w->n_in);
  quant_expand_f32(w->dtype, (const char *)w->data + (size_t)r * row_bytes + dtype_bytes(w->dtype, column), n, row);
}

/* `part` is rows from dims->out_t and columns from dims->in_t of `alone`, which is `f32` quantised. Returns whether it
 * is kept as f8. */
static bool check_linear(const char *name, const struct weight *part, const struct weight *alone,
                         const struct weight *f32, const struct linear_dims *dims, bool heads_fit) {
  int64_t n = part->n_in, column = dims->in_t.first;
  bool whole = heads_fit && dims->in % 32 == 0, cut = column % 32 == 0 && n % 32 == 0;
  golden_check((alone->dtype == DTYPE_F8) == whole, "%s: rows of %lld kept as %s", name, (long long)dims->in,
               dtype_name(alone->dtype));
  golden_check((part->dtype == DTYPE_F8) == (whole && cut), "%s: columns %lld to %lld kept as %s", name,
               (long long)column, (long long)(column + n), dtype_name(part->dtype));
  float *got = malloc((size_t)n * sizeof *got), *want = malloc((size_t)n * sizeof *want);
  char *packed = malloc(dtype_bytes(DTYPE_F8, (n + 31) / 32 * 32));
  for (int64_t r = 0; r < part->n_out; r++) {
    expand_row(part, r, 0, n, got);
    expand_row(f32, dims->out_t.first + r, column, n, want);
    if (part->dtype == DTYPE_F8) {
      quant_pack_f8(want, n, packed);
      quant_expand_f32(DTYPE_F8, packed, n, want);
    }
    golden_check(memcmp(got, want, (size_t)n * sizeof *got) == 0, "%s: row %lld is not the file's", name, (long long)r);
    if (part->dtype != alone->dtype) continue;
    expand_row(alone, dims->out_t.first + r, column, n, want);
    golden_check(memcmp(got, want, (size_t)n * sizeof *got) == 0, "%s: row %lld differs alone", name, (long long)r);
  }
  free(got);
  free(want);
  free(packed);
  return part->dtype == DTYPE_F8;
}

/* Returns the number of linears kept as f8. */
static int check_weights(const char *base, const struct model *part, const struct model *alone,
                         const struct model *f32) {
  int n = 0;
  golden_check(part->weights.embed.dtype != DTYPE_F8 && part->weights.head.dtype != DTYPE_F8,
               "%s: the embedding or the head is quantised", base);
  for (int64_t layer = 0; layer < part->facts.n_layers; layer++) {
    for (int module = 0; module < MODULE_COUNT; module++) {
      char name[700];
      struct linear_dims dims = shard_linear(&part->shard, &part->facts, (enum module)module);
      const struct weight *w = &part->weights.layers[layer].linear[module];
      snprintf(name, sizeof name, "%s: %s of layer %d", base, module_names[module], (int)layer);
      bool heads_fit = module != MODULE_O || part->facts.head_dim % 32 == 0; /* o is cut between heads */
      if (w->data)
        n += check_linear(name, w, &alone->weights.layers[layer].linear[module],
                          &f32->weights.layers[layer].linear[module], &dims, heads_fit);
    }
  }
  return n;
}

/* all: every linear is f8. */
static void check_base(const char *base, const char *path, struct mesh *mesh, struct mesh *single, bool all) {
  struct tensor_source *source;
  golden_must(base_model_open(path, &source));
  struct model *part = storage_open(source, mesh, STORE_F8), *alone = storage_open(source, single, STORE_F8);
  struct model *f32 = storage_open(source, single, STORE_F32);
  int n = check_weights(base, part, alone, f32), most = (int)part->facts.n_layers * MODULE_COUNT;
  golden_check(all ? n == most : n > 0, "%s: %d of at most %d linears kept as f8", base, n, most);
  double loss = storage_loss(part), want = storage_loss(alone), exact = storage_loss(f32);
  if (mesh->rank == 0)
    printf("%s: %d linears as f8; loss %.6f, alone %.1e off; of the f32 base %.6f\n", base, n, loss,
           fabs(loss - want) / want, exact);
  golden_check(fabs(loss - want) <= LAYOUT_TOLERANCE * want, "%s: loss %.9g, alone %.9g", base, loss, want);
  golden_check(fabs(loss - exact) <= BASE_TOLERANCE * exact && loss != exact, "%s: loss %.9g, of the f32 base %.9g",
               base, loss, exact);
  model_destroy(&part);
  model_destroy(&alone);
  model_destroy(&f32);
  base_model_close(&source);
}

/* Blocks of a file stay what they are. */
static void check_quantised_file(struct mesh *mesh) {
  struct tensor_source *source;
  golden_must(base_model_open(FIXTURES "/stories260K-q.gguf", &source));
  struct model *f8 = storage_open(source, mesh, STORE_F8), *kept = storage_open(source, mesh, STORE_AS_FILE);
  int n = 0;
  for (int64_t i = 0; i < f8->facts.n_layers * MODULE_COUNT; i++) {
    enum dtype got = f8->weights.layers[i / MODULE_COUNT].linear[i % MODULE_COUNT].dtype;
    enum dtype file = kept->weights.layers[i / MODULE_COUNT].linear[i % MODULE_COUNT].dtype;
    n += dtype_quantised(file);
    golden_check(got == file || !dtype_quantised(file), "%s blocks became %s", dtype_name(file), dtype_name(got));
  }
  golden_check(n > 0, "the file has no quantised linear");
  model_destroy(&f8);
  model_destroy(&kept);
  base_model_close(&source);
}

int main(void) {
  int world, rank;
  char path[600];
  golden_start(&world, &rank);
  log_setup(rank, world, LOG_ERROR); /* the warning of matrices that f8 does not fit */
  struct mesh *mesh = golden_mesh(world), *single = golden_mesh(1);
  for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
    snprintf(path, sizeof path, "%s/%s", SOURCE_DIR, bases[i]);
    check_base(bases[i], path, mesh, single, false);
  }
  struct golden_case synthetic;
  synthetic_open(&whole_blocks, mesh, &synthetic);
  check_base(whole_blocks.name, synthetic.folder, mesh, single, true);
  synthetic_close(mesh, &synthetic);
  check_quantised_file(mesh);
  golden_mesh_close(&mesh);
  golden_mesh_close(&single);
  golden_stop();
  return 0;
}
