/* Adapters without a gradient are noticed after two steps, others never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "launch/idle_check.h"

/* Two adapters with A and B of two elements each. */
struct fixture {
  struct adapters adapters;
  struct param params[4];
  float g[4][2];
  struct device device;
};

static void setup(struct fixture *f) {
  *f = (struct fixture){0};
  f->device.host_memory = true; /* nothing is copied */
  f->adapters.params.memory = f->adapters.params.host = f->g;
  f->adapters.n = 2;
  f->adapters.params.items = f->params;
  f->adapters.params.n = 4;
  for (int i = 0; i < 4; i++)
    f->params[i] = (struct param){.group_name = "layers/0/q", .part_rows = 1, .part_cols = 2, .g = f->g[i]};
}

static void test_counts(void **state) {
  (void)state;
  struct fixture f;
  struct idle_check check;
  setup(&f);
  assert_int_equal(idle_check_create(&f.adapters, &check), STATUS_OK);
  f.g[1][1] = 1e-30f; /* adapter 0: B alone has a gradient, as in a first step */
  assert_int_equal(idle_check_step(&check, &f.adapters, &f.device), STATUS_OK);
  assert_int_equal(check.zero_steps[0], 0);
  assert_int_equal(check.zero_steps[1], 1);
  assert_int_equal(idle_check_step(&check, &f.adapters, &f.device), STATUS_OK);
  assert_int_equal(check.zero_steps[1], 2);
  f.g[2][0] = -1; /* it comes back */
  assert_int_equal(idle_check_step(&check, &f.adapters, &f.device), STATUS_OK);
  assert_int_equal(check.zero_steps[1], 0);
  idle_check_destroy(&check);
  assert_null(check.zero_steps);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
