/* The rotary embedding, for every kernel that rotates. */
#ifndef QLAB_CUDA_ROPE_CUH
#define QLAB_CUDA_ROPE_CUH

#include "device.cuh"

/* cos and sin of f32(pos) · inv_freq rounded to f32, within 2e-7 at any position: reduced to an eighth of a turn in
 * double, where the products are exact enough, and summed as Taylor series there (errors below 2e-9). */
__device__ __forceinline__ float2 rope_turn(int pos, float inv_freq)
{
    const float angle = __fmul_rn(float(pos), inv_freq);
    const double quarters = double(angle) * 0.63661977236758134308; /* 2 / π */
    const double n = rint(quarters);
    const float x = float((quarters - n) * 1.57079632679489661923), xx = x * x;
    const float s = x * (1 + xx * (-1.f / 6 + xx * (1.f / 120 + xx * (-1.f / 5040 + xx * (1.f / 362880)))));
    const float c = 1 + xx * (-.5f + xx * (1.f / 24 + xx * (-1.f / 720 + xx * (1.f / 40320 - xx * (1.f / 3628800)))));
    switch (int(int64_t(n) & 3)) {
    case 0: return make_float2(c, s);
    case 1: return make_float2(-s, c);
    case 2: return make_float2(-c, -s);
    default: return make_float2(s, -c);
    }
}

/* 1 / √(mean of squares + eps) of a head of n values, by one warp; its lanes may write x after it. */
__device__ __forceinline__ float head_scale(const float *x, int n, float eps)
{
    float sum = 0;
    for (int i = threadIdx.x & 31; i < n; i += 32) sum += x[i] * x[i];
    sum = warp_sum(sum);
    __syncwarp();
    return rsqrtf(sum / float(n) + eps);
}

/* Elements j and j + half of a head, normed (norm not NULL) and rotated (turn not NULL). */
__device__ __forceinline__ float2 rope_pair(const float *x, int j, int half, const float *norm, float scale,
                                            const float2 *turn)
{
    float2 v = make_float2(x[j], x[j + half]);
    if (norm) v = make_float2(v.x * scale * norm[j], v.y * scale * norm[j + half]);
    if (!turn) return v;
    const float2 cs = turn[j];
    return make_float2(__fsub_rn(__fmul_rn(v.x, cs.x), __fmul_rn(v.y, cs.y)),
                       __fadd_rn(__fmul_rn(v.y, cs.x), __fmul_rn(v.x, cs.y)));
}

#endif
