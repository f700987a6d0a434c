/* test_device.h: the device that tests compute on: the cpu, or what LORASHARD_TEST_DEVICE names. */
#ifndef LORASHARD_TESTS_TEST_DEVICE_H
#define LORASHARD_TESTS_TEST_DEVICE_H

#include <stdlib.h>

static inline const char *test_device(void) {
  const char *name = getenv("LORASHARD_TEST_DEVICE");
  return name && *name ? name : "cpu";
}

/* Steps of a training curve: `steps`, or fewer if LORASHARD_TEST_STEPS says so. */
static inline int test_steps(int steps) {
  const char *text = getenv("LORASHARD_TEST_STEPS");
  int most = text ? atoi(text) : 0;
  return most > 0 && most < steps ? most : steps;
}

#endif
