#include <malloc.h>
#include <sched.h>

#include "tests/model/opcheck.h"

static void opens_and_describes(void **state) {
  (void)state;
  struct device *d = NULL;
  char text[512];
  opcheck_ok(device_open("auto", 3, &d));
  assert_int_equal(d->n_threads, 3);
  assert_string_equal(d->ops->name, "cpu");
  device_describe(d, text, sizeof text);
  assert_non_null(strstr(text, "oneDNN"));
  assert_non_null(strstr(text, "3 threads"));
  device_describe(d, text, 8); /* cut, never beyond */
  assert_int_equal(strlen(text), 7);
  device_close(&d);
  assert_null(d);
  device_close(&d);
}

/* 0 threads: the cores this process is bound to, not the machine's. */
static void threads_follow_the_binding(void **state) {
  (void)state;
  cpu_set_t before, one;
  assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }
  struct device *d = opcheck_device(0);
  assert_int_equal(d->n_threads, CPU_COUNT(&before));
  device_close(&d);
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  d = opcheck_device(0);
  assert_int_equal(d->n_threads, 1);
  device_close(&d);
  assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void refuses(void **state) {
  (void)state;
  struct device *d = NULL;
  assert_int_equal(device_open("cuda", 0, &d), STATUS_USAGE);
  assert_non_null(strstr(status_message(), "cuda"));
  assert_int_equal(device_open("cpu", -1, &d), STATUS_USAGE);
  assert_null(d);
}

static void memory_is_zeroed_aligned_and_counted(void **state) {
  (void)state;
  static const size_t sizes[] = {0, 1, 100, (2 << 20) - 1, 2 << 20, (5 << 20) + 12345};
  mallopt(M_PERTURB, 0x55); /* what malloc hands out is then never zero by luck */
  struct device *d = opcheck_device(1);
  for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) { /* twice: the second time in used memory */
    size_t size = sizes[i / 2];
    uint64_t calls = d->allocations, held = d->allocated;
    void *memory = NULL;
    opcheck_ok(device_alloc(d, size, "test", &memory));
    assert_int_equal((uintptr_t)memory % 64, 0);
    assert_int_equal(d->allocations, calls + 1);
    assert_int_equal(d->allocated, held + size);
    for (size_t b = 0; b < size; b++) {
      if (((char *)memory)[b]) fail_msg("byte %zu of %zu is not zero", b, size);
    }
    memset(memory, 0xff, size);
    device_free(d, memory, size);
    assert_int_equal(d->allocated, held);
  }
  device_free(d, NULL, 7);
  void *memory = NULL;
  assert_int_equal(device_alloc(d, SIZE_MAX - 5, "too large", &memory), STATUS_SYSTEM);
  assert_int_equal(device_alloc(d, (size_t)1 << 60, "too large", &memory), STATUS_SYSTEM);
  assert_non_null(strstr(status_message(), "too large"));
  assert_null(memory);
  device_close(&d);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(opens_and_describes),
      cmocka_unit_test(threads_follow_the_binding),
      cmocka_unit_test(refuses),
      cmocka_unit_test(memory_is_zeroed_aligned_and_counted),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
