/*
 * attention_plan.c: see attention_plan.h.
 */
#include "model/cpu/attention_plan.h"

#define LOG2_E 1.44269504f

static int64_t align_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Query heads of each KV head one after the other, cut into units of at most GROUP_HEADS of about the same size. */
static void sort_heads(const struct attention_args *args, struct attention_plan *plan, int *widest) {
  int n = 0;
  plan->n_units = 0;
  *widest = 1;
  for (int kv = 0; kv < args->n_kv_heads; kv++) {
    int first = n;
    plan->unit_start[kv] = plan->n_units;
    for (int h = 0; h < args->n_heads; h++) {
      if (args->kv_of_head[h] == kv) plan->order[n++] = h;
    }
    int heads = n - first, parts = (heads + GROUP_HEADS - 1) / GROUP_HEADS;
    for (int i = 0; i < parts; i++) {
      int begin = i * heads / parts, end = (i + 1) * heads / parts;
      plan->units[plan->n_units++] = (struct attention_unit){.kv_head = kv, .first = first + begin, .n = end - begin};
      if (end - begin > *widest) *widest = end - begin;
    }
  }
  plan->unit_start[args->n_kv_heads] = plan->n_units;
}

enum status cpu_attention_plan(struct device *d, const struct attention_args *args, int64_t work_floats,
                               struct attention_plan *plan) {
  int64_t bytes[] = {
      align_up((args->n_segments + 1) * (int64_t)sizeof *plan->tile_start),
      align_up(args->n_heads * (int64_t)sizeof *plan->order),
      align_up(args->n_heads * (int64_t)sizeof *plan->units),
      align_up((args->n_kv_heads + 1) * (int64_t)sizeof *plan->unit_start),
      align_up(work_floats * (int64_t)sizeof *plan->work),
  };
  char *block = NULL;
  void *memory = NULL;
  TRY(cpu_scratch(d, CPU_SCRATCH_WORK, (size_t)(bytes[0] + bytes[1] + bytes[2] + bytes[3] + bytes[4] * d->n_threads),
                  &memory));
  block = memory;
  *plan = (struct attention_plan){
      .args = args,
      .pairs = cpu_attention_pairs(args),
      .ld = vf_round_up(args->head_dim),
      .ld_pairs = vf_round_up((args->head_dim + 1) / 2),
      .window = args->window > 0 && args->window < INT32_MAX ? (int32_t)args->window : INT32_MAX,
      .tile_start = (int64_t *)block,
      .order = (int32_t *)(block + bytes[0]),
      .units = (struct attention_unit *)(block + bytes[0] + bytes[1]),
      .unit_start = (int32_t *)(block + bytes[0] + bytes[1] + bytes[2]),
      .work = (float *)(block + bytes[0] + bytes[1] + bytes[2] + bytes[3]),
      .work_floats = bytes[4] / (int64_t)sizeof *plan->work,
  };
  int widest;
  sort_heads(args, plan, &widest);
  plan->tile_positions = TILE_QUERIES / widest;
  for (int s = 0; s < args->n_segments; s++) {
    plan->tile_start[s] = plan->n_tiles;
    plan->n_tiles += (args->segments[s].n_q + plan->tile_positions - 1) / plan->tile_positions;
  }
  plan->tile_start[args->n_segments] = plan->n_tiles;
  return STATUS_OK;
}

int cpu_attention_segment(const struct attention_plan *plan, int64_t tile) {
  int low = 0, high = plan->args->n_segments; /* tile_start[low] <= tile < tile_start[high] */
  while (high - low > 1) {
    int middle = low + (high - low) / 2;
    *(plan->tile_start[middle] <= tile ? &low : &high) = middle;
  }
  return low;
}

void cpu_attention_tile(const struct attention_plan *plan, int s, int64_t i, const struct attention_unit *unit,
                        struct query_tile *tile) {
  const struct segment *segment = &plan->args->segments[s];
  int32_t skipped = (int32_t)i * plan->tile_positions, left = segment->n_q - skipped;
  tile->segment = segment;
  tile->unit = unit;
  tile->n = left < plan->tile_positions ? left : plan->tile_positions;
  tile->row = (int64_t)segment->q + skipped;
  tile->first = skipped + segment->n_k - segment->n_q;
  tile->n_rows = tile->n * unit->n;
  tile->n_blocks = (tile->n_rows + TILE_ROWS - 1) / TILE_ROWS;
  int64_t begin = (int64_t)tile->first - plan->window + 1;
  tile->key_begin = begin > 0 ? (int32_t)(begin / TILE_KEYS * TILE_KEYS) : 0;
  tile->key_end = tile->first + tile->n > 0 ? tile->first + tile->n : 0;
  int r = 0;
  for (int i = 0; i < tile->n; i++) {
    for (int h = 0; h < unit->n; h++, r++) {
      tile->position[r] = tile->first + i;
      if (tile->slope) tile->slope[r] = plan->args->alibi[plan->order[unit->first + h]] * LOG2_E;
    }
  }
  for (; r < tile->n_blocks * TILE_ROWS; r++) {
    tile->position[r] = tile->first + tile->n - 1;
    if (tile->slope) tile->slope[r] = 0;
  }
}

VF_INLINE void pack(const struct attention_plan *plan, const struct query_tile *tile, enum dtype dtype,
                    struct tensor_view x, float scale, float *dst) {
  const struct attention_unit *unit = tile->unit;
  int head_dim = plan->args->head_dim;
  for (int i = 0; i < tile->n; i++) {
    for (int h = 0; h < unit->n; h++, dst += plan->ld) {
      int64_t column = (int64_t)plan->order[unit->first + h] * head_dim;
      tile_pack_row(dtype, x, tile->row + i, column, head_dim, scale, dst, plan->ld);
    }
  }
}

void cpu_attention_pack(const struct attention_plan *plan, const struct query_tile *tile, struct tensor_view x,
                        float scale, float *dst) {
  if (x.dtype == DTYPE_BF16) {
    pack(plan, tile, DTYPE_BF16, x, scale, dst);
  } else {
    pack(plan, tile, DTYPE_F32, x, scale, dst);
  }
  size_t rest = (size_t)(tile->n_blocks * TILE_ROWS - tile->n_rows) * (size_t)plan->ld;
  memset(dst + tile->n_rows * plan->ld, 0, rest * sizeof *dst);
}

void cpu_attention_pack_pairs(const struct attention_plan *plan, const struct query_tile *tile, struct tensor_view x,
                              float *dst) {
  const struct attention_unit *unit = tile->unit;
  size_t head_bytes = (size_t)plan->args->head_dim * sizeof(uint16_t), row_bytes = (size_t)plan->ld_pairs * sizeof *dst;
  for (int i = 0; i < tile->n; i++) {
    for (int h = 0; h < unit->n; h++, dst += plan->ld_pairs) {
      const char *src = cpu_at(x, tile->row + i, (int64_t)plan->order[unit->first + h] * plan->args->head_dim);
      const char *ahead = src + 8 * (size_t)x.ld * sizeof(uint16_t); /* as in tile_pack_row */
      for (size_t at = 0; at < head_bytes; at += 64) __builtin_prefetch(ahead + at);
      memcpy(dst, src, head_bytes);
      memset((char *)dst + head_bytes, 0, row_bytes - head_bytes);
    }
  }
  memset(dst, 0, (size_t)(tile->n_blocks * TILE_ROWS - tile->n_rows) * row_bytes);
}

void cpu_attention_unpack(const struct attention_plan *plan, const struct query_tile *tile, const float *src,
                          const float *scale, bool uniform, struct tensor_view x) {
  const struct attention_unit *unit = tile->unit;
  int r = 0;
  for (int i = 0; i < tile->n; i++) {
    for (int h = 0; h < unit->n; h++, r++) {
      int64_t column = (int64_t)plan->order[unit->first + h] * plan->args->head_dim;
      cpu_tile_unpack(src + r * plan->ld, plan->args->head_dim, scale[uniform ? 0 : r], x, tile->row + i, column);
    }
  }
}
