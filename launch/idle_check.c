#include "launch/idle_check.h"

#include <stdlib.h>
#include <string.h>

#include "io/log.h"

#define STEPS_TO_WARN       2
#define FIRST_STEPS         4
#define STEPS_BETWEEN_LOOKS 64

enum status idle_check_create(const struct adapters *adapters, struct idle_check *check) {
  check->zero_steps = calloc((size_t)adapters->n + 1, sizeof *check->zero_steps);
  return check->zero_steps ? STATUS_OK : status_set(STATUS_SYSTEM, "out of memory for %d counters", adapters->n);
}

void idle_check_destroy(struct idle_check *check) {
  free(check->zero_steps);
  memset(check, 0, sizeof *check);
}

static bool is_zero(const struct param *p, const float *g) {
  for (int64_t i = 0; i < p->part_rows * p->part_cols; i++)
    if (g[i] != 0) return false; /* the first element, as a rule */
  return true;
}

enum status idle_check_step(struct idle_check *check, struct adapters *adapters, struct device *device) {
  const struct param_list *params = &adapters->params;
  int64_t step = check->steps++;
  if (!device->host_memory && step >= FIRST_STEPS && step % STEPS_BETWEEN_LOOKS != 0) return STATUS_OK;
  TRY(param_list_fetch(&adapters->params, device));
  for (int i = 0; i < adapters->n; i++) {
    const struct param *a = &params->items[2 * i], *b = a + 1;
    bool idle = is_zero(a, param_host(params, a->g)) && is_zero(b, param_host(params, b->g));
    check->zero_steps[i] = idle ? check->zero_steps[i] + 1 : 0;
    if (check->zero_steps[i] == STEPS_TO_WARN)
      log_warn_here("adapter %s has had a gradient of exactly 0 for %d steps: it is not learning", a->group_name,
                    STEPS_TO_WARN);
  }
  return STATUS_OK;
}
