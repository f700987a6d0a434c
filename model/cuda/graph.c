/*
 * graph.c: repeating equal work as CUDA graphs.
 *
 * A key that comes for the first time only takes a place, so that scratch and
 * the library's plans have grown before anything is recorded; the second time
 * the work is recorded and launched; from then on it is launched.
 */
#include <stdlib.h>
#include <string.h>

#include "model/cuda/cuda_internal.h"

/* What was not asked for during so many begins gives its place to a new key: a
 * key that is not recorded yet, and a record. The first is longer than the
 * number of slots, or a few more keys than that in turns would push each other out. */
enum { KEY_UNUSED = 4 * DEVICE_GRAPHS, RECORD_UNUSED = 32 * DEVICE_GRAPHS };
enum { KEY_BYTES = 128, NONE = -1 };

struct record {
  unsigned char key[KEY_BYTES];
  size_t key_bytes;     /* 0: free */
  cudaGraphExec_t exec; /* NULL: the key has come, but is not recorded */
  uint64_t used;
};

struct cuda_graphs {
  struct record records[DEVICE_GRAPHS]; /* by slot */
  uint64_t clock;                       /* begins so far */
  int recording;                        /* slot, or NONE */
  cudaStream_t stream;                  /* of the recording */
};

enum status cuda_graphs_open(struct cuda_graphs **graphs_p) {
  struct cuda_graphs *graphs = calloc(1, sizeof *graphs);
  if (!graphs) return status_set(STATUS_SYSTEM, "graphs: out of memory");
  graphs->recording = NONE;
  *graphs_p = graphs;
  return STATUS_OK;
}

static void record_clear(struct record *record) {
  if (record->exec && cudaGraphExecDestroy(record->exec) != cudaSuccess) cudaGetLastError();
  *record = (struct record){0};
}

/* End a recording whose work failed on the way; nothing of it has run. */
static void abandon(struct cuda_graphs *graphs) {
  if (graphs->recording == NONE) return;
  cudaGraph_t graph = NULL;
  if (cudaStreamEndCapture(graphs->stream, &graph) != cudaSuccess) cudaGetLastError();
  if (graph) cudaGraphDestroy(graph);
  record_clear(&graphs->records[graphs->recording]);
  graphs->recording = NONE;
}

void cuda_graphs_close(struct cuda_graphs **graphs_p) {
  struct cuda_graphs *graphs = *graphs_p;
  if (!graphs) return;
  abandon(graphs);
  for (int i = 0; i < DEVICE_GRAPHS; i++) record_clear(&graphs->records[i]);
  free(graphs);
  *graphs_p = NULL;
}

void cuda_graphs_forget(struct device *d) {
  struct cuda_graphs *graphs = cuda_state(d)->graphs;
  if (!graphs) return;
  for (int i = 0; i < DEVICE_GRAPHS; i++) record_clear(&graphs->records[i]);
}

void cuda_graph_abandon(struct device *d) {
  if (cuda_state(d)->graphs) abandon(cuda_state(d)->graphs);
}

enum status cuda_graph_forbids(struct device *d, const char *what) {
  struct cuda_graphs *graphs = cuda_state(d)->graphs;
  if (!graphs || graphs->recording == NONE) return STATUS_OK;
  abandon(graphs);
  return status_set(STATUS_DEVICE, "%s while a graph is recorded", what);
}

static int find(const struct cuda_graphs *graphs, const void *key, size_t key_bytes) {
  for (int i = 0; i < DEVICE_GRAPHS; i++) {
    const struct record *record = &graphs->records[i];
    if (record->key_bytes == key_bytes && memcmp(record->key, key, key_bytes) == 0) return i;
  }
  return NONE;
}

/* A place for a new key; NULL: none for now. */
static struct record *place(struct cuda_graphs *graphs) {
  struct record *longest = NULL;
  for (int i = 0; i < DEVICE_GRAPHS; i++) {
    struct record *record = &graphs->records[i];
    uint64_t unused = graphs->clock - record->used;
    if (record->key_bytes == 0) return record;
    if (unused <= (record->exec ? RECORD_UNUSED : KEY_UNUSED)) continue;
    if (!longest || record->used < longest->used) longest = record;
  }
  return longest;
}

enum status cuda_graph_begin(struct device *d, const void *key, size_t key_bytes, int *slot_p, bool *repeated_p) {
  struct cuda_graphs *graphs = cuda_state(d)->graphs;
  int slot = NONE;
  bool repeated = false;
  if (graphs && key_bytes > 0 && key_bytes <= KEY_BYTES) {
    abandon(graphs);
    graphs->clock++;
    slot = find(graphs, key, key_bytes);
    struct record *record = slot == NONE ? place(graphs) : &graphs->records[slot];
    if (slot == NONE && record) {
      record_clear(record);
      memcpy(record->key, key, key_bytes);
      record->key_bytes = key_bytes;
    } else if (slot != NONE && record->exec) {
      CUDA_TRY(cudaGraphLaunch(record->exec, cuda_stream(d)));
      repeated = true;
    } else if (slot != NONE) {
      CUDA_TRY(cudaStreamBeginCapture(cuda_stream(d), cudaStreamCaptureModeThreadLocal));
      graphs->recording = slot;
      graphs->stream = cuda_stream(d);
    }
    if (record) record->used = graphs->clock;
  }
  *slot_p = slot;
  *repeated_p = repeated;
  return STATUS_OK;
}

enum status cuda_graph_end(struct device *d) {
  struct cuda_graphs *graphs = cuda_state(d)->graphs;
  if (!graphs || graphs->recording == NONE) return STATUS_OK;
  struct record *record = &graphs->records[graphs->recording];
  cudaGraph_t graph = NULL;
  cudaGraphExec_t exec = NULL;
  graphs->recording = NONE;
  enum status status = CUDA_CHECK(cudaStreamEndCapture(graphs->stream, &graph));
  if (status == STATUS_OK) status = CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  if (graph) cudaGraphDestroy(graph);
  if (status == STATUS_OK) {
    record->exec = exec;
    status = CUDA_CHECK(cudaGraphLaunch(exec, cuda_stream(d)));
  }
  if (status != STATUS_OK) record_clear(record);
  return status;
}
