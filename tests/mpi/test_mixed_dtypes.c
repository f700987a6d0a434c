/* ranks: 1 2 */
/*
 * A base whose tensors have different types (f32, f16 and bf16 in turn, so that q, k and v, a weight and its bias
 * differ) is the model that the same numbers all in f32 are: the weights in memory equal to the bit once they are
 * widened, and the loss too.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "golden_case.h"
#include "io/quant.h"
#include "storage_case.h"

enum { MAX_TENSORS = 64 };

/* Stored as f16: without their last three bits these numbers are bf16 too. Fused and transposed, fused per head,
 * separate with biases. */
static const char *const cases[] = {"gpt2-seven-heads", "neox-sequential", "opt", "qwen2"};

/* The same numbers are kept as narrow ones and widened tile by tile, with the f32 sums of a product in another order.
 */
#define LOSS_TOLERANCE 1e-6

static const char *path_in(const char *folder, const char *name) {
  static char paths[4][600];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

static int64_t count(const struct tensor_info *info) {
  int64_t n = 1;
  for (int i = 0; i < info->n_dims; i++) n *= info->shape[i];
  return n;
}

/* All values of a tensor, cut to what bf16 holds. */
static float *read_cut(struct tensor_source *source, const struct tensor_info *info) {
  int64_t n = count(info), cols = info->shape[info->n_dims - 1];
  float *values = malloc((size_t)n * sizeof *values);
  golden_check(values != NULL, "out of memory");
  golden_must(base_model_read_f32(source, info, 0, n / cols, 0, cols, values, cols));
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    bits &= 0xffff0000;
    memcpy(&values[i], &bits, sizeof bits);
    golden_check(f16_to_f32(f32_to_f16(values[i])) == values[i], "%s: %g is no f16", info->name, (double)values[i]);
  }
  return values;
}

static void append(struct safetensors_writer *writer, const float *values, int64_t n, enum dtype dtype) {
  if (dtype == DTYPE_F32) {
    golden_must(safetensors_writer_append(writer, values, (size_t)n * sizeof *values));
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    uint16_t narrow = dtype == DTYPE_F16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    golden_must(safetensors_writer_append(writer, &narrow, sizeof narrow));
  }
}

/* The case's base once more, in f32 or in three types. */
static void write_base(const char *folder, struct tensor_source *source, bool mixed) {
  static const enum dtype turn[] = {DTYPE_BF16, DTYPE_F32, DTYPE_F16};
  struct safetensors_entry entries[MAX_TENSORS];
  struct safetensors_writer *writer;
  golden_check(source->n_tensors <= MAX_TENSORS, "too many tensors");
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    entries[i] = (struct safetensors_entry){info->name, mixed ? turn[i % 3] : DTYPE_F32, info->n_dims, {0}};
    memcpy(entries[i].shape, info->shape, sizeof info->shape);
  }
  golden_must(safetensors_writer_create(path_in(folder, "model.safetensors"), entries, source->n_tensors, &writer));
  for (int64_t i = 0; i < source->n_tensors; i++) {
    float *values = read_cut(source, source->at(source, i));
    append(writer, values, count(source->at(source, i)), entries[i].dtype);
    free(values);
  }
  golden_must(safetensors_writer_finish(&writer));
}

/* Rank 0 writes; all open. The folder is gone afterwards, the file still open. */
static struct tensor_source *open_as(const char *name, bool mixed, struct mesh *mesh) {
  char original[600], folder[600], config[8192];
  struct tensor_source *source;
  snprintf(original, sizeof original, "%s/tests/golden/%s", SOURCE_DIR, name);
  snprintf(folder, sizeof folder, "%s/lorashard-dtypes-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  if (mesh->rank == 0) {
    golden_check(mkdtemp(folder) != NULL, "%s: cannot make a folder", folder);
    golden_must(base_model_open(original, &source));
    write_base(folder, source, mixed);
    base_model_close(&source);
    FILE *from = fopen(path_in(original, "config.json"), "r"), *to = fopen(path_in(folder, "config.json"), "w");
    golden_check(from && to, "%s: cannot copy config.json", original);
    fwrite(config, 1, fread(config, 1, sizeof config, from), to);
    fclose(from);
    golden_check(fclose(to) == 0, "%s: cannot write config.json", folder);
  }
  golden_must(comm_broadcast(mesh->control, folder, sizeof folder, 0));
  golden_must(base_model_open(folder, &source));
  golden_must(comm_barrier(mesh->control));
  if (mesh->rank == 0) {
    unlink(path_in(folder, "model.safetensors"));
    unlink(path_in(folder, "config.json"));
    rmdir(folder);
  }
  return source;
}

static char *fetch(const struct memory_table *memory) {
  char *host = malloc(memory->total + 1);
  golden_check(host != NULL, "out of memory");
  golden_must(device_copy_out(golden_device(), host, memory->arena, memory->total));
  return host;
}

static void check_weights(const char *name, const struct model *got, const struct model *want) {
  const struct memory_table *a = &got->weights.memory, *b = &want->weights.memory;
  golden_check(a->n == b->n && a->total == b->total && a->n > 10, "%s: other buffers", name);
  char *x = fetch(a), *y = fetch(b);
  for (int i = 0; i < a->n; i++)
    golden_check(a->entries[i].bytes == b->entries[i].bytes &&
                     memcmp(x + a->entries[i].offset, y + b->entries[i].offset, a->entries[i].bytes) == 0,
                 "%s: buffer %d (%s) is not that of the base in f32", name, i, a->entries[i].name);
  free(x);
  free(y);
}

static void check_case(const char *name, struct mesh *mesh) {
  struct tensor_source *mixed = open_as(name, true, mesh), *plain = open_as(name, false, mesh);
  unsigned types = 0;
  for (int64_t i = 0; i < mixed->n_tensors; i++) types |= 1u << mixed->at(mixed, i)->dtype;
  golden_check(types == (1u << DTYPE_F32 | 1u << DTYPE_F16 | 1u << DTYPE_BF16), "%s: types 0x%x", name, types);
  struct model *want = storage_open(plain, mesh, STORE_F32), *got = storage_open(mixed, mesh, STORE_F32);
  struct model *kept = storage_open(mixed, mesh, STORE_AS_FILE);
  check_weights(name, got, want);
  golden_check(kept->weights.memory.total < want->weights.memory.total, "%s: kept as in the file, but all in f32",
               name);
  double loss = storage_loss(want), equal = storage_loss(got), narrow = storage_loss(kept);
  golden_check(equal == loss, "%s: loss %.17g, in f32 %.17g", name, equal, loss);
  golden_check(fabs(narrow - loss) <= LOSS_TOLERANCE * loss, "%s: loss %.9g kept as in the file, in f32 %.9g", name,
               narrow, loss);
  if (mesh->rank == 0) printf("%s: loss %.6f; kept as in the file %.1e off\n", name, loss, fabs(narrow - loss) / loss);
  model_destroy(&want);
  model_destroy(&got);
  model_destroy(&kept);
  base_model_close(&mixed);
  base_model_close(&plain);
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  struct mesh *mesh = golden_mesh(world);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) check_case(cases[i], mesh);
  golden_mesh_close(&mesh);
  golden_stop();
  return 0;
}
