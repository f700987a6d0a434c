/*
 * Who is missing. A rank that waits is a victim as a rule: looked for are, in this
 * order, ranks that do not answer at all; members of the group that have not
 * come and wait for nothing; if members have not come because they wait
 * elsewhere, ranks outside the group that wait for nothing; and if there are
 * none, ranks wait for each other, and what for is told.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "dist/mesh.h"
#include "dist/watchdog_internal.h"

/* Ranks that are told one by one. */
#define TOLD 4

enum kind { SILENT, MISSING, OUTSIDE, ELSEWHERE, GOOD };

static const struct watchdog_partner *partner_of(const struct watchdog_place *place, int group, int rank) {
  for (int p = 0; p < WATCHDOG_PARTNERS && place->partners[p].rank >= 0; p++)
    if (place->partners[p].group == group && place->partners[p].rank == rank) return &place->partners[p];
  return NULL;
}

/* Whether the collective that `own` is in has a part for the other rank. */
static bool takes_part(const struct watchdog_place *own, const struct watchdog_place *other) {
  const int g = own->group;
  if (own->color[g] != other->color[g]) return false;
  const bool exchange = own->to >= 0 || own->from >= 0;
  return !exchange || other->rank[g] == own->to || other->rank[g] == own->from;
}

/* Whether the other rank has entered what `own` waits for. */
static bool has_come(const struct watchdog_place *own, const struct watchdog_place *other) {
  const int g = own->group;
  if (own->to < 0 && own->from < 0) return other->entered[g] >= own->entered[g];
  const struct watchdog_partner *mine = partner_of(own, g, other->rank[g]);
  const struct watchdog_partner *its = partner_of(other, g, own->rank[g]);
  if (!mine) return true; /* nobody has counted */
  const uint64_t sends = its ? its->sends : 0, receives = its ? its->receives : 0;
  return (other->rank[g] != own->from || sends >= mine->receives) &&
         (other->rank[g] != own->to || receives >= mine->sends);
}

static enum kind kind_of(const struct watchdog_answers *answers, int rank) {
  const struct watchdog_place *own = &answers->places[answers->rank], *other = &answers->places[rank];
  if (rank == answers->rank) return GOOD;
  if (!answers->answered[rank]) return SILENT;
  if (!takes_part(own, other)) return other->inside ? GOOD : OUTSIDE;
  if (has_come(own, other)) return GOOD;
  return other->inside ? ELSEWHERE : MISSING;
}

struct text {
  char *at;
  size_t left;
};

static void __attribute__((format(printf, 2, 3))) say(struct text *text, const char *format, ...) {
  va_list list;
  va_start(list, format);
  int n = vsnprintf(text->at, text->left, format, list);
  va_end(list);
  if (n < 0) return;
  size_t took = (size_t)n < text->left ? (size_t)n : text->left - 1;
  text->at += took;
  text->left -= took;
}

static void tell_rank(struct text *text, const struct watchdog_answers *answers, enum kind kind, int rank,
                      const char *(*host)(int rank)) {
  const struct watchdog_place *place = &answers->places[rank];
  char name[96];
  mesh_name_rank(rank, host(rank), name, sizeof name);
  say(text, "%s ", name);
  if (kind == SILENT) {
    say(text, "does not answer");
    return;
  }
  if (kind != OUTSIDE) say(text, "has not reached it: ");
  if (place->group < 0) {
    say(text, "is in no collective and has been in none, at step %lld", (long long)place->step);
    return;
  }
  const char *group = watchdog_group_names[place->group];
  if (place->inside)
    say(text, "for %.0f s in %s over group %s, step %lld", place->seconds, place->operation, group,
        (long long)place->step);
  else
    say(text, "for %.0f s in no collective, last in %s over group %s, step %lld", place->seconds, place->operation,
        group, (long long)place->step);
}

/* The kind of ranks that are to blame; GOOD: none is. */
static enum kind worst(const struct watchdog_answers *answers, int *n) {
  int found[GOOD + 1] = {0}, kind = SILENT;
  for (int r = 0; r < answers->world; r++) found[kind_of(answers, r)]++;
  /* Ranks outside the group are to blame only if the group waits for them. */
  if (!found[ELSEWHERE]) found[OUTSIDE] = 0;
  while (kind < GOOD && !found[kind]) kind++;
  *n = found[kind];
  return (enum kind)kind;
}

static bool nobody_asked(const struct watchdog_answers *answers) {
  return answers->world == 0 || answers->places[answers->rank].group < 0;
}

int watchdog_busy(const struct watchdog_answers *answers) {
  int n, busy = -1;
  if (nobody_asked(answers)) return -1;
  const enum kind kind = worst(answers, &n);
  if (kind != MISSING && kind != OUTSIDE) return -1;
  for (int r = answers->world - 1; r >= 0; r--) {
    if (kind_of(answers, r) != kind) continue;
    if (!*answers->places[r].task) return -1;
    busy = r;
  }
  return busy;
}

void watchdog_absent(const struct watchdog_answers *answers, const char *(*host)(int rank), char *text, size_t size) {
  int found, told = 0;
  struct text out = {text, size};
  if (nobody_asked(answers)) {
    say(&out, "another rank of the group is stuck or gone");
    return;
  }
  const enum kind kind = worst(answers, &found);
  if (kind == GOOD) {
    say(&out, "every rank that takes part has called it, so a device or the network is stuck");
    return;
  }
  for (int r = 0; r < answers->world && told < TOLD; r++) {
    if (kind_of(answers, r) != kind) continue;
    if (told++) say(&out, "; ");
    tell_rank(&out, answers, kind, r, host);
  }
  if (found > told) say(&out, "; and %d more ranks", found - told);
}
