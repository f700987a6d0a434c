/*
 * replicas.h: parameters that several ranks hold are equal on them to the bit. If
 * they are not, memory, a processor or the network of one of them has failed, or
 * this program has.
 */
#ifndef LORASHARD_LORA_REPLICAS_H
#define LORASHARD_LORA_REPLICAS_H

#include "dist/mesh.h"
#include "lora/param.h"

/* Compare parameters and moments with those of the ranks that hold the same: replicated ones over the ranks of the
 * stage, sharded ones over dp. Collective over control, 8 bytes a parameter and rank; fetches the parameters to the
 * host. STATUS_SYSTEM on the ranks that hold the first one that differs: it and the ranks that have it otherwise than
 * most. The other ranks do not know of it. */
enum status replicas_compare(struct param_list *params, const struct mesh *mesh, struct device *device);

#endif
