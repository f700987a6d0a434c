/*
 * peers.h: a rank that is killed says nothing. The other ranks of its machine
 * see its process end at once, and one of them says which rank it was.
 */
#ifndef LORASHARD_LAUNCH_PEERS_H
#define LORASHARD_LAUNCH_PEERS_H

#include <stdbool.h>

#include "io/status.h"

/* Before MPI starts its threads: SIGUSR2, by which ranks tell each other to keep
 * quiet, is held back in all of them and only looked at. */
void peers_block_signal(void);

/* Called once, from a thread of its own, on the lowest living rank of the machine. */
typedef void peers_lost_func_t(int rank, int process);

/* Collective. Watch the other ranks of this machine until peers_unwatch. Where the
 * system offers no way to (Linux before 5.3), nothing is watched. */
enum status peers_watch(int rank, int world, peers_lost_func_t *lost);

/* To be called before this rank may end in good order. */
void peers_unwatch(void);

/* This rank ends the job and says why itself: the others keep quiet. Safe in a
 * signal handler. */
void peers_hush(void);

/* Somebody has called peers_hush. Safe in a signal handler. */
bool peers_hushed(void);

#endif
