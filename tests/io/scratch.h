/*
 * scratch.h: a folder of its own for each test, and what tests of files say about a status.
 */
#ifndef LORASHARD_TESTS_IO_SCRATCH_H
#define LORASHARD_TESTS_IO_SCRATCH_H

#include "io/status.h"

extern char scratch_root[64]; /* the present test's folder */

/* For cmocka: make the folder, and remove it with all that is in it. */
int scratch_setup(void **state);
int scratch_teardown(void **state);

/* Fail the test with the message of a call that should have gone well. */
void expect_ok(enum status status);

/* The call failed with this code and a message that holds the words; b may be NULL. */
void expect_refused(enum status status, enum status expected, const char *a, const char *b);

#endif
