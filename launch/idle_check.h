/*
 * idle_check.h: notices adapters that do not learn: a fault anywhere between loss
 * and factor shows as a gradient that is exactly 0, with a finite loss and no
 * error.
 */
#ifndef LORASHARD_LAUNCH_IDLE_CHECK_H
#define LORASHARD_LAUNCH_IDLE_CHECK_H

#include "lora/adapter.h"

struct idle_check {
  int *zero_steps; /* [adapters] looks in a row with both gradients 0 */
  int64_t steps;   /* seen so far */
};

enum status idle_check_create(const struct adapters *adapters, struct idle_check *check);
void idle_check_destroy(struct idle_check *check);

/* After the reduction of a step: warn, once, of each adapter whose A and B (this
 * rank's parts) have had no gradient in two looks in a row. Once is normal: A's
 * gradient is 0 while B is. Every step is looked at; where gradients have to be
 * copied from the device, the first four and every 64th after them. */
enum status idle_check_step(struct idle_check *check, struct adapters *adapters, struct device *device);

#endif
