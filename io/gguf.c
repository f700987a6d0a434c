#include "io/gguf.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/file_read.h"

enum value_type {
  TYPE_U8,
  TYPE_I8,
  TYPE_U16,
  TYPE_I16,
  TYPE_U32,
  TYPE_I32,
  TYPE_F32,
  TYPE_BOOL,
  TYPE_STRING,
  TYPE_ARRAY,
  TYPE_U64,
  TYPE_I64,
  TYPE_F64,
  TYPE_COUNT
};
/* Bytes of a value; 0: its length is in the file. */
static const uint8_t value_bytes[TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

#define ARRAY_DEPTH 4     /* arrays of arrays deeper than this are refused */
#define KEY_MAX     65535 /* the format's limit on a key's bytes */
#define NAME_MAX_   64    /* and on a tensor name's */
#define READ_STEP   ((uint64_t)1 << 20)

/* A key: where its name and value lie in the header. */
struct entry {
  uint64_t name, value;
  size_t name_length;
  enum value_type type, element; /* element: of an array */
  uint64_t n;                    /* of an array */
};

struct gguf {
  char *path;
  int fd;
  uint64_t size;
  uint8_t *header; /* the first n_header bytes of the file */
  uint64_t n_header;
  uint64_t at;           /* while parsing: the next byte */
  struct entry *entries; /* by name, once parsed */
  uint64_t n_entries;
  struct gguf_tensor *tensors;
  uint64_t n_tensors;
};

static enum status bad(const struct gguf *gguf, const char *fault) {
  return status_set(STATUS_DATA, "%s: %s; copy or download the file again", gguf->path, fault);
}

static enum status bad_tensor(const struct gguf *gguf, const struct gguf_tensor *tensor, const char *fault) {
  return status_set(STATUS_DATA, "%s: tensor %s: %s; copy or download the file again", gguf->path, tensor->name, fault);
}

static enum status no_memory(const struct gguf *gguf) {
  return status_set(STATUS_SYSTEM, "%s: no memory for its header", gguf->path);
}

/* --- reading the header in pieces: its length is known only at its end --- */

/* Make the next n bytes available. */
static enum status need(struct gguf *gguf, uint64_t n) {
  if (n > gguf->size - gguf->at) return bad(gguf, "its header runs past the end of the file (truncated?)");
  uint64_t end = gguf->at + n;
  if (end <= gguf->n_header) return STATUS_OK;
  uint64_t target = gguf->n_header + gguf->n_header / 2 + READ_STEP;
  if (target < end) target = end;
  if (target > gguf->size) target = gguf->size;
  uint8_t *header = realloc(gguf->header, (size_t)target);
  if (!header) return no_memory(gguf);
  gguf->header = header;
  TRY(file_read_at(gguf->fd, gguf->path, gguf->n_header, header + gguf->n_header, (size_t)(target - gguf->n_header)));
  gguf->n_header = target;
  return STATUS_OK;
}

static uint64_t little_endian(const uint8_t *bytes, size_t n) {
  uint64_t value = 0;
  while (n-- > 0) value = value << 8 | bytes[n];
  return value;
}

static enum status take(struct gguf *gguf, size_t n_bytes, uint64_t *value) {
  TRY(need(gguf, n_bytes));
  *value = little_endian(gguf->header + gguf->at, n_bytes);
  gguf->at += n_bytes;
  return STATUS_OK;
}

static enum status skip(struct gguf *gguf, uint64_t n_bytes) {
  TRY(need(gguf, n_bytes));
  gguf->at += n_bytes;
  return STATUS_OK;
}

/* A string's length; the header then stands at its text, which is there. */
static enum status take_string(struct gguf *gguf, uint64_t *length) {
  TRY(take(gguf, 8, length));
  return need(gguf, *length);
}

static enum status skip_value(struct gguf *gguf, enum value_type type, int depth);

static enum status take_array_head(struct gguf *gguf, enum value_type *element, uint64_t *n) {
  uint64_t type = 0;
  TRY(take(gguf, 4, &type));
  if (type >= TYPE_COUNT) return bad(gguf, "an array of an unknown type");
  *element = (enum value_type)type;
  TRY(take(gguf, 8, n));
  /* Even strings and arrays take at least 8 bytes each, so a false count fails here and not by looping. */
  uint64_t least = value_bytes[type] ? value_bytes[type] : 8;
  if (*n > (gguf->size - gguf->at) / least) return bad(gguf, "an array longer than the file");
  return STATUS_OK;
}

static enum status skip_elements(struct gguf *gguf, enum value_type element, uint64_t n, int depth) {
  if (value_bytes[element]) return skip(gguf, n * value_bytes[element]);
  for (uint64_t i = 0; i < n; i++) TRY(skip_value(gguf, element, depth));
  return STATUS_OK;
}

static enum status skip_value(struct gguf *gguf, enum value_type type, int depth) {
  uint64_t n = 0;
  if (value_bytes[type]) return skip(gguf, value_bytes[type]);
  if (type == TYPE_STRING) {
    TRY(take_string(gguf, &n));
    return skip(gguf, n);
  }
  enum value_type element;
  if (depth >= ARRAY_DEPTH) return bad(gguf, "arrays nested too deep");
  TRY(take_array_head(gguf, &element, &n));
  return skip_elements(gguf, element, n, depth + 1);
}

static enum status parse_entry(struct gguf *gguf, struct entry *entry) {
  uint64_t length = 0, type = 0;
  TRY(take_string(gguf, &length));
  if (length == 0 || length > KEY_MAX) return bad(gguf, "a key of no or too many bytes");
  entry->name = gguf->at;
  entry->name_length = (size_t)length;
  TRY(skip(gguf, length));
  TRY(take(gguf, 4, &type));
  if (type >= TYPE_COUNT) return bad(gguf, "a key of an unknown type");
  entry->type = (enum value_type)type;
  if (entry->type == TYPE_ARRAY) {
    TRY(take_array_head(gguf, &entry->element, &entry->n));
    entry->value = gguf->at;
    return skip_elements(gguf, entry->element, entry->n, 1);
  }
  entry->value = gguf->at;
  return skip_value(gguf, entry->type, 0);
}

/* GGML's type numbers. */
static const struct {
  uint32_t id;
  enum dtype dtype;
} tensor_types[] = {
    {0, DTYPE_F32},  {1, DTYPE_F16},  {30, DTYPE_BF16}, {2, DTYPE_Q4_0},  {3, DTYPE_Q4_1},
    {6, DTYPE_Q5_0}, {7, DTYPE_Q5_1}, {8, DTYPE_Q8_0},  {12, DTYPE_Q4_K}, {14, DTYPE_Q6_K},
};

static enum status parse_type(struct gguf *gguf, struct gguf_tensor *tensor) {
  uint64_t id = 0;
  TRY(take(gguf, 4, &id));
  for (size_t i = 0; i < sizeof tensor_types / sizeof tensor_types[0]; i++)
    if (tensor_types[i].id == id) {
      tensor->dtype = tensor_types[i].dtype;
      return STATUS_OK;
    }
  return status_set(STATUS_USAGE,
                    "%s: tensor %s is of GGML type %llu, which is not supported (f32, f16, bf16, q4_0, q4_1, q5_0, "
                    "q5_1, q8_0, q4_k and q6_k are)",
                    gguf->path, tensor->name, (unsigned long long)id);
}

static enum status parse_tensor(struct gguf *gguf, struct gguf_tensor *tensor) {
  uint64_t length = 0, n_dims = 0, n_elements = 1;
  TRY(take_string(gguf, &length));
  if (length == 0 || length > NAME_MAX_ || memchr(gguf->header + gguf->at, 0, (size_t)length))
    return bad(gguf, "a tensor name that is empty, too long or not text");
  char *name = strndup((const char *)gguf->header + gguf->at, (size_t)length);
  if (!name) return no_memory(gguf);
  tensor->name = name;
  gguf->n_tensors++; /* from here on the name is freed with the others */
  TRY(skip(gguf, length));
  TRY(take(gguf, 4, &n_dims));
  if (n_dims < 1 || n_dims > TENSOR_MAX_DIMS) return bad_tensor(gguf, tensor, "no or too many axes");
  tensor->n_dims = (int)n_dims;
  for (int d = tensor->n_dims - 1; d >= 0; d--) { /* the file's first axis is the contiguous one: our last */
    uint64_t ne = 0;
    TRY(take(gguf, 8, &ne));
    if (ne > INT64_MAX || __builtin_mul_overflow(n_elements, ne, &n_elements) || n_elements > INT64_MAX / 4)
      return bad_tensor(gguf, tensor, "too large to be a tensor");
    tensor->shape[d] = (int64_t)ne;
  }
  TRY(parse_type(gguf, tensor));
  if (tensor->shape[tensor->n_dims - 1] % dtype_block(tensor->dtype))
    return bad_tensor(gguf, tensor, "its rows are no whole number of blocks");
  tensor->bytes = dtype_bytes(tensor->dtype, (int64_t)n_elements);
  return take(gguf, 8, &tensor->offset);
}

static int compare_text(const char *a, size_t n_a, const char *b, size_t n_b) {
  int order = memcmp(a, b, n_a < n_b ? n_a : n_b);
  if (order != 0) return order;
  return n_a < n_b ? -1 : n_a > n_b;
}

static int by_key(const void *a, const void *b, void *header) {
  const struct entry *x = a, *y = b;
  return compare_text((char *)header + x->name, x->name_length, (char *)header + y->name, y->name_length);
}

static enum status parse_entries(struct gguf *gguf, uint64_t n) {
  /* An entry has at least 8 + 1 + 4 + 1 bytes, a tensor info 8 + 1 + 4 + 8 + 4 + 8. */
  if (n > (gguf->size - gguf->at) / 14) return bad(gguf, "it claims more keys than it has bytes");
  gguf->entries = calloc((size_t)n + 1, sizeof *gguf->entries);
  if (!gguf->entries) return no_memory(gguf);
  for (; gguf->n_entries < n; gguf->n_entries++) TRY(parse_entry(gguf, &gguf->entries[gguf->n_entries]));
  qsort_r(gguf->entries, (size_t)n, sizeof *gguf->entries, by_key, gguf->header);
  for (uint64_t i = 1; i < n; i++)
    if (by_key(&gguf->entries[i - 1], &gguf->entries[i], gguf->header) == 0) return bad(gguf, "a key occurs twice");
  return STATUS_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static int by_offset(const void *a, const void *b) {
  const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a, *y = *(const struct gguf_tensor *const *)b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Names unique; data aligned, inside the file, without overlap. Offsets become
 * positions in the file. */
static enum status check_tensors(struct gguf *gguf, uint64_t data_start, uint64_t alignment) {
  uint64_t room = gguf->size > data_start ? gguf->size - data_start : 0;
  struct gguf_tensor **order = malloc(((size_t)gguf->n_tensors + 1) * sizeof *order);
  if (!order) return no_memory(gguf);
  enum status status = STATUS_OK;
  for (uint64_t i = 0; i < gguf->n_tensors; i++) {
    struct gguf_tensor *tensor = order[i] = &gguf->tensors[i];
    if (tensor->offset % alignment) {
      status = bad_tensor(gguf, tensor, "its data is not aligned");
      goto out;
    }
    if (tensor->offset > room || tensor->bytes > room - tensor->offset) {
      status = bad_tensor(gguf, tensor, "its data lies past the end of the file (truncated?)");
      goto out;
    }
    tensor->offset += data_start;
  }
  qsort(order, (size_t)gguf->n_tensors, sizeof *order, by_name);
  for (uint64_t i = 1; i < gguf->n_tensors; i++)
    if (strcmp(order[i - 1]->name, order[i]->name) == 0) {
      status = bad_tensor(gguf, order[i], "its name occurs twice");
      goto out;
    }
  qsort(order, (size_t)gguf->n_tensors, sizeof *order, by_offset);
  for (uint64_t i = 1; i < gguf->n_tensors; i++)
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      status = bad_tensor(gguf, order[i], "its data overlaps another tensor's");
      goto out;
    }
out:
  free(order);
  return status;
}

static enum status parse(struct gguf *gguf) {
  uint64_t magic = 0, version = 0, n_tensors = 0, n_entries = 0;
  if (gguf->size < 24) return bad(gguf, "too short for a GGUF file");
  TRY(take(gguf, 4, &magic));
  if (magic != 0x46554747)
    return status_set(STATUS_USAGE, "%s: not a GGUF file; name a Hugging Face folder or a .gguf file", gguf->path);
  TRY(take(gguf, 4, &version));
  if (version != 2 && version != 3) {
    bool swapped = version == 0x02000000 || version == 0x03000000;
    return status_set(STATUS_USAGE, "%s: %s is not supported; convert the model again", gguf->path,
                      swapped ? "a big-endian GGUF file" : "a GGUF version other than 2 and 3");
  }
  TRY(take(gguf, 8, &n_tensors));
  TRY(take(gguf, 8, &n_entries));
  TRY(parse_entries(gguf, n_entries));
  int64_t parts = 1;
  if (gguf_has(gguf, "split.count")) TRY(gguf_get_i64(gguf, "split.count", &parts));
  if (parts > 1)
    return status_set(STATUS_USAGE,
                      "%s: one part of a split GGUF, which is not supported; join the parts with "
                      "llama.cpp's llama-gguf-split --merge",
                      gguf->path);
  int64_t alignment = 32;
  if (gguf_has(gguf, "general.alignment")) TRY(gguf_get_i64(gguf, "general.alignment", &alignment));
  if (alignment < 8 || alignment % 8 || alignment > (1 << 30)) return bad(gguf, "general.alignment makes no sense");

  if (n_tensors > (gguf->size - gguf->at) / 33) return bad(gguf, "it claims more tensors than it has bytes");
  gguf->tensors = calloc((size_t)n_tensors + 1, sizeof *gguf->tensors);
  if (!gguf->tensors) return no_memory(gguf);
  for (uint64_t i = 0; i < n_tensors; i++) TRY(parse_tensor(gguf, &gguf->tensors[i]));
  uint64_t data_start = (gguf->at + (uint64_t)alignment - 1) / (uint64_t)alignment * (uint64_t)alignment;
  return check_tensors(gguf, data_start, (uint64_t)alignment);
}

enum status gguf_open(const char *path, struct gguf **gguf_p) {
  struct gguf *gguf = calloc(1, sizeof *gguf);
  if (!gguf) return status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
  gguf->fd = -1;
  enum status status;
  gguf->path = strdup(path);
  if (!gguf->path) {
    status = status_set(STATUS_SYSTEM, "%s: no memory to open it", path);
    goto out;
  }
  TRY_OUT(file_open_read(path, &gguf->fd, &gguf->size));
  TRY_OUT(parse(gguf));
  *gguf_p = gguf;
  return STATUS_OK;
out:
  gguf_close(&gguf);
  return status;
}

void gguf_close(struct gguf **gguf_p) {
  struct gguf *gguf = *gguf_p;
  *gguf_p = NULL;
  if (!gguf) return;
  if (gguf->fd >= 0) close(gguf->fd);
  for (uint64_t i = 0; i < gguf->n_tensors; i++) free((char *)gguf->tensors[i].name);
  free(gguf->tensors);
  free(gguf->entries);
  free(gguf->header);
  free(gguf->path);
  free(gguf);
}

const char *gguf_path(const struct gguf *gguf) { return gguf->path; }
int gguf_fd(const struct gguf *gguf) { return gguf->fd; }
int64_t gguf_n_tensors(const struct gguf *gguf) { return (int64_t)gguf->n_tensors; }
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, int64_t i) { return &gguf->tensors[i]; }

/* --- keys --- */

static const struct entry *find(const struct gguf *gguf, const char *key) {
  size_t length = strlen(key);
  uint64_t low = 0, high = gguf->n_entries;
  while (low < high) {
    uint64_t middle = low + (high - low) / 2;
    const struct entry *entry = &gguf->entries[middle];
    int order = compare_text(key, length, (const char *)gguf->header + entry->name, entry->name_length);
    if (order == 0) return entry;
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return NULL;
}

bool gguf_has(const struct gguf *gguf, const char *key) { return find(gguf, key) != NULL; }

static enum status bad_key(const struct gguf *gguf, const char *key, const char *expected) {
  if (!gguf_has(gguf, key))
    return status_set(STATUS_DATA, "%s: key %s is missing; convert the model again", gguf->path, key);
  return status_set(STATUS_DATA, "%s: key %s is not %s; convert the model again", gguf->path, key, expected);
}

/* An integer of any width at p; false if the type is no integer or the value
 * does not fit. */
static bool integer_at(enum value_type type, const uint8_t *p, int64_t *value) {
  uint64_t bits = little_endian(p, value_bytes[type]);
  switch (type) {
    case TYPE_U8:
    case TYPE_U16:
    case TYPE_U32:
      *value = (int64_t)bits;
      return true;
    case TYPE_I8:
      *value = (int8_t)bits;
      return true;
    case TYPE_I16:
      *value = (int16_t)bits;
      return true;
    case TYPE_I32:
      *value = (int32_t)bits;
      return true;
    case TYPE_I64:
      *value = (int64_t)bits;
      return true;
    case TYPE_U64:
      *value = (int64_t)bits;
      return bits <= INT64_MAX;
    default:
      return false;
  }
}

static bool number_at(enum value_type type, const uint8_t *p, float *value) {
  int64_t integer;
  if (type == TYPE_F32) {
    memcpy(value, p, sizeof *value);
  } else if (type == TYPE_F64) {
    double wide;
    memcpy(&wide, p, sizeof wide);
    *value = (float)wide;
  } else if (integer_at(type, p, &integer)) {
    *value = (float)integer;
  } else {
    return false;
  }
  return true;
}

enum status gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value) {
  const struct entry *entry = find(gguf, key);
  if (!entry || entry->type != TYPE_STRING) return bad_key(gguf, key, "a string");
  const uint8_t *p = gguf->header + entry->value;
  *value = (struct gguf_string){(const char *)p + 8, (size_t)little_endian(p, 8)};
  return STATUS_OK;
}

enum status gguf_get_i64(const struct gguf *gguf, const char *key, int64_t *value) {
  const struct entry *entry = find(gguf, key);
  int64_t found = 0;
  if (!entry || !integer_at(entry->type, gguf->header + entry->value, &found)) return bad_key(gguf, key, "an integer");
  *value = found;
  return STATUS_OK;
}

enum status gguf_get_f32(const struct gguf *gguf, const char *key, float *value) {
  const struct entry *entry = find(gguf, key);
  float found = 0;
  if (!entry || !number_at(entry->type, gguf->header + entry->value, &found)) return bad_key(gguf, key, "a number");
  *value = found;
  return STATUS_OK;
}

enum status gguf_get_bool(const struct gguf *gguf, const char *key, bool *value) {
  const struct entry *entry = find(gguf, key);
  if (!entry || entry->type != TYPE_BOOL) return bad_key(gguf, key, "true or false");
  *value = gguf->header[entry->value] != 0;
  return STATUS_OK;
}

enum status gguf_get_strings(const struct gguf *gguf, const char *key, struct gguf_string **values_p, int64_t *n_p) {
  const struct entry *entry = find(gguf, key);
  if (!entry || entry->type != TYPE_ARRAY || entry->element != TYPE_STRING)
    return bad_key(gguf, key, "an array of strings");
  struct gguf_string *values = malloc(((size_t)entry->n + 1) * sizeof *values);
  if (!values) return no_memory(gguf);
  const uint8_t *p = gguf->header + entry->value;
  for (uint64_t i = 0; i < entry->n; i++) {
    values[i] = (struct gguf_string){(const char *)p + 8, (size_t)little_endian(p, 8)};
    p += 8 + values[i].length;
  }
  *values_p = values;
  *n_p = (int64_t)entry->n;
  return STATUS_OK;
}

enum status gguf_get_f32s(const struct gguf *gguf, const char *key, float **values_p, int64_t *n_p) {
  const struct entry *entry = find(gguf, key);
  if (!entry || entry->type != TYPE_ARRAY || !value_bytes[entry->element] || entry->element == TYPE_BOOL)
    return bad_key(gguf, key, "an array of numbers");
  float *values = malloc(((size_t)entry->n + 1) * sizeof *values);
  if (!values) return no_memory(gguf);
  const uint8_t *p = gguf->header + entry->value;
  for (uint64_t i = 0; i < entry->n; i++, p += value_bytes[entry->element])
    if (!number_at(entry->element, p, &values[i])) {
      free(values);
      return bad_key(gguf, key, "an array of numbers in range");
    }
  *values_p = values;
  *n_p = (int64_t)entry->n;
  return STATUS_OK;
}

enum status gguf_get_i32s(const struct gguf *gguf, const char *key, int32_t **values_p, int64_t *n_p) {
  const struct entry *entry = find(gguf, key);
  if (!entry || entry->type != TYPE_ARRAY || !value_bytes[entry->element])
    return bad_key(gguf, key, "an array of integers");
  int32_t *values = malloc(((size_t)entry->n + 1) * sizeof *values);
  if (!values) return no_memory(gguf);
  const uint8_t *p = gguf->header + entry->value;
  for (uint64_t i = 0; i < entry->n; i++, p += value_bytes[entry->element]) {
    int64_t value = 0;
    if (!integer_at(entry->element, p, &value) || value < INT32_MIN || value > INT32_MAX) {
      free(values);
      return bad_key(gguf, key, "an array of 32-bit integers");
    }
    values[i] = (int32_t)value;
  }
  *values_p = values;
  *n_p = (int64_t)entry->n;
  return STATUS_OK;
}
