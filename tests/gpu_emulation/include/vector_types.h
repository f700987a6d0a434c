/* vector_types.h: CUDA's vector types with their sizes and alignments, and dim3. C++ only. */
#ifndef LORASHARD_EMULATION_VECTOR_TYPES_H
#define LORASHARD_EMULATION_VECTOR_TYPES_H

#define EMULATION_VECTORS(scalar, prefix, two, four)                                           \
  struct prefix##1 {                                                                           \
    scalar x;                                                                                  \
  };                                                                                           \
  struct __attribute__((aligned(two))) prefix##2 {                                             \
    scalar x, y;                                                                               \
  };                                                                                           \
  struct prefix##3 {                                                                           \
    scalar x, y, z;                                                                            \
  };                                                                                           \
  struct __attribute__((aligned(four))) prefix##4 {                                            \
    scalar x, y, z, w;                                                                         \
  };                                                                                           \
  static inline prefix##1 make_##prefix##1(scalar x) { return {x}; }                           \
  static inline prefix##2 make_##prefix##2(scalar x, scalar y) { return {x, y}; }              \
  static inline prefix##3 make_##prefix##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  static inline prefix##4 make_##prefix##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATION_VECTORS(signed char, char, 2, 4)
EMULATION_VECTORS(unsigned char, uchar, 2, 4)
EMULATION_VECTORS(short, short, 4, 8)
EMULATION_VECTORS(unsigned short, ushort, 4, 8)
EMULATION_VECTORS(int, int, 8, 16)
EMULATION_VECTORS(unsigned int, uint, 8, 16)
EMULATION_VECTORS(long long, longlong, 16, 16)
EMULATION_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATION_VECTORS(float, float, 8, 16)
EMULATION_VECTORS(double, double, 16, 16)
#undef EMULATION_VECTORS

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#endif
