/* comm_internal.h: what dist/mesh.c needs to make groups. */
#ifndef LORASHARD_DIST_COMM_INTERNAL_H
#define LORASHARD_DIST_COMM_INTERNAL_H

#include <mpi.h>

#include "dist/comm.h"

struct comm {
  MPI_Comm mpi; /* MPI_COMM_NULL when MPI does not run */
  const char *name;
  int size, rank;
  struct comm_counts counts;
};

/* Border to MPI: STATUS_PEER with the call's name and MPI's reason. */
enum status comm_check(int mpi_error, const char *call);

#endif
