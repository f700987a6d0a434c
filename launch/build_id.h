/*
 * build_id.h: which sources a program was built from.
 */
#ifndef LORASHARD_LAUNCH_BUILD_ID_H
#define LORASHARD_LAUNCH_BUILD_ID_H

/* Twelve hexadecimal digits of a SHA-256 of all of them; CMakeLists.txt makes it. */
extern const char build_id[];

#endif
