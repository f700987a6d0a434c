#include "io/dtype.h"

static const struct {
  const char *name;
  int64_t block;
  size_t bytes;
} dtypes[DTYPE_COUNT] = {
    [DTYPE_F32] = {"f32", 1, 4},       [DTYPE_F16] = {"f16", 1, 2},     [DTYPE_BF16] = {"bf16", 1, 2},
    [DTYPE_Q4_0] = {"q4_0", 32, 18},   [DTYPE_Q4_1] = {"q4_1", 32, 20}, [DTYPE_Q5_0] = {"q5_0", 32, 22},
    [DTYPE_Q5_1] = {"q5_1", 32, 24},   [DTYPE_Q8_0] = {"q8_0", 32, 34}, [DTYPE_Q4_K] = {"q4_k", 256, 144},
    [DTYPE_Q6_K] = {"q6_k", 256, 210}, [DTYPE_F8] = {"f8", 32, 36},     [DTYPE_INT8] = {"int8", 1, 1},
    [DTYPE_NF4] = {"nf4", 64, 32},
};

const char *dtype_name(enum dtype dtype) { return dtypes[dtype].name; }
int64_t dtype_block(enum dtype dtype) { return dtypes[dtype].block; }
size_t dtype_block_bytes(enum dtype dtype) { return dtypes[dtype].bytes; }

size_t dtype_bytes(enum dtype dtype, int64_t n) { return (size_t)(n / dtypes[dtype].block) * dtypes[dtype].bytes; }
