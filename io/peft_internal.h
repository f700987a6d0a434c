/*
 * peft_internal.h: what the files that read and write PEFT folders share.
 */
#ifndef LORASHARD_IO_PEFT_INTERNAL_H
#define LORASHARD_IO_PEFT_INTERNAL_H

#include <jansson.h>

#include "io/peft.h"

#define PEFT_PATH 128 /* room for a module's path, as arch_module_path wants it */

/* --- peft_config.c: adapter_config.json --- */

/* A compiled regular expression and the value it stands for. */
struct peft_pattern {
  void *code; /* pcre2_code */
  double value;
};
struct peft_patterns {
  struct peft_pattern *items;
  int n;
};

struct peft_config {
  char path[4096];
  json_t *root;
  double r, alpha; /* defaults of modules without a pattern */
  bool rslora;
  struct peft_patterns ranks, alphas;    /* rank_pattern, alpha_pattern */
  struct peft_patterns targets, exclude; /* one item if it is a regular expression, else none */
  struct peft_patterns layers;           /* layers_pattern, completed to whole expressions */
};

/* Read and check FOLDER/adapter_config.json. Whatever would change the adapter's
 * meaning and is not supported is refused by name. Free with peft_config_free. */
enum status peft_config_read(const char *folder, const struct arch *arch, struct peft_config *config);
void peft_config_free(struct peft_config *config);

/* Does target_modules (with exclude_modules and layers_to_transform) select the
 * module of this path? */
enum status peft_config_selects(const struct peft_config *config, const char *path, bool *selected_p);

/* r and alpha of this module. */
enum status peft_config_sizes(const struct peft_config *config, const char *path, int64_t *r_p, double *alpha_p);

/* Write FOLDER/adapter_config.json. */
struct peft_summary {
  int64_t r;
  double alpha;
  bool fan_in_fan_out;
  const char *base_name;      /* NULL or "": null */
  const char *const *targets; /* target_modules */
  int n_targets;
};
enum status peft_config_write(const char *folder, const struct peft_summary *summary);

/* --- peft_fused.c: q, k and v in one linear --- */

/* Features that a module reads and makes. */
void module_shape(const struct model_facts *facts, enum module module, int64_t *in_p, int64_t *out_p);

/* Output row j of q, k or v within the fused linear. */
int64_t fused_row(const struct arch *arch, const struct model_facts *facts, enum module module, int64_t j);

/* Split one pair A [r, in], B [3 d, r] into q, k and v. Where every rank serves
 * only one of the three (as our own export makes it) each gets its own ranks and
 * a part without any is left out; else all three get a copy of A, and *copied_p
 * is set. parts[3] gets up to three modules (layer, rslora and scale as in
 * `whole`), *n_parts_p their number. */
enum status fused_split(const struct arch *arch, const struct model_facts *facts, const struct adapter_module *whole,
                        struct adapter_module parts[3], int *n_parts_p, bool *copied_p);

#endif
