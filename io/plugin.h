/*
 * plugin.h: libraries that are loaded when they are needed, from the folder of
 * the program and nowhere else.
 */
#ifndef LORASHARD_IO_PLUGIN_H
#define LORASHARD_IO_PLUGIN_H

#include "io/status.h"

/* The address of `symbol` in library `file` beside the running program. The
 * library stays loaded. STATUS_USAGE: there is no such file, so this build lacks
 * it; STATUS_DEVICE: it cannot be loaded here (a library it needs is absent). */
enum status plugin_find(const char *file, const char *symbol, void **address_p);

#endif
