/*
 * nearest.h: the name that a mistyped one was probably meant to be.
 */
#ifndef LORASHARD_IO_NEAREST_H
#define LORASHARD_IO_NEAREST_H

/* Edits (insert, delete, replace, swap of neighbours) from one name to the
 * other, case ignored and '-' taken for '_'. Only the first 63 bytes count. */
int nearest_distance(const char *a, const char *b);

/* Index of the name with the fewest edits, the first of equals; -1 if n is 0. */
int nearest_name(const char *name, const char *const *names, int n);

#endif
