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

#define DOT(name, e)                                                                                        \
    static void name(const void *const *w, const float *const *x, int64_t n, int n_tok, float *y)           \
    {                                                                                                       \
        switch (n_tok) {                                                                                    \
        case 1: dot_tile(w, x, n, 1, y, e); break;                                                          \
        case 2: dot_tile(w, x, n, 2, y, e); break;                                                          \
        case 3: dot_tile(w, x, n, 3, y, e); break;                                                          \
        default: dot_tile(w, x, n, 4, y, e); break;                                                         \
        }                                                                                                   \
    }
DOT(dot_f32, ELEM_F32)
DOT(dot_f16, ELEM_F16)
DOT(dot_bf16, ELEM_BF16)
