/* Integer dot products with AVX-512 VNNI. vpdpbusd multiplies 4 unsigned weights of each of 16 rows with the same 4
 * signed activations and adds the exact sum to the row's 32-bit lane; sums start at −bias·Σq, so that what the codes
 * were raised by comes off again. */
#if defined(__x86_64__)
#include "backend/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* As an instruction: with the intrinsic GCC 12 spills the 24 sums of `many` (half the speed, measured). */
INLINE __m512i dot(__m512i sum, __m512i u, __m512i q)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(q));
    return sum;
}

INLINE __m512i quad(const int8_t *q, int64_t i) /* 4 activations in every lane */
{
    int32_t v;
    memcpy(&v, q + 4 * i, 4);
    return _mm512_set1_epi32(v);
}

static void quantize(const float *x, int64_t n, int8_t *q, float *scale, int32_t *neg)
{
    for (int64_t k = 0; k < n; k += ACT_GROUP, scale++, neg++) {
        int64_t left = n - k;
        __mmask16 m0 = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __mmask16 m1 = left >= 32 ? 0xffff : left <= 16 ? 0 : (__mmask16)((1u << (left - 16)) - 1);
        __m512 a = _mm512_maskz_loadu_ps(m0, x + k), b = _mm512_maskz_loadu_ps(m1, x + k + 16);
        __m512i mag = _mm512_set1_epi32(0x7fffffff);
        __m512i top = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), mag),
                                       _mm512_and_si512(_mm512_castps_si512(b), mag));
        uint32_t bits = _mm512_reduce_max_epu32(top);
        float max, inv;
        memcpy(&max, &bits, 4);
        inv = 127.0f / max;
        if (!(inv < __builtin_inff())) inv = 0; /* 0, too small for a scale, or NaN */
        *scale = inv == 0 ? max * 0.0f : max / 127.0f;
        __m512 iv = _mm512_set1_ps(inv);
        __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, iv)), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, iv));
        if (inv == 0) qa = qb = _mm512_setzero_si512();
        _mm_storeu_si128((__m128i *)(q + k), _mm512_cvtsepi32_epi8(qa));
        _mm_storeu_si128((__m128i *)(q + k + 16), _mm512_cvtsepi32_epi8(qb));
        *neg = -_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
    }
}

INLINE __m512 scales(const struct panels *w, const uint8_t *panel, int64_t g)
{
    const void *p = panel;
    if (w->scale_dtype == DT_F32) return _mm512_loadu_ps((const float *)p + g * PANEL_ROWS);
    __m256i h = _mm256_loadu_si256((const __m256i *)((const uint16_t *)p + g * PANEL_ROWS));
    if (w->scale_dtype == DT_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

INLINE __m128i zeros_of(const struct panels *w, const uint8_t *panel, int64_t g)
{
    return _mm_loadu_si128((const __m128i *)(panel + w->zeros_at + (size_t)g * PANEL_ROWS));
}

/* Codes of one line as unsigned bytes: the low or the high nibbles, through the table if there is one. */
INLINE __m512i codes(__m512i line, const bool high, const enum panel_kind kind, __m512i table)
{
    if (kind == PANEL_8) return line;
    if (high) line = _mm512_srli_epi16(line, 4);
    line = _mm512_and_si512(line, _mm512_set1_epi8(15));
    return kind == PANEL_4T ? _mm512_shuffle_epi8(table, line) : line;
}

INLINE void few_rows(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, float *y, const int nt,
                     const enum panel_kind kind, const bool zeros, const bool one_scale)
{
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes, *line = p + w->codes_at;
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w->table));
    const int bias = zeros ? 0 : kind == PANEL_4 ? 8 : 128, n_lines = kind == PANEL_8 ? 8 : 4;
    for (size_t i = 0; i < w->codes_at; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
    __m512 sum[4], s = _mm512_setzero_ps();
    __m512i z = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) sum[t] = _mm512_setzero_ps();
    for (int64_t a = 0, g = -1, next = 0; a < w->n_act; a++, line += n_lines * 64) {
        if (a == next) { /* a new scale group */
            g++;
            next += w->group / ACT_GROUP;
            if (!one_scale) s = scales(w, p, g);
            if (zeros) z = _mm512_cvtepu8_epi32(zeros_of(w, p, g));
        }
        __m512i d[4][2];
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            int32_t neg = x->neg[(t0 + t) * x->n_act + a];
            d[t][0] = zeros ? _mm512_mullo_epi32(z, _mm512_set1_epi32(neg)) : _mm512_set1_epi32(bias * neg);
            d[t][1] = _mm512_setzero_si512();
        }
#pragma GCC unroll 8
        for (int i = 0; i < n_lines; i++) {
            __m512i v = _mm512_load_si512(line + 64 * i);
            if (kind == PANEL_8) {
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++)
                    d[t][i % 2] = dot(d[t][i % 2], v, quad(x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP, i));
            } else {
                __m512i lo = codes(v, false, kind, table), hi = codes(v, true, kind, table);
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++) {
                    const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
                    d[t][0] = dot(d[t][0], lo, quad(q, 2 * i));
                    d[t][1] = dot(d[t][1], hi, quad(q, 2 * i + 1));
                }
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            __m512 sx = _mm512_set1_ps(x->scale[(t0 + t) * x->n_act + a]);
            __m512 f = _mm512_cvtepi32_ps(_mm512_add_epi32(d[t][0], d[t][1]));
            sum[t] = _mm512_fmadd_ps(f, one_scale ? sx : _mm512_mul_ps(s, sx), sum[t]);
        }
    }
    if (one_scale) s = scales(w, p, 0);
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) _mm512_storeu_ps(y + t * PANEL_ROWS, one_scale ? _mm512_mul_ps(sum[t], s) : sum[t]);
}

#define FEW(nt)                                                                                             \
    case nt:                                                                                                \
        if (w->kind == PANEL_8)                                                                             \
            w->one_scale ? few_rows(w, panel, x, t0, y, nt, PANEL_8, false, true)                           \
                         : few_rows(w, panel, x, t0, y, nt, PANEL_8, false, false);                         \
        else if (w->kind == PANEL_4T)                                                                       \
            w->one_scale ? few_rows(w, panel, x, t0, y, nt, PANEL_4T, false, true)                          \
                         : few_rows(w, panel, x, t0, y, nt, PANEL_4T, false, false);                        \
        else if (w->zeros)                                                                                  \
            w->one_scale ? few_rows(w, panel, x, t0, y, nt, PANEL_4, true, true)                            \
                         : few_rows(w, panel, x, t0, y, nt, PANEL_4, true, false);                          \
        else                                                                                                \
            w->one_scale ? few_rows(w, panel, x, t0, y, nt, PANEL_4, false, true)                           \
                         : few_rows(w, panel, x, t0, y, nt, PANEL_4, false, false);                         \
        break

static void few(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, int n_tok, float *y)
{
    switch (n_tok) {
        FEW(1);
        FEW(2);
        FEW(3);
        FEW(4);
    }
}

enum { BLOCK = 4, TOKENS = 6 };

/* u: (n_act·8, BLOCK, 64): quad, panel, row and column of the quad. With zero points the codes become u − zero + 16. */
static void unpack(const struct panels *w, int64_t p0, uint8_t *u, float *s)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)w->table));
    /* byte 4r + c of a line takes byte r */
    const __m512i spread = _mm512_add_epi8(
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)),
        _mm512_setr_epi64(0, 0, 0x0404040404040404, 0x0404040404040404, 0x0808080808080808, 0x0808080808080808,
                          0x0c0c0c0c0c0c0c0c, 0x0c0c0c0c0c0c0c0c));
    for (int b = 0; b < BLOCK; b++) {
        uint8_t *to = u + b * 64;
        if (p0 + b >= w->n_panels) {
            for (int64_t i = 0; i < w->n_act * 8; i++) _mm512_store_si512(to + i * BLOCK * 64, _mm512_setzero_si512());
            for (int64_t g = 0; g < w->n_groups; g++)
                _mm512_storeu_ps(s + (g * BLOCK + b) * PANEL_ROWS, _mm512_setzero_ps());
            continue;
        }
        const uint8_t *p = w->data + (size_t)(p0 + b) * w->panel_bytes, *line = p + w->codes_at;
        for (int64_t g = 0, a = 0; g < w->n_groups; g++) {
            _mm512_storeu_ps(s + (g * BLOCK + b) * PANEL_ROWS, scales(w, p, g));
            __m512i z = _mm512_setzero_si512();
            if (w->zeros) {
                __m128i raise = _mm_sub_epi8(_mm_set1_epi8(16), zeros_of(w, p, g));
                z = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raise), spread);
            }
            int64_t end = (g + 1) * (w->group / ACT_GROUP);
            for (; a < end && a < w->n_act; a++)
                for (int i = 0; i < (w->kind == PANEL_8 ? 8 : 4); i++, line += 64) {
                    __m512i v = _mm512_load_si512(line);
                    if (w->kind == PANEL_8) {
                        _mm512_store_si512(to + (a * 8 + i) * BLOCK * 64, v);
                        continue;
                    }
                    __m512i lo = codes(v, false, PANEL_4, table), hi = codes(v, true, PANEL_4, table);
                    if (w->kind == PANEL_4T) {
                        lo = _mm512_shuffle_epi8(table, lo);
                        hi = _mm512_shuffle_epi8(table, hi);
                    }
                    _mm512_store_si512(to + (a * 8 + 2 * i) * BLOCK * 64, _mm512_add_epi8(lo, z));
                    _mm512_store_si512(to + (a * 8 + 2 * i + 1) * BLOCK * 64, _mm512_add_epi8(hi, z));
                }
        }
    }
}

/* One activation group of TOKENS × BLOCK panels, written out as one statement: whatever GCC 12 makes of intrinsics here
 * moves the 24 sums about (a third of the speed, measured).
 *   zmm0 … 3 weights of a quad, zmm4 and 5 broadcasts, zmm(8 + 4t + b) sums of token t and panel b
 *   u: (8, BLOCK, 64); q0, q3: token 0 and 3, ld bytes between tokens; start: TOKENS first values of the sums;
 *   s: (BLOCK, 16) scales; sx: activation scale of token 0, ls floats apart; y: (TOKENS, BLOCK, 16), added to */
#define DOT4(from, r0, r1, r2, r3)                                                                          \
    "vpbroadcastd " from ", %%zmm4\n\t"                                                                     \
    "vpdpbusd %%zmm4, %%zmm0, %%zmm" #r0 "\n\tvpdpbusd %%zmm4, %%zmm1, %%zmm" #r1 "\n\t"                   \
    "vpdpbusd %%zmm4, %%zmm2, %%zmm" #r2 "\n\tvpdpbusd %%zmm4, %%zmm3, %%zmm" #r3 "\n\t"
#define QUAD(i)                                                                                             \
    "vmovdqa64 256*" #i "(%[u]), %%zmm0\n\tvmovdqa64 256*" #i "+64(%[u]), %%zmm1\n\t"                      \
    "vmovdqa64 256*" #i "+128(%[u]), %%zmm2\n\tvmovdqa64 256*" #i "+192(%[u]), %%zmm3\n\t"                 \
    DOT4("4*" #i "(%[q0])", 8, 9, 10, 11) DOT4("4*" #i "(%[q0],%[ld])", 12, 13, 14, 15)                     \
    DOT4("4*" #i "(%[q0],%[ld],2)", 16, 17, 18, 19) DOT4("4*" #i "(%[q3])", 20, 21, 22, 23)                 \
    DOT4("4*" #i "(%[q3],%[ld])", 24, 25, 26, 27) DOT4("4*" #i "(%[q3],%[ld],2)", 28, 29, 30, 31)
#define START(t, r0, r1, r2, r3)                                                                            \
    "vpbroadcastd 4*" #t "(%[start]), %%zmm" #r0 "\n\tvmovdqa64 %%zmm" #r0 ", %%zmm" #r1 "\n\t"            \
    "vmovdqa64 %%zmm" #r0 ", %%zmm" #r2 "\n\tvmovdqa64 %%zmm" #r0 ", %%zmm" #r3 "\n\t"
#define SCALED(t, b, r)                                                                                     \
    "vmulps 64*" #b "(%[s]), %%zmm4, %%zmm5\n\tvcvtdq2ps %%zmm" #r ", %%zmm" #r "\n\t"                     \
    "vfmadd213ps 256*" #t "+64*" #b "(%[y]), %%zmm5, %%zmm" #r "\n\t"                                      \
    "vmovaps %%zmm" #r ", 256*" #t "+64*" #b "(%[y])\n\t"
#define UNSCALED(t, b, r)                                                                                   \
    "vcvtdq2ps %%zmm" #r ", %%zmm" #r "\n\t"                                                               \
    "vfmadd213ps 256*" #t "+64*" #b "(%[y]), %%zmm4, %%zmm" #r "\n\t"                                      \
    "vmovaps %%zmm" #r ", 256*" #t "+64*" #b "(%[y])\n\t"
#define ADD4(how, t, from, r0, r1, r2, r3)                                                                  \
    "vbroadcastss " from ", %%zmm4\n\t" how(t, 0, r0) how(t, 1, r1) how(t, 2, r2) how(t, 3, r3)
#define GROUP(how)                                                                                          \
    __asm__ volatile(                                                                                       \
        START(0, 8, 9, 10, 11) START(1, 12, 13, 14, 15) START(2, 16, 17, 18, 19) START(3, 20, 21, 22, 23)   \
        START(4, 24, 25, 26, 27) START(5, 28, 29, 30, 31)                                                   \
        QUAD(0) QUAD(1) QUAD(2) QUAD(3) QUAD(4) QUAD(5) QUAD(6) QUAD(7)                                     \
        ADD4(how, 0, "(%[sx])", 8, 9, 10, 11) ADD4(how, 1, "(%[sx],%[ls],4)", 12, 13, 14, 15)               \
        ADD4(how, 2, "(%[sx],%[ls],8)", 16, 17, 18, 19) ADD4(how, 3, "(%[sx3])", 20, 21, 22, 23)            \
        ADD4(how, 4, "(%[sx3],%[ls],4)", 24, 25, 26, 27) ADD4(how, 5, "(%[sx3],%[ls],8)", 28, 29, 30, 31)   \
        :                                                                                                   \
        : [u] "r"(u), [q0] "r"(q), [q3] "r"(q + 3 * ld), [ld] "r"(ld), [start] "r"(start), [s] "r"(s),      \
          [sx] "r"(sx), [sx3] "r"(sx + 3 * x->n_act), [ls] "r"(x->n_act), [y] "r"(y)                        \
        : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11",       \
          "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",         \
          "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31")

/* Always computes TOKENS tokens: rows of x behind the last are there (acts) and their results are dropped. */
static void many(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y)
{
    (void)n_tok;
    const int32_t bias = panel_bias(w);
    const int64_t per = w->group / ACT_GROUP, ld = x->n_act * ACT_GROUP;
    memset(y, 0, TOKENS * BLOCK * PANEL_ROWS * sizeof *y);
    const int8_t *q = x->q + t0 * ld;
    const float *sx = x->scale + t0 * x->n_act;
    const int32_t *neg = x->neg + t0 * x->n_act;
    int64_t left = per;
    for (int64_t a = 0; a < w->n_act; a++, u += 8 * BLOCK * 64, q += ACT_GROUP, sx++, neg++) {
        int32_t start[TOKENS];
        for (int t = 0; t < TOKENS; t++) start[t] = bias * neg[t * x->n_act];
        if (w->one_scale)
            GROUP(UNSCALED);
        else
            GROUP(SCALED);
        if (--left == 0) {
            left = per;
            s += BLOCK * PANEL_ROWS;
        }
    }
    if (!w->one_scale) return;
    s = s - (left == per ? BLOCK * PANEL_ROWS : 0);
    for (int i = 0; i < TOKENS * BLOCK; i++)
        _mm512_store_ps(y + i * 16, _mm512_mul_ps(_mm512_load_ps(y + i * 16), _mm512_loadu_ps(s + i % BLOCK * 16)));
}

const struct int8_kernels int8_vnni = {"avx512_vnni", quantize, few, BLOCK, TOKENS, unpack, many};
#endif
