/* lorashard gather: one self-contained adapter file from a checkpoint. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint.h"
#include "io/durable.h"
#include "io/peft.h"
#include "launch/cli.h"

static const struct cli_help help = {
    .usage = "gather PATH -o FILE.h5 [--dtype f32|f16|bf16] [--with-optimizer] [--overwrite]",
    .summary = "Make one self-contained adapter file from a checkpoint's shards.",
    .details =
        "PATH is a step directory (run/step-000100), a run's output directory, which stands for its newest whole "
        "step, or a file that gather made. The file written holds the weights; --with-optimizer adds the AdamW "
        "moments, which stay f32. Every command takes a file of any --dtype. Memory use is that of the largest single "
        "matrix.\n\n"
        "Example: lorashard gather run -o adapter.h5",
};

struct arguments {
  const char *from, *output, *dtype_name;
  enum dtype dtype;
  bool with_optimizer, overwrite, done;
};

static enum status parse_dtype(const char *name, enum dtype *dtype) {
  *dtype = DTYPE_F32;
  if (!name) return STATUS_OK;
  for (int candidate = DTYPE_F32; candidate <= DTYPE_BF16; candidate++)
    if (strcmp(name, dtype_name((enum dtype)candidate)) == 0) {
      *dtype = (enum dtype)candidate;
      return STATUS_OK;
    }
  return status_set(STATUS_USAGE, "--dtype is '%.40s'; it must be f32, f16 or bf16", name);
}

static enum status parse(int argc, char **argv, struct arguments *a) {
  const struct cli_option options[] = {
      {.name = "output,o", .arg = "FILE.h5", .doc = "file to write", .value = &a->output},
      {.name = "dtype",
       .arg = "TYPE",
       .doc = "numbers of the weights: f32 (default), f16, bf16",
       .value = &a->dtype_name},
      {.name = "with-optimizer", .doc = "include the optimizer's state", .flag = &a->with_optimizer},
      {.name = "overwrite", .doc = "replace FILE.h5 if it exists", .flag = &a->overwrite},
      {NULL},
  };
  int n;
  TRY(cli_parse(&help, options, argc, argv, &a->from, 1, 1, &n, &a->done));
  if (a->done) return STATUS_OK;
  if (!a->output) return status_set(STATUS_USAGE, "gather needs -o FILE.h5; see lorashard gather --help");
  TRY(parse_dtype(a->dtype_name, &a->dtype));
  if (a->with_optimizer && a->dtype != DTYPE_F32)
    return status_set(STATUS_USAGE,
                      "--with-optimizer is for going on with a run, which needs f32 weights: leave --dtype out");
  struct stat info;
  if (stat(a->output, &info) != 0) return STATUS_OK;
  if (!S_ISREG(info.st_mode)) return status_set(STATUS_USAGE, "%s: exists and is not a file", a->output);
  if (!a->overwrite) return status_set(STATUS_USAGE, "%s: exists; name another file or give --overwrite", a->output);
  return STATUS_OK;
}

/* The readers below would name a PEFT folder too, which other commands take. */
static enum status check_source(const char *path) {
  static const char takes[] = "name a step directory, a run's output directory or an adapter.h5";
  struct stat info;
  if (stat(path, &info) != 0) return status_set(STATUS_USAGE, "%s: no such adapter; %s", path, takes);
  if (peft_is_folder(path)) return status_set(STATUS_USAGE, "%s: a PEFT folder has nothing to gather; %s", path, takes);
  if (!S_ISREG(info.st_mode)) return STATUS_OK;
  char head[8] = {0};
  FILE *file = fopen(path, "re");
  if (!file) return status_set(STATUS_USAGE, "%s: cannot open: %s", path, strerror(errno));
  size_t n = fread(head, 1, sizeof head, file);
  fclose(file);
  if (n == sizeof head && memcmp(head, "\211HDF\r\n\032\n", sizeof head) == 0) return STATUS_OK;
  return status_set(STATUS_DATA, "%s: not an HDF5 file; %s", path, takes);
}

static enum status print_result(const char *path) {
  struct checkpoint *checkpoint = NULL;
  const struct checkpoint_module *modules;
  const struct checkpoint_array *arrays;
  struct stat info = {0};
  int64_t parameters = 0;
  TRY(checkpoint_open(path, &checkpoint));
  int n_modules = checkpoint_modules(checkpoint, &modules), n_arrays = checkpoint_arrays(checkpoint, &arrays);
  for (int i = 0; i < n_arrays; i++) parameters += arrays[i].rows * arrays[i].cols;
  stat(path, &info);
  printf("%s: step %" PRId64 ", %d modules, %" PRId64 " numbers, %.2f MB\n", path, checkpoint_header(checkpoint)->step,
         n_modules, parameters, (double)info.st_size / 1e6);
  checkpoint_close(&checkpoint);
  return STATUS_OK;
}

enum status cmd_gather(int argc, char **argv) {
  struct arguments a = {0};
  char step[DURABLE_PATH];
  TRY(parse(argc, argv, &a));
  if (a.done) return STATUS_OK;
  TRY(check_source(a.from));
  TRY(checkpoint_resolve(a.from, step, sizeof step));
  TRY(checkpoint_gather(step, a.output, a.with_optimizer, a.dtype));
  return print_result(a.output);
}
