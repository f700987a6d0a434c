/*
 * activation.c: GELU (erf and tanh forms), ReLU and SiLU, plain or gated.
 */
#include "model/cpu/cpu_internal.h"
#include "model/cpu/vmath.h"

#define GELU_SLOPE 1.5957691216f /* 2 sqrt(2/pi): (1 + tanh u) / 2 is sigmoid(2u) */
#define GELU_CUBIC 0.044715f

/* act(x), and its derivative. */
struct curve {
  vf value, slope;
};

VF_INLINE struct curve curve_at(enum activation kind, vf x) {
  if (kind == ACTIVATION_RELU) {
    vi positive = x > 0.0f;
    vi nan = x != x;
    return (struct curve){vf_select(positive | nan, x, (vf){0}), vf_select(positive, vf_set(1), (vf){0})};
  }
  if (kind == ACTIVATION_GELU) {
    vf density, below = vf_normal(x, &density);
    return (struct curve){x * below, below + x * density};
  }
  /* x sigmoid(u), where u' is the derivative of u; written with e^-|u|, which cannot overflow */
  bool tanh_form = kind == ACTIVATION_GELU_TANH;
  vf square = x * x;
  vf u = tanh_form ? GELU_SLOPE * x * (1.0f + GELU_CUBIC * square) : x;
  vf u_slope = tanh_form ? GELU_SLOPE * (1.0f + 3 * GELU_CUBIC * square) : vf_set(1);
  vf small = vf_exp(-vf_abs(u)), large_part = 1.0f / (1.0f + small), small_part = small * large_part;
  vf gate = vf_select(u < 0.0f, small_part, large_part);
  return (struct curve){x * gate, gate + x * u_slope * (small_part * large_part)};
}

VF_INLINE void forward_row(enum activation kind, enum dtype dtype, int64_t n, const void *gate, const void *up,
                           void *h) {
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf x = vf_get_row(dtype, gate ? gate : up, i, n, 0);
    vf value = curve_at(kind, x).value;
    if (gate) value *= vf_get_row(dtype, up, i, n, 0);
    vf_put_row(dtype, h, i, n, value);
  }
}

/* Each vector is read before its elements are written: dgate and dup may be gate and up. */
VF_INLINE void backward_row(enum activation kind, enum dtype dtype, int64_t n, const void *gate, const void *up,
                            const void *dh, void *dgate, void *dup) {
  for (int64_t i = 0; i < n; i += VF_LANES) {
    vf slope = vf_get_row(dtype, dh, i, n, 0), right = vf_get_row(dtype, up, i, n, 0);
    if (gate) {
      struct curve curve = curve_at(kind, vf_get_row(dtype, gate, i, n, 0));
      vf_put_row(dtype, dgate, i, n, slope * right * curve.slope);
      vf_put_row(dtype, dup, i, n, slope * curve.value);
    } else {
      vf_put_row(dtype, dup, i, n, slope * curve_at(kind, right).slope);
    }
  }
}

typedef void forward_function(int64_t n, const void *gate, const void *up, void *h);
typedef void backward_function(int64_t n, const void *gate, const void *up, const void *dh, void *dgate, void *dup);

/* One compiled row function per kind, number format and gating. */
#define ROW_FUNCTIONS(name, kind, dtype)                                                                             \
  static void forward_##name(int64_t n, const void *gate, const void *up, void *h) {                                 \
    gate ? forward_row(kind, dtype, n, gate, up, h) : forward_row(kind, dtype, n, NULL, up, h);                      \
  }                                                                                                                  \
  static void backward_##name(int64_t n, const void *gate, const void *up, const void *dh, void *dgate, void *dup) { \
    gate ? backward_row(kind, dtype, n, gate, up, dh, dgate, dup)                                                    \
         : backward_row(kind, dtype, n, NULL, up, dh, NULL, dup);                                                    \
  }
ROW_FUNCTIONS(gelu_f32, ACTIVATION_GELU, DTYPE_F32)
ROW_FUNCTIONS(gelu_bf16, ACTIVATION_GELU, DTYPE_BF16)
ROW_FUNCTIONS(gelu_tanh_f32, ACTIVATION_GELU_TANH, DTYPE_F32)
ROW_FUNCTIONS(gelu_tanh_bf16, ACTIVATION_GELU_TANH, DTYPE_BF16)
ROW_FUNCTIONS(relu_f32, ACTIVATION_RELU, DTYPE_F32)
ROW_FUNCTIONS(relu_bf16, ACTIVATION_RELU, DTYPE_BF16)
ROW_FUNCTIONS(silu_f32, ACTIVATION_SILU, DTYPE_F32)
ROW_FUNCTIONS(silu_bf16, ACTIVATION_SILU, DTYPE_BF16)

static forward_function *const forward_functions[][2] = {
    [ACTIVATION_GELU] = {forward_gelu_f32, forward_gelu_bf16},
    [ACTIVATION_GELU_TANH] = {forward_gelu_tanh_f32, forward_gelu_tanh_bf16},
    [ACTIVATION_RELU] = {forward_relu_f32, forward_relu_bf16},
    [ACTIVATION_SILU] = {forward_silu_f32, forward_silu_bf16},
};
static backward_function *const backward_functions[][2] = {
    [ACTIVATION_GELU] = {backward_gelu_f32, backward_gelu_bf16},
    [ACTIVATION_GELU_TANH] = {backward_gelu_tanh_f32, backward_gelu_tanh_bf16},
    [ACTIVATION_RELU] = {backward_relu_f32, backward_relu_bf16},
    [ACTIVATION_SILU] = {backward_silu_f32, backward_silu_bf16},
};

enum status cpu_activation_forward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                   struct tensor_view gate, struct tensor_view up, struct tensor_view h) {
  forward_function *row = forward_functions[kind][up.dtype == DTYPE_BF16];
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    row(n, gate.data ? cpu_at(gate, m, 0) : NULL, cpu_at(up, m, 0), cpu_at(h, m, 0));
  }
  return STATUS_OK;
}

enum status cpu_activation_backward(struct device *d, enum activation kind, int64_t M, int64_t n,
                                    struct tensor_view gate, struct tensor_view up, struct tensor_view dh,
                                    struct tensor_view dgate, struct tensor_view dup) {
  backward_function *row = backward_functions[kind][up.dtype == DTYPE_BF16];
#pragma omp parallel for num_threads(d->n_threads) if (M > 1)
  for (int64_t m = 0; m < M; m++) {
    row(n, gate.data ? cpu_at(gate, m, 0) : NULL, cpu_at(up, m, 0), cpu_at(dh, m, 0),
        gate.data ? cpu_at(dgate, m, 0) : NULL, cpu_at(dup, m, 0));
  }
  return STATUS_OK;
}
