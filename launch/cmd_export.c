/* lorashard export: an adapter for other programs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "io/base_model.h"
#include "io/durable.h"
#include "io/peft.h"
#include "launch/cli.h"

static const struct cli_help help = {
    .usage = "export ADAPTER --to peft -o DIR [--base BASE] [--base-name NAME] [--overwrite]",
    .summary = "Write an adapter as a PEFT folder, which PEFT and vLLM load.",
    .details =
        "ADAPTER is adapter.h5, a step directory, a run's output directory or a PEFT folder. All modules get one "
        "rank (smaller ones are padded with zeros) and one scale, so that loaders which read only r and lora_alpha "
        "apply the trained scale; q, k and v of a fused linear are joined exactly. The base is needed (--base) "
        "only for a PEFT folder.\n\n"
        "Example: lorashard export adapter.h5 --to peft -o peft-adapter --base-name openai-community/gpt2",
};

struct arguments {
  const char *adapter, *to, *output, *base, *base_name;
  bool overwrite, done;
};

static enum status check_output(const struct arguments *a) {
  struct stat info;
  char path[DURABLE_PATH];
  if (stat(a->output, &info) != 0) return STATUS_OK;
  if (!S_ISDIR(info.st_mode)) return status_set(STATUS_USAGE, "%s: exists and is not a folder", a->output);
  TRY(durable_path(path, sizeof path, "%s/config.json", a->output));
  if (stat(path, &info) == 0) return status_set(STATUS_USAGE, "%s: holds a model; name another folder", a->output);
  if (checkpoint_is_directory(a->output))
    return status_set(STATUS_USAGE, "%s: holds checkpoints; name another folder", a->output);
  if (peft_is_folder(a->output) && !a->overwrite)
    return status_set(STATUS_USAGE, "%s: holds a PEFT adapter; name another folder or give --overwrite", a->output);
  return STATUS_OK;
}

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "to", .arg = "FORMAT", .doc = "peft", .value = &a->to},
      {.name = "output,o", .arg = "DIR", .doc = "folder to write", .value = &a->output},
      {.name = "base", .arg = "BASE", .doc = "base model: a Hugging Face folder or a .gguf file", .value = &a->base},
      {.name = "base-name",
       .arg = "NAME",
       .doc = "what to write as base_model_name_or_path (default: the path of the base)",
       .value = &a->base_name},
      {.name = "overwrite", .doc = "replace a PEFT adapter in DIR", .flag = &a->overwrite},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, &a->adapter, 1, 1, &n, &a->done));
  if (a->done) return STATUS_OK;
  if (!a->to || !a->output)
    return status_set(STATUS_USAGE, "export needs --to peft and -o DIR; see lorashard export --help");
  if (strcmp(a->to, "peft") != 0) return status_set(STATUS_USAGE, "--to %.40s: must be peft", a->to);
  return check_output(a);
}

static enum status facts_from_base(const char *path, struct model_facts *facts) {
  struct tensor_source *source = NULL;
  TRY(base_model_open(path, &source));
  *facts = source->facts;
  base_model_close(&source);
  return STATUS_OK;
}

/* What export needs of the base is in the adapter's own header. */
static enum status facts_from_header(const char *path, const struct checkpoint_header *header,
                                     struct model_facts *facts) {
  checkpoint_get_facts(header, facts);
  if (arch_find(facts->family) && facts->n_layers > 0 && facts->d_model > 0 && facts->n_heads > 0 &&
      facts->n_kv_heads > 0 && facts->head_dim > 0 && facts->d_ffn > 0)
    return STATUS_OK;
  if (header->base_path[0] && facts_from_base(header->base_path, facts) == STATUS_OK) return STATUS_OK;
  return status_set(STATUS_USAGE, "%s: does not say what its base looks like; give --base", path);
}

static enum status export_adapter(const struct arguments *a, struct adapter_set *set) {
  struct model_facts facts;
  struct checkpoint_header header;
  char path[DURABLE_PATH];
  bool peft = false;
  TRY(adapter_resolve(a->adapter, path, sizeof path, &peft));
  if (a->base) TRY(facts_from_base(a->base, &facts));
  if (!a->base && peft)
    return status_set(STATUS_USAGE, "%s: a PEFT folder does not say how its base is built; give --base", a->adapter);
  TRY(adapter_set_read(path, a->base ? &facts : NULL, set, &header));
  if (!a->base) TRY(facts_from_header(a->adapter, &header, &facts));
  const char *name = a->base_name ? a->base_name : header.base_path[0] ? header.base_path : a->base;
  TRY(peft_write(a->output, set, &facts, name));
  printf("%s: %d modules of %s as a PEFT adapter\n", a->output, set->n_modules, facts.family);
  return STATUS_OK;
}

enum status cmd_export(int argc, char **argv) {
  struct arguments a = {0};
  struct adapter_set set = {0};
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  enum status status = export_adapter(&a, &set);
  adapter_set_free(&set);
  return status;
}
