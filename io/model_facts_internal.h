/*
 * model_facts_internal.h: checks shared by the two makers of model facts
 * (config.json and GGUF keys).
 */
#ifndef LORASHARD_IO_MODEL_FACTS_INTERNAL_H
#define LORASHARD_IO_MODEL_FACTS_INTERNAL_H

#include "io/model_facts.h"
#include "io/status.h"

/* Sizes positive and small enough that no product of two of them, nor the
 * parameter count, overflows; heads and rotary dims consistent. `name` is the
 * file for messages. Errors: STATUS_DATA. */
enum status model_facts_check(const char *name, const struct model_facts *facts);

#endif
