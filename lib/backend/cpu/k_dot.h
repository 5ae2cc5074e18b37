/* Kernel source, compiled per instruction set: register-blocked dot products. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

/* Accumulators fill the registers: ROWS × 4 and what a step loads. */
#if VL == 16
#define ROWS 6 /* 24 of 32 zmm */
#elif VL == 8
#define ROWS 3 /* 12 of 16 ymm */
#else
#define ROWS 2
#endif

INLINE vf elem_load(const void *w, int64_t k, enum elem e)
{
    if (e == ELEM_F32) return vf_load((const float *)w + k);
    if (e == ELEM_F16) return vf_load_f16((const uint16_t *)w + k);
    return vf_load_bf16((const uint16_t *)w + k);
}

INLINE vf elem_load_n(const void *w, int64_t k, int64_t n, enum elem e)
{
    if (e == ELEM_F32) return vf_load_n((const float *)w + k, n);
    if (e == ELEM_F16) return vf_load_f16_n((const uint16_t *)w + k, n);
    return vf_load_bf16_n((const uint16_t *)w + k, n);
}

INLINE void dot_tile(const void *const *w, const float *const *x, int64_t n, const int nt, float *y, const enum elem e)
{
    vf acc[ROWS][DOT_TOKENS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int t = 0; t < DOT_TOKENS; t++) acc[i][t] = vf_zero();
    int64_t k = 0;
    for (; k + VL <= n; k += VL) {
        vf xv[DOT_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) xv[t] = vf_load(x[t] + k);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            vf wv = elem_load(w[i], k, e);
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) acc[i][t] = vf_fma(wv, xv[t], acc[i][t]);
        }
    }
    if (k < n) {
        vf xv[DOT_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) xv[t] = vf_load_n(x[t] + k, n - k);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            vf wv = elem_load_n(w[i], k, n - k, e);
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) acc[i][t] = vf_fma(wv, xv[t], acc[i][t]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) vf_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3], y + i * DOT_TOKENS);
}

/* The same sums, each row from one end to the other before the next: for rows that come from memory, whose bandwidth one
 * stream uses better than several (measured on Zen 4 with 4 KiB pages: 17 to 20 GB/s a core against 10 to 14). */
INLINE void dot_stream(const void *const *w, const float *const *x, int64_t n, const int nt, float *y, const enum elem e)
{
    for (int i = 0; i < ROWS; i++) {
        vf acc[DOT_TOKENS];
#pragma GCC unroll 4
        for (int t = 0; t < DOT_TOKENS; t++) acc[t] = vf_zero();
        int64_t k = 0;
        for (; k + VL <= n; k += VL) {
            vf wv = elem_load(w[i], k, e);
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) acc[t] = vf_fma(wv, vf_load(x[t] + k), acc[t]);
        }
        if (k < n) {
            vf wv = elem_load_n(w[i], k, n - k, e);
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) acc[t] = vf_fma(wv, vf_load_n(x[t] + k, n - k), acc[t]);
        }
        vf_sum4(acc[0], acc[1], acc[2], acc[3], y + i * DOT_TOKENS);
    }
}

#define DOT(name, how, e)                                                                                   \
    static void name(const void *const *w, const float *const *x, int64_t n, int n_tok, float *y)           \
    {                                                                                                       \
        switch (n_tok) {                                                                                    \
        case 1: how(w, x, n, 1, y, e); break;                                                               \
        case 2: how(w, x, n, 2, y, e); break;                                                               \
        case 3: how(w, x, n, 3, y, e); break;                                                               \
        default: how(w, x, n, 4, y, e); break;                                                              \
        }                                                                                                   \
    }
DOT(dot_f32, dot_tile, ELEM_F32)
DOT(stream_f32, dot_stream, ELEM_F32)
DOT(stream_f16, dot_stream, ELEM_F16)
DOT(stream_bf16, dot_stream, ELEM_BF16)
