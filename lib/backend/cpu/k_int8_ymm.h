/* The kernels of panels.h on 256 bits: included by a file that says how they multiply.
 *
 *   WIDE_BIAS       what weights of 8 bits are raised by when they are multiplied: 0 (signed) or 128 (unsigned)
 *   FEW_WHOLE       tokens up to which `few` has registers for all 16 rows of a panel at once
 *   BLOCK, TOKENS   the tile of `many`: panels, tokens
 *   __m256i quad(const int8_t *q, int64_t i)                        4 activations in every lane
 *   __m256i sum_start(__m256i offset)
 *   __m256i sum_add(__m256i sum, __m256i w, __m256i q, bool wide)   4 products for each of 8 rows; codes that are not wide
 *                                                                   are 0 … 15, and 8 times that have room in a sum
 *   __m256i sum_end(__m256i sum, __m256i offset, bool wide)         with the offset, 32 bits a row
 *   void tile(__m256i n[TOKENS][2], const uint8_t *u, const int8_t *q, int64_t ld, const int32_t *offset, bool wide)
 *       an activation group of 16 rows, u (8, 64), and of TOKENS rows of x, ld bytes apart: n[t] = Σ + offset[t]; codes
 *       that are not wide are 0 … 31
 *
 * All sums are exact, so every file gives the same bits. */
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

/* The two sets of codes of half a line; wide ones come out raised by WIDE_BIAS. */
INLINE void codes(const uint8_t *line, const enum panel_kind kind, __m256i table, __m256i *lo, __m256i *hi)
{
    __m256i v = _mm256_loadu_si256((const __m256i *)line), m = _mm256_set1_epi8(15);
    if (kind == PANEL_8) {
        *lo = *hi = WIDE_BIAS ? v : _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80));
        return;
    }
    *lo = _mm256_and_si256(v, m);
    *hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), m);
    if (kind == PANEL_4T) {
        *lo = _mm256_shuffle_epi8(table, *lo);
        *hi = _mm256_shuffle_epi8(table, *hi);
    }
}

INLINE __m256i table_of(const struct panels *w)
{
    __m128i t = _mm_loadu_si128((const __m128i *)w->table);
    if (!WIDE_BIAS) t = _mm_xor_si128(t, _mm_set1_epi8((char)0x80));
    return _mm256_broadcastsi128_si256(t);
}

INLINE __m256i zeros_of(const struct panels *w, const uint8_t *panel, int64_t g, int h)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(panel + w->zeros_at + (size_t)(g * PANEL_ROWS + 8 * h))));
}

/* Both halves of a panel at once where the registers allow it (nh 2), else one after the other. */
INLINE void few_rows(const struct panels *w, const uint8_t *p, const struct acts *x, int64_t t0, float *y, const int nt,
                     const enum panel_kind kind, const int nh)
{
    const __m256i table = table_of(w);
    const bool wide = kind != PANEL_4;
    const int n_lines = kind == PANEL_8 ? 8 : 4;
    for (size_t i = 0; i < w->codes_at; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
    for (int h0 = 0; h0 < 2; h0 += nh) {
        const uint8_t *line = p + w->codes_at + 32 * h0;
        __m256 sum[4][2], s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        __m256i z[2];
        for (int h = 0; h < nh; h++) {
            z[h] = _mm256_set1_epi32(wide ? WIDE_BIAS : 8);
            for (int t = 0; t < nt; t++) sum[t][h] = _mm256_setzero_ps();
        }
        for (int64_t a = 0, g = -1, next = 0; a < w->n_act; a++, line += n_lines * 64) {
            if (a == next) {
                g++;
                next += w->group / ACT_GROUP;
                for (int h = 0; h < nh; h++) {
                    if (!w->one_scale) s[h] = scales(w, p, g, h0 + h);
                    if (w->zeros) z[h] = zeros_of(w, p, g, h0 + h);
                }
            }
            __m256i d[4][2], off[4][2];
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++)
#pragma GCC unroll 2
                for (int h = 0; h < nh; h++) {
                    __m256i neg = _mm256_set1_epi32(x->neg[(t0 + t) * x->n_act + a]);
                    off[t][h] = wide && !WIDE_BIAS ? _mm256_setzero_si256() : _mm256_mullo_epi32(z[h], neg);
                    d[t][h] = sum_start(off[t][h]);
                }
#pragma GCC unroll 8
            for (int i = 0; i < n_lines; i++)
#pragma GCC unroll 2
                for (int h = 0; h < nh; h++) {
                    __m256i lo, hi;
                    codes(line + 64 * i + 32 * h, kind, table, &lo, &hi);
#pragma GCC unroll 4
                    for (int t = 0; t < nt; t++) {
                        const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
                        if (kind == PANEL_8) {
                            d[t][h] = sum_add(d[t][h], lo, quad(q, i), true);
                        } else { /* not raised: room for all eight */
                            d[t][h] = sum_add(d[t][h], lo, quad(q, 2 * i), wide);
                            d[t][h] = sum_add(d[t][h], hi, quad(q, 2 * i + 1), wide);
                        }
                    }
                }
#pragma GCC unroll 4
            for (int t = 0; t < nt; t++)
#pragma GCC unroll 2
                for (int h = 0; h < nh; h++) {
                    __m256 f = _mm256_cvtepi32_ps(sum_end(d[t][h], off[t][h], wide));
                    __m256 sx = _mm256_set1_ps(x->scale[(t0 + t) * x->n_act + a]);
                    sum[t][h] = _mm256_fmadd_ps(f, w->one_scale ? sx : _mm256_mul_ps(s[h], sx), sum[t][h]);
                }
        }
        for (int h = 0; h < nh; h++) {
            if (w->one_scale) s[h] = scales(w, p, 0, h0 + h);
            for (int t = 0; t < nt; t++)
                _mm256_storeu_ps(y + t * PANEL_ROWS + 8 * (h0 + h), w->one_scale ? _mm256_mul_ps(sum[t][h], s[h]) : sum[t][h]);
        }
    }
}

#define FEW(nt)                                                                                                    \
    case nt:                                                                                                       \
        if (w->kind == PANEL_8)                                                                                    \
            few_rows(w, p, x, t0, y, nt, PANEL_8, nt > FEW_WHOLE ? 1 : 2);                                         \
        else if (w->kind == PANEL_4T)                                                                              \
            few_rows(w, p, x, t0, y, nt, PANEL_4T, nt > FEW_WHOLE ? 1 : 2);                                        \
        else                                                                                                       \
            few_rows(w, p, x, t0, y, nt, PANEL_4, nt > FEW_WHOLE ? 1 : 2);                                         \
        break

static void few(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, int n_tok, float *y)
{
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    switch (n_tok) {
        FEW(1);
        FEW(2);
        FEW(3);
        FEW(4);
    }
}

/* u: (BLOCK, n_act·8, 64), panel by panel, quad by quad. Narrow codes are raised by 16 − zero where there are zero points. */
static void unpack_panel(const struct panels *w, const uint8_t *p, uint8_t *u, float *s)
{
    const uint8_t *line = p + w->codes_at;
    const __m256i table = table_of(w);
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

static void unpack(const struct panels *w, int64_t p0, uint8_t *u, float *s)
{
    size_t codes_bytes = (size_t)w->n_act * 8 * 64, n_scales = (size_t)w->n_groups * PANEL_ROWS;
    for (int b = 0; b < BLOCK; b++, u += codes_bytes, s += n_scales) {
        if (p0 + b < w->n_panels) {
            unpack_panel(w, w->data + (size_t)(p0 + b) * w->panel_bytes, u, s);
        } else {
            memset(u, 0, codes_bytes);
            memset(s, 0, n_scales * sizeof *s);
        }
    }
}

/* TOKENS rows of x and one panel: y (TOKENS, BLOCK·16) */
INLINE void many_rows(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0,
                      float *y, const bool wide)
{
    const int32_t bias = wide ? WIDE_BIAS : panel_bias(w);
    const int64_t n_act = x->n_act, ld = n_act * ACT_GROUP;
    const int width = BLOCK * PANEL_ROWS;
    const bool one_scale = w->one_scale;
    const int8_t *q = x->q + t0 * ld;
    const float *sx = x->scale + t0 * n_act;
    const int32_t *neg = x->neg + t0 * n_act;
    for (int i = 0; i < TOKENS * 2; i++) _mm256_store_ps(y + i / 2 * width + i % 2 * 8, _mm256_setzero_ps());
    for (int64_t a = 0, left = w->group / ACT_GROUP; a < n_act; a++, q += ACT_GROUP, sx++, neg++, u += 8 * 64) {
        if (left-- == 0) {
            s += PANEL_ROWS;
            left = w->group / ACT_GROUP - 1;
        }
        int32_t offset[TOKENS];
        __m256i n[TOKENS][2];
        for (int t = 0; t < TOKENS; t++) offset[t] = bias * neg[t * n_act];
        tile(n, u, q, ld, offset, wide);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++) {
            __m256 f = _mm256_set1_ps(sx[t * n_act]);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                float *to = y + t * width + 8 * h;
                __m256 g = one_scale ? f : _mm256_mul_ps(f, _mm256_loadu_ps(s + 8 * h));
                _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(n[t][h]), g, _mm256_load_ps(to)));
            }
        }
    }
    for (int i = 0; one_scale && i < TOKENS * 2; i++) {
        float *to = y + i / 2 * width + i % 2 * 8;
        _mm256_store_ps(to, _mm256_mul_ps(_mm256_load_ps(to), _mm256_loadu_ps(s + i % 2 * 8)));
    }
}

/* Always TOKENS rows of x: those behind the last are there (acts) and their results are dropped. */
static void many(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y)
{
    (void)n_tok;
    for (int b = 0; b < BLOCK; b++, u += w->n_act * 8 * 64, s += w->n_groups * PANEL_ROWS, y += PANEL_ROWS) {
        if (w->kind == PANEL_4 || WIDE_BIAS != 0)
            many_rows(w, u, s, x, t0, y, false);
        else
            many_rows(w, u, s, x, t0, y, true);
    }
}
