/* Kernel source: products of many tokens with registers that hold one output each instead of one lane of it, so that
 * no sum goes across a register. The sums are those of `dot` to the bit: the lanes of a dot product, the columns k with
 * k mod VL = l, are summed one after the other, each for GEMM_ROWS × GEMM_TOKENS outputs at once, and added pairwise in
 * the order in which vf_sum4 adds them. For that order both operands are packed lane by lane. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

#if VL == 16

/* to[i] = column i of the 16 × 16 floats in r */
INLINE void transpose16(const __m512 *r, __m512 *to)
{
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    /* b[4i + c]: columns c, c + 4, c + 8, c + 12 of rows 4i … 4i+3 */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) {
            __m512d x = _mm512_castps_pd(a[4 * i + c]), y = _mm512_castps_pd(a[4 * i + 2 + c]);
            b[4 * i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[4 * i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 lo0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44), hi0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
        __m512 lo1 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44), hi1 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
        to[c] = _mm512_shuffle_f32x4(lo0, lo1, 0x88);
        to[4 + c] = _mm512_shuffle_f32x4(lo0, lo1, 0xdd);
        to[8 + c] = _mm512_shuffle_f32x4(hi0, hi1, 0x88);
        to[12 + c] = _mm512_shuffle_f32x4(hi0, hi1, 0xdd);
    }
}

/* The lanes in the order in which they are packed and summed, and where each is. Added whenever two sums of a size wait:
 * l + (l+8), then 2, 1 and 4 apart, as vf_sum4 does. */
static const uint8_t lane_place[16] = {0, 4, 2, 6, 8, 12, 10, 14, 1, 5, 3, 7, 9, 13, 11, 15};

/* Sixteen rows at a time. */
static void gemm_pack_w(float *to, const float *w, int64_t ld, int n_rows, int64_t n)
{
    int64_t steps = (n + 15) / 16;
    for (int64_t s = 0; s < steps; s++) {
        __m512 r[16], c[16];
        for (int i = 0; i < 16; i++)
            r[i] = i >= n_rows ? _mm512_setzero_ps() : vf_load_n(w + i * ld + 16 * s, n - 16 * s < 16 ? n - 16 * s : 16);
        transpose16(r, c);
        for (int l = 0; l < 16; l++) _mm512_store_ps(to + (lane_place[l] * steps + s) * GEMM_ROWS, c[l]);
    }
}

static void gemm_pack_x(float *to, const float *x, int64_t ld, int n_tok, int64_t n)
{
    int64_t steps = (n + 15) / 16, run = (steps + 15) / 16 * 16;
    for (int t = 0; t < GEMM_TOKENS; t++)
        for (int64_t s0 = 0; s0 < steps; s0 += 16) {
            __m512 r[16], c[16];
            for (int i = 0; i < 16; i++) {
                int64_t k = 16 * (s0 + i), left = n - k;
                r[i] = t >= n_tok || left <= 0 ? _mm512_setzero_ps() : vf_load_n(x + t * ld + k, left < 16 ? left : 16);
            }
            transpose16(r, c);
            for (int l = 0; l < 16; l++) _mm512_store_ps(to + (lane_place[l] * GEMM_TOKENS + t) * run + s0, c[l]);
        }
}

enum { GEMM_VECTORS = GEMM_ROWS / 16 };
struct gemm_sums {
    __m512 v[GEMM_TOKENS][GEMM_VECTORS];
};

/* One lane of all sums, added to the `level` sums that wait below, into waiting[level]. */
static void gemm_lane(const float *w, const float *x, int64_t run, int64_t steps, struct gemm_sums *waiting, int level)
{
    __m512 acc[GEMM_TOKENS][GEMM_VECTORS];
#pragma GCC unroll 6
    for (int t = 0; t < GEMM_TOKENS; t++)
#pragma GCC unroll 4
        for (int i = 0; i < GEMM_VECTORS; i++) acc[t][i] = _mm512_setzero_ps();
    const float *x3 = x + 3 * run;
    for (int64_t s = 0; s < steps; s++, w += GEMM_ROWS) {
        __m512 wv[GEMM_VECTORS];
        _mm_prefetch((const char *)(x + GEMM_TOKENS * run + 16 * s), _MM_HINT_T0); /* the next lane's */
#pragma GCC unroll 4
        for (int i = 0; i < GEMM_VECTORS; i++) _mm_prefetch((const char *)(w + 8 * GEMM_ROWS + 16 * i), _MM_HINT_T0);
#pragma GCC unroll 4
        for (int i = 0; i < GEMM_VECTORS; i++) wv[i] = _mm512_load_ps(w + 16 * i);
#pragma GCC unroll 6
        for (int t = 0; t < GEMM_TOKENS; t++) {
            __m512 xv = _mm512_set1_ps(t < 3 ? x[t * run + s] : x3[(t - 3) * run + s]);
#pragma GCC unroll 4
            for (int i = 0; i < GEMM_VECTORS; i++) acc[t][i] = _mm512_fmadd_ps(wv[i], xv, acc[t][i]);
        }
    }
    for (int l = 0; l < level; l++)
#pragma GCC unroll 6
        for (int t = 0; t < GEMM_TOKENS; t++)
#pragma GCC unroll 4
            for (int i = 0; i < GEMM_VECTORS; i++) acc[t][i] = _mm512_add_ps(waiting[l].v[t][i], acc[t][i]);
#pragma GCC unroll 6
    for (int t = 0; t < GEMM_TOKENS; t++)
#pragma GCC unroll 4
        for (int i = 0; i < GEMM_VECTORS; i++) waiting[level].v[t][i] = acc[t][i];
}

static void gemm_tile(const float *w, const float *x, int64_t n, float *y)
{
    int64_t steps = (n + 15) / 16, run = (steps + 15) / 16 * 16;
    struct gemm_sums waiting[5]; /* [j] holds a sum of 2^j lanes where bit j of i is set: the trailing ones are added */
    for (int i = 0; i < 16; i++) {
        gemm_lane(w + i * steps * GEMM_ROWS, x + i * GEMM_TOKENS * run, run, steps, waiting, __builtin_ctz(~(unsigned)i));
    }
    memcpy(y, waiting[4].v, sizeof waiting[4]);
}

#define GEMM .gemm_pack_w = gemm_pack_w, .gemm_pack_x = gemm_pack_x, .gemm = gemm_tile,
#else
#define GEMM
#endif
