#include "model/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/log.h"
#include "io/plugin.h"
#include "model/device_backend.h"

static enum status find_cuda(const struct device_backend **backend_p) {
  void *symbol;
  TRY(plugin_find(DEVICE_CUDA_FILE, DEVICE_CUDA_SYMBOL, &symbol));
  const struct device_backend *backend = symbol;
  if (strcmp(backend->version, LORASHARD_VERSION) != 0)
    return status_set(STATUS_DEVICE, "%s is of version %s, this program of %s: build both together", DEVICE_CUDA_FILE,
                      backend->version, LORASHARD_VERSION);
  *backend_p = backend;
  return STATUS_OK;
}

int device_gpu_count(char *reason, size_t size) {
  const struct device_backend *backend = NULL;
  const char *why = "";
  int n = find_cuda(&backend) == STATUS_OK ? backend->count(&why) : -1;
  if (n <= 0) snprintf(reason, size, "%s", n < 0 ? status_message() : why);
  return n > 0 ? n : 0;
}

/* "auto" falls back to the cpu and says why; "cuda" does not. */
static enum status open_cuda(const struct device_options *options, bool required, struct device *device) {
  const struct device_backend *backend = NULL;
  const char *reason = "";
  enum status status = find_cuda(&backend);
  if (status == STATUS_OK && backend->count(&reason) == 0) status = status_set(STATUS_DEVICE, "no GPU: %s", reason);
  bool found = status == STATUS_OK;
  if (found) status = backend->open(options, device);
  if (status == STATUS_OK) return STATUS_OK;
  if (required) return status_prefix(status, "device cuda");
  /* A GPU that cannot be used is worth a word; none at all is not. */
  if (found || (status == STATUS_DEVICE && access("/dev/nvidiactl", F_OK) == 0))
    log_warn("device auto: the cpu, because: %s", status_message());
  else
    log_debug("device auto: the cpu, because: %s", status_message());
  memset(device, 0, sizeof *device);
  return cpu_device_open(options, device);
}

enum status device_open(const struct device_options *options, struct device **device_p) {
  enum status status;
  const char *name = options->name;
  struct device *device = calloc(1, sizeof *device);
  if (!device) return status_set(STATUS_SYSTEM, "device '%s': out of memory", name);
  if (strcmp(name, "cpu") == 0)
    status = cpu_device_open(options, device);
  else if (strcmp(name, "cuda") == 0 || strcmp(name, "auto") == 0)
    status = open_cuda(options, name[0] == 'c', device);
  else
    status = status_set(STATUS_USAGE, "device '%s': use auto, cpu or cuda", name);
  if (status != STATUS_OK) {
    free(device);
    return status;
  }
  *device_p = device;
  return STATUS_OK;
}

void device_close(struct device **device_p) {
  struct device *device = *device_p;
  if (!device) return;
  device->functions->close(device);
  free(device);
  *device_p = NULL;
}

const char *device_memory_remedy(const char *what) {
  static const struct {
    const char *what, *remedy;
  } known[] = {
      {"weights", "use a larger parallel.tp or parallel.pp, or train.base_dtype: int8 or nf4"},
      {"activations",
       "use a smaller train.micro_batch, shorter sequences, a larger parallel.tp, or in training "
       "train.recompute or parallel.sequence"},
      {"adapters, gradients and moments",
       "use a smaller lora.r, fewer lora.targets, or a larger parallel.tp or "
       "parallel.pp"},
      {"keys and values", "use a shorter prompt, fewer new tokens, or a larger parallel.tp or parallel.pp"},
      {"scratch", "use a smaller train.micro_batch, shorter sequences, or a larger parallel.tp"},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(known[i].what, what) == 0) return known[i].remedy;
  return "use a machine with more memory, or start fewer ranks on it";
}

enum status device_alloc(struct device *device, size_t bytes, const char *what, void **memory_p) {
  return device->functions->alloc(device, bytes, what, memory_p);
}

void device_free(struct device *device, void *memory, size_t bytes) {
  if (memory) device->functions->free(device, memory, bytes);
}

enum status device_host_alloc(struct device *device, size_t bytes, const char *what, void **memory_p) {
  return device->functions->host_alloc(device, bytes, what, memory_p);
}

void device_host_free(struct device *device, void *memory) {
  if (memory) device->functions->host_free(device, memory);
}

enum status device_copy_in(struct device *device, void *dst, const void *src, size_t bytes) {
  if (device->host_memory) {
    if (bytes) memcpy(dst, src, bytes);
    return STATUS_OK;
  }
  for (size_t done = 0; done < bytes; done += DEVICE_STAGE_BYTES) {
    size_t now = bytes - done < DEVICE_STAGE_BYTES ? bytes - done : DEVICE_STAGE_BYTES;
    void *buffer;
    TRY(device_stage_take(device, &buffer));
    memcpy(buffer, (const char *)src + done, now);
    TRY(device_stage_send(device, (char *)dst + done, now));
  }
  return STATUS_OK;
}

enum status device_copy_out(struct device *device, void *dst, const void *src, size_t bytes) {
  return bytes ? device->functions->copy_out(device, dst, src, bytes) : STATUS_OK;
}

enum status device_zero(struct device *device, void *p, size_t bytes) {
  return bytes ? device->functions->zero(device, p, bytes) : STATUS_OK;
}

enum status device_stage_take(struct device *device, void **buffer_p) {
  return device->functions->stage_take(device, buffer_p);
}

enum status device_stage_send(struct device *device, void *dst, size_t bytes) {
  return device->functions->stage_send(device, dst, bytes);
}

enum status device_synchronize(struct device *device) { return device->functions->synchronize(device); }

void device_set_watch(struct device *device, device_watch_func_t *watch, void *context) {
  device->functions->set_watch(device, watch, context);
}

void *device_stream(const struct device *device) { return device->functions->stream(device); }

enum status device_graph_begin(struct device *device, const void *key, size_t key_bytes, int *slot_p,
                               bool *repeated_p) {
  return device->functions->graph_begin(device, key, key_bytes, slot_p, repeated_p);
}

enum status device_graph_end(struct device *device) { return device->functions->graph_end(device); }

enum status device_graph_drop(struct device *device) { return device->functions->graph_drop(device); }

uint64_t device_memory(const struct device *device) { return device->functions->memory(device); }

void device_identity(const struct device *device, char identity[DEVICE_IDENTITY]) {
  device->functions->identity(device, identity);
}

void device_describe(const struct device *device, char *text, size_t size) {
  device->functions->describe(device, text, size);
}
