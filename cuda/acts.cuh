/* Activations quantized to int8, on the device: the quantizer and its layout (matmul.h). */
#ifndef QLAB_CUDA_ACTS_CUH
#define QLAB_CUDA_ACTS_CUH

#include "device.cuh"
#include "matmul.h"

/* Byte of column k of a chunk: word t of the packed weights meets words t and 4 + t. */
__device__ __forceinline__ int act_byte(int k) { return (k >> 2 & 1) * 16 + (k >> 3) * 4 + (k & 3); }

/* One chunk by a whole warp: lane k brings column k (0 behind n_in) and gets its int8; every lane gets the scale and
 * −Σq.
 * scale = max|x|/127, q = x·(127/max|x|) rounded to the nearest even; where that is no number or the scale would
 * vanish q and the scale are 0, and a NaN or an infinity among the values makes the scale NaN: as panels.h. */
__device__ __forceinline__ int quantize_chunk(float x, float *scale, int *neg)
{
    unsigned top = __float_as_uint(x) & 0x7fffffffu; /* magnitudes in the order of their bits: NaN is the largest */
#pragma unroll
    for (int m = 16; m; m >>= 1) {
        const unsigned other = __shfl_xor_sync(full_warp, top, m);
        top = other > top ? other : top;
    }
    const float max = __uint_as_float(top);
    float inv = __fdiv_rn(127.0f, max);
    if (!(inv < INFINITY)) inv = 0.0f;
    *scale = inv == 0.0f ? max * 0.0f : __fdiv_rn(max, 127.0f);
    const int q = inv > 0.0f ? __float2int_rn(__fmul_rn(x, inv)) : 0;
    *neg = -warp_sum(q);
    return q;
}

/* The same, stored as chunk `chunk`. Returns what it left of x: x − scale·q. */
__device__ __forceinline__ float quantize_to(int8_t *q, int2 *meta, size_t chunk, float x)
{
    const int lane = threadIdx.x & 31;
    float scale;
    int neg;
    const int v = quantize_chunk(x, &scale, &neg);
    q[chunk * 32 + act_byte(lane)] = int8_t(v);
    if (lane == 0) meta[chunk] = make_int2(__float_as_int(scale), neg);
    return fmaf(-scale, float(v), x);
}
__device__ __forceinline__ float quantize_to(const struct cuda_acts &a, size_t row, int chunk, float x)
{
    return quantize_to(a.q, a.meta, row * a.n_chunks + chunk, x);
}

#endif
