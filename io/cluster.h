/*
 * cluster.h: a cluster as data: its nodes, what a device computes and holds, and how
 * fast its links are. Files are written by hand from data sheets or by `lorashard
 * probe` from measurements; `lorashard plan` reads them.
 *
 * Every quantity is in base units: bytes, seconds, bytes/s, FLOP/s (a multiplication
 * and an addition are two).
 *
 * Links follow an alpha-beta model. A message of n bytes takes
 *   point to point:                alpha + n / beta
 *   all-gather, reduce-scatter:    alpha log2(p) + (p - 1) / p n / beta      (n: the whole buffer)
 *   all-reduce:                    2 alpha log2(p) + 2 (p - 1) / p n / beta
 * over p ranks; see cluster_time.
 */
#ifndef LORASHARD_IO_CLUSTER_H
#define LORASHARD_IO_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "io/status.h"

#define CLUSTER_TEXT 512

enum cluster_kind { CLUSTER_CPU, CLUSTER_GPU };

/* CLUSTER_NO_LAUNCHER: lorashard cannot run there; the file is for comparisons. */
enum cluster_launcher { CLUSTER_MPIRUN, CLUSTER_SLURM, CLUSTER_NO_LAUNCHER };

/* Number types of matrix products. */
enum cluster_matrix { CLUSTER_F32, CLUSTER_TF32, CLUSTER_BF16, CLUSTER_MATRICES };

/* Floating-point operations per second of one device; 0: it has no such products. */
struct cluster_rate {
  double peak;     /* of the data sheet: what MFU refers to */
  double achieved; /* by large products of this program */
};

struct cluster_device {
  char name[CLUSTER_TEXT];
  enum cluster_kind kind;
  int64_t per_node; /* devices of a node; one rank each */
  int64_t cores;    /* CPU cores of a rank; 0: not known */
  double memory;    /* bytes of a device, or a rank's part of its node's; a rank may use what `reserved` leaves */
  double reserved;  /* bytes of it that go to driver, libraries and caches of products, or to the system */
  double bandwidth; /* bytes/s of its memory */
  struct cluster_rate matrix[CLUSTER_MATRICES];
  char source[CLUSTER_TEXT]; /* where the numbers come from: "measured ...", "data sheet ..." */
};

enum cluster_pattern { CLUSTER_ALL_REDUCE, CLUSTER_ALL_GATHER, CLUSTER_POINT, CLUSTER_PATTERNS };

struct cluster_line {
  double alpha; /* seconds a message takes whatever its size; of a collective: each of its log2(p) rounds */
  double beta;  /* bytes/s that each rank moves while `ranks` ranks of its node do the same; 0: no such link */
};

/* The ways between two ranks: within a node, or over the network. */
enum cluster_level { CLUSTER_NODE, CLUSTER_NETWORK, CLUSTER_LEVELS };

struct cluster_link {
  struct cluster_line line[CLUSTER_PATTERNS]; /* all-gather stands for reduce-scatter too */
  int64_t ranks; /* ranks of a node that share it: one that is alone gets `ranks` times beta. 1: each has its own */
  char source[CLUSTER_TEXT];
};

struct cluster {
  char name[CLUSTER_TEXT];
  char note[CLUSTER_TEXT]; /* anything worth knowing, such as assumptions */
  int64_t nodes;
  enum cluster_launcher launcher;
  struct cluster_device device;
  struct cluster_link links[CLUSTER_LEVELS];
};

/* One node, one device, no rates, no links: what cluster_read starts from. */
void cluster_init(struct cluster *cluster);

/* Read a YAML file. Unknown keys (with the nearest valid one), wrong types, values
 * out of range, missing keys: STATUS_USAGE with file:line. */
enum status cluster_read(const char *path, struct cluster *cluster);

/* The same from memory; `name` stands for the file in messages. */
enum status cluster_parse(const char *text, size_t length, const char *name, struct cluster *cluster);

/* The cluster as YAML that cluster_read takes back to the same values; malloc'ed,
 * the caller's. Rates and links that are 0 are left out; a link's alpha is not. */
enum status cluster_print(const struct cluster *cluster, char **text_p);

/* A table of all keys with type, unit and meaning (Markdown). */
void cluster_describe(FILE *out);

/* Seconds of one collective over p ranks that are spread as `per_node` of them on
 * each of p / per_node nodes, while the other ranks of these nodes do the same in
 * groups of their own. n: bytes of the whole buffer. `active` is how many ranks run
 * on each node. Over several nodes: a reduce-scatter within the node, the collective
 * between nodes on what each rank then has, an all-gather within the node. Reduce-
 * scatter counts as all-gather.
 *
 * The three follow each other here. NCCL's rings over nodes use both levels at once
 * and take little more than the slower one: 16 ranks on two nodes of h100-16x8 sum a
 * large buffer in 4.9 ps a byte within the node and 3.1 ps between them, 8.0 ps in
 * this model and 4.9 ps where they overlap. So sums over tp across nodes come out up
 * to 1.6 times too slow there. */
double cluster_time(const struct cluster *cluster, enum cluster_pattern pattern, double n, int64_t p, int64_t per_node,
                    int64_t active);

#endif
