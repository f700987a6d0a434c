/*
 * exchange.h: between the residual stream and the linears: the messages of a layer
 * (but for the joint sum behind two norms, backward_two_norms in block.c). Without sequence parallelism every rank
 * holds the whole stream and sums are all-reduced. With it a rank holds `own` rows of the stream; they are gathered
 * where column-parallel linears read them, and sums are reduce-scattered.
 *
 * Adapter columns ride along (docs/architecture.md, sequence parallelism): forward
 * gathers rows [n | h], h = n A' of the rank's own rows; backward reduce-scatters
 * rows [dn | u], u = s dy B, and what belongs to A is computed from the sum, on own
 * rows alone.
 */
#ifndef LORASHARD_MODEL_EXCHANGE_H
#define LORASHARD_MODEL_EXCHANGE_H

#include "model/model.h"

/* Column-parallel linears that read the output of one norm. */
struct entry {
  int layer;
  unsigned modules; /* bit per enum module */
  const struct norm_weights *norm;
  struct tensor_view x;        /* [own, D] f32: the norm's input */
  float *stats;                /* [own, 2] */
  int64_t columns;             /* of adapters that ride along, in fours: 0 without sequence parallelism */
  struct tensor_view n, own_n; /* [M, D] act: the norm's output, whole; [own, D]: this rank's rows of it */
};

/* What attention reads, and what the ffn reads: the same entry where they share a norm. */
struct entry entry_of_attention(struct model *model, const struct batch *batch, int layer, const struct layer_saved *s);
struct entry entry_of_ffn(struct model *model, const struct batch *batch, int layer, const struct layer_saved *s);

/* The most adapter columns of any entry of this stage. */
int64_t entry_most_columns(const struct model *model);

/* Bytes of a row [n | h]. */
size_t entry_row_bytes(const struct model *model, int64_t columns);

/* stats =, n = norm(x), whole; with sequence parallelism also s->h of the entry's
 * adapters. */
enum status entry_forward(struct model *model, const struct batch *batch, const struct entry *entry,
                          struct layer_saved *s);

/* Where the entry's linears put their gradient, partial: [M, D] f32, behind each row the adapter
 * columns u. below false: no gradient is wanted of the norm's output, the D columns
 * are absent (data NULL without adapter columns either). */
struct tensor_view entry_gradient(const struct model *model, const struct entry *entry, bool below);

/* The module's columns = u [M, r], partial. */
enum status entry_put_u(struct model *model, const struct batch *batch, const struct entry *entry, enum module module,
                        const float *u, bool below);

/* *dn [own, D] f32 = the entry's gradient, summed over tp: partial -> whole; with sequence
 * parallelism partial -> own rows, then dA += (partial) and dn += u A of the entry's
 * adapters. */
enum status entry_backward(struct model *model, const struct batch *batch, const struct entry *entry, bool below,
                           struct tensor_view *dn);

/* Before a backward pass that needs n for dA: n = norm(x) again from the statistics,
 * this rank's rows. */
enum status entry_again(struct model *model, const struct batch *batch, const struct entry *entry);

/* Where a row-parallel linear puts its output [M, D] f32 on the way to `out` [own, D]. */
struct tensor_view leave_from(const struct model *model, struct tensor_view out);

/* Sum it over tp: partial -> out, whole stream or own rows. */
enum status leave_forward(struct model *model, const struct batch *batch, struct tensor_view partial,
                          struct tensor_view out);

/* *dy [M, D] act, whole = acts.dx [own, D] f32: what row-parallel linears take. */
enum status leave_backward(struct model *model, const struct batch *batch, struct tensor_view *dy);

#endif
