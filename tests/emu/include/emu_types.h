/* Vector types, qualifiers and built-in variables of CUDA C++, for the emulation (tests/emu/README.md). */
#ifndef EMU_TYPES_H
#define EMU_TYPES_H

#include <cstddef>
#include <cstdint>

#define CUDA_EMU 1

#define __device__
#define __host__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* A plain array could be neither poisoned nor given to each block: SHARED_ARRAY and DYN_SHARED (cuda/device.cuh). */
#define __shared__ USE_SHARED_ARRAY_OR_DYN_SHARED

/* name, element type, alignment of the 1-, 2- and 4-element types (of 3 elements: the element's own) */
#define EMU_VECTOR(name, T, a2, a4)                                                             \
    struct name##1 { T x; };                                                                    \
    struct alignas(a2) name##2 { T x, y; };                                                     \
    struct name##3 { T x, y, z; };                                                              \
    struct alignas(a4) name##4 { T x, y, z, w; };                                               \
    inline name##1 make_##name##1(T x) { return {x}; }                                          \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                  \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                          \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(char, signed char, 2, 4)
EMU_VECTOR(uchar, unsigned char, 2, 4)
EMU_VECTOR(short, short, 4, 8)
EMU_VECTOR(ushort, unsigned short, 4, 8)
EMU_VECTOR(int, int, 8, 16)
EMU_VECTOR(uint, unsigned, 8, 16)
EMU_VECTOR(longlong, long long, 16, 16)
EMU_VECTOR(ulonglong, unsigned long long, 16, 16)
EMU_VECTOR(float, float, 8, 16)
EMU_VECTOR(double, double, 16, 16)
#undef EMU_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/* The scheduler writes threadIdx at every switch of threads. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#endif
