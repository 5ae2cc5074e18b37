/* Integer dot products with AVX2. vpmaddubsw multiplies unsigned by signed bytes and adds neighbours with saturation at
 * 16 bits, so each use keeps within them: codes up to 31 times 127 twice is 7874, four such sums fit; 8-bit weights go
 * in as |w| ≤ 128 with the sign moved to the activation, 2·128·127 = 32512. All sums are exact. */
#if defined(__x86_64__)
#include "backend/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i quad(const int8_t *q, int64_t i)
{
    int32_t v;
    memcpy(&v, q + 4 * i, 4);
    return _mm256_set1_epi32(v);
}

static void quantize(const float *x, int64_t n, int8_t *q, float *scale, int32_t *neg)
{
    for (int64_t k = 0; k < n; k += ACT_GROUP, scale++, neg++) {
        float in[ACT_GROUP] = {0};
        memcpy(in, x + k, (size_t)(n - k < ACT_GROUP ? n - k : ACT_GROUP) * sizeof *in);
        __m256i mag = _mm256_set1_epi32(0x7fffffff), top = _mm256_setzero_si256();
        for (int i = 0; i < ACT_GROUP; i += 8)
            top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(in + i)), mag));
        uint32_t lane[8], bits = 0;
        _mm256_storeu_si256((__m256i *)lane, top);
        for (int i = 0; i < 8; i++) bits = lane[i] > bits ? lane[i] : bits;
        float max, inv;
        memcpy(&max, &bits, 4);
        inv = 127.0f / max;
        if (!(inv < __builtin_inff())) inv = 0; /* 0, too small for a scale, or NaN */
        *scale = inv == 0 ? max * 0.0f : max / 127.0f;
        __m256i v[4], sum = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(in + 8 * i), _mm256_set1_ps(inv)));
            if (inv == 0) v[i] = _mm256_setzero_si256();
            sum = _mm256_add_epi32(sum, v[i]);
        }
        __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(q + k), b);
        _mm256_storeu_si256((__m256i *)lane, sum);
        *neg = 0;
        for (int i = 0; i < 8; i++) *neg -= (int32_t)lane[i];
    }
}

/* Scales of rows 8h … 8h+7 */
INLINE __m256 scales(const struct panels *w, const uint8_t *panel, int64_t g, int h)
{
    const void *p = panel;
    int64_t at = g * PANEL_ROWS + 8 * h;
    if (w->scale_dtype == DT_F32) return _mm256_loadu_ps((const float *)p + at);
    __m128i v = _mm_loadu_si128((const __m128i *)((const uint16_t *)p + at));
    if (w->scale_dtype == DT_F16) return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

/* Sums of neighbours of narrow codes (unsigned, ≤ 31) or wide weights (signed), 16 bits each. */
INLINE __m256i pairs(__m256i w, __m256i q, const bool wide)
{
    return wide ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)) : _mm256_maddubs_epi16(w, q);
}

INLINE __m256i widen(__m256i pair_sums) { return _mm256_madd_epi16(pair_sums, _mm256_set1_epi16(1)); }

/* The two sets of codes of half a line; wide ones come out signed. */
INLINE void codes(const uint8_t *line, const enum panel_kind kind, __m256i table, __m256i *lo, __m256i *hi)
{
    __m256i v = _mm256_loadu_si256((const __m256i *)line), m = _mm256_set1_epi8(15);
    if (kind == PANEL_8) {
        *lo = *hi = _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80));
        return;
    }
    *lo = _mm256_and_si256(v, m);
    *hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), m);
    if (kind == PANEL_4T) {
        *lo = _mm256_shuffle_epi8(table, *lo);
        *hi = _mm256_shuffle_epi8(table, *hi);
    }
}

INLINE __m256i signed_table(const struct panels *w)
{
    __m128i t = _mm_xor_si128(_mm_loadu_si128((const __m128i *)w->table), _mm_set1_epi8((char)0x80));
    return _mm256_broadcastsi128_si256(t);
}

INLINE __m256i zeros_of(const struct panels *w, const uint8_t *panel, int64_t g, int h)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(panel + w->zeros_at + (size_t)(g * PANEL_ROWS + 8 * h))));
}

INLINE void few_rows(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, float *y, const int nt,
                     const enum panel_kind kind)
{
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    const __m256i table = signed_table(w);
    const bool wide = kind != PANEL_4;
    const int n_lines = kind == PANEL_8 ? 8 : 4;
    for (int h = 0; h < 2; h++) {
        const uint8_t *line = p + w->codes_at + 32 * h;
        __m256 sum[4], s = _mm256_setzero_ps();
        __m256i z = _mm256_set1_epi32(8);
        for (int t = 0; t < nt; t++) sum[t] = _mm256_setzero_ps();
        for (int64_t a = 0, g = -1, next = 0; a < w->n_act; a++, line += n_lines * 64) {
            if (a == next) {
                g++;
                next += w->group / ACT_GROUP;
                if (!w->one_scale) s = scales(w, p, g, h);
                if (w->zeros) z = zeros_of(w, p, g, h);
            }
            __m256i d[4];
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) d[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int i = 0; i < n_lines; i++) {
                __m256i lo, hi;
                codes(line + 64 * i, kind, table, &lo, &hi);
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++) {
                    const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
                    if (kind == PANEL_8) {
                        d[t] = _mm256_add_epi32(d[t], widen(pairs(lo, quad(q, i), true)));
                    } else if (wide) {
                        d[t] = _mm256_add_epi32(d[t], widen(pairs(lo, quad(q, 2 * i), true)));
                        d[t] = _mm256_add_epi32(d[t], widen(pairs(hi, quad(q, 2 * i + 1), true)));
                    } else { /* 15·127·2·8 = 30480: all eight pairs fit 16 bits */
                        d[t] = _mm256_add_epi16(d[t], pairs(lo, quad(q, 2 * i), false));
                        d[t] = _mm256_add_epi16(d[t], pairs(hi, quad(q, 2 * i + 1), false));
                    }
                }
            }
            for (int t = 0; t < nt; t++) {
                __m256i n = d[t];
                if (!wide) {
                    __m256i neg = _mm256_set1_epi32(x->neg[(t0 + t) * x->n_act + a]);
                    n = _mm256_add_epi32(widen(n), _mm256_mullo_epi32(z, neg));
                }
                __m256 sx = _mm256_set1_ps(x->scale[(t0 + t) * x->n_act + a]);
                sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(n), w->one_scale ? sx : _mm256_mul_ps(s, sx), sum[t]);
            }
        }
        if (w->one_scale) s = scales(w, p, 0, h);
        for (int t = 0; t < nt; t++)
            _mm256_storeu_ps(y + t * PANEL_ROWS + 8 * h, w->one_scale ? _mm256_mul_ps(sum[t], s) : sum[t]);
    }
}

#define FEW(nt)                                                            \
    case nt:                                                               \
        if (w->kind == PANEL_8)                                            \
            few_rows(w, panel, x, t0, y, nt, PANEL_8);                     \
        else if (w->kind == PANEL_4T)                                      \
            few_rows(w, panel, x, t0, y, nt, PANEL_4T);                    \
        else                                                               \
            few_rows(w, panel, x, t0, y, nt, PANEL_4);                     \
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

enum { TOKENS = 4 };

/* u: (n_act·8, 64), quad by quad. Narrow codes are unsigned, raised by 16 − zero where there are zero points; wide ones
 * are signed. */
static void unpack(const struct panels *w, int64_t p0, uint8_t *u, float *s)
{
    const uint8_t *p = w->data + (size_t)p0 * w->panel_bytes, *line = p + w->codes_at;
    const __m256i table = signed_table(w);
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (int64_t g = 0, a = 0; g < w->n_groups; g++) {
        __m256i z[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int h = 0; h < 2; h++) {
            _mm256_storeu_ps(s + g * PANEL_ROWS + 8 * h, scales(w, p, g, h));
            if (!w->zeros) continue;
            const uint8_t *zp = p + w->zeros_at + (size_t)(g * PANEL_ROWS + 8 * h);
            __m128i raise = _mm_sub_epi8(_mm_set1_epi8(16), _mm_loadl_epi64((const __m128i *)zp));
            z[h] = _mm256_set_m128i(_mm_shuffle_epi8(raise, _mm_add_epi8(spread, _mm_set1_epi8(4))),
                                    _mm_shuffle_epi8(raise, spread));
        }
        int64_t end = (g + 1) * (w->group / ACT_GROUP);
        for (; a < end && a < w->n_act; a++)
            for (int i = 0; i < (w->kind == PANEL_8 ? 8 : 4); i++, line += 64)
                for (int h = 0; h < 2; h++) {
                    __m256i lo, hi;
                    codes(line + 32 * h, w->kind, table, &lo, &hi);
                    if (w->kind == PANEL_8) {
                        _mm256_storeu_si256((__m256i *)(u + (a * 8 + i) * 64 + 32 * h), lo);
                        continue;
                    }
                    _mm256_storeu_si256((__m256i *)(u + (a * 8 + 2 * i) * 64 + 32 * h), _mm256_add_epi8(lo, z[h]));
                    _mm256_storeu_si256((__m256i *)(u + (a * 8 + 2 * i + 1) * 64 + 32 * h), _mm256_add_epi8(hi, z[h]));
                }
    }
}

INLINE void many_rows(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0,
                      float *y, const int nt, const bool wide)
{
    const __m256i bias = _mm256_set1_epi32(panel_bias(w));
    const int64_t per = w->group / ACT_GROUP;
    for (int i = 0; i < nt * 2; i++) _mm256_storeu_ps(y + i * 8, _mm256_setzero_ps());
    for (int64_t a = 0, next = per; a < w->n_act; a++) {
        if (a == next) {
            s += PANEL_ROWS;
            next += per;
        }
        __m256i d[TOKENS][2];
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) d[t][0] = d[t][1] = _mm256_setzero_si256();
        for (int part = 0; part < 2; part++) { /* four quads: narrow pair sums of 16 bits do not overflow */
            __m256i e[TOKENS][2];
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++) e[t][0] = e[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++, u += 64) {
                __m256i w0 = _mm256_loadu_si256((const __m256i *)u), w1 = _mm256_loadu_si256((const __m256i *)(u + 32));
#pragma GCC unroll 4
                for (int t = 0; t < nt; t++) {
                    __m256i v = quad(x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP, part * 4 + i);
                    if (wide) {
                        e[t][0] = _mm256_add_epi32(e[t][0], widen(pairs(w0, v, true)));
                        e[t][1] = _mm256_add_epi32(e[t][1], widen(pairs(w1, v, true)));
                    } else {
                        e[t][0] = _mm256_add_epi16(e[t][0], pairs(w0, v, false));
                        e[t][1] = _mm256_add_epi16(e[t][1], pairs(w1, v, false));
                    }
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++)
                for (int h = 0; h < 2; h++) d[t][h] = _mm256_add_epi32(d[t][h], wide ? e[t][h] : widen(e[t][h]));
        }
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            __m256 sx = _mm256_set1_ps(x->scale[(t0 + t) * x->n_act + a]);
            __m256i off = _mm256_mullo_epi32(bias, _mm256_set1_epi32(wide ? 0 : x->neg[(t0 + t) * x->n_act + a]));
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                float *to = y + t * PANEL_ROWS + 8 * h;
                __m256 f = w->one_scale ? sx : _mm256_mul_ps(_mm256_loadu_ps(s + 8 * h), sx);
                __m256i n = _mm256_add_epi32(d[t][h], off);
                _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(n), f, _mm256_loadu_ps(to)));
            }
        }
    }
    for (int i = 0; w->one_scale && i < nt * 2; i++)
        _mm256_storeu_ps(y + i * 8, _mm256_mul_ps(_mm256_loadu_ps(y + i * 8), _mm256_loadu_ps(s + i % 2 * 8)));
}

#define MANY(nt)                                                           \
    case nt:                                                               \
        if (w->kind == PANEL_4)                                            \
            many_rows(w, u, s, x, t0, y, nt, false);                       \
        else                                                               \
            many_rows(w, u, s, x, t0, y, nt, true);                        \
        break

static void many(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y)
{
    switch (n_tok) {
        MANY(1);
        MANY(2);
        MANY(3);
        MANY(4);
    }
}

const struct int8_kernels int8_avx2 = {"avx2", quantize, few, 1, TOKENS, unpack, many};
#endif
