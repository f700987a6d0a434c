/*
 * cores.h: how many threads a rank runs, and on which cores.
 *
 * Open MPI's mpirun binds each of one or two ranks to a single core; a rank that
 * should run several threads would then run them all there. Under it a rank
 * therefore takes its share of the node's cores (those the operating system lets
 * the job use). A binding by anyone else (taskset, Slurm) is kept. OMP_NUM_THREADS
 * sets the number of threads.
 */
#ifndef LORASHARD_LAUNCH_CORES_H
#define LORASHARD_LAUNCH_CORES_H

/* Threads for local rank `node_rank` of `node_size`; widens this process's
 * affinity to that many cores when it is narrower. At least 1. */
int cores_take_share(int node_rank, int node_size);

#endif
