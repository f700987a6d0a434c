/*
 * hdf5_attributes.c: scalar attributes with exact file types. What is read is
 * checked before it is converted.
 */
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"

#define TEXT_LIMIT 65536 /* an attribute cannot be larger in HDF5's plain storage */

static enum status put_scalar(hid_t object, const char *path, const char *name, hid_t file_type, hid_t memory_type,
                              const void *value) {
  enum status status = STATUS_OK;
  hid_t space = -1, attribute = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, space = H5Screate(H5S_SCALAR));
  H5_TRY_OUT(STATUS_SYSTEM, path, attribute = H5Acreate2(object, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT));
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Awrite(attribute, memory_type, value));
  hid_t written = attribute;
  attribute = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, H5Aclose(written));
out:
  hdf5_release(attribute);
  hdf5_release(space);
  return status;
}

enum status hdf5_put_int(hid_t object, const char *path, const char *name, int64_t value) {
  return put_scalar(object, path, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

enum status hdf5_put_uint(hid_t object, const char *path, const char *name, uint64_t value) {
  return put_scalar(object, path, name, H5T_STD_U64LE, H5T_NATIVE_UINT64, &value);
}

enum status hdf5_put_double(hid_t object, const char *path, const char *name, double value) {
  return put_scalar(object, path, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

hid_t hdf5_text_type(size_t size) {
  hid_t type = H5Tcopy(H5T_C_S1);
  if (type < 0) return type;
  if (H5Tset_size(type, size) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0 &&
      H5Tset_strpad(type, H5T_STR_NULLTERM) >= 0)
    return type;
  H5Tclose(type);
  return -1;
}

enum status hdf5_put_text(hid_t object, const char *path, const char *name, const char *text) {
  enum status status = STATUS_OK;
  hid_t type = -1;
  H5_TRY_OUT(STATUS_SYSTEM, path, type = hdf5_text_type(strlen(text) + 1));
  status = put_scalar(object, path, name, type, type, text);
out:
  hdf5_release(type);
  return status;
}

/* An attribute open for reading, with its type. */
struct opened {
  hid_t attribute, type;
};

static void opened_close(struct opened *opened) {
  hdf5_release(opened->type);
  hdf5_release(opened->attribute);
}

static enum status open_scalar(hid_t object, const char *path, const char *where, const char *name,
                               struct opened *opened) {
  enum status status = STATUS_OK;
  hid_t space = -1;
  *opened = (struct opened){-1, -1};
  htri_t exists;
  H5_TRY_OUT(STATUS_DATA, path, exists = H5Aexists(object, name));
  if (!exists) return status_set(STATUS_DATA, "%s: %s: attribute %s is missing", path, where, name);
  H5_TRY_OUT(STATUS_DATA, path, opened->attribute = H5Aopen(object, name, H5P_DEFAULT));
  H5_TRY_OUT(STATUS_DATA, path, space = H5Aget_space(opened->attribute));
  if (H5Sget_simple_extent_npoints(space) != 1) {
    status = status_set(STATUS_DATA, "%s: %s: attribute %s is not one value", path, where, name);
    goto out;
  }
  H5_TRY_OUT(STATUS_DATA, path, opened->type = H5Aget_type(opened->attribute));
out:
  hdf5_release(space);
  if (status != STATUS_OK) opened_close(opened);
  return status;
}

static enum status get_number(hid_t object, const char *path, const char *where, const char *name, H5T_class_t class,
                              hid_t memory_type, void *value) {
  struct opened opened;
  TRY(open_scalar(object, path, where, name, &opened));
  enum status status = STATUS_OK;
  size_t size = H5Tget_size(opened.type);
  if (H5Tget_class(opened.type) != class || size < 1 || size > 8) {
    status = status_set(STATUS_DATA, "%s: %s: attribute %s is not %s", path, where, name,
                        class == H5T_INTEGER ? "an integer" : "a floating-point number");
    goto out;
  }
  if (class == H5T_INTEGER) {
    /* HDF5 clips what does not fit; a different sign would hide that. */
    bool is_signed = H5Tget_sign(opened.type) == H5T_SGN_2;
    bool want_signed = H5Tequal(memory_type, H5T_NATIVE_INT64) > 0;
    if (size == 8 && is_signed != want_signed) {
      status = status_set(STATUS_DATA, "%s: %s: attribute %s must be %s", path, where, name,
                          want_signed ? "signed" : "unsigned");
      goto out;
    }
  }
  H5_TRY_OUT(STATUS_DATA, path, H5Aread(opened.attribute, memory_type, value));
out:
  opened_close(&opened);
  return status;
}

enum status hdf5_get_int(hid_t object, const char *path, const char *where, const char *name, int64_t *value) {
  return get_number(object, path, where, name, H5T_INTEGER, H5T_NATIVE_INT64, value);
}

enum status hdf5_get_uint(hid_t object, const char *path, const char *where, const char *name, uint64_t *value) {
  return get_number(object, path, where, name, H5T_INTEGER, H5T_NATIVE_UINT64, value);
}

enum status hdf5_get_double(hid_t object, const char *path, const char *where, const char *name, double *value) {
  return get_number(object, path, where, name, H5T_FLOAT, H5T_NATIVE_DOUBLE, value);
}

size_t hdf5_text_length(hid_t type, const char *text, size_t size) {
  size_t length = strnlen(text, size);
  if (H5Tget_strpad(type) == H5T_STR_SPACEPAD)
    while (length > 0 && text[length - 1] == ' ') length--;
  return length;
}

/* Copy length bytes to text[size) if they fit and are printable. */
static enum status take_text(const char *path, const char *where, const char *name, const char *from, size_t length,
                             char *text, size_t size) {
  if (length >= size)
    return status_set(STATUS_DATA, "%s: %s: attribute %s is longer than %zu bytes", path, where, name, size - 1);
  for (size_t i = 0; i < length; i++)
    if ((unsigned char)from[i] < 0x20 || from[i] == 0x7f)
      return status_set(STATUS_DATA, "%s: %s: attribute %s has control characters", path, where, name);
  memset(text, 0, size);
  memcpy(text, from, length);
  return STATUS_OK;
}

static enum status get_variable(const struct opened *opened, const char *path, const char *where, const char *name,
                                char *text, size_t size) {
  enum status status = STATUS_OK;
  char *value = NULL;
  H5_TRY_OUT(STATUS_DATA, path, H5Aread(opened->attribute, opened->type, &value));
  status = take_text(path, where, name, value ? value : "", value ? strnlen(value, size) : 0, text, size);
out:
  if (value) H5free_memory(value);
  return status;
}

enum status hdf5_get_text(hid_t object, const char *path, const char *where, const char *name, char *text,
                          size_t size) {
  struct opened opened;
  TRY(open_scalar(object, path, where, name, &opened));
  enum status status = STATUS_OK;
  char *value = NULL;
  if (H5Tget_class(opened.type) != H5T_STRING) {
    status = status_set(STATUS_DATA, "%s: %s: attribute %s is not a text", path, where, name);
    goto out;
  }
  if (H5Tis_variable_str(opened.type) > 0) {
    status = get_variable(&opened, path, where, name, text, size);
    goto out;
  }
  size_t stored = H5Tget_size(opened.type);
  if (stored < 1 || stored > TEXT_LIMIT) {
    status = status_set(STATUS_DATA, "%s: %s: attribute %s has an impossible size", path, where, name);
    goto out;
  }
  value = malloc(stored);
  if (!value) {
    status = status_set(STATUS_SYSTEM, "%s: out of memory", path);
    goto out;
  }
  H5_TRY_OUT(STATUS_DATA, path, H5Aread(opened.attribute, opened.type, value));
  status = take_text(path, where, name, value, hdf5_text_length(opened.type, value, stored), text, size);
out:
  free(value);
  opened_close(&opened);
  return status;
}
