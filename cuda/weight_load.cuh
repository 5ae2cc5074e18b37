/* Reading weights, which no kernel ever writes: the one thing a kernel may do before kernel_begin (device.cuh), with
 * Early. Launched early (programmatic dependent launch), it then has its first weights under way while the kernels
 * before it end; anything else it read there might not be written yet. The emulation lets only these two read before
 * kernel_begin, and only from memory that was filled by copies from the host alone; check-sass counts what the machine
 * code has before the wait. */
#ifndef QLAB_CUDA_WEIGHT_LOAD_CUH
#define QLAB_CUDA_WEIGHT_LOAD_CUH

#include "device.cuh"

#ifdef CUDA_EMU
namespace emu {
void read_early(void *to, const void *from, size_t bytes);
}
template <class T> T emu_read_early(const T *p)
{
    T v;
    emu::read_early(&v, p, sizeof v);
    return v;
}
#endif

/* What is read once a token: leaves the caches first. */
template <bool Early, class T> __device__ __forceinline__ T load_once(const T *p)
{
#ifdef CUDA_EMU
    if (Early) return emu_read_early(p);
#endif
    return __ldcs(p);
}
/* What neighbours read too. */
template <bool Early, class T> __device__ __forceinline__ T load_weight(const T *p)
{
#ifdef CUDA_EMU
    if (Early) return emu_read_early(p);
#endif
    return __ldg(p);
}

/* After an early load: it is issued here, and not moved behind the wait. */
#if !defined CUDA_EMU && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void issued(uint32_t &v) { asm volatile("" : "+r"(v)); }
__device__ __forceinline__ void issued(int &v) { asm volatile("" : "+r"(v)); }
__device__ __forceinline__ void issued(float &v) { asm volatile("" : "+f"(v)); }
#else /* the wait does nothing there */
template <class T> __device__ __forceinline__ void issued(T &) {}
#endif
__device__ __forceinline__ void issued(uint4 &v)
{
    issued(v.x);
    issued(v.y);
    issued(v.z);
    issued(v.w);
}

#endif
