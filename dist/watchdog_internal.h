/*
 * watchdog_internal.h: what watchdog*.c share: where a rank is, asking the others
 * for it, and who of them is missing.
 */
#ifndef LORASHARD_DIST_WATCHDOG_INTERNAL_H
#define LORASHARD_DIST_WATCHDOG_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The groups of a mesh: tp, dp, stage, pp, control. */
#define WATCHDOG_GROUPS 5
/* Ranks that one exchanges with; those beyond are not told apart. */
#define WATCHDOG_PARTNERS 16

/* Where a rank is. It travels as bytes: the ranks run one program. */
struct watchdog_place {
  int64_t step;
  double seconds;                    /* inside; or since it was last inside, -1: never */
  int32_t inside;                    /* in a collective, or has one on its device */
  int32_t group;                     /* of that collective or the last one; -1: none yet */
  char operation[32];                /* of the same */
  char task[48];                     /* between collectives, if it may take any time; else empty */
  int32_t to, from;                  /* of an exchange, ranks of the group, or -1 */
  int32_t color[WATCHDOG_GROUPS];    /* the same on the members of a group; -1: no group */
  int32_t rank[WATCHDOG_GROUPS];     /* in the group */
  uint64_t entered[WATCHDOG_GROUPS]; /* collectives so far, exchanges left out: those are not everybody's */
  struct watchdog_partner {
    int32_t group, rank; /* in the group; -1: free */
    uint64_t sends, receives;
  } partners[WATCHDOG_PARTNERS];
};

/* watchdog.c: this rank's. */
void watchdog_place(struct watchdog_place *place);
extern const char *const watchdog_group_names[WATCHDOG_GROUPS];
double watchdog_now(void); /* seconds on a clock that nobody sets */

/* Between MPI's start and its end, collective. Without it nobody is asked. The
 * communicator is the watchdog's own: its messages cross no others. watchdog_peers.c */
void watchdog_peers_open(void);
void watchdog_peers_close(void);

/* Everything below is called from the watchdog's thread. */

/* Answer those who have asked. The lowest rank of them; -1: nobody. */
int watchdog_peers_serve(void);

/* The others' answers. */
struct watchdog_answers {
  int world, rank;               /* own */
  bool *answered;                /* [world], own included */
  struct watchdog_place *places; /* [world] */
};

/* Ask all ranks and wait for their answers, a few seconds at most. false: given up, since `go_on` said so or a lower
 * rank asks the same; then, and if nobody can be asked, *answers is empty. */
bool watchdog_peers_ask(bool (*go_on)(void), struct watchdog_answers *answers);
void watchdog_answers_free(struct watchdog_answers *answers);

/* Which ranks the collective that this one is in waits for, as the end of a sentence; text is never empty.
 * watchdog_absent.c */
void watchdog_absent(const struct watchdog_answers *answers, const char *(*host)(int rank), char *text, size_t size);

/* A rank that this one waits for and that is about a task, if all that are missing are; -1: waiting is of no use. */
int watchdog_busy(const struct watchdog_answers *answers);

#endif
