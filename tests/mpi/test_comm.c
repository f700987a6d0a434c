/* ranks: 1 2 3 4 */
/*
 * Collectives on host and on device memory against values computed directly: all-gather and
 * reduce-scatter in place and not, exchanges of uneven sizes in both directions,
 * counts, and messages that take several calls of MPI. Values are small whole
 * numbers, whose sums are exact in every order; where they are not, the same call
 * gives the same bits again.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/comm_internal.h"
#include "golden_case.h"
#include "golden_device.h"
#include "launch/accelerator.h"

static float *allocate(int64_t n) {
  float *memory = malloc((size_t)(n ? n : 1) * sizeof *memory);
  golden_check(memory != NULL, "out of memory");
  return memory;
}

/* Whether the group takes host memory: control always does. */
static bool on_host(const struct comm *comm) {
  return golden_device()->host_memory || strcmp(comm_name(comm), "control") == 0;
}

/* n values where the group takes them, as in `host`; free with take. */
static float *put(const struct comm *comm, const float *host, int64_t n) {
  const size_t bytes = (size_t)(n ? n : 1) * sizeof *host;
  void *memory;
  if (on_host(comm))
    memory = allocate(n);
  else
    golden_must(device_alloc(golden_device(), bytes, "a test", &memory));
  if (n && on_host(comm)) memcpy(memory, host, bytes);
  if (n && !on_host(comm)) golden_must(device_copy_in(golden_device(), memory, host, bytes));
  return memory;
}

static void take(const struct comm *comm, float *host, float *memory, int64_t n) {
  const size_t bytes = (size_t)(n ? n : 1) * sizeof *host;
  if (n && on_host(comm)) memcpy(host, memory, bytes);
  if (n && !on_host(comm)) golden_must(device_copy_out(golden_device(), host, memory, bytes));
  if (on_host(comm))
    free(memory);
  else
    device_free(golden_device(), memory, bytes);
}

static float value(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 101 - 50); }

static float sum(int size, int64_t i) {
  float all = 0;
  for (int r = 0; r < size; r++) all += value(r, i);
  return all;
}

static void fill(float *data, int64_t n, int rank) {
  for (int64_t i = 0; i < n; i++) data[i] = value(rank, i);
}

static void check_counts(const struct comm *comm, const char *what, uint64_t calls, uint64_t bytes) {
  struct comm_counts got = comm_counts(comm);
  if (comm_size(comm) == 1) calls = bytes = 0;
  golden_check(got.calls == calls && got.bytes == bytes,
               "%s over %s: %" PRIu64 " calls, %" PRIu64 " bytes; should be %" PRIu64 ", %" PRIu64, what,
               comm_name(comm), got.calls, got.bytes, calls, bytes);
}

static void check_all_reduce(struct comm *comm, int64_t n) {
  float *data = allocate(n);
  fill(data, n, comm_rank(comm));
  float *there = put(comm, data, n);
  golden_must(comm_all_reduce_f32(comm, there, n, REDUCE_SUM));
  take(comm, data, there, n);
  for (int64_t i = 0; i < n; i++)
    golden_check(data[i] == sum(comm_size(comm), i), "all-reduce over %s: value %" PRId64, comm_name(comm), i);
  free(data);
}

static void check_all_gather(struct comm *comm, int64_t n, bool in_place) {
  const int size = comm_size(comm), rank = comm_rank(comm);
  float *all = allocate(size * n), *data = allocate(n);
  for (int64_t i = 0; i < size * n; i++) all[i] = -1000;
  fill(data, n, rank);
  if (in_place) memcpy(all + rank * n, data, (size_t)n * sizeof *data);
  float *all_there = put(comm, all, size * n), *there = put(comm, data, n);
  comm_reset_counts(comm);
  golden_must(comm_all_gather(comm, in_place ? all_there + rank * n : there, (size_t)n * sizeof *data, all_there));
  check_counts(comm, "all-gather", 1, (uint64_t)n * sizeof *data);
  take(comm, data, there, n);
  take(comm, all, all_there, size * n);
  for (int r = 0; r < size; r++)
    for (int64_t i = 0; i < n; i++)
      golden_check(all[r * n + i] == value(r, i), "all-gather%s over %s: value %" PRId64 " of rank %d",
                   in_place ? " in place" : "", comm_name(comm), i, r);
  free(data);
  free(all);
}

static void check_reduce_scatter(struct comm *comm, int64_t n, bool in_place) {
  const int size = comm_size(comm), rank = comm_rank(comm);
  float *data = allocate(size * n), *own = allocate(n);
  for (int64_t i = 0; i < n; i++) own[i] = -1000;
  fill(data, size * n, rank);
  float *there = put(comm, data, size * n), *own_there = put(comm, own, n);
  comm_reset_counts(comm);
  golden_must(comm_reduce_scatter_f32(comm, there, n, in_place ? there + rank * n : own_there));
  check_counts(comm, "reduce-scatter", n > 0, (uint64_t)(size * n) * sizeof *data);
  take(comm, own, own_there, n);
  take(comm, data, there, size * n);
  const float *got = in_place ? data + rank * n : own;
  for (int64_t i = 0; i < n; i++)
    golden_check(got[i] == sum(size, rank * n + i), "reduce-scatter%s over %s: value %" PRId64 " of %" PRId64 " is %g",
                 in_place ? " in place" : "", comm_name(comm), i, n, (double)got[i]);
  free(own);
  free(data);
}

/* Calls of several groups between begin and end, of each kind. */
static void check_together(struct mesh *mesh) {
  enum { N = 300 };
  struct comm *comms[] = {mesh->tp, mesh->dp, mesh->pp};
  float *there[3], *own[3], host[4 * N], part[N];
  golden_must(comm_group_begin());
  for (int c = 0; c < 3; c++) {
    const int size = comm_size(comms[c]), rank = comm_rank(comms[c]);
    fill(host, size * N, rank);
    there[c] = put(comms[c], host, size * N);
    own[c] = put(comms[c], host, N);
    if (c < 2)
      golden_must(comm_reduce_scatter_f32(comms[c], there[c], N, own[c]));
    else
      golden_must(comm_exchange_f32(comms[c], there[c], N, rank + 1 < size ? rank + 1 : -1, own[c], N, rank - 1));
  }
  golden_must(comm_group_end());
  for (int c = 0; c < 3; c++) {
    const int size = comm_size(comms[c]), rank = comm_rank(comms[c]);
    take(comms[c], part, own[c], N);
    take(comms[c], host, there[c], size * N);
    for (int i = 0; i < N; i++) {
      const float want = c < 2 ? sum(size, rank * N + i) : rank > 0 ? value(rank - 1, i) : value(rank, i);
      golden_check(part[i] == want, "a group of calls: value %d over %s", i, comm_name(comms[c]));
    }
  }
}

/* Sums that depend on their order: a second call adds in the same one. */
static void check_repeats(struct comm *comm) {
  enum { N = 5003 };
  const int size = comm_size(comm), rank = comm_rank(comm);
  float *data = allocate(size * N), *again = allocate(size * N), *own = allocate(N);
  for (int round = 0; round < 20; round++) {
    for (int64_t i = 0; i < size * N; i++) again[i] = 1.0f / (float)(3 + (i + rank * 977) % 1009);
    if (round == 0) {
      memcpy(data, again, (size_t)(size * N) * sizeof *data);
      golden_must(comm_reduce_scatter_f32(comm, data, N, own));
      memcpy(data, again, (size_t)(size * N) * sizeof *data);
      golden_must(comm_all_reduce_f32(comm, data, size * N, REDUCE_SUM));
      continue;
    }
    float *scattered = allocate(size * N);
    memcpy(scattered, again, (size_t)(size * N) * sizeof *data);
    golden_must(comm_reduce_scatter_f32(comm, scattered, N, scattered + rank * N));
    golden_must(comm_all_reduce_f32(comm, again, size * N, REDUCE_SUM));
    golden_check(memcmp(scattered + rank * N, own, N * sizeof *own) == 0, "reduce-scatter gives other bits");
    golden_check(memcmp(again, data, (size_t)(size * N) * sizeof *data) == 0, "all-reduce gives other bits");
    free(scattered);
  }
  free(data);
  free(again);
  free(own);
}

/* Rank r sends n + r values: sizes differ by direction. */
static void check_exchange(struct comm *comm, int64_t n, int to, int from, const char *what) {
  const int size = comm_size(comm), rank = comm_rank(comm);
  const int64_t n_send = n ? n + rank : 0, n_recv = n && from >= 0 ? n + from : 0;
  float *send = allocate(n_send), *recv = allocate(n_recv + 1), *send_there, *recv_there;
  fill(send, n_send, rank);
  for (int64_t i = 0; i <= n_recv; i++) recv[i] = -1000;
  send_there = put(comm, send, n_send);
  recv_there = put(comm, recv, n_recv + 1);
  comm_reset_counts(comm);
  golden_must(comm_exchange_f32(comm, send_there, n_send, to, recv_there, n_recv, from));
  const bool sends = to >= 0 && n_send > 0;
  check_counts(comm, what, sends, sends ? (uint64_t)n_send * sizeof *send : 0);
  take(comm, send, send_there, n_send);
  take(comm, recv, recv_there, n_recv + 1);
  for (int64_t i = 0; i <= n_recv; i++)
    golden_check(recv[i] == (size > 1 && i < n_recv ? value(from, i) : -1000), "%s over %s: value %" PRId64 " is %g",
                 what, comm_name(comm), i, (double)recv[i]);
  free(send);
  free(recv);
}

static void check_exchanges(struct comm *comm, int64_t n) {
  const int size = comm_size(comm), rank = comm_rank(comm);
  const int next = (rank + 1) % size, before = (rank + size - 1) % size;
  const int above = rank + 1 < size ? rank + 1 : -1, below = rank - 1;
  check_exchange(comm, n, next, before, "an exchange around the ring");
  check_exchange(comm, n, before, next, "an exchange around the ring, backward");
  check_exchange(comm, n, above, below, "an exchange up a pipeline");
  check_exchange(comm, n, below, above, "an exchange down a pipeline");
  check_exchange(comm, n, -1, -1, "an exchange of nothing");
  /* Pairs: to and from the same rank at once. */
  const int pair = (rank ^ 1) < size ? rank ^ 1 : -1;
  check_exchange(comm, n, pair, pair, "an exchange within a pair");
}

/* A message of another size than was agreed on. */
static void check_sizes_differ(struct comm *comm) {
  float data[4] = {0}, got[4] = {0};
  const int rank = comm_rank(comm);
  enum status status = STATUS_OK;
  if (comm_size(comm) == 1) return;
  if (rank == 0) golden_must(comm_exchange_f32(comm, data, 2, 1, NULL, 0, -1));
  if (rank == 1) status = comm_exchange_f32(comm, NULL, 0, -1, got, 3, 0);
  golden_check(status == (rank == 1 ? STATUS_PEER : STATUS_OK), "a short message: status %d", status);
}

static void check_broadcast(struct comm *comm, int64_t n) {
  float *data = allocate(n);
  const int root = comm_size(comm) - 1;
  fill(data, n, comm_rank(comm));
  golden_must(comm_broadcast(comm, data, (size_t)n * sizeof *data, root));
  for (int64_t i = 0; i < n; i++)
    golden_check(data[i] == value(root, i), "broadcast over %s: value %" PRId64, comm_name(comm), i);
  free(data);
}

static void check_group(struct comm *comm) {
  const int64_t sizes[] = {0, 1, 7, 1000, 40001};
  for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
    check_all_reduce(comm, sizes[s]);
    check_broadcast(comm, sizes[s]);
    for (int in_place = 0; in_place < 2; in_place++) {
      check_all_gather(comm, sizes[s], in_place);
      check_reduce_scatter(comm, sizes[s], in_place);
    }
    check_exchanges(comm, sizes[s]);
  }
}

int main(void) {
  int world, rank;
  golden_start(&world, &rank);
  for (int tp = 1; tp <= world; tp++)
    for (int pp = 1; tp * pp <= world; pp++) {
      struct mesh *mesh;
      if (world % (tp * pp)) {
        golden_check(mesh_create(tp, pp, &mesh) == STATUS_USAGE, "tp %d pp %d of %d ranks is no error", tp, pp, world);
        golden_check((strstr(status_message(), "parallel.pp") != NULL) == (pp > 1), "the message: %s",
                     status_message());
        continue;
      }
      golden_must(mesh_create(tp, pp, &mesh));
      golden_must(accelerator_connect(mesh, golden_device(), COMM_PATH_AUTO, false, 60));
      struct comm *comms[] = {mesh->tp, mesh->dp, mesh->pp, mesh->stage, mesh->control};
      for (size_t c = 0; c < sizeof comms / sizeof comms[0]; c++) check_group(comms[c]);
      check_together(mesh);
      check_repeats(mesh->control);
      check_sizes_differ(mesh->control);
      /* As if one call took no more than 1000 values. */
      const int64_t piece = comm_mpi_piece;
      comm_mpi_piece = 1000;
      check_group(mesh->control);
      comm_mpi_piece = piece;
      if (rank == 0) printf("tp %d dp %d pp %d: good, %s\n", tp, mesh->n_dp, pp, mesh_path(mesh));
      golden_mesh_close(&mesh);
    }
  golden_stop();
  return 0;
}
