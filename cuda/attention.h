/* Attention with its KV cache: rotary embedding and storing of new tokens, decoding split over the cache, prefill by
 * tensor cores, and a general path that takes any head and is exact in f32.
 *
 * K and V of one layer lie as [kv head][capacity][head_dim]: the tokens of a head are one run, which decoding streams.
 * Queries, new keys and values and the output are f32 (rows, heads · head_dim), as everywhere between kernels. */
#ifndef QLAB_CUDA_ATTENTION_H
#define QLAB_CUDA_ATTENTION_H

#include <cuda_runtime.h>

#include <cstddef>

constexpr int attn_batch_max = 32; /* spans of one launch: they travel as kernel arguments */

/* One sequence's part of a batch: rows row0 … row0 + n_new − 1 at positions pos0 …; k, v: the layer's part of its
 * cache. */
struct attn_span {
    void *k, *v;
    int pos0, row0, n_new, capacity;
};
struct attn_batch {
    int n;
    const int *pos; /* device memory: pos0 of the one span is read there (a recorded step); NULL: as the spans say */
    attn_span span[attn_batch_max];
};
struct attn_shape {
    int n_heads, n_kv_heads, head_dim;
    bool f16; /* type of the cache: f16, or f32 */
};
/* What happens to new rows before attention. Device memory. */
struct attn_new {
    float *q, *k;                 /* normed and rotated in place where that is cheaper; their values are lost */
    const float *v;
    const float *q_norm, *k_norm; /* (head_dim) or NULL */
    float eps;
    const float *inv_freq;        /* (head_dim / 2), or NULL: not rotated */
};

/* Heads this file can do: head_dim even, at most attn_head_max. */
constexpr int attn_head_max = 4096;

/* Bytes the launchers below need in `work` for batches of up to attn_batch_max spans; the memory is zeroed once, when
 * it is made, and every launch leaves its counters zero. */
size_t attention_work_bytes(const attn_shape &s, int n_sm);

/* Rows of x (rows, n_heads · head_dim) rotated in place. */
void rope_rows(float *x, const attn_batch &b, int n_heads, int head_dim, const float *inv_freq, cudaStream_t st);
/* Norm, rotation of q in place; norm, rotation of k and storing of k and v. q NULL: only storing. */
void rope_append(const attn_new &a, const attn_batch &b, const attn_shape &s, cudaStream_t st);
/* out (rows, n_heads · head_dim): causal attention of rows q, whose keys and values are in the cache already. */
void attention(float *out, const float *q, const attn_batch &b, const attn_shape &s, void *work, int n_sm,
               cudaStream_t st);
/* rope_append and attention: one kernel where every span has one new token, else two. */
void rope_attention(float *out, const attn_new &a, const attn_batch &b, const attn_shape &s, void *work, int n_sm,
                    cudaStream_t st);

#endif
