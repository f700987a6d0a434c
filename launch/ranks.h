/*
 * ranks.h: running a subcommand on every rank of a job, with one voice.
 *
 * Before the ranks depend on each other a failing rank meets the others in
 * ranks_agree: all stop with its status and one of them prints. Once they
 * exchange data a local failure ends the whole job through ranks_fail. A rank
 * that is killed is named by another one of its machine (launch/peers.h).
 */
#ifndef LORASHARD_LAUNCH_RANKS_H
#define LORASHARD_LAUNCH_RANKS_H

#include <stdint.h>

#include "io/status.h"

/* Start MPI if this process is one of several, call body, stop MPI. Ranks but
 * the first have their standard output closed off: rank 0 speaks. A failure that
 * body returns must have been agreed on by all ranks; it is printed here, and the
 * message is empty on return. */
enum status ranks_run(int argc, char **argv, enum status (*body)(int argc, char **argv));

/* Hash of this rank's arguments, the program's own name left out; 0 outside of ranks_run. */
uint64_t ranks_command_line(void);

/* Called by every rank. STATUS_OK if all have it; else everyone gets the failing
 * status, and all but one an empty message, which is not printed. */
enum status ranks_agree(enum status own);

/* Print this rank's message and end the whole job. Does not return. */
void ranks_fail(enum status status) __attribute__((noreturn));

/* What stands behind the message about a rank that was killed: how to go on. A literal. */
void ranks_hint(const char *hint);

/* ranks_fail unless status is STATUS_OK. */
static inline void ranks_must(enum status status) {
  if (status != STATUS_OK) ranks_fail(status);
}

#endif
