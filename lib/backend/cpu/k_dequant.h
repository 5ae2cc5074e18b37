/* Kernel source, compiled per instruction set: stored codes to floats, bit for bit as quantize/qweight.c does it (whose
 * header draws the layouts). A group of 4-bit codes has 16 possible values: they are computed and rounded once, and
 * codes become look-ups. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

static const float iota16[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE vf round_out(vf a, enum dtype t)
{
    return t == DT_F16 ? vf_round_f16(a) : t == DT_BF16 ? vf_round_bf16(a) : a;
}

INLINE float scale_load(enum dtype t, const void *p, int64_t i)
{
    if (t == DT_F16) return f16_to_f32(((const uint16_t *)p)[i]);
    if (t == DT_BF16) return bf16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

/* 32 nibbles in 16 bytes through a table */
INLINE void lut_32(const float *table, const uint8_t *p, const bool high_first, float *dst)
{
#if VL >= 8
    __m128i b = _mm_loadu_si128((const __m128i *)p), m = _mm_set1_epi8(15);
    __m128i lo = _mm_and_si128(b, m), hi = _mm_and_si128(_mm_srli_epi16(b, 4), m);
    if (high_first) {
        __m128i t = lo;
        lo = hi;
        hi = t;
    }
    __m128i c[2] = {_mm_unpacklo_epi8(lo, hi), _mm_unpackhi_epi8(lo, hi)};
#if VL == 16
    __m512 t = _mm512_loadu_ps(table);
    for (int i = 0; i < 2; i++)
        _mm512_storeu_ps(dst + 16 * i, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(c[i]), t));
#else
    __m256 t0 = _mm256_loadu_ps(table), t1 = _mm256_loadu_ps(table + 8);
    for (int i = 0; i < 4; i++) {
        __m256i k = _mm256_cvtepu8_epi32(i % 2 ? _mm_srli_si128(c[i / 2], 8) : c[i / 2]);
        __m256 a = _mm256_permutevar8x32_ps(t0, k), d = _mm256_permutevar8x32_ps(t1, k);
        _mm256_storeu_ps(dst + 8 * i, _mm256_blendv_ps(a, d, _mm256_castsi256_ps(_mm256_slli_epi32(k, 28))));
    }
#endif
#else
    for (int i = 0; i < 16; i++) {
        dst[2 * i] = table[high_first ? p[i] >> 4 : p[i] & 15];
        dst[2 * i + 1] = table[high_first ? p[i] & 15 : p[i] >> 4];
    }
#endif
}

/* n nibbles; the first one starts a byte */
INLINE void lut_run(const float *table, const uint8_t *p, int64_t n, const bool high_first, float *dst)
{
    for (; n >= 32; n -= 32, p += 16, dst += 32) lut_32(table, p, high_first, dst);
    if (n > 0) {
        uint8_t rest[16] = {0};
        float out[32];
        memcpy(rest, p, (size_t)(n + 1) / 2);
        lut_32(table, rest, high_first, out);
        memcpy(dst, out, (size_t)n * 4);
    }
}

static void int8_run(const uint8_t *p, int64_t n, float zero, float scale, enum dtype out, float *dst)
{
    vf z = vf_set1(zero), s = vf_set1(scale);
    int64_t k = 0;
    for (; k + VL <= n; k += VL) vf_store(dst + k, round_out(vf_mul(vf_sub(vf_from_u8(p + k), z), s), out));
    if (k < n) {
        uint8_t rest[VL] = {0};
        memcpy(rest, p + k, (size_t)(n - k));
        vf_store_n(dst + k, round_out(vf_mul(vf_sub(vf_from_u8(rest), z), s), out), n - k);
    }
}

static void dequant_int(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst)
{
    int bits = w->fmt.bits, per = 32 / bits;
    int64_t size = w->fmt.group && w->fmt.group < w->n_in ? w->fmt.group : w->n_in;
    int64_t groups = (w->n_in + size - 1) / size, words = (w->n_in + per - 1) / per;
    const uint8_t *row = (const uint8_t *)w->codes + r * words * 4;
    const uint32_t *zeros = (const uint32_t *)w->zero + r / per * groups;
    for (int64_t k = k0; k < k0 + n;) {
        int64_t g = k / size, end = (g + 1) * size < k0 + n ? (g + 1) * size : k0 + n;
        float s = scale_load(w->scale_dtype, w->scale, r * groups + g);
        uint32_t z = w->zero ? zeros[g] >> bits * (r % per) & ((1u << bits) - 1) : 1u << (bits - 1);
        if (bits == 4) {
            float table[16];
            for (int i = 0; i < 16; i += VL) {
                vf q = vf_sub(vf_load(iota16 + i), vf_set1((float)z));
                vf_store(table + i, round_out(vf_mul(q, vf_set1(s)), w->out_dtype));
            }
            lut_run(table, row + k / 2, end - k, false, dst + (k - k0));
        } else {
            int8_run(row + k, end - k, (float)z, s, w->out_dtype, dst + (k - k0));
        }
        k = end;
    }
}

INLINE vf strided(vf q, vf zero, vf scale, const bool to_bf16)
{
    vf y = vf_round_f16(vf_mul(vf_round_f16(vf_sub(q, zero)), scale));
    return to_bf16 ? vf_round_bf16(y) : y;
}

INLINE void strided_run(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst, const bool to_bf16)
{
    const uint16_t *zero = (const uint16_t *)w->zero + r * w->fmt.group;
    const uint16_t *scale = (const uint16_t *)w->scale + r * w->fmt.group;
    int64_t g = k0 % w->fmt.group, i = 0; /* both multiples of 16 */
    for (; i + VL <= n; i += VL) {
        vf_store(dst + i, strided(vf_load(dst + i), vf_load_f16(zero + g), vf_load_f16(scale + g), to_bf16));
        g = g + VL < w->fmt.group ? g + VL : 0;
    }
    if (i < n) {
        vf y = strided(vf_load_n(dst + i, n - i), vf_load_f16_n(zero + g, n - i), vf_load_f16_n(scale + g, n - i), to_bf16);
        vf_store_n(dst + i, y, n - i);
    }
}

static void dequant_strided(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst)
{
    lut_run(iota16, (const uint8_t *)w->codes + r * ((w->n_in + 1) / 2) + k0 / 2, n, true, dst);
    if (w->out_dtype == DT_BF16)
        strided_run(w, r, k0, n, dst, true);
    else
        strided_run(w, r, k0, n, dst, false);
}

static void dequant_book(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst)
{
    int64_t first = r * w->n_in + k0, last = first + n;
    for (int64_t i = first; i < last;) {
        int64_t block = i / w->fmt.group, end = (block + 1) * w->fmt.group < last ? (block + 1) * w->fmt.group : last;
        float absmax = qweight_absmax(w, block), table[16];
        for (int j = 0; j < 16; j += VL)
            vf_store(table + j, round_out(vf_mul(vf_load(w->book + j), vf_set1(absmax)), w->out_dtype));
        lut_run(table, (const uint8_t *)w->codes + i / 2, end - i, true, dst + (i - first));
        i = end;
    }
}

static void dequant_float(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst)
{
    size_t size = w->fmt.dtype == DT_F32 ? 4 : 2;
    const void *row = w->src ? tensor_row(w->src, r) : (const uint8_t *)w->codes + (size_t)(r * w->n_in) * size;
    int64_t k = 0;
    if (w->fmt.dtype == DT_F32) {
        memcpy(dst, (const float *)row + k0, (size_t)n * 4);
    } else if (w->fmt.dtype == DT_F16) {
        const uint16_t *p = (const uint16_t *)row + k0;
        for (; k + VL <= n; k += VL) vf_store(dst + k, vf_load_f16(p + k));
        if (k < n) vf_store_n(dst + k, vf_load_f16_n(p + k, n - k), n - k);
    } else {
        const uint16_t *p = (const uint16_t *)row + k0;
        for (; k + VL <= n; k += VL) vf_store(dst + k, vf_load_bf16(p + k));
        if (k < n) vf_store_n(dst + k, vf_load_bf16_n(p + k, n - k), n - k);
    }
}

static void dequant_row(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst)
{
    switch (w->fmt.kind) {
    case CODE_FLOAT: dequant_float(w, r, k0, n, dst); break;
    case CODE_INT: dequant_int(w, r, k0, n, dst); break;
    case CODE_STRIDED: dequant_strided(w, r, k0, n, dst); break;
    case CODE_BOOK: dequant_book(w, r, k0, n, dst); break;
    }
}
