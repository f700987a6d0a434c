/* ranks: 2 4 */
/*
 * Collectives on device memory through pinned host buffers. Host memory plays
 * the device: its addresses are moved so that only the device's own copies reach
 * it, and the copies are counted. Values are small whole numbers: sums are exact
 * in every order.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dist/mesh.h"
#include "golden_case.h"

/* No address of a program has these bits set, so that a direct access ends it. */
#define MOVED ((uintptr_t)1 << 62)

#define PIECE ((size_t)16 << 20) /* of dist/comm_staged.c */

static struct fake {
  int copies_out, copies_in, allocations, held;
  size_t copied, largest; /* bytes: of all copies, of the largest allocation */
  bool broken;
} fake;

static void *device_address(const void *host) { return (void *)((uintptr_t)host + MOVED); }
static void *host_address(const void *device) {
  golden_check((uintptr_t)device >= MOVED, "a copy got an address of the host for one of the device");
  return (void *)((uintptr_t)device - MOVED);
}

static enum status copy_out(void *context, void *dst, const void *src, size_t bytes) {
  struct fake *f = context;
  if (f->broken) return status_set(STATUS_DEVICE, "the fake device is broken");
  memcpy(dst, host_address(src), bytes);
  f->copies_out++;
  f->copied += bytes;
  return STATUS_OK;
}

static enum status copy_in(void *context, void *dst, const void *src, size_t bytes) {
  struct fake *f = context;
  memcpy(host_address(dst), src, bytes);
  f->copies_in++;
  f->copied += bytes;
  return STATUS_OK;
}

static enum status host_alloc(void *context, size_t bytes, void **memory_p) {
  struct fake *f = context;
  f->allocations++;
  f->held++;
  if (bytes > f->largest) f->largest = bytes;
  *memory_p = malloc(bytes);
  return *memory_p ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory");
}

static void host_free(void *context, void *memory) {
  ((struct fake *)context)->held--;
  free(memory);
}

static const struct comm_device device = {
    .context = &fake, .copy_out = copy_out, .copy_in = copy_in, .host_alloc = host_alloc, .host_free = host_free};

static void *allocate(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  golden_check(memory != NULL, "out of memory");
  return memory;
}

static float value(int rank, int64_t i) { return (float)((i * 7 + rank * 13) % 101 - 50); }

static float reduced(int size, int64_t i, enum reduce_op op) {
  float all = value(0, i);
  for (int r = 1; r < size; r++) {
    float v = value(r, i);
    all = op == REDUCE_SUM ? all + v : op == REDUCE_MAX ? (v > all ? v : all) : (v < all ? v : all);
  }
  return all;
}

static void check_counts(const struct comm *comm, const char *what, uint64_t calls, uint64_t bytes) {
  struct comm_counts got = comm_counts(comm);
  if (comm_size(comm) == 1) calls = bytes = 0;
  golden_check(got.calls == calls && got.bytes == bytes,
               "%s over %s: %" PRIu64 " calls, %" PRIu64 " bytes; should be %" PRIu64 ", %" PRIu64, what,
               comm_name(comm), got.calls, got.bytes, calls, bytes);
}

static void check_all_reduce(struct comm *comm, int64_t n, enum reduce_op op) {
  float *data = allocate((size_t)n * sizeof *data);
  const int size = comm_size(comm), pieces = (int)(((size_t)n * sizeof *data + PIECE - 1) / PIECE);
  for (int64_t i = 0; i < n; i++) data[i] = value(comm_rank(comm), i);
  fake.copies_in = fake.copies_out = 0;
  comm_reset_counts(comm);
  golden_must(comm_all_reduce_f32(comm, device_address(data), n, op));
  check_counts(comm, "all-reduce", n > 0, (uint64_t)n * sizeof *data);
  golden_check(fake.copies_out == (size > 1 ? pieces : 0) && fake.copies_in == fake.copies_out,
               "all-reduce of %" PRId64 " values over %s: %d copies out, %d in", n, comm_name(comm), fake.copies_out,
               fake.copies_in);
  for (int64_t i = 0; i < n; i++)
    golden_check(data[i] == reduced(size, i, op), "all-reduce %d over %s: value %" PRId64 " of %" PRId64 " is %g", op,
                 comm_name(comm), i, n, (double)data[i]);
  free(data);
}

static void check_all_gather(struct comm *comm, size_t bytes, bool in_place) {
  const size_t size = (size_t)comm_size(comm);
  unsigned char *all = allocate(size * bytes),
                *data = in_place ? all + (size_t)comm_rank(comm) * bytes : allocate(bytes);
  memset(all, 0xee, size * bytes);
  for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 31 + (size_t)comm_rank(comm));
  comm_reset_counts(comm);
  golden_must(comm_all_gather(comm, device_address(data), bytes, device_address(all)));
  check_counts(comm, "all-gather", 1, bytes);
  for (size_t r = 0; r < size; r++)
    for (size_t i = 0; i < bytes; i++)
      golden_check(all[r * bytes + i] == (unsigned char)(i * 31 + r), "all-gather over %s: byte %zu of rank %zu",
                   comm_name(comm), i, r);
  if (!in_place) free(data);
  free(all);
}

static void check_reduce_scatter(struct comm *comm, int64_t n, bool in_place) {
  const int size = comm_size(comm), rank = comm_rank(comm);
  const size_t bytes = (size_t)(size * n) * sizeof(float);
  float *data = allocate(bytes), *own = in_place ? data + rank * n : allocate((size_t)n * sizeof *own);
  for (int64_t i = 0; i < size * n; i++) data[i] = value(rank, i);
  comm_reset_counts(comm);
  golden_must(comm_reduce_scatter_f32(comm, device_address(data), n, device_address(own)));
  check_counts(comm, "reduce-scatter", n > 0, bytes);
  for (int64_t i = 0; i < n; i++)
    golden_check(own[i] == reduced(size, rank * n + i, REDUCE_SUM), "reduce-scatter over %s: value %" PRId64 " is %g",
                 comm_name(comm), i, (double)own[i]);
  if (!in_place) free(own);
  free(data);
}

/* Up to the next rank n values, and down to the one before `n_down`, in one call each way around. */
static void check_exchange(struct comm *comm, int64_t n, int64_t n_down) {
  const int size = comm_size(comm), rank = comm_rank(comm), next = (rank + 1) % size, before = (rank + size - 1) % size;
  const int64_t most = n > n_down ? n : n_down;
  float *data = allocate((size_t)most * sizeof *data), *got = allocate((size_t)most * sizeof *got);
  for (int way = 0; way < 2; way++) {
    const int64_t sent = way ? n_down : n;
    for (int64_t i = 0; i < most; i++) data[i] = value(rank, i), got[i] = -1000;
    comm_reset_counts(comm);
    golden_must(comm_exchange_f32(comm, device_address(data), sent, way ? before : next, device_address(got), sent,
                                  way ? next : before));
    check_counts(comm, "exchange", sent > 0, (uint64_t)sent * sizeof *data);
    for (int64_t i = 0; i < sent; i++)
      golden_check(got[i] == (size > 1 ? value(way ? next : before, i) : -1000),
                   "exchange over %s: value %" PRId64 " of %" PRId64 " is %g", comm_name(comm), i, sent,
                   (double)got[i]);
  }
  /* Even ranks send more than they receive. */
  if (size % 2 == 0) {
    const int64_t out = rank % 2 ? n_down : n, in = rank % 2 ? n : n_down;
    golden_must(comm_exchange_f32(comm, device_address(data), out, rank ^ 1, device_address(got), in, rank ^ 1));
    for (int64_t i = 0; i < in; i++)
      golden_check(got[i] == value(rank ^ 1, i), "uneven exchange over %s: value %" PRId64, comm_name(comm), i);
  }
  free(data);
  free(got);
}

static void check_collectives(struct comm *comm) {
  const enum reduce_op ops[] = {REDUCE_SUM, REDUCE_MAX, REDUCE_MIN};
  const int64_t counts[] = {0, 1, 1000, (int64_t)(PIECE / sizeof(float)), (int64_t)(PIECE / sizeof(float)) + 7};
  const size_t sizes[] = {0, 7, 4096, PIECE / 3 + 5};
  for (size_t n = 0; n < sizeof counts / sizeof counts[0]; n++)
    for (size_t op = 0; op < (counts[n] > 1000 ? 1 : sizeof ops / sizeof ops[0]); op++)
      check_all_reduce(comm, counts[n], ops[op]);
  for (int in_place = 0; in_place < 2; in_place++) {
    for (size_t n = 0; n < (in_place ? 3 : sizeof sizes / sizeof sizes[0]); n++)
      check_all_gather(comm, sizes[n], in_place);
    check_reduce_scatter(comm, 0, in_place);
    check_reduce_scatter(comm, 1001, in_place);
  }
  check_exchange(comm, 1000, 0);
  if (strcmp(comm_name(comm), "tp") != 0) return; /* several pieces, once in each mesh */
  check_all_gather(comm, PIECE / (size_t)comm_size(comm) + 5, true);
  check_reduce_scatter(comm, (int64_t)(PIECE / sizeof(float)) / comm_size(comm) + 3, true);
  check_exchange(comm, (int64_t)(PIECE / sizeof(float)) / 2 + 5, 77);
}

/* Calls of several groups between begin and end: the results of each. */
static void check_group(struct mesh *mesh) {
  enum { N = 100 };
  struct comm *comms[] = {mesh->stage, mesh->dp, mesh->tp};
  float data[3][N];
  golden_must(comm_group_begin());
  for (int c = 0; c < 3; c++) {
    for (int64_t i = 0; i < N; i++) data[c][i] = value(comm_rank(comms[c]), i);
    comm_reset_counts(comms[c]);
    golden_must(comm_all_reduce_f32(comms[c], device_address(data[c]), N, REDUCE_SUM));
  }
  golden_must(comm_group_end());
  for (int c = 0; c < 3; c++) {
    check_counts(comms[c], "a group", 1, N * sizeof(float));
    for (int64_t i = 0; i < N; i++)
      golden_check(data[c][i] == reduced(comm_size(comms[c]), i, REDUCE_SUM), "a group: wrong sum over %s",
                   comm_name(comms[c]));
  }
  golden_must(comm_group_begin()); /* nothing in it */
  golden_must(comm_group_end());
}

/* What stays on host memory. */
static void check_host(struct mesh *mesh) {
  double d = comm_rank(mesh->stage);
  float f = 1;
  int number = mesh->rank;
  fake.copied = 0;
  golden_must(comm_all_reduce_f64(mesh->stage, &d, 1, REDUCE_MAX));
  golden_must(comm_all_reduce_f32(mesh->control, &f, 1, REDUCE_SUM));
  golden_must(comm_broadcast(mesh->stage, &number, sizeof number, 0));
  golden_must(comm_barrier(mesh->stage));
  golden_check(d == comm_size(mesh->stage) - 1 && f == (float)mesh->world && fake.copied == 0,
               "a call for host memory touched the device");
}

static void check_mesh(struct mesh *mesh) {
  golden_check(strcmp(mesh_path(mesh), "host memory over MPI") == 0, "path before: %s", mesh_path(mesh));
  fake = (struct fake){0};
  golden_must(mesh_use_device(mesh, &device, COMM_PATH_MPI, false, 60));
  golden_check(strcmp(mesh_path(mesh), "MPI over pinned host buffers") == 0, "path: %s", mesh_path(mesh));
  check_collectives(mesh->tp);
  check_collectives(mesh->dp);
  check_group(mesh);
  check_host(mesh);
  golden_check(fake.largest <= PIECE && fake.held == 1, "%d buffers, the largest of %zu bytes", fake.held,
               fake.largest);
  int before = fake.allocations;
  check_collectives(mesh->stage);
  golden_check(fake.allocations == before, "the buffer was allocated again");
  golden_must(mesh_check_device(mesh));
  mesh_waited();

  comm_reset_counts(mesh->tp);
  comm_add_counts(mesh->tp, (struct comm_counts){3, 40});
  comm_add_counts(mesh->tp, (struct comm_counts){1, 2});
  golden_check(comm_counts(mesh->tp).calls == 4 && comm_counts(mesh->tp).bytes == 42, "counts added wrongly");

  float one = 1;
  fake.broken = true;
  enum status status = comm_all_reduce_f32(mesh->stage, device_address(&one), 1, REDUCE_SUM);
  golden_check(status == (comm_size(mesh->stage) > 1 ? STATUS_DEVICE : STATUS_OK), "a broken device: status %d",
               status);
  fake.broken = false;
}

static void check_paths(struct mesh *mesh) {
  golden_must(mesh_use_device(mesh, &device, COMM_PATH_AUTO, true, 60));
  golden_check(strcmp(mesh_path(mesh), "MPI over pinned host buffers (two ranks share a GPU)") == 0, "path: %s",
               mesh_path(mesh));
  golden_check(mesh_use_device(mesh, &device, COMM_PATH_NCCL, true, 60) == STATUS_USAGE,
               "NCCL with a shared GPU is no error");
  golden_check(strstr(status_message(), "two ranks share a GPU") != NULL, "the message: %s", status_message());
  golden_check(strcmp(mesh_path(mesh), "host memory over MPI") == 0, "path after a failure: %s", mesh_path(mesh));
}

static void check_sharers(struct mesh *mesh) {
  char identity[32];
  int sharers = 0;
  const int in_pairs = (mesh->node_rank | 1) < mesh->node_size ? 2 : 1;
  golden_must(mesh_device_sharers(mesh, "0000:3b:00.0", &sharers));
  golden_check(sharers == mesh->node_size, "one device of all: %d sharers", sharers);
  snprintf(identity, sizeof identity, "0000:%02x:00.0", mesh->node_rank);
  golden_must(mesh_device_sharers(mesh, identity, &sharers));
  golden_check(sharers == 1, "a device each: %d sharers", sharers);
  snprintf(identity, sizeof identity, "0000:%02x:00.0", mesh->node_rank / 2);
  golden_must(mesh_device_sharers(mesh, identity, &sharers));
  golden_check(sharers == in_pairs, "a device for two: %d sharers", sharers);
}

int main(void) {
  int world, rank;
  golden_must(mesh_start(&world, &rank));
  for (int tp = world; tp >= 1; tp /= 2) {
    struct mesh *mesh;
    golden_must(mesh_create(tp, 1, &mesh));
    check_mesh(mesh);
    check_paths(mesh);
    check_sharers(mesh);
    if (rank == 0) printf("tp %d dp %d: good\n", mesh->n_tp, mesh->n_dp);
    mesh_destroy(&mesh);
    golden_check(fake.held == 0, "%d buffers were not freed", fake.held);
  }
  mesh_stop();
  return 0;
}
