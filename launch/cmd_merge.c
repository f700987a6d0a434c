/* lorashard merge: base + s B A as a Hugging Face folder. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/base_model.h"
#include "io/durable.h"
#include "launch/cli.h"
#include "launch/merge_output.h"

static const struct cli_help help = {
    .usage = "merge --base BASE --adapter ADAPTER -o DIR [--dtype keep|f32|f16|bf16] [--overwrite] [--any-base]",
    .summary = "Write the base model with the adapter added in, as a Hugging Face folder (safetensors).",
    .details =
        "W + s B A is computed in f32 and rounded once. With `keep` each tensor keeps its dtype; a quantised GGUF "
        "base is written as bf16. The folder appears whole or not at all; memory does not grow with the model.\n\n"
        "Example: lorashard merge --base ./SmolLM2-135M --adapter run/step-000100 -o ./merged",
};

struct arguments {
  const char *base, *adapter, *output, *dtype, *shard_mb;
  bool overwrite, any_base, done;
};

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "base", .arg = "BASE", .doc = "base model: a Hugging Face folder or a .gguf file", .value = &a->base},
      {.name = "adapter",
       .arg = "ADAPTER",
       .doc = "adapter.h5, a checkpoint directory or a PEFT folder",
       .value = &a->adapter},
      {.name = "output,o", .arg = "DIR", .doc = "folder to write; must be absent or empty", .value = &a->output},
      {.name = "dtype", .arg = "TYPE", .doc = "keep (default), f32, f16 or bf16", .value = &a->dtype},
      {.name = "max-file-mb",
       .arg = "MB",
       .doc = "start another weights file, with an index, beyond this size (default 5000)",
       .value = &a->shard_mb},
      {.name = "overwrite", .doc = "replace a model folder that exists", .flag = &a->overwrite},
      {.name = "any-base", .doc = "accept an adapter that was trained on another base", .flag = &a->any_base},
      {NULL},
  };
  TRY(cli_parse(&help, options, argc, argv, NULL, 0, 0, NULL, &a->done));
  if (a->done) return STATUS_OK;
  if (!a->base || !a->adapter || !a->output)
    return status_set(STATUS_USAGE, "merge needs --base, --adapter and -o; see lorashard merge --help");
  return STATUS_OK;
}

static enum status parse_dtype(const char *text, struct merge_request *request) {
  static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
  request->keep = !text || strcmp(text, "keep") == 0;
  if (request->keep) return STATUS_OK;
  for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
    if (strcmp(text, dtype_name(dtypes[i])) == 0) {
      request->dtype = dtypes[i];
      return STATUS_OK;
    }
  return status_set(STATUS_USAGE, "--dtype %.40s: must be keep, f32, f16 or bf16", text);
}

/* What a folder holds: nothing, or something, and whether a folder is in it. */
static bool is_empty(const char *path, bool *has_folder) {
  DIR *directory = opendir(path);
  bool empty = directory != NULL;
  *has_folder = false;
  for (const struct dirent *entry; directory && (entry = readdir(directory));) {
    struct stat info;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    empty = false;
    if (fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
      *has_folder = true;
  }
  if (directory) closedir(directory);
  return empty;
}

/* The output may be absent, empty, or with --overwrite a model folder other
 * than the base. */
static enum status check_output(const struct arguments *a) {
  struct stat info, base;
  char config[DURABLE_PATH];
  if (stat(a->output, &info) != 0) return STATUS_OK;
  if (!S_ISDIR(info.st_mode)) return status_set(STATUS_USAGE, "%s: exists and is not a folder", a->output);
  if (stat(a->base, &base) == 0 && base.st_dev == info.st_dev && base.st_ino == info.st_ino)
    return status_set(STATUS_USAGE, "%s: is the base model itself; name another folder", a->output);
  bool has_folder = false;
  if (is_empty(a->output, &has_folder)) return STATUS_OK;
  if (!a->overwrite)
    return status_set(STATUS_USAGE, "%s: is not empty; name another folder or give --overwrite", a->output);
  TRY(durable_path(config, sizeof config, "%s/config.json", a->output));
  if (access(config, F_OK) != 0 || has_folder)
    return status_set(STATUS_USAGE,
                      "%s: has no config.json, or a folder in it: that is no merged model and is not "
                      "replaced",
                      a->output);
  return STATUS_OK;
}

static enum status check_fingerprint(const struct arguments *a, struct tensor_source *source,
                                     const struct checkpoint_header *header) {
  char fingerprint[FINGERPRINT_SIZE];
  if (a->any_base || !*header->base_fingerprint) return STATUS_OK; /* a PEFT folder has none */
  TRY(base_model_fingerprint(source, fingerprint));
  if (strcmp(fingerprint, header->base_fingerprint) == 0) return STATUS_OK;
  return status_set(STATUS_USAGE,
                    "%s: was trained on another base (%.200s, fingerprint %.32s; %.200s has %s); give that base, or "
                    "--any-base if it is the same in another form",
                    a->adapter, header->base_path, header->base_fingerprint, a->base, fingerprint);
}

/* Put the whole new folder in the place of the old one, which goes last. */
static enum status publish(const char *temporary, const char *output) {
  char old[DURABLE_PATH];
  TRY(durable_path(old, sizeof old, "%s.lorashard-old", output));
  bool has_folder = false, replaced = access(output, F_OK) == 0 && !is_empty(output, &has_folder);
  if (replaced) {
    TRY(durable_remove_directory(old));
    if (rename(output, old) != 0)
      return status_set(STATUS_SYSTEM, "%s: cannot rename to %s: %s", output, old, strerror(errno));
  }
  if (rename(temporary, output) != 0) {
    enum status status = status_set(STATUS_SYSTEM, "%s: cannot rename to %s: %s", temporary, output, strerror(errno));
    if (replaced && rename(old, output) != 0) return status_prefix(status, "the old folder is now %s", old);
    return status;
  }
  TRY(durable_sync_parent(output));
  return replaced ? durable_remove_directory(old) : STATUS_OK;
}

static enum status write_folder(const struct arguments *a, struct merge_request *request, struct merge_report *report) {
  char output[DURABLE_PATH], temporary[DURABLE_PATH];
  TRY(durable_path(output, sizeof output, "%s", a->output));
  for (size_t n = strlen(output); n > 1 && output[n - 1] == '/';) output[--n] = 0;
  TRY(durable_path(temporary, sizeof temporary, "%s.lorashard-tmp", output));
  TRY(durable_remove_directory(temporary));
  if (mkdir(temporary, 0777) != 0)
    return status_set(STATUS_SYSTEM, "%s: cannot create: %s", temporary, strerror(errno));
  request->folder = temporary;
  enum status status = merge_write_config(request);
  if (status == STATUS_OK) status = merge_write_weights(request, report);
  if (status == STATUS_OK) status = durable_sync(temporary);
  if (status == STATUS_OK) status = publish(temporary, output);
  if (status != STATUS_OK) {
    char message[1024]; /* removing may write one of its own */
    snprintf(message, sizeof message, "%s", status_message());
    durable_remove_directory(temporary);
    return status_set(status, "%s", message);
  }
  return STATUS_OK;
}

static void print_report(const struct arguments *a, const struct merge_report *report) {
  printf("%s: %d of %d tensors changed by %.3g of their size, %.1f MB in %d file%s; ", a->output, report->n_changed,
         report->n_tensors, report->relative_change, (double)report->bytes / 1e6, report->n_files,
         report->n_files == 1 ? "" : "s");
  if (*report->lossiest)
    printf("rounding cost at most %.3g of the change (%s)\n", report->largest_loss, report->lossiest);
  else
    printf("nothing was rounded\n");
}

enum status cmd_merge(int argc, char **argv) {
  struct arguments a = {0};
  struct merge_request request = {0};
  struct merge_report report = {0};
  struct adapter_set set = {0};
  struct checkpoint_header header = {0};
  long long shard_mb = 5000;
  enum status status = STATUS_OK;
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  TRY(parse_dtype(a.dtype, &request));
  if (a.shard_mb) TRY(cli_int("max-file-mb", a.shard_mb, 1, 1000000, &shard_mb));
  request.shard_bytes = (uint64_t)shard_mb * 1000000;
  TRY(check_output(&a));
  TRY_OUT(base_model_open(a.base, &request.source));
  TRY_OUT(adapter_set_read(a.adapter, &request.source->facts, &set, &header));
  request.adapter = &set;
  TRY_OUT(check_fingerprint(&a, request.source, &header));
  TRY_OUT(write_folder(&a, &request, &report));
  print_report(&a, &report);
out:
  adapter_set_free(&set);
  base_model_close(&request.source);
  return status;
}
