#include "io/base_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "io/base_model_internal.h"
#include "io/file_read.h"
#include "io/gguf.h"
#include "io/gguf_model.h"
#include "io/hf_folder.h"
#include "io/quant.h"
#include "io/synthetic.h"

#define PIECE_BYTES ((int64_t)1 << 20) /* raw bytes that base_model_read_f32 holds at a time */

/* Where a tensor lies. */
struct place {
  int fd;
  uint64_t offset;
  int64_t permuted_heads; /* rows of the file are in llama.cpp's order within this many heads; 0: as they are */
};

struct base_model {
  struct hf_folder *hf; /* one of the two */
  struct gguf *gguf;
  struct tensor_info *infos; /* by name; index is into places */
  struct place *places;
};

static const struct tensor_info *info_at(const struct tensor_source *source, int64_t i) {
  const struct base_model *model = source->state;
  return &model->infos[i];
}

static int info_by_name(const void *a, const void *b) {
  return strcmp(((const struct tensor_info *)a)->name, ((const struct tensor_info *)b)->name);
}

static const struct tensor_info *info_find(const struct tensor_source *source, const char *name) {
  const struct base_model *model = source->state;
  const struct tensor_info key = {.name = name};
  if (source->n_tensors == 0) return NULL;
  return bsearch(&key, model->infos, (size_t)source->n_tensors, sizeof key, info_by_name);
}

static void matrix_shape(const struct tensor_info *info, int64_t *n_rows, int64_t *n_cols) {
  *n_rows = info->n_dims == 2 ? info->shape[0] : 1;
  *n_cols = info->n_dims == 0 ? 1 : info->shape[info->n_dims - 1];
}

enum status base_model_check_slice(const struct tensor_info *info, int64_t row, int64_t n_rows, int64_t col,
                                   int64_t n_cols, bool aligned) {
  int64_t rows, cols, block = aligned ? dtype_block(info->dtype) : 1;
  matrix_shape(info, &rows, &cols);
  if (info->n_dims > 2)
    return status_set(STATUS_DATA, "%s: tensor %.200s has %d axes; a weight has one or two", info->file, info->name,
                      info->n_dims);
  if (row < 0 || n_rows < 0 || row > rows || n_rows > rows - row || col < 0 || n_cols < 0 || col > cols ||
      n_cols > cols - col || col % block || n_cols % block)
    return status_set(STATUS_DATA,
                      "%s: tensor %.200s [%" PRId64 ", %" PRId64 "] (%s): rows %" PRId64 " + %" PRId64
                      ", columns %" PRId64 " + %" PRId64 " do not exist or cut a block",
                      info->file, info->name, rows, cols, dtype_name(info->dtype), row, n_rows, col, n_cols);
  return STATUS_OK;
}

/* Read one range of bytes of a tensor and count it. */
static enum status read_range(struct tensor_source *source, const struct tensor_info *info, uint64_t start, size_t n,
                              void *dst) {
  const struct base_model *model = source->state;
  const struct place *place = &model->places[info->index];
  enum status status = file_read_at(place->fd, info->file, place->offset + start, dst, n);
  if (status != STATUS_OK) return status_prefix(status, "tensor %.200s", info->name);
  source->bytes_read += n;
  return STATUS_OK;
}

static enum status read_slice(struct tensor_source *source, const struct tensor_info *info, int64_t row, int64_t n_rows,
                              int64_t col, int64_t n_cols, void *dst, size_t dst_stride) {
  TRY(base_model_check_slice(info, row, n_rows, col, n_cols, true));
  const struct base_model *model = source->state;
  int64_t heads = model->places[info->index].permuted_heads, head_dim = source->facts.head_dim;
  int64_t rows, cols;
  matrix_shape(info, &rows, &cols);
  size_t row_bytes = dtype_bytes(info->dtype, cols), start = dtype_bytes(info->dtype, col);
  size_t n = dtype_bytes(info->dtype, n_cols);
  if (n_rows == 0 || n == 0) return STATUS_OK;
  if (heads && info->n_dims == 1) { /* a bias: its elements are the rows */
    size_t size = dtype_bytes(info->dtype, 1);
    for (int64_t i = 0; i < n_cols; i++)
      TRY(read_range(source, info, (uint64_t)gguf_model_row(col + i, head_dim) * size, size,
                     (char *)dst + (size_t)i * size));
    return STATUS_OK;
  }
  if (!heads && n == row_bytes && (dst_stride == n || n_rows == 1))
    return read_range(source, info, (uint64_t)row * row_bytes, (size_t)n_rows * n, dst);
  for (int64_t i = 0; i < n_rows; i++) {
    int64_t from = heads ? gguf_model_row(row + i, head_dim) : row + i;
    TRY(read_range(source, info, (uint64_t)from * row_bytes + start, n, (char *)dst + (size_t)i * dst_stride));
  }
  return STATUS_OK;
}

static void close_state(struct tensor_source *source) {
  struct base_model *model = source->state;
  source->state = NULL;
  if (!model) return;
  if (model->gguf)
    for (int64_t i = 0; i < source->n_tensors; i++) free((char *)model->infos[i].name);
  free(model->infos);
  free(model->places);
  hf_folder_close(&model->hf);
  gguf_close(&model->gguf);
  free(model);
}

static enum status allocate(struct tensor_source *source, int64_t n) {
  struct base_model *model = source->state;
  model->infos = calloc((size_t)n + 1, sizeof *model->infos);
  model->places = calloc((size_t)n + 1, sizeof *model->places);
  if (!model->infos || !model->places)
    return status_set(STATUS_SYSTEM, "%s: no memory for %" PRId64 " tensors", source->path, n);
  return STATUS_OK;
}

static enum status open_hf(struct tensor_source *source) {
  struct base_model *model = source->state;
  TRY(hf_folder_open(source->path, &model->hf));
  source->facts = model->hf->facts;
  TRY(allocate(source, model->hf->n_tensors));
  for (int64_t i = 0; i < model->hf->n_tensors; i++) {
    const struct safetensors_tensor *tensor = model->hf->tensors[i].tensor;
    const struct safetensors *file = model->hf->tensors[i].file;
    struct tensor_info *info = &model->infos[i];
    *info = (struct tensor_info){tensor->name, tensor->dtype, tensor->n_dims, {0}, file->path, i};
    memcpy(info->shape, tensor->shape, sizeof info->shape);
    model->places[i] = (struct place){file->fd, tensor->offset, 0};
  }
  source->n_tensors = model->hf->n_tensors;
  return STATUS_OK;
}

/* One tensor of a GGUF file under its Hugging Face name. */
static enum status add_gguf_tensor(struct tensor_source *source, const struct gguf_tensor *tensor) {
  struct base_model *model = source->state;
  char name[128];
  gguf_model_name(tensor->name, name, sizeof name);
  int64_t i = source->n_tensors;
  struct tensor_info *info = &model->infos[i];
  *info = (struct tensor_info){strdup(name), tensor->dtype, tensor->n_dims, {0}, gguf_path(model->gguf), i};
  if (!info->name) return status_set(STATUS_SYSTEM, "%s: no memory for tensor names", source->path);
  source->n_tensors++;
  memcpy(info->shape, tensor->shape, sizeof info->shape);
  int64_t heads = gguf_model_permuted_heads(tensor->name, &source->facts);
  if (heads && tensor->shape[0] != heads * source->facts.head_dim)
    return status_set(STATUS_DATA, "%s: tensor %s has %" PRId64 " rows; the keys say %" PRId64 " heads of %" PRId64,
                      source->path, tensor->name, tensor->shape[0], heads, source->facts.head_dim);
  if (heads && tensor->n_dims == 1 && dtype_quantised(tensor->dtype))
    return status_set(STATUS_USAGE, "%s: tensor %s is a quantised bias, which is not supported", source->path,
                      tensor->name);
  model->places[i] = (struct place){gguf_fd(model->gguf), tensor->offset, heads};
  return STATUS_OK;
}

static enum status open_gguf(struct tensor_source *source) {
  struct base_model *model = source->state;
  TRY(gguf_open(source->path, &model->gguf));
  TRY(gguf_model_facts(model->gguf, &source->facts));
  int64_t n = gguf_n_tensors(model->gguf);
  TRY(allocate(source, n));
  for (int64_t i = 0; i < n; i++) {
    const struct gguf_tensor *tensor = gguf_tensor_at(model->gguf, i);
    if (strcmp(tensor->name, "rope_freqs.weight") != 0) TRY(add_gguf_tensor(source, tensor)); /* part of the facts */
  }
  if (source->n_tensors > 0) qsort(model->infos, (size_t)source->n_tensors, sizeof *model->infos, info_by_name);
  for (int64_t i = 1; i < source->n_tensors; i++)
    if (strcmp(model->infos[i - 1].name, model->infos[i].name) == 0)
      return status_set(STATUS_DATA, "%s: two tensors for %s; convert the model again", source->path,
                        model->infos[i].name);
  return STATUS_OK;
}

enum status base_model_open(const char *path, struct tensor_source **source_p) {
  struct stat stat_info;
  if (synthetic_is_name(path)) return synthetic_open_base(path, source_p);
  if (stat(path, &stat_info) != 0)
    return status_set(STATUS_USAGE,
                      "%s: no such base model; name a Hugging Face folder, a .gguf file or synthetic:MODEL", path);
  struct tensor_source *source = calloc(1, sizeof *source);
  enum status status = STATUS_OK;
  if (source) {
    source->at = info_at;
    source->find = info_find;
    source->read = read_slice;
    source->close = close_state;
    source->path = strdup(path);
    source->state = calloc(1, sizeof(struct base_model));
  }
  if (!source || !source->path || !source->state) status = status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  if (status == STATUS_OK) status = S_ISDIR(stat_info.st_mode) ? open_hf(source) : open_gguf(source);
  if (status != STATUS_OK) {
    base_model_close(&source);
    return status;
  }
  *source_p = source;
  return STATUS_OK;
}

void base_model_close(struct tensor_source **source_p) {
  struct tensor_source *source = *source_p;
  *source_p = NULL;
  if (!source) return;
  source->close(source);
  free((char *)source->path);
  free(source);
}

/* Rows [row, row + n_rows) of the block-aligned columns [first, first + width)
 * go through `raw` and `wide`, and of them [skip, skip + n_cols) to dst. */
static enum status expand_rows(struct tensor_source *source, const struct tensor_info *info, int64_t row,
                               int64_t n_rows, int64_t first, int64_t width, int64_t skip, int64_t n_cols, void *raw,
                               float *wide, float *dst, int64_t dst_stride) {
  size_t row_bytes = dtype_bytes(info->dtype, width);
  TRY(source->read(source, info, row, n_rows, first, width, raw, row_bytes));
  for (int64_t i = 0; i < n_rows; i++) {
    quant_expand_f32(info->dtype, (char *)raw + (size_t)i * row_bytes, width, wide);
    memcpy(dst + i * dst_stride, wide + skip, (size_t)n_cols * sizeof *dst);
  }
  return STATUS_OK;
}

enum status base_model_read_f32(struct tensor_source *source, const struct tensor_info *info, int64_t row,
                                int64_t n_rows, int64_t col, int64_t n_cols, float *dst, int64_t dst_stride) {
  TRY(base_model_check_slice(info, row, n_rows, col, n_cols, false));
  if (n_rows == 0 || n_cols == 0) return STATUS_OK;
  if (info->dtype == DTYPE_F32)
    return source->read(source, info, row, n_rows, col, n_cols, dst, (size_t)dst_stride * sizeof *dst);
  int64_t block = dtype_block(info->dtype), first = col / block * block;
  int64_t width = (col + n_cols - first + block - 1) / block * block;
  int64_t row_bytes = (int64_t)dtype_bytes(info->dtype, width);
  int64_t piece = PIECE_BYTES / row_bytes > 0 ? PIECE_BYTES / row_bytes : 1;
  if (piece > n_rows) piece = n_rows;
  void *raw = malloc((size_t)(piece * row_bytes));
  float *wide = malloc((size_t)width * sizeof *wide);
  enum status status = STATUS_OK;
  if (!raw || !wide) {
    status = status_set(STATUS_SYSTEM, "%s: tensor %.200s: no memory to expand a row", info->file, info->name);
    goto out;
  }
  for (int64_t i = 0; i < n_rows; i += piece) {
    int64_t n = n_rows - i < piece ? n_rows - i : piece;
    TRY_OUT(expand_rows(source, info, row + i, n, first, width, col - first, n_cols, raw, wide, dst + i * dst_stride,
                        dst_stride));
  }
out:
  free(raw);
  free(wide);
  return status;
}

/* Every fact as text, so that padding and field order cannot matter. */
static void digest_facts(XXH3_state_t *digest, const struct model_facts *f) {
  char text[1024];
  int n = snprintf(
      text, sizeof text,
      "%s|%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64
      "|%d %.17g %d %d|%d %" PRId64 " %" PRId64 " %d %.17g %d %.17g %.17g %.17g %.17g %.17g %.17g %" PRId64
      " %d|%d%d%d%d%d%d%d%d%d%d%d%d|%.17g %d %" PRId64 " %" PRId64,
      f->family, f->n_layers, f->d_model, f->d_embed, f->n_heads, f->n_kv_heads, f->head_dim, f->d_ffn, f->n_vocab,
      f->max_positions, (int)f->norm, f->norm_eps, (int)f->activation, f->gated, (int)f->position, f->position_offset,
      f->rotary_dim, f->rotary_interleaved, f->rope_theta, (int)f->rope_scaling, f->rope_factor, f->rope_low_freq,
      f->rope_high_freq, f->rope_beta_fast, f->rope_beta_slow, f->rope_attention_factor, f->rope_original_positions,
      f->has_rope_divisors, f->parallel_residual, f->shared_norm, f->post_norm, f->final_norm, f->embed_norm,
      f->qk_norm, f->bias_qkv, f->bias_o, f->bias_ffn, f->bias_norm, f->tied_head, f->bias_head, f->attention_scale,
      f->attention_scale_by_layer, f->sliding_window, f->window_first_layer);
  XXH3_128bits_update(digest, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
  if (f->has_rope_divisors)
    XXH3_128bits_update(digest, f->rope_divisors, (size_t)(f->rotary_dim / 2) * sizeof f->rope_divisors[0]);
}

#define SAMPLE_BYTES 4096
#define SAMPLES      16

/* Up to SAMPLE_BYTES from the middle row of a tensor. */
static enum status digest_sample(XXH3_state_t *digest, struct tensor_source *source, const struct tensor_info *info) {
  char bytes[SAMPLE_BYTES];
  int64_t rows, cols, block = dtype_block(info->dtype);
  matrix_shape(info, &rows, &cols);
  if (info->n_dims > 2 || rows == 0) return STATUS_OK;
  int64_t most = SAMPLE_BYTES / (int64_t)dtype_block_bytes(info->dtype) * block;
  int64_t n_cols = cols < most ? cols : most;
  uint64_t counted = source->bytes_read;
  TRY(source->read(source, info, rows / 2, 1, 0, n_cols, bytes, sizeof bytes));
  source->bytes_read = counted;
  XXH3_128bits_update(digest, bytes, dtype_bytes(info->dtype, n_cols));
  return STATUS_OK;
}

enum status base_model_fingerprint(struct tensor_source *source, char fingerprint[FINGERPRINT_SIZE]) {
  XXH3_state_t *digest = XXH3_createState();
  if (!digest) return status_set(STATUS_SYSTEM, "%s: no memory for its fingerprint", source->path);
  enum status status = STATUS_OK;
  XXH3_128bits_reset(digest);
  digest_facts(digest, &source->facts);
  for (int64_t i = 0; i < source->n_tensors; i++) {
    const struct tensor_info *info = source->at(source, i);
    char text[160];
    XXH3_128bits_update(digest, info->name, strlen(info->name) + 1);
    int n = snprintf(text, sizeof text, "%s", dtype_name(info->dtype));
    for (int d = 0; d < info->n_dims; d++)
      n += snprintf(text + n, sizeof text - (size_t)n, " %" PRId64, info->shape[d]);
    XXH3_128bits_update(digest, text, (size_t)n + 1);
  }
  /* The samples may all be norms and biases, which are the same in synthetic models of every seed. */
  if (source->variant) XXH3_128bits_update(digest, &source->variant, sizeof source->variant);
  int64_t samples = source->n_tensors < SAMPLES ? source->n_tensors : SAMPLES;
  for (int64_t s = 0; s < samples; s++)
    TRY_OUT(digest_sample(digest, source, source->at(source, s * source->n_tensors / samples)));
  XXH128_hash_t hash = XXH3_128bits_digest(digest);
  snprintf(fingerprint, FINGERPRINT_SIZE, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
out:
  XXH3_freeState(digest);
  return status;
}
