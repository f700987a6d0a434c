#include "io/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* "FOLDER OF THE PROGRAM/file". */
static enum status beside_program(const char *file, char path[PATH_MAX]) {
  char program[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n <= 0) return status_set(STATUS_SYSTEM, "cannot find this program's own folder (/proc/self/exe)");
  program[n] = 0;
  char *slash = strrchr(program, '/');
  *slash = 0;
  if (snprintf(path, PATH_MAX, "%s/%s", program, file) >= PATH_MAX)
    return status_set(STATUS_SYSTEM, "the path of %s is too long", file);
  return STATUS_OK;
}

enum status plugin_find(const char *file, const char *symbol, void **address_p) {
  char path[PATH_MAX];
  TRY(beside_program(file, path));
  if (access(path, F_OK) != 0)
    return status_set(STATUS_USAGE, "this build has no %s (it is made where CMake finds nvcc)", file);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return status_set(STATUS_DEVICE, "%s cannot be loaded: %s", file, dlerror());
  void *address = dlsym(library, symbol);
  if (!address) return status_set(STATUS_DEVICE, "%s has no symbol %s: it belongs to another build", file, symbol);
  *address_p = address;
  return STATUS_OK;
}
