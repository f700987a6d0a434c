/*
 * Links between ranks as alpha (latency) and beta (bandwidth), in the terms of
 * io/cluster.h.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/log.h"
#include "launch/probe.h"

static const int64_t full_sizes[] = {256, 4096, 32768, 262144, 1 << 20, 4 << 20, 16 << 20};
static const int64_t quick_sizes[] = {256, 32768, 1 << 20};
enum { MAX_SIZES = sizeof full_sizes / sizeof full_sizes[0] };

static const char *const pattern_names[CLUSTER_PATTERNS] = {"all-reduce", "all-gather", "point to point"};

/* One operation of one size in one group. */
struct exchange {
  struct comm *comm;
  enum cluster_pattern pattern;
  int64_t bytes; /* of the whole buffer */
  float *data, *gathered;
};

/* There and back between neighbours; the last of an odd number has none. */
static enum status ping_pong(const struct exchange *e) {
  int rank = comm_rank(e->comm), peer = rank ^ 1;
  int64_t n = e->bytes / (int64_t)sizeof(float);
  if (peer >= comm_size(e->comm)) return STATUS_OK;
  if (rank < peer) TRY(comm_exchange_f32(e->comm, e->data, n, peer, NULL, 0, -1));
  TRY(comm_exchange_f32(e->comm, NULL, 0, -1, e->gathered, n, peer));
  return rank < peer ? STATUS_OK : comm_exchange_f32(e->comm, e->data, n, peer, NULL, 0, -1);
}

static enum status communicate(void *context) {
  const struct exchange *e = context;
  if (e->pattern == CLUSTER_ALL_REDUCE)
    return comm_all_reduce_f32(e->comm, e->data, e->bytes / (int64_t)sizeof(float), REDUCE_SUM);
  if (e->pattern == CLUSTER_ALL_GATHER)
    return comm_all_gather(e->comm, e->data, (size_t)(e->bytes / comm_size(e->comm)), e->gathered);
  return ping_pong(e);
}

/* Seconds one way. Small messages many at a time: a clock and a barrier cost as much as one of them. */
static enum status measure(const struct probe *probe, struct exchange *e, bool active, double *seconds_p) {
  int calls = e->bytes <= 4096 ? 64 : e->bytes <= 32768 ? 16 : e->bytes <= 262144 ? 4 : 1;
  TRY(probe_seconds(probe, communicate, e, active, calls, seconds_p));
  if (e->pattern == CLUSTER_POINT) *seconds_p /= 2;
  return STATUS_OK;
}

void probe_fit(const double *sizes, const double *seconds, int n, double alpha_factor, double size_factor,
               struct cluster_line *line, double *error_p) {
  /* Minimise the sum over i of (1 - (a u_i + b v_i))^2 with u = 1 / t, v = size / t. */
  double uu = 0, uv = 0, vv = 0, u1 = 0, v1 = 0;
  for (int i = 0; i < n; i++) {
    double u = 1 / seconds[i], v = sizes[i] / seconds[i];
    uu += u * u;
    uv += u * v;
    vv += v * v;
    u1 += u;
    v1 += v;
  }
  double determinant = uu * vv - uv * uv;
  double a = (u1 * vv - v1 * uv) / determinant, b = (v1 * uu - u1 * uv) / determinant;
  if (!(determinant > 0) || a < 0) {
    a = 0;
    b = v1 / vv;
  }
  if (!(b > 0)) { /* large messages took no longer than small ones */
    b = seconds[n - 1] / sizes[n - 1];
    a = 0;
  }
  line->alpha = a / alpha_factor;
  line->beta = size_factor / b;
  *error_p = 0;
  for (int i = 0; i < n; i++) *error_p = fmax(*error_p, fabs((a + b * sizes[i]) / seconds[i] - 1));
}

static enum status probe_line(const struct probe *probe, struct exchange *e, const char *level,
                              struct cluster_line *line) {
  const int64_t *sizes = probe->quick ? quick_sizes : full_sizes;
  const int n = probe->quick ? (int)(sizeof quick_sizes / sizeof quick_sizes[0]) : MAX_SIZES;
  const double p = comm_size(e->comm), rounds = ceil(log2(p)), share = (p - 1) / p;
  double bytes[MAX_SIZES], seconds[MAX_SIZES], error;
  for (int i = 0; i < n; i++) {
    /* Every rank of an all-gather gives equally many whole numbers. */
    int64_t unit = (int64_t)sizeof(float) * comm_size(e->comm);
    e->bytes = e->pattern == CLUSTER_ALL_GATHER ? (sizes[i] + unit - 1) / unit * unit : sizes[i];
    bytes[i] = (double)e->bytes;
    TRY(measure(probe, e, true, &seconds[i]));
  }
  bool twice = e->pattern == CLUSTER_ALL_REDUCE, point = e->pattern == CLUSTER_POINT;
  probe_fit(bytes, seconds, n,
            point   ? 1
            : twice ? 2 * rounds
                    : rounds,
            point   ? 1
            : twice ? 2 * share
                    : share,
            line, &error);
  log_info("%s, %s over %g ranks: %.3g us + %.3g GB/s (measured times within %.0f %%)", level,
           pattern_names[e->pattern], point ? 2.0 : p, 1e6 * line->alpha, 1e-9 * line->beta, 100 * error);
  return STATUS_OK;
}

/* How many ranks of a node share the link: the bandwidth of one rank, or one pair, that is alone against that with all
 * at work. */
static enum status probe_sharing(const struct probe *probe, struct exchange *e, enum cluster_level level,
                                 int64_t *ranks_p) {
  const struct mesh *mesh = probe->mesh;
  *ranks_p = 1;
  if (mesh->n_tp < (level == CLUSTER_NODE ? 4 : 2)) return STATUS_OK; /* there is one only */
  bool alone = level == CLUSTER_NODE ? mesh->node_rank < 2 : mesh->node_rank == 0;
  double all, one;
  e->pattern = CLUSTER_POINT;
  e->bytes = probe->quick ? 1 << 20 : 4 << 20;
  TRY(measure(probe, e, true, &all));
  TRY(measure(probe, e, alone, &one));
  double ratio = all / one, ranks = level == CLUSTER_NODE ? 2 * ratio : ratio;
  if (ratio < 1.25) ranks = 1; /* each has its own */
  *ranks_p = (int64_t)fmin(fmax(1, round(ranks)), mesh->n_tp);
  return STATUS_OK;
}

static enum status probe_level(const struct probe *probe, enum cluster_level level, struct cluster_link *link) {
  static const char *const names[CLUSTER_LEVELS] = {"node", "network"};
  enum status status = STATUS_OK;
  struct exchange e = {.comm = level == CLUSTER_NODE ? probe->mesh->tp : probe->mesh->dp};
  if (comm_size(e.comm) == 1) return STATUS_OK;
  const size_t bytes = (size_t)full_sizes[MAX_SIZES - 1] + sizeof(float) * (size_t)comm_size(e.comm);
  void *data = NULL, *gathered = NULL;
  TRY_OUT(device_alloc(probe->device, bytes, "a probe", &data)); /* zeros: sums of sums stay finite */
  TRY_OUT(device_alloc(probe->device, bytes, "a probe", &gathered));
  e.data = data;
  e.gathered = gathered;
  for (int pattern = 0; pattern < CLUSTER_PATTERNS; pattern++) {
    e.pattern = (enum cluster_pattern)pattern;
    TRY_OUT(probe_line(probe, &e, names[level], &link->line[pattern]));
  }
  TRY_OUT(probe_sharing(probe, &e, level, &link->ranks));
out:
  device_free(probe->device, data, bytes);
  device_free(probe->device, gathered, bytes);
  return status;
}

enum status probe_links(const struct probe *probe, struct cluster *cluster) {
  for (int level = 0; level < CLUSTER_LEVELS; level++)
    TRY(probe_level(probe, (enum cluster_level)level, &cluster->links[level]));
  return STATUS_OK;
}
