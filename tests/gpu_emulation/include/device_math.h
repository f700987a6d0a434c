/*
 * device_math.h: the mathematical functions that kernels may call and the host's
 * library lacks. The fast ones are as exact as their slow counterparts here.
 */
#ifndef LORASHARD_EMULATION_DEVICE_MATH_H
#define LORASHARD_EMULATION_DEVICE_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The host's math.h declares some of these names, so they are macros. */
#define __expf(x)    expf(x)
#define __exp2f(x)   exp2f(x)
#define __logf(x)    logf(x)
#define __log2f(x)   log2f(x)
#define __sinf(x)    sinf(x)
#define __cosf(x)    cosf(x)
#define __powf(x, y) powf(x, y)
#define rsqrtf(x)    emulation_rsqrtf(x)
#define rsqrt(x)     emulation_rsqrt(x)

static inline float emulation_rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
static inline double emulation_rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

template <typename To, typename From>
static inline To emulation_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned int __float_as_uint(float x) { return emulation_bits<unsigned int>(x); }
static inline int __float_as_int(float x) { return emulation_bits<int>(x); }
static inline float __uint_as_float(unsigned int x) { return emulation_bits<float>(x); }
static inline float __int_as_float(int x) { return emulation_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulation_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulation_bits<double>(x); }
static inline int __float2int_rn(float x) { return (int)lrintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_rz(float x) { return (int)x; }

static inline unsigned int __umulhi(unsigned int x, unsigned int y) { return (unsigned int)(((uint64_t)x * y) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)(((unsigned __int128)x * y) >> 64);
}
static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned int)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned int __brev(unsigned int x) {
  unsigned int y = 0;
  for (int i = 0; i < 32; i++) y |= ((x >> i) & 1) << (31 - i);
  return y;
}
static inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
  uint64_t bytes = (uint64_t)y << 32 | x;
  unsigned int result = 0;
  for (int i = 0; i < 4; i++) result |= (unsigned int)((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
  return result;
}

template <typename T>
static inline T __ldg(const T *p) {
  return *p;
}
template <typename T>
static inline T __ldcs(const T *p) {
  return *p;
}
template <typename T>
static inline T __ldcg(const T *p) {
  return *p;
}
template <typename T>
static inline void __stcs(T *p, T value) {
  *p = value;
}

#define EMULATION_MIN_MAX(T)                              \
  static inline T min(T a, T b) { return b < a ? b : a; } \
  static inline T max(T a, T b) { return a < b ? b : a; }
EMULATION_MIN_MAX(int)
EMULATION_MIN_MAX(unsigned int)
EMULATION_MIN_MAX(long)
EMULATION_MIN_MAX(unsigned long)
EMULATION_MIN_MAX(long long)
EMULATION_MIN_MAX(unsigned long long)
#undef EMULATION_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

#endif
