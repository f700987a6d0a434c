/*
 * probe.h: measures on the running ranks what a cluster file holds
 * (io/cluster.h): rates of a rank's device and of the links between ranks.
 *
 * All functions are collective over all ranks. A failure is one of this rank:
 * the others wait for it, so the caller ends the job (ranks_must).
 */
#ifndef LORASHARD_LAUNCH_PROBE_H
#define LORASHARD_LAUNCH_PROBE_H

#include "dist/mesh.h"
#include "io/cluster.h"
#include "model/device.h"

#define PROBE_REPEATS 15

struct probe {
  struct mesh *mesh; /* tp: the ranks of this node; dp: those of the same place on each node */
  struct device *device;
  bool quick; /* small sizes and few repeats: for trying, not for planning */
};

/* Once the thing that is measured; `context` is its own. */
typedef enum status probe_func_t(void *context);

/* Let all ranks begin together and call func `calls` times, several times over
 * (ranks that are not `active` only keep in step). *seconds_p: of one call,
 * device work included; the median over repeats of the slowest rank's. */
enum status probe_seconds(const struct probe *probe, probe_func_t *func, void *context, bool active, int calls,
                          double *seconds_p);

/* Matrix products in f32 and bf16, and memory bandwidth, with all ranks at work at
 * once: cores and memory of a CPU node are shared. Fills cluster->device's rates
 * and bandwidth with what the slowest rank reaches, and says so on stderr. */
enum status probe_device(const struct probe *probe, struct cluster *cluster);

/* f32 products of another device object (TF32), as probe_device does. */
enum status probe_products(const struct probe *probe, struct device *device, enum dtype dtype, const char *what,
                           double *rate_p);

/* Latency and bandwidth of all-reduce, all-gather and point to point within a node
 * and between nodes, as far as the job has several ranks or nodes. Fills
 * cluster->links. */
enum status probe_links(const struct probe *probe, struct cluster *cluster);

/* Least squares of relative errors: seconds[i] = alpha x + sizes[i] y / beta for
 * given factors x and y. alpha is at least 0. *error_p: the largest relative
 * error of the fit. */
void probe_fit(const double *sizes, const double *seconds, int n, double alpha_factor, double size_factor,
               struct cluster_line *line, double *error_p);

#endif
