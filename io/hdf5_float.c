/*
 * hdf5_float.c: the number types that matrices are stored in: f32, and for
 * weights also IEEE half and bfloat16. HDF5 would convert the narrow ones value
 * by value, through every rule that a float type can have; here a table of bits
 * is read or written and io/quant.h converts, exactly as for base weights.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint_internal.h"
#include "io/quant.h"

static const enum dtype stored[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

hid_t hdf5_float_type(enum dtype dtype) {
  hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  if (type < 0 || dtype == DTYPE_F32) return type;
  const bool half = dtype == DTYPE_F16;
  /* Sign, exponent, mantissa; a float's fields must fit before its size shrinks. */
  if (H5Tset_fields(type, 15, half ? 10 : 7, half ? 5 : 8, 0, half ? 10 : 7) >= 0 && H5Tset_precision(type, 16) >= 0 &&
      H5Tset_size(type, 2) >= 0 && H5Tset_ebias(type, half ? 15 : 127) >= 0)
    return type;
  H5Tclose(type);
  return -1;
}

bool hdf5_float_dtype(hid_t type, enum dtype *dtype_p) {
  for (size_t i = 0; i < sizeof stored / sizeof stored[0]; i++) {
    hid_t known = hdf5_float_type(stored[i]);
    bool equal = known >= 0 && H5Tequal(type, known) > 0;
    hdf5_release(known);
    if (!equal) continue;
    *dtype_p = stored[i];
    return true;
  }
  return false;
}

enum status hdf5_float_pack(enum dtype dtype, const char *path, const struct checkpoint_array *array, uint16_t *bits) {
  const int64_t n = array->part_rows * array->part_cols;
  for (int64_t i = 0; i < n; i++) {
    bits[i] = dtype == DTYPE_F16 ? f32_to_f16(array->data[i]) : f32_to_bf16(array->data[i]);
    float back = dtype == DTYPE_F16 ? f16_to_f32(bits[i]) : bf16_to_f32(bits[i]);
    if (isfinite(array->data[i]) && !isfinite(back))
      return status_set(STATUS_DATA, "%s: %s/%s holds %g, which is too large for %s; choose %s", path, array->group,
                        array->name, (double)array->data[i], dtype_name(dtype),
                        dtype == DTYPE_F16 ? "bf16 or f32" : "f32");
  }
  return STATUS_OK;
}

enum status hdf5_float_read(hid_t dataset, const char *path, const hsize_t from[2], const hsize_t count[2], float *to,
                            hsize_t stride) {
  enum status status = STATUS_OK;
  hid_t type = -1, space = -1, memory = -1;
  enum dtype dtype = DTYPE_F32;
  uint16_t *bits = NULL;
  hsize_t size[2] = {count[0], stride};
  const hsize_t zero[2] = {0, 0};
  H5_TRY_OUT(STATUS_DATA, path, type = H5Dget_type(dataset));
  H5_TRY_OUT(STATUS_DATA, path, space = H5Dget_space(dataset));
  if (!hdf5_float_dtype(type, &dtype)) {
    status = status_set(STATUS_DATA, "%s: a matrix is of a type that this program does not write", path);
    goto out;
  }
  if (dtype != DTYPE_F32) {
    size[1] = count[1];
    if (!(bits = malloc((size_t)(count[0] * count[1]) * sizeof *bits))) {
      status = status_set(STATUS_SYSTEM, "%s: out of memory for a matrix", path);
      goto out;
    }
  }
  H5_TRY_OUT(STATUS_DATA, path, memory = H5Screate_simple(2, size, NULL));
  H5_TRY_OUT(STATUS_DATA, path, H5Sselect_hyperslab(space, H5S_SELECT_SET, from, NULL, count, NULL));
  H5_TRY_OUT(STATUS_DATA, path, H5Sselect_hyperslab(memory, H5S_SELECT_SET, zero, NULL, count, NULL));
  H5_TRY_OUT(STATUS_DATA, path,
             H5Dread(dataset, bits ? type : H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, bits ? (void *)bits : to));
  for (hsize_t row = 0; bits && row < count[0]; row++)
    quant_expand_f32(dtype, bits + row * count[1], (int64_t)count[1], to + row * stride);
out:
  free(bits);
  hdf5_release(memory);
  hdf5_release(space);
  hdf5_release(type);
  return status;
}
