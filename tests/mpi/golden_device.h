/*
 * golden_device.h: the device of a rank under test (tests/test_device.h), and
 * meshes whose groups reach its memory.
 */
#ifndef LORASHARD_TESTS_MPI_GOLDEN_DEVICE_H
#define LORASHARD_TESTS_MPI_GOLDEN_DEVICE_H

#include "dist/mesh.h"
#include "model/device.h"

/* Opened at the first call, one for the whole process; ranks may share a GPU. */
struct device *golden_device(void);

/* mesh_create and mesh_use_device. */
struct mesh *golden_mesh(int n_tp);
struct mesh *golden_mesh_stages(int n_tp, int n_pp);
void golden_mesh_close(struct mesh **mesh_p);

/* mesh_start, and at the end golden_device's close and mesh_stop. */
void golden_start(int *world_p, int *rank_p);
void golden_stop(void);

#endif
