/* Kernel source, compiled per instruction set: attention of a few queries over one chunk of keys. Scores have one lane
 * a key (the K cache is stored with 16 keys side by side), outputs one lane a dimension: no sums across lanes. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

#if VL == 16
#define QUERIES 6
#elif VL == 8
#define QUERIES 3
#else
#define QUERIES 2
#endif
enum { SCORE_KEYS = 4 * VL }; /* keys a score tile has */

INLINE vf kv_load(const void *p, int64_t i, bool f16)
{
    return f16 ? vf_load_f16((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

INLINE vf kv_load_n(const void *p, int64_t i, int64_t n, bool f16)
{
    return f16 ? vf_load_f16_n((const uint16_t *)p + i, n) : vf_load_n((const float *)p + i, n);
}

/* p[i][0 … SCORE_KEYS−1] = scaled scores of nq queries with the keys from key0 on. */
INLINE void score_tile(const float *const *q, const int nq, int64_t hd, const bool f16, const void *const *k,
                       int64_t key0, int64_t n_keys, float scale, float *p)
{
    /* block and place in its rows of KV_BLOCK keys of vector v; a vector behind the last key repeats the first one */
    const void *block[4];
    int64_t at[4];
    for (int v = 0; v < 4; v++) {
        int64_t key = key0 + v * VL < n_keys ? key0 + v * VL : key0;
        block[v] = k[key / KV_BLOCK];
        at[v] = key % KV_BLOCK;
    }
    vf acc[QUERIES][4];
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[i][v] = vf_zero();
    for (int64_t d = 0; d < hd; d++) {
        vf kv[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) kv[v] = kv_load(block[v], at[v] + d * KV_BLOCK, f16);
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            vf qv = vf_set1(q[i][d]);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) acc[i][v] = vf_fma(qv, kv[v], acc[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            vf_store(p + i * ATTN_CHUNK + key0 + v * VL, vf_mul(acc[i][v], vf_set1(scale)));
}

/* o[i][d0 … d0+4·VL−1] = Σ_key p[i][key]·v[key][d]; n_vec vectors, the last with `tail` elements. */
INLINE void value_tile(const float *p, const int nq, int64_t n_keys, int64_t hd, const bool f16, const void *v,
                       int64_t d0, const int n_vec, int64_t tail, float *o)
{
    vf acc[QUERIES][4];
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vec; c++) acc[i][c] = vf_zero();
    for (int64_t key = 0; key < n_keys; key++) {
        vf vv[4];
#pragma GCC unroll 4
        for (int c = 0; c < n_vec; c++)
            vv[c] = c == n_vec - 1 && tail < VL ? kv_load_n(v, key * hd + d0 + c * VL, tail, f16)
                                                : kv_load(v, key * hd + d0 + c * VL, f16);
#pragma GCC unroll 8
        for (int i = 0; i < nq; i++) {
            vf pv = vf_set1(p[i * ATTN_CHUNK + key]);
#pragma GCC unroll 4
            for (int c = 0; c < n_vec; c++) acc[i][c] = vf_fma(pv, vv[c], acc[i][c]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < nq; i++)
#pragma GCC unroll 4
        for (int c = 0; c < n_vec; c++) {
            float *to = o + i * hd + d0 + c * VL;
            if (c == n_vec - 1 && tail < VL)
                vf_store_n(to, acc[i][c], tail);
            else
                vf_store(to, acc[i][c]);
        }
}

INLINE void value_row(const float *p, const int nq, int64_t n_keys, int64_t hd, const bool f16, const void *v, float *o)
{
    int64_t d = 0;
    for (; d + 4 * VL <= hd; d += 4 * VL) value_tile(p, nq, n_keys, hd, f16, v, d, 4, VL, o);
    int64_t rest = hd - d, n_vec = (rest + VL - 1) / VL, tail = rest - (n_vec - 1) * VL;
    if (n_vec == 1) value_tile(p, nq, n_keys, hd, f16, v, d, 1, tail, o);
    if (n_vec == 2) value_tile(p, nq, n_keys, hd, f16, v, d, 2, tail, o);
    if (n_vec == 3) value_tile(p, nq, n_keys, hd, f16, v, d, 3, tail, o);
    if (n_vec == 4) value_tile(p, nq, n_keys, hd, f16, v, d, 4, tail, o);
}

/* Scores to exp(score − max) in place, zeros behind the keys that are seen, up to end (a multiple of VL). */
INLINE void softmax_row(float *p, int64_t seen, int64_t end, float *m, float *l)
{
    vf mv = vf_set1(-INFINITY);
    int64_t j = 0;
    for (; j + VL <= seen; j += VL) mv = vf_max(vf_load(p + j), mv);
    float max = vf_max_element(mv);
    for (int64_t i = j; i < seen; i++) max = p[i] > max ? p[i] : max;
    for (int64_t i = seen; i < end; i++) p[i] = -INFINITY;
    vf sum = vf_zero(), mm = vf_set1(max == -INFINITY ? 0 : max);
    for (j = 0; j < end; j += VL) {
        vf e = vf_exp(vf_sub(vf_load(p + j), mm));
        vf_store(p + j, e);
        sum = vf_add(sum, e);
    }
    *m = max;
    *l = vf_sum(sum);
}

INLINE void attn_queries(const float *const *q, const int32_t *seen, const int nq, int64_t hd, const bool f16,
                         const void *const *k, const void *v, float scale, float *m, float *l, float *o, float *p)
{
    int64_t n = 0;
    for (int i = 0; i < nq; i++) n = seen[i] > n ? seen[i] : n;
    int64_t end = (n + VL - 1) / VL * VL;
    for (int64_t key = 0; key < n; key += SCORE_KEYS) score_tile(q, nq, hd, f16, k, key, n, scale, p);
    for (int i = 0; i < nq; i++) softmax_row(p + i * ATTN_CHUNK, seen[i], end, m + i, l + i);
    value_row(p, nq, n, hd, f16, v, o);
}

INLINE void attn_all(const float *const *q, const int32_t *seen, int n_q, int64_t hd, const bool f16,
                     const void *const *k, const void *v, float scale, float *m, float *l, float *o, float *p)
{
    int i = 0;
    for (; i + QUERIES <= n_q; i += QUERIES)
        attn_queries(q + i, seen + i, QUERIES, hd, f16, k, v, scale, m + i, l + i, o + i * hd, p);
    for (; i + 3 <= n_q; i += 3)
        attn_queries(q + i, seen + i, 3 < QUERIES ? 3 : QUERIES, hd, f16, k, v, scale, m + i, l + i, o + i * hd, p);
    for (; i < n_q; i++) attn_queries(q + i, seen + i, 1, hd, f16, k, v, scale, m + i, l + i, o + i * hd, p);
}

static void attn_chunk_rows(const float *const *q, const int32_t *seen, int n_q, int64_t hd, bool f16,
                            const void *const *k, const void *v, float scale, float *m, float *l, float *o, float *p)
{
    if (f16)
        attn_all(q, seen, n_q, hd, true, k, v, scale, m, l, o, p);
    else
        attn_all(q, seen, n_q, hd, false, k, v, scale, m, l, o, p);
}

static void attn_merge_row(float *m, float *l, float *o, float m2, float l2, const float *o2, int64_t hd)
{
    if (m2 == -INFINITY) return;
    float top = *m > m2 ? *m : m2, t[VL] = {*m - top, m2 - top};
    vf_store(t, vf_exp(vf_load(t)));
    vf a = vf_set1(t[0]), b = vf_set1(t[1]);
    *m = top;
    *l = *l * t[0] + l2 * t[1];
    int64_t d = 0;
    for (; d + VL <= hd; d += VL) vf_store(o + d, vf_fma(vf_load(o + d), a, vf_mul(vf_load(o2 + d), b)));
    if (d < hd)
        vf_store_n(o + d, vf_fma(vf_load_n(o + d, hd - d), a, vf_mul(vf_load_n(o2 + d, hd - d), b)), hd - d);
}
