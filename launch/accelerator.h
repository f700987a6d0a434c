/*
 * accelerator.h: which device each rank computes on, and how its memory reaches
 * the other ranks: the place where model/device.h and dist meet.
 */
#ifndef LORASHARD_LAUNCH_ACCELERATOR_H
#define LORASHARD_LAUNCH_ACCELERATOR_H

#include "dist/mesh.h"
#include "io/config.h"
#include "model/device.h"

/* Open this rank's device as config's `device` says: a GPU of its own by its place
 * among the ranks of its machine, or the cpu with its share of the cores. Collective
 * and agreed. STATUS_USAGE: ranks would share a GPU and dist.share_gpus is false, or
 * ranks have different kinds of device. */
enum status accelerator_open(const struct config *config, struct mesh *mesh, struct device **device_p);

/* Let the groups of a mesh reach this device's memory; nothing to do on the cpu. Collective and agreed.
 * STATUS_USAGE: ranks share a GPU and `share` is false. */
enum status accelerator_connect(struct mesh *mesh, struct device *device, enum comm_path path, bool share,
                                double timeout_s);

/* A line per rank on its GPU, and one on the path between them: collective, rank 0 prints. */
enum status accelerator_describe(const struct mesh *mesh, const struct device *device);

#endif
