/* Integer dot products with AVX-512 VNNI. vpdpbusd multiplies 4 unsigned weights of each of 16 rows with the same 4
 * signed activations and adds the exact sum to the row's 32-bit lane; sums start at −bias·Σq, so that what the codes
 * were raised by comes off again. */
#if defined(__x86_64__)
#include "backend/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* u times 4 activations in every lane, which the instruction itself broadcasts. */
INLINE __m512i dot_quad(__m512i sum, __m512i u, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(u), "m"(*(const int8_t(*)[4])q));
    return sum;
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
    __m512 sum[4], part[4], s = _mm512_setzero_ps(); /* part: of the weight group, not yet scaled */
    __m512i z = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) sum[t] = part[t] = _mm512_setzero_ps();
    for (int64_t a = 0, g = -1, next = 0; a < w->n_act; a++, line += n_lines * 64) {
        if (a == next) { /* a new scale group */
            g++;
            next += w->group / ACT_GROUP;
            if (!one_scale) {
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++) {
                    sum[t] = _mm512_fmadd_ps(part[t], s, sum[t]);
                    part[t] = _mm512_setzero_ps();
                }
                s = scales(w, p, g);
            }
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
                    d[t][i % 2] = dot_quad(d[t][i % 2], v, x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP + 4 * i);
            } else {
                /* high codes stay where they are, times 16, and their sum is shifted: exact, and one shift a group */
                __m512i lo = codes(v, false, kind, table);
                __m512i hi = kind == PANEL_4 ? _mm512_and_si512(v, _mm512_set1_epi8((char)0xf0)) : codes(v, true, kind, table);
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++) {
                    const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
                    d[t][0] = dot_quad(d[t][0], lo, q + 8 * i);
                    d[t][1] = dot_quad(d[t][1], hi, q + 8 * i + 4);
                }
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            __m512 sx = _mm512_set1_ps(x->scale[(t0 + t) * x->n_act + a]);
            if (kind == PANEL_4) d[t][1] = _mm512_srai_epi32(d[t][1], 4);
            __m512 f = _mm512_cvtepi32_ps(_mm512_add_epi32(d[t][0], d[t][1]));
            part[t] = _mm512_fmadd_ps(f, sx, part[t]);
        }
    }
    if (one_scale) s = scales(w, p, 0);
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++)
        _mm512_storeu_ps(y + t * PANEL_ROWS,
                         one_scale ? _mm512_mul_ps(part[t], s) : _mm512_fmadd_ps(part[t], s, sum[t]));
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

enum { BLOCK = 4, TOKENS = 6, HALF = 3, TURN = 8 };

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

/* n ≥ 1 activation groups of HALF tokens × BLOCK panels, written out as one statement: whatever GCC 12 makes of
 * intrinsics here moves the sums about (a third of the speed, measured). Both the integer sums of a group and the float
 * sums of them all stay in registers: storing the latter after each group costs a sixth of the time.
 *   zmm0 … 3 weights of a quad, zmm4 and 5 broadcasts, zmm(8 + 4t + b) integer and zmm(20 + 4t + b) float sums of token t
 *   and panel b
 *   u: (n·8, BLOCK, 64); q: token 0, ld bytes between tokens; neg, sx: −Σq and scale of token 0, ls bytes between tokens;
 *   s: (BLOCK, 16) scales; y: (HALF, BLOCK, 16) */
#define DOT4(from, r0, r1, r2, r3)                                                                          \
    "vpbroadcastd " from ", %%zmm4\n\t"                                                                     \
    "vpdpbusd %%zmm4, %%zmm0, %%zmm" #r0 "\n\tvpdpbusd %%zmm4, %%zmm1, %%zmm" #r1 "\n\t"                   \
    "vpdpbusd %%zmm4, %%zmm2, %%zmm" #r2 "\n\tvpdpbusd %%zmm4, %%zmm3, %%zmm" #r3 "\n\t"
#define QUAD(i)                                                                                             \
    "vmovdqa64 256*" #i "(%[u]), %%zmm0\n\tvmovdqa64 256*" #i "+64(%[u]), %%zmm1\n\t"                      \
    "vmovdqa64 256*" #i "+128(%[u]), %%zmm2\n\tvmovdqa64 256*" #i "+192(%[u]), %%zmm3\n\t"                 \
    DOT4("4*" #i "(%[q])", 8, 9, 10, 11) DOT4("4*" #i "(%[q],%[ld])", 12, 13, 14, 15)                       \
    DOT4("4*" #i "(%[q],%[ld],2)", 16, 17, 18, 19)
#define START(from, r0, r1, r2, r3)                                                                         \
    "movl " from ", %k[v]\n\timull %[bias], %k[v]\n\tvpbroadcastd %k[v], %%zmm" #r0 "\n\t"                 \
    "vmovdqa64 %%zmm" #r0 ", %%zmm" #r1 "\n\tvmovdqa64 %%zmm" #r0 ", %%zmm" #r2 "\n\t"                     \
    "vmovdqa64 %%zmm" #r0 ", %%zmm" #r3 "\n\t"
#define ADD(r, f) "vcvtdq2ps %%zmm" #r ", %%zmm" #r "\n\tvfmadd231ps %%zmm" #r ", %%zmm5, %%zmm" #f "\n\t"
#define ADD4(from, r0, r1, r2, r3, f0, f1, f2, f3)                                                          \
    "vbroadcastss " from ", %%zmm5\n\t" ADD(r0, f0) ADD(r1, f1) ADD(r2, f2) ADD(r3, f3)
#define Y4(how, t, f0, f1, f2, f3) how(t, 0, f0) how(t, 1, f1) how(t, 2, f2) how(t, 3, f3)
#define ALL_Y(how) Y4(how, 0, 20, 21, 22, 23) Y4(how, 1, 24, 25, 26, 27) Y4(how, 2, 28, 29, 30, 31)
#define ZERO(t, b, f) "vpxord %%xmm" #f ", %%xmm" #f ", %%xmm" #f "\n\t"
#define LOAD(t, b, f) "vmovaps 256*" #t "+64*" #b "(%[y]), %%zmm" #f "\n\t"
#define STORE(t, b, f) "vmovaps %%zmm" #f ", 256*" #t "+64*" #b "(%[y])\n\t"
#define STORE_SCALED(t, b, f)                                                                               \
    "vfmadd213ps 256*" #t "+64*" #b "(%[y]), %%zmm" #b ", %%zmm" #f "\n\t" STORE(t, b, f)
#define SCALES                                                                                              \
    "vmovups (%[s]), %%zmm0\n\tvmovups 64(%[s]), %%zmm1\n\tvmovups 128(%[s]), %%zmm2\n\tvmovups 192(%[s]), %%zmm3\n\t"
#define GROUPS(first, last)                                                                                 \
    __asm__ volatile(                                                                                       \
        first                                                                                               \
        ".p2align 5\n1:\n\t"                                                                                \
        START("(%[neg])", 8, 9, 10, 11) START("(%[neg],%[ls])", 12, 13, 14, 15)                             \
        START("(%[neg],%[ls],2)", 16, 17, 18, 19)                                                           \
        QUAD(0) QUAD(1) QUAD(2) QUAD(3) QUAD(4) QUAD(5) QUAD(6) QUAD(7)                                     \
        ADD4("(%[sx])", 8, 9, 10, 11, 20, 21, 22, 23) ADD4("(%[sx],%[ls])", 12, 13, 14, 15, 24, 25, 26, 27) \
        ADD4("(%[sx],%[ls],2)", 16, 17, 18, 19, 28, 29, 30, 31)                                             \
        "addq $2048, %[u]\n\taddq $32, %[q]\n\taddq $4, %[neg]\n\taddq $4, %[sx]\n\tdecq %[n]\n\tjnz 1b\n\t" \
        last                                                                                                \
        : [u] "+r"(u), [q] "+r"(q), [neg] "+r"(neg), [sx] "+r"(sx), [n] "+r"(n), [v] "=&r"(v)               \
        : [ld] "r"(ld), [ls] "r"(ls), [bias] "r"(bias), [s] "r"(s), [y] "r"(y)                              \
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11", \
          "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",         \
          "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31")

/* y += what groups a … a+n−1 give for HALF tokens from t0 on; of one weight group, whose scales s are applied at its end,
 * or not at all. */
static void groups(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int64_t a,
                   int64_t n, float *y)
{
    const int32_t bias = panel_bias(w);
    const int64_t ld = x->n_act * ACT_GROUP, ls = x->n_act * (int64_t)sizeof(float);
    const int8_t *q = x->q + t0 * ld + a * ACT_GROUP;
    const float *sx = x->scale + t0 * x->n_act + a;
    const int32_t *neg = x->neg + t0 * x->n_act + a;
    int64_t v;
    if (w->one_scale)
        GROUPS(ALL_Y(LOAD), ALL_Y(STORE));
    else
        GROUPS(ALL_Y(ZERO), SCALES ALL_Y(STORE_SCALED));
}

/* Always computes TOKENS tokens: rows of x behind the last are there (acts) and their results are dropped. Tokens take
 * turns after a weight group, or a part of it where sums just go on, so that the weights come from the first-level cache
 * for the second turn. */
static void many(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y)
{
    (void)n_tok;
    const int64_t per = w->one_scale ? TURN : w->group / ACT_GROUP;
    memset(y, 0, TOKENS * BLOCK * PANEL_ROWS * sizeof *y);
    for (int64_t a = 0; a < w->n_act; a += per) {
        int64_t n = w->n_act - a < per ? w->n_act - a : per;
        for (int t = 0; t < TOKENS; t += HALF)
            groups(w, u + a * 8 * BLOCK * 64, s, x, t0 + t, a, n, y + t * BLOCK * PANEL_ROWS);
        if (!w->one_scale) s += BLOCK * PANEL_ROWS;
    }
    for (int i = 0; w->one_scale && i < TOKENS * BLOCK; i++)
        _mm512_store_ps(y + i * 16, _mm512_mul_ps(_mm512_load_ps(y + i * 16), _mm512_loadu_ps(s + i % BLOCK * 16)));
}

const struct int8_kernels int8_vnni = {quantize, few, BLOCK, TOKENS, unpack, many};
#endif
