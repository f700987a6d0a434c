#include "model/exchange.h"

#include "model/linear.h"

#define ATTENTION_READERS (1u << MODULE_Q | 1u << MODULE_K | 1u << MODULE_V)
#define FFN_READERS       (1u << MODULE_GATE | 1u << MODULE_UP)

/* --- entries: the norm's output on its way to column-parallel linears --- */

static int64_t rank_of(const struct model *m, int layer, unsigned modules, int module) {
  const struct lowrank *pair = m->pairs[layer][module];
  return pair && modules >> module & 1 ? pair->r : 0;
}

/* Adapter columns of the modules before `end`. */
static int64_t columns_before(const struct model *m, int layer, unsigned modules, int end) {
  int64_t columns = 0;
  for (int module = 0; module < end; module++) columns += rank_of(m, layer, modules, module);
  return columns;
}

/* All of an entry's, rounded up so that rows stay aligned to 16 bytes, which fast products on GPUs want. The columns
 * that are left over carry nothing. */
static int64_t columns_of(const struct model *m, int layer, unsigned modules) {
  return (columns_before(m, layer, modules, MODULE_COUNT) + 3) / 4 * 4;
}

static unsigned attention_readers(const struct model *m) {
  return m->facts.shared_norm ? ATTENTION_READERS | FFN_READERS : ATTENTION_READERS;
}

int64_t entry_most_columns(const struct model *m) {
  int64_t most = 0;
  for (int layer = shard_first_layer(&m->shard); layer < shard_end_layer(&m->shard); layer++) {
    int64_t attention = columns_of(m, layer, attention_readers(m));
    int64_t ffn = columns_of(m, layer, FFN_READERS);
    if (attention > most) most = attention;
    if (ffn > most) most = ffn;
  }
  return most;
}

/* Bytes of the n part of a row: h behind it is f32. */
static size_t stream_bytes(const struct model *m) { return (dtype_bytes(m->act, m->facts.d_model) + 15) / 16 * 16; }

size_t entry_row_bytes(const struct model *m, int64_t columns) {
  return stream_bytes(m) + (size_t)columns * sizeof(float);
}

static struct entry make_entry(struct model *m, const struct batch *b, int layer, unsigned modules,
                               const struct norm_weights *norm, struct tensor_view x, float *stats) {
  struct entry e = {.layer = layer, .modules = modules, .norm = norm, .x = x, .stats = stats};
  if (m->sequence) e.columns = columns_of(m, layer, modules);
  size_t row = m->sequence ? entry_row_bytes(m, e.columns) : dtype_bytes(m->act, m->facts.d_model);
  e.n = (struct tensor_view){m->acts.n.data, (int64_t)(row / dtype_bytes(m->act, 1)), m->act};
  e.own_n = tensor_view_rows(e.n, b->own_first);
  return e;
}

struct entry entry_of_attention(struct model *m, const struct batch *b, int layer, const struct layer_saved *s) {
  return make_entry(m, b, layer, attention_readers(m), &m->weights.layers[layer].norm1, s->x1, s->stats1);
}

struct entry entry_of_ffn(struct model *m, const struct batch *b, int layer, const struct layer_saved *s) {
  if (m->facts.shared_norm) return entry_of_attention(m, b, layer, s);
  struct tensor_view x = m->facts.parallel_residual ? s->x1 : s->x2;
  return make_entry(m, b, layer, FFN_READERS, &m->weights.layers[layer].norm2, x, s->stats2);
}

/* Columns of a module's h in rows [n | h]. */
static struct tensor_view h_columns(const struct model *m, const struct entry *e, int module) {
  int64_t ld = (int64_t)(entry_row_bytes(m, e->columns) / sizeof(float));
  int64_t first = (int64_t)(stream_bytes(m) / sizeof(float)) + columns_before(m, e->layer, e->modules, module);
  return (struct tensor_view){(float *)e->n.data + first, ld, DTYPE_F32};
}

static struct tensor_view contiguous(float *data, int64_t width) {
  return (struct tensor_view){data, width, DTYPE_F32};
}

/* h of the rank's own rows, into their columns. */
static enum status project_own(struct model *m, const struct batch *b, const struct entry *e) {
  for (int module = 0; module < MODULE_COUNT; module++) {
    int64_t r = rank_of(m, e->layer, e->modules, module);
    if (r == 0) continue;
    struct lowrank pair = linear_pair(m, b, e->layer, (enum module)module, b->own_first);
    TRY(m->ops->lowrank_project_forward(m->device, b->own, e->own_n, &pair, m->acts.u));
    TRY(m->ops->cast(m->device, b->own, r, contiguous(m->acts.u, r),
                     tensor_view_rows(h_columns(m, e, module), b->own_first)));
  }
  return STATUS_OK;
}

/* Own rows -> all rows; h is kept for backward, densely. */
static enum status gather_rows_and_h(struct model *m, const struct batch *b, const struct entry *e,
                                     struct layer_saved *s) {
  size_t bytes = (size_t)b->own * entry_row_bytes(m, e->columns);
  TRY(comm_all_gather(m->tp, e->own_n.data, bytes, e->n.data)); /* shard -> whole */
  for (int module = 0; module < MODULE_COUNT; module++) {
    int64_t r = rank_of(m, e->layer, e->modules, module);
    if (r) TRY(m->ops->cast(m->device, b->M, r, h_columns(m, e, module), contiguous(s->h[module], r)));
  }
  return STATUS_OK;
}

enum status entry_forward(struct model *m, const struct batch *b, const struct entry *e, struct layer_saved *s) {
  const struct model_facts *f = &m->facts;
  if (e->norm->w)
    TRY(m->ops->norm_forward(m->device, f->norm, b->own, f->d_model, e->x, e->norm->w, e->norm->b, (float)f->norm_eps,
                             e->own_n, e->stats));
  else
    TRY(m->ops->cast(m->device, b->own, f->d_model, e->x, e->own_n));
  if (!m->sequence) return STATUS_OK;
  TRY(project_own(m, b, e));
  return gather_rows_and_h(m, b, e, s);
}

/* --- entries, backward --- */

/* The rank's own rows of n in backward: beside n itself, which holds dy then. */
static struct tensor_view own_n_again(const struct model *m, const struct entry *e) {
  return m->sequence ? m->acts.own_n : e->n;
}

enum status entry_again(struct model *m, const struct batch *b, const struct entry *e) {
  const struct model_facts *f = &m->facts;
  struct tensor_view n = own_n_again(m, e);
  if (!e->norm->w) return m->ops->cast(m->device, b->own, f->d_model, e->x, n);
  return m->ops->norm_apply(m->device, f->norm, b->own, f->d_model, e->x, e->norm->w, e->norm->b, e->stats, n);
}

struct tensor_view entry_gradient(const struct model *m, const struct entry *e, bool below) {
  if (!m->sequence) return below ? m->acts.dn : (struct tensor_view){NULL, m->facts.d_model, DTYPE_F32};
  int64_t width = (below ? m->facts.d_model : 0) + e->columns;
  return (struct tensor_view){width ? m->acts.partial.data : NULL, width, DTYPE_F32};
}

/* Columns of a module's u in rows [dn | u]. */
static struct tensor_view u_columns(const struct model *m, const struct entry *e, int module, bool below) {
  int64_t first = (below ? m->facts.d_model : 0) + columns_before(m, e->layer, e->modules, module);
  return tensor_view_columns(entry_gradient(m, e, below), first);
}

enum status entry_put_u(struct model *m, const struct batch *b, const struct entry *e, enum module module,
                        const float *u, bool below) {
  int64_t r = m->pairs[e->layer][module]->r;
  struct tensor_view from = {(void *)(uintptr_t)u, r, DTYPE_F32};
  return m->ops->cast(m->device, b->M, r, from, u_columns(m, e, module, below));
}

/* dA += u' n and dn += u A on own rows: u is whole there, dA partial over tp (each rank has other rows). */
static enum status project_own_backward(struct model *m, const struct batch *b, const struct entry *e, bool below,
                                        struct tensor_view own) {
  struct tensor_view n = own_n_again(m, e), dn = own;
  if (!below) dn.data = NULL;
  if (e->columns) TRY(entry_again(m, b, e));
  for (int module = 0; module < MODULE_COUNT; module++) {
    int64_t r = rank_of(m, e->layer, e->modules, module);
    if (r == 0) continue;
    struct lowrank pair = linear_pair(m, b, e->layer, (enum module)module, b->own_first);
    struct tensor_view u = tensor_view_rows(u_columns(m, e, module, below), b->own_first);
    TRY(m->ops->cast(m->device, b->own, r, u, contiguous(m->acts.u, r)));
    TRY(m->ops->lowrank_project_backward(m->device, b->own, n, m->acts.u, &pair, dn));
  }
  return STATUS_OK;
}

enum status entry_backward(struct model *m, const struct batch *b, const struct entry *e, bool below,
                           struct tensor_view *dn) {
  struct tensor_view rows = entry_gradient(m, e, below);
  *dn = rows;
  if (!rows.data) return STATUS_OK;
  if (!m->sequence) return comm_all_reduce_f32(m->tp, rows.data, b->M * rows.ld, REDUCE_SUM); /* partial -> whole */
  *dn = tensor_view_rows(rows, b->own_first);
  TRY(comm_reduce_scatter_f32(m->tp, rows.data, b->own * rows.ld, dn->data)); /* partial -> own rows */
  return project_own_backward(m, b, e, below, *dn);
}

/* --- leaving: row-parallel outputs back to the stream --- */

struct tensor_view leave_from(const struct model *m, struct tensor_view out) {
  return m->sequence && out.data ? (struct tensor_view){m->acts.partial.data, m->facts.d_model, DTYPE_F32} : out;
}

enum status leave_forward(struct model *m, const struct batch *b, struct tensor_view partial, struct tensor_view out) {
  const int64_t D = m->facts.d_model;
  if (!m->sequence) return comm_all_reduce_f32(m->tp, out.data, b->M * D, REDUCE_SUM); /* partial -> whole */
  return comm_reduce_scatter_f32(m->tp, partial.data, b->own * D, out.data);           /* partial -> own rows */
}

enum status leave_backward(struct model *m, const struct batch *b, struct tensor_view *dy) {
  struct activations *a = &m->acts;
  const int64_t D = m->facts.d_model;
  *dy = m->sequence ? (struct tensor_view){a->n.data, D, m->act} : m->act == DTYPE_F32 ? a->dx : a->dx_act;
  if (dy->data == a->dx.data) return STATUS_OK;
  struct tensor_view own = tensor_view_rows(*dy, b->own_first);
  TRY(m->ops->cast(m->device, b->own, D, a->dx, own));
  if (!m->sequence) return STATUS_OK;
  return comm_all_gather(m->tp, own.data, dtype_bytes(m->act, b->own * D), dy->data); /* own rows -> whole */
}
