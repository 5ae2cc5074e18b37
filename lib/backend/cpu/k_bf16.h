/* Kernel source, compiled per instruction set: products of bf16 pairs (bf16.h) without an instruction for them. */
#include "backend/cpu/bf16.h"
#include "backend/cpu/simd.h"

/* 2·VL rows of a panel, from the row whose first pair `panel` is. vf_fma rounds like a multiplication, which is exact here, and an addition. */
INLINE void bf16_rows(const uint8_t *panel, int64_t n_pairs, const uint16_t *x, int64_t ld, const int nt, float *y)
{
    vf sum[2][BF16_TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) sum[0][t] = sum[1][t] = vf_zero();
    for (int64_t k = 0; k < n_pairs; k++, panel += BF16_ROWS * 4) {
        vf e0 = vf_bf16_even(panel), o0 = vf_bf16_odd(panel);
        vf e1 = vf_bf16_even(panel + 4 * VL), o1 = vf_bf16_odd(panel + 4 * VL);
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            vf xe = vf_set1(bf16_to_f32(x[t * ld + 2 * k])), xo = vf_set1(bf16_to_f32(x[t * ld + 2 * k + 1]));
            sum[0][t] = vf_fma(e0, xe, vf_fma(o0, xo, sum[0][t]));
            sum[1][t] = vf_fma(e1, xe, vf_fma(o1, xo, sum[1][t]));
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) {
        vf_store(y + t * BF16_ROWS, sum[0][t]);
        vf_store(y + t * BF16_ROWS + VL, sum[1][t]);
    }
}

static void bf16_one(const uint8_t *panel, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok, float *y)
{
    for (int r = 0; r < BF16_ROWS; r += 2 * VL)
        switch (n_tok) {
        case 1: bf16_rows(panel + 4 * r, n_pairs, x, ld, 1, y + r); break;
        case 2: bf16_rows(panel + 4 * r, n_pairs, x, ld, 2, y + r); break;
        case 3: bf16_rows(panel + 4 * r, n_pairs, x, ld, 3, y + r); break;
        default: bf16_rows(panel + 4 * r, n_pairs, x, ld, 4, y + r); break;
        }
}

static void bf16_two(const uint8_t *panel, const uint8_t *next, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok,
                     float *y)
{
    float part[BF16_TOKENS * BF16_ROWS];
    for (int i = 0; i < 2; i++) {
        bf16_one(i ? next : panel, n_pairs, x, ld, n_tok, part);
        for (int t = 0; t < n_tok; t++)
            memcpy(y + (2 * t + i) * BF16_ROWS, part + t * BF16_ROWS, BF16_ROWS * sizeof *y);
    }
}

const struct bf16_kernels KERNEL(bf16) = {bf16_one, BF16_TOKENS, bf16_two};
