#include "io/cluster.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/nearest.h"
#include "io/yaml_tree.h"

#define MAX_KEYS 64

enum key_type { KEY_TEXT, KEY_CHOICE, KEY_INT, KEY_REAL };

struct key {
  const char *name; /* "device.memory" */
  enum key_type type;
  size_t offset;              /* in struct cluster */
  const char *const *choices; /* of an enum; ended by NULL */
  double low, high;           /* numbers */
  bool needed;
  const char *unit, *doc;
  size_t rate; /* offset of a rate that a time belongs to: given with it, even if 0; 0: none */
};

static const char *const kinds[] = {"cpu", "gpu", NULL};
static const char *const launchers[] = {"mpirun", "slurm", "none", NULL};

#define AT(field) offsetof(struct cluster, field)

#define RATE_KEYS(text, index)                                                                                       \
  {.name = "device." text ".peak",                                                                                   \
   .type = KEY_REAL,                                                                                                 \
   .offset = AT(device.matrix[index].peak),                                                                          \
   .high = 1e18,                                                                                                     \
   .unit = "FLOP/s",                                                                                                 \
   .doc = "Data-sheet rate of " text " matrix products, without sparsity"},                                          \
  {                                                                                                                  \
    .name = "device." text ".achieved", .type = KEY_REAL, .offset = AT(device.matrix[index].achieved), .high = 1e18, \
    .unit = "FLOP/s", .doc = "Rate of large " text " products in practice; 0: no such products"                      \
  }

#define LINE_KEYS(level, index, text, pattern, what)                                                               \
  {.name = level "." text ".alpha",                                                                                \
   .type = KEY_REAL,                                                                                               \
   .offset = AT(links[index].line[pattern].alpha),                                                                 \
   .high = 10,                                                                                                     \
   .unit = "s",                                                                                                    \
   .rate = AT(links[index].line[pattern].beta),                                                                    \
   .doc = what ": time that does not depend on the size"},                                                         \
  {                                                                                                                \
    .name = level "." text ".beta", .type = KEY_REAL, .offset = AT(links[index].line[pattern].beta), .high = 1e15, \
    .unit = "bytes/s", .doc = what ": rate of each rank when all that share the link use it"                       \
  }

#define LINK_KEYS(level, index)                                                                              \
  {.name = level ".ranks",                                                                                   \
   .type = KEY_INT,                                                                                          \
   .offset = AT(links[index].ranks),                                                                         \
   .low = 1,                                                                                                 \
   .high = 65536,                                                                                            \
   .unit = "ranks",                                                                                          \
   .doc = "Ranks of a node that share the link; 1: each has its own"},                                       \
      {.name = level ".source",                                                                              \
       .type = KEY_TEXT,                                                                                     \
       .offset = AT(links[index].source),                                                                    \
       .doc = "Where these numbers come from: measured, or which data sheet"},                               \
      LINE_KEYS(level, index, "all_reduce", CLUSTER_ALL_REDUCE, "All-reduce, each of 2 log2(ranks) rounds"), \
      LINE_KEYS(level, index, "all_gather", CLUSTER_ALL_GATHER,                                              \
                "All-gather and reduce-scatter, each of log2(ranks) rounds"),                                \
      LINE_KEYS(level, index, "point_to_point", CLUSTER_POINT, "One rank to another")

static const struct key keys[] = {
    {.name = "name", .type = KEY_TEXT, .offset = AT(name), .needed = true, .doc = "What the cluster is called"},
    {.name = "note", .type = KEY_TEXT, .offset = AT(note), .doc = "Anything worth knowing, such as assumptions"},
    {.name = "nodes",
     .type = KEY_INT,
     .offset = AT(nodes),
     .low = 1,
     .high = 1048576,
     .unit = "nodes",
     .needed = true,
     .doc = "Machines"},
    {.name = "launcher",
     .type = KEY_CHOICE,
     .offset = AT(launcher),
     .choices = launchers,
     .doc = "What starts a job: mpirun, or sbatch for slurm; none: lorashard cannot run there"},
    {.name = "device.name", .type = KEY_TEXT, .offset = AT(device.name), .doc = "Product"},
    {.name = "device.kind",
     .type = KEY_CHOICE,
     .offset = AT(device.kind),
     .choices = kinds,
     .needed = true,
     .doc = "Where a rank computes"},
    {.name = "device.per_node",
     .type = KEY_INT,
     .offset = AT(device.per_node),
     .low = 1,
     .high = 65536,
     .unit = "ranks",
     .needed = true,
     .doc = "Devices of a node; each is one rank (of a CPU: a socket, or a part of one)"},
    {.name = "device.cores",
     .type = KEY_INT,
     .offset = AT(device.cores),
     .high = 65536,
     .unit = "cores",
     .doc = "CPU cores of one rank, for OMP_NUM_THREADS; 0: not known"},
    {.name = "device.memory",
     .type = KEY_REAL,
     .offset = AT(device.memory),
     .low = 1e6,
     .high = 1e15,
     .unit = "bytes",
     .needed = true,
     .doc = "Memory of one device"},
    {.name = "device.reserved",
     .type = KEY_REAL,
     .offset = AT(device.reserved),
     .high = 1e15,
     .unit = "bytes",
     .doc = "What driver, communication library and caches of products take of it"},
    {.name = "device.bandwidth",
     .type = KEY_REAL,
     .offset = AT(device.bandwidth),
     .low = 1e6,
     .high = 1e15,
     .unit = "bytes/s",
     .needed = true,
     .doc = "Rate at which one device reads its memory"},
    {.name = "device.source",
     .type = KEY_TEXT,
     .offset = AT(device.source),
     .doc = "Where these numbers come from: measured, or which data sheet"},
    RATE_KEYS("f32", CLUSTER_F32),
    RATE_KEYS("tf32", CLUSTER_TF32),
    RATE_KEYS("bf16", CLUSTER_BF16),
    LINK_KEYS("node", CLUSTER_NODE),
    LINK_KEYS("network", CLUSTER_NETWORK),
};
#define N_KEYS ((int)(sizeof keys / sizeof keys[0]))
_Static_assert(sizeof keys / sizeof keys[0] <= MAX_KEYS, "raise MAX_KEYS");

void cluster_init(struct cluster *cluster) {
  memset(cluster, 0, sizeof *cluster);
  cluster->nodes = 1;
  cluster->device.per_node = 1;
  for (int level = 0; level < CLUSTER_LEVELS; level++) cluster->links[level].ranks = 1;
}

/* --- from YAML --- */

struct reading {
  struct cluster *cluster;
  const char *name;
  bool given[MAX_KEYS];
};

static const struct key *find_key(const char *name) {
  for (int i = 0; i < N_KEYS; i++)
    if (strcmp(keys[i].name, name) == 0) return &keys[i];
  return NULL;
}

static bool is_section(const char *path) {
  size_t length = strlen(path);
  for (int i = 0; i < N_KEYS; i++)
    if (strncmp(keys[i].name, path, length) == 0 && keys[i].name[length] == '.') return true;
  return false;
}

static enum status unknown_key(const struct reading *reading, int line, const char *path) {
  const char *names[MAX_KEYS];
  for (int i = 0; i < N_KEYS; i++) names[i] = keys[i].name;
  return yaml_fault(reading->name, line, "unknown key '%.120s'; the nearest is '%s'", path,
                    names[nearest_name(path, names, N_KEYS)]);
}

static enum status store_choice(const struct reading *reading, const struct key *key, const struct yaml_node *value) {
  int n = 0;
  while (key->choices[n]) n++;
  for (int i = 0; i < n; i++) {
    if (strcmp(key->choices[i], value->text) != 0) continue;
    *(int *)((char *)reading->cluster + key->offset) = i;
    return STATUS_OK;
  }
  return yaml_fault(reading->name, value->line, "%s: unknown '%.40s'; the nearest is '%s'", key->name, value->text,
                    key->choices[nearest_name(value->text, key->choices, n)]);
}

static enum status store_number(const struct reading *reading, const struct key *key, const struct yaml_node *value) {
  bool whole = key->type == KEY_INT;
  if (whole ? !yaml_is_integer(value) : !yaml_is_number(value))
    return yaml_fault(reading->name, value->line, "%s takes a %s%s%s; found '%.40s'", key->name,
                      whole ? "whole number" : "number", key->unit ? " of " : "", key->unit ? key->unit : "",
                      value->text);
  double number = strtod(value->text, NULL);
  if (!(number >= key->low && number <= key->high))
    return yaml_fault(reading->name, value->line, "%s: %.40s is out of range; allowed: %g to %g %s", key->name,
                      value->text, key->low, key->high, key->unit ? key->unit : "");
  void *field = (char *)reading->cluster + key->offset;
  if (whole)
    *(int64_t *)field = (int64_t)number;
  else
    *(double *)field = number;
  return STATUS_OK;
}

static enum status store(const struct reading *reading, const struct key *key, const struct yaml_node *value) {
  if (value->kind != YAML_NODE_SCALAR)
    return yaml_fault(reading->name, value->line, "%s takes one value, not a list or map", key->name);
  if (key->type == KEY_CHOICE) return store_choice(reading, key, value);
  if (key->type != KEY_TEXT) return store_number(reading, key, value);
  if (strlen(value->text) >= CLUSTER_TEXT)
    return yaml_fault(reading->name, value->line, "%s is longer than %d bytes", key->name, CLUSTER_TEXT - 1);
  strcpy((char *)reading->cluster + key->offset, value->text);
  return STATUS_OK;
}

/* Store the value of one key, or of all keys below a section. */
static enum status apply(struct reading *reading, const char *path, int line, const struct yaml_node *value) {
  const struct key *key = find_key(path);
  if (key) {
    reading->given[key - keys] = true;
    return store(reading, key, value);
  }
  if (*path && !is_section(path)) return unknown_key(reading, line, path);
  if (yaml_is_null(value)) return STATUS_OK;
  if (value->kind != YAML_NODE_MAP)
    return yaml_fault(reading->name, value->line, "%s%sis a section; put keys under it",
                      *path ? path : "a cluster file", *path ? ": " : " ");
  for (int i = 0; i < value->n; i++) {
    const struct yaml_node *child = &value->items[2 * i];
    char name[160];
    if (strchr(child->text, '.')) return unknown_key(reading, child->line, child->text);
    snprintf(name, sizeof name, "%s%s%.60s", path, *path ? "." : "", child->text);
    TRY(apply(reading, name, child->line, &value->items[2 * i + 1]));
  }
  return STATUS_OK;
}

static enum status check_rates(const struct reading *reading) {
  static const char *const names[CLUSTER_MATRICES] = {"f32", "tf32", "bf16"};
  bool any = false;
  for (int i = 0; i < CLUSTER_MATRICES; i++) {
    const struct cluster_rate *rate = &reading->cluster->device.matrix[i];
    any |= rate->achieved > 0;
    if (rate->peak > 0 && rate->achieved > rate->peak)
      return yaml_fault(reading->name, 0,
                        "device.%s.achieved %g is more than device.%s.peak %g: nothing is faster than its data sheet",
                        names[i], rate->achieved, names[i], rate->peak);
  }
  if (any) return STATUS_OK;
  return yaml_fault(reading->name, 0, "no rate of matrix products: give device.f32.achieved or device.bf16.achieved");
}

/* What more than one key decides. */
static enum status check(const struct reading *reading) {
  const struct cluster *cluster = reading->cluster;
  for (int i = 0; i < N_KEYS; i++)
    if (keys[i].needed && !reading->given[i])
      return yaml_fault(reading->name, 0, "%s is missing: %s", keys[i].name, keys[i].doc);
  TRY(check_rates(reading));
  if (cluster->device.reserved >= cluster->device.memory)
    return yaml_fault(reading->name, 0, "device.reserved is no less than device.memory");
  const bool needed[CLUSTER_LEVELS] = {cluster->device.per_node > 1, cluster->nodes > 1};
  static const char *const levels[CLUSTER_LEVELS] = {"node", "network"};
  static const char *const patterns[CLUSTER_PATTERNS] = {"all_reduce", "all_gather", "point_to_point"};
  for (int level = 0; level < CLUSTER_LEVELS; level++)
    for (int pattern = 0; needed[level] && pattern < CLUSTER_PATTERNS; pattern++)
      if (cluster->links[level].line[pattern].beta <= 0)
        return yaml_fault(reading->name, 0, "%s.%s.beta is missing: ranks need that link", levels[level],
                          patterns[pattern]);
  return STATUS_OK;
}

enum status cluster_parse(const char *text, size_t length, const char *name, struct cluster *cluster) {
  struct cluster found;
  struct reading reading = {.cluster = &found, .name = name};
  struct yaml_node root;
  cluster_init(&found);
  enum status status = yaml_tree_parse(text, length, name, true, &root);
  if (status == STATUS_OK) status = apply(&reading, "", 0, &root);
  if (status == STATUS_OK) status = check(&reading);
  yaml_tree_free(&root);
  if (status == STATUS_OK) *cluster = found;
  return status;
}

enum status cluster_read(const char *path, struct cluster *cluster) {
  char *text;
  size_t length;
  TRY(yaml_read_text(path, "the cluster's description", &text, &length));
  enum status status = cluster_parse(text, length, path, cluster);
  free(text);
  return status;
}

/* --- to YAML --- */

static void print_value(FILE *out, const struct key *key, const void *field) {
  switch (key->type) {
    case KEY_TEXT:
      yaml_quote(out, field);
      break;
    case KEY_CHOICE:
      fprintf(out, "%s", key->choices[*(const int *)field]);
      break;
    case KEY_INT:
      fprintf(out, "%" PRId64, *(const int64_t *)field);
      break;
    case KEY_REAL: {
      char text[40];
      double value = *(const double *)field;
      /* The fewest digits that read back to the same bits. */
      for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
      }
      fprintf(out, "%s", text);
    }
  }
}

static bool is_blank(const struct cluster *cluster, const struct key *key, const void *field) {
  if (key->needed) return false;
  if (key->rate && *(const double *)((const char *)cluster + key->rate) > 0) return false;
  if (key->type == KEY_TEXT) return !*(const char *)field;
  return key->type == KEY_REAL && *(const double *)field == 0;
}

/* Open the sections of `name` that `open` does not have, and write its last part. */
static void print_name(FILE *out, const char *name, char open[64]) {
  const char *at = name;
  int depth = 0;
  for (const char *dot = strchr(at, '.'); dot; at = dot + 1, dot = strchr(at, '.'), depth++) {
    size_t length = (size_t)(dot - name) + 1;
    if (strncmp(open, name, length) != 0) fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(dot - at), at);
  }
  snprintf(open, 64, "%.*s", (int)(at - name), name);
  fprintf(out, "%*s%s: ", 2 * depth, "", at);
}

enum status cluster_print(const struct cluster *cluster, char **text_p) {
  char *text = NULL, open[64] = "";
  size_t size;
  FILE *out = open_memstream(&text, &size);
  if (!out) return status_set(STATUS_SYSTEM, "no memory to print a cluster");
  for (int i = 0; i < N_KEYS; i++) {
    const void *field = (const char *)cluster + keys[i].offset;
    if (is_blank(cluster, &keys[i], field)) continue;
    print_name(out, keys[i].name, open);
    print_value(out, &keys[i], field);
    if (keys[i].unit) fprintf(out, " # %s", keys[i].unit);
    fputc('\n', out);
  }
  if (fclose(out) != 0 || !text) {
    free(text);
    return status_set(STATUS_SYSTEM, "no memory to print a cluster");
  }
  *text_p = text;
  return STATUS_OK;
}

void cluster_describe(FILE *out) {
  fprintf(out, "| key | value | meaning |\n|---|---|---|\n");
  for (int i = 0; i < N_KEYS; i++) {
    const struct key *key = &keys[i];
    fprintf(out, "| `%s` | ", key->name);
    for (int c = 0; key->choices && key->choices[c]; c++) fprintf(out, "%s`%s`", c ? " or " : "", key->choices[c]);
    if (!key->choices) fprintf(out, "%s", key->unit ? key->unit : "text");
    fprintf(out, "%s | %s |\n", key->needed ? ", required" : "", key->doc);
  }
}

/* --- the model of time --- */

static double line_time(const struct cluster *cluster, enum cluster_level level, enum cluster_pattern pattern, double n,
                        int64_t p, int64_t active) {
  const struct cluster_link *link = &cluster->links[level];
  const struct cluster_line *line = &link->line[pattern];
  if (p < 2 || n <= 0) return 0;
  double beta = line->beta;
  if (active < link->ranks) beta *= (double)link->ranks / (double)(active > 0 ? active : 1);
  double rounds = ceil(log2((double)p)), share = (double)(p - 1) / (double)p;
  if (pattern == CLUSTER_POINT) return line->alpha + n / beta;
  if (pattern == CLUSTER_ALL_GATHER) return rounds * line->alpha + share * n / beta;
  return 2 * rounds * line->alpha + 2 * share * n / beta;
}

double cluster_time(const struct cluster *cluster, enum cluster_pattern pattern, double n, int64_t p, int64_t per_node,
                    int64_t active) {
  if (p < 2 || n <= 0) return 0;
  if (pattern == CLUSTER_POINT)
    return line_time(cluster, per_node > 1 ? CLUSTER_NODE : CLUSTER_NETWORK, pattern, n, p, active);
  if (per_node >= p) return line_time(cluster, CLUSTER_NODE, pattern, n, p, active);
  int64_t nodes = (p + per_node - 1) / per_node;
  double part = n / (double)per_node;
  double between = line_time(cluster, CLUSTER_NETWORK, pattern, part, nodes, active);
  /* A gather brings the parts of other nodes in, then passes them around within the node. */
  double within = line_time(cluster, CLUSTER_NODE, CLUSTER_ALL_GATHER, n, per_node, active);
  return between + (pattern == CLUSTER_ALL_REDUCE ? 2 * within : within);
}
