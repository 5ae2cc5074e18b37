/* Between the files of attention: what all kernels need, and the ways attention() chooses from. */
#ifndef QLAB_CUDA_ATTENTION_IMPL_CUH
#define QLAB_CUDA_ATTENTION_IMPL_CUH

#include "attention.h"
#include "device.cuh"

#include <cmath>

/* Scores are kept in base 2: the scale of q includes log2 e. A finite stand-in for −∞, so that a maximum minus a
 * maximum is never NaN. */
constexpr float minus_big = -1e30f;
inline float score_scale(const attn_shape &s) { return 1.4426950408889634f / sqrtf(float(s.head_dim)); }

template <class T> __device__ __forceinline__ float to_f32(T v);
template <> __device__ __forceinline__ float to_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ float to_f32<__half>(__half v) { return __half2float(v); }
template <class T> __device__ __forceinline__ T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_f32<__half>(float v) { return __float2half_rn(v); }

__device__ __forceinline__ int first_pos(const attn_batch &b, const attn_span &s) { return b.pos ? *b.pos : s.pos0; }

/* New tokens of the longest span. */
inline int attn_longest(const attn_batch &b)
{
    int n = 0;
    for (int i = 0; i < b.n; i++) n = b.span[i].n_new > n ? b.span[i].n_new : n;
    return n;
}

/* One new token a span, any type of cache; heads of attn_fast. fused: `in` is not yet normed, rotated and stored. */
void attention_decode(float *out, const attn_new &in, bool fused, const attn_batch &b, const attn_shape &s, void *work,
                      int n_sm, cudaStream_t st);
/* f16 caches, heads of attn_fast. */
void attention_prefill(float *out, const float *q, const attn_batch &b, const attn_shape &s, cudaStream_t st);
/* Rows of 16 bytes, and registers enough. */
inline bool attn_fast(const attn_shape &s) { return s.head_dim % 8 == 0 && s.head_dim <= 256; }

#endif
