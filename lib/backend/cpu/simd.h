/* Vectors of VL floats in the instruction set this file is compiled for. Included only by the kernels_*.c files: the
 * kernel sources (k_*.h) are written once in these terms and compiled per instruction set.
 *   vf VL floats; vd VL/2 doubles. *_n variants touch n < VL elements only and read zeros for the rest.
 * The plain version is GCC/clang vector extensions without intrinsics, multiply and add rounded separately. */
#ifndef QLAB_BACKEND_CPU_SIMD_H
#define QLAB_BACKEND_CPU_SIMD_H

#include "base/half.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include <immintrin.h>
#define KERNEL(name) name##_avx512
#define VL 16
typedef __m512 vf;
typedef __m512d vd;

INLINE __mmask16 mask_n(int64_t n) { return (__mmask16)((1u << n) - 1); }
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(mask_n(n), p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE void vf_store_n(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, mask_n(n), a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b if either is NaN */
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); } /* a · 2^n, |n| ≤ 252 */
INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_n(n), p));
}
INLINE vf vf_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
/* The even or the odd ones of 2·VL bf16 */
INLINE vf vf_bf16_even(const uint8_t *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
INLINE vf vf_bf16_odd(const uint8_t *p)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000)));
}
INLINE vf vf_load_bf16(const uint16_t *p) { return vf_bf16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n) { return vf_bf16(_mm256_maskz_loadu_epi16(mask_n(n), p)); }
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_round_f16(vf a)
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* VL unsigned bytes */
INLINE vf vf_from_u8(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p))); }
INLINE __m256 fold16(vf a) { return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)); }
INLINE vd vd_zero(void) { return _mm512_setzero_pd(); }
INLINE vd vd_set1(double x) { return _mm512_set1_pd(x); }
INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
INLINE vd vd_sub(vd a, vd b) { return _mm512_sub_pd(a, b); }
INLINE vd vd_mul(vd a, vd b) { return _mm512_mul_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
INLINE vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
INLINE vd vd_round(vd a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vd vd_scale2(vd a, vd n) { return _mm512_scalef_pd(a, n); }
INLINE vd vd_load_f32(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }

#elif defined(__AVX2__)
#include <immintrin.h>
#define KERNEL(name) name##_avx2
#define VL 8
typedef __m256 vf;
typedef __m256d vd;

INLINE __m256i mask_n(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, mask_n(n)); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE void vf_store_n(float *p, vf a, int64_t n) { _mm256_maskstore_ps(p, mask_n(n), a); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* In two factors, so that results below the normal range come out rounded instead of as garbage. */
INLINE vf vf_scale2(vf a, vf n)
{
    __m256i i = _mm256_cvtps_epi32(n), lo = _mm256_srai_epi32(i, 1), hi = _mm256_sub_epi32(i, lo);
    __m256i one = _mm256_set1_epi32(127);
    vf f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(lo, one), 23));
    vf g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(hi, one), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, f), g);
}
INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[8] = {0};
    memcpy(t, p, (size_t)n * 2);
    return vf_load_f16(t);
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[8] = {0};
    memcpy(t, p, (size_t)n * 2);
    return vf_load_bf16(t);
}
INLINE vf vf_bf16_even(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
INLINE vf vf_bf16_odd(const uint8_t *p)
{
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi32((int)0xffff0000)));
}
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_round_f16(vf a)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_from_u8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vd vd_zero(void) { return _mm256_setzero_pd(); }
INLINE vd vd_set1(double x) { return _mm256_set1_pd(x); }
INLINE vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
INLINE vd vd_sub(vd a, vd b) { return _mm256_sub_pd(a, b); }
INLINE vd vd_mul(vd a, vd b) { return _mm256_mul_pd(a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
INLINE vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
INLINE vd vd_round(vd a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vd vd_scale2(vd a, vd n) /* n ≥ −1021: the callers clamp */
{
    __m256i i = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
    return _mm256_mul_pd(a, _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(i, _mm256_set1_epi64x(1023)), 52)));
}
INLINE vd vd_load_f32(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }

#else
#define KERNEL(name) name##_plain
#define VL 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef double vd __attribute__((vector_size(16)));
typedef int64_t vl __attribute__((vector_size(16)));

INLINE vf vf_zero(void) { return (vf){0}; }
INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
INLINE vf vf_load_n(const float *p, int64_t n)
{
    vf a = {0};
    memcpy(&a, p, (size_t)n * 4);
    return a;
}
INLINE vf vf_load(const float *p)
{
    vf a;
    memcpy(&a, p, 16);
    return a;
}
INLINE void vf_store(float *p, vf a) { memcpy(p, &a, 16); }
INLINE void vf_store_n(float *p, vf a, int64_t n) { memcpy(p, &a, (size_t)n * 4); }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_select(vi m, vf a, vf b) { return (vf)(((vi)a & m) | ((vi)b & ~m)); }
INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_fnma(vf a, vf b, vf c) { return c - a * b; }
INLINE vf vf_round(vf a) /* |a| < 2^22 */
{
    vf magic = vf_set1(12582912.0f);
    return (a + magic) - magic;
}
INLINE vf vf_scale2(vf a, vf n)
{
    vf ok = vf_select(n == n, n, vf_zero()); /* a NaN stays in a */
    vi i = __builtin_convertvector(ok, vi), lo = i >> 1, hi = i - lo;
    return a * (vf)((lo + 127) << 23) * (vf)((hi + 127) << 23);
}
INLINE vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    vf a = {0};
    for (int i = 0; i < n; i++) a[i] = f16_to_f32(p[i]);
    return a;
}
INLINE vf vf_load_f16(const uint16_t *p) { return vf_load_f16_n(p, VL); }
INLINE vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    vf a = {0};
    for (int i = 0; i < n; i++) a[i] = bf16_to_f32(p[i]);
    return a;
}
INLINE vf vf_load_bf16(const uint16_t *p) { return vf_load_bf16_n(p, VL); }
INLINE vi vi_load(const uint8_t *p)
{
    vi a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE vf vf_bf16_even(const uint8_t *p) { return (vf)(vi_load(p) << 16); }
INLINE vf vf_bf16_odd(const uint8_t *p) { return (vf)(vi_load(p) & (int)0xffff0000); }
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    for (int i = 0; i < VL; i++) p[i] = f32_to_f16(a[i]);
}
INLINE vf vf_round_f16(vf a)
{
    for (int i = 0; i < VL; i++) a[i] = f16_to_f32(f32_to_f16(a[i]));
    return a;
}
INLINE vf vf_from_u8(const uint8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }
INLINE vd vd_zero(void) { return (vd){0}; }
INLINE vd vd_set1(double x) { return (vd){x, x}; }
INLINE vd vd_add(vd a, vd b) { return a + b; }
INLINE vd vd_sub(vd a, vd b) { return a - b; }
INLINE vd vd_mul(vd a, vd b) { return a * b; }
INLINE vd vd_fma(vd a, vd b, vd c) { return a * b + c; }
INLINE vd vd_max(vd a, vd b)
{
    vl m = a > b;
    return (vd)(((vl)a & m) | ((vl)b & ~m));
}
INLINE vd vd_round(vd a) /* |a| < 2^51 */
{
    vd magic = vd_set1(6755399441055744.0);
    return (a + magic) - magic;
}
INLINE vd vd_scale2(vd a, vd n)
{
    vl i = {n[0] == n[0] ? (int64_t)n[0] : 0, n[1] == n[1] ? (int64_t)n[1] : 0};
    return a * (vd)((i + 1023) << 52);
}
INLINE vd vd_load_f32(const float *p) { return (vd){p[0], p[1]}; }
#endif

/* One more multiplication than a plain shift: bf16 rounding by integer arithmetic, as f32_to_bf16 does. Finite values
 * only; there is no NaN among scales times codes of a checked model, and a NaN stays one (quiet bit set or exponent
 * full after the carry is impossible for quiet NaNs of the conversions used here). */
INLINE vf vf_round_bf16(vf a)
{
#if defined(__AVX512F__)
    __m512i u = _mm512_castps_si512(a), lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
    return _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
#elif defined(__AVX2__)
    __m256i u = _mm256_castps_si256(a), lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
    return _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
#else
    for (int i = 0; i < VL; i++) a[i] = bf16_to_f32(f32_to_bf16(a[i]));
    return a;
#endif
}

/* Sums of the elements of four vectors. The order of additions is the same for each of the four. */
INLINE void vf_sum4(vf a, vf b, vf c, vf d, float out[4])
{
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 e = fold16(a), f = fold16(b), g = fold16(c), h = fold16(d);
#else
    __m256 e = a, f = b, g = c, h = d;
#endif
    __m256 ef = _mm256_add_ps(_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
    __m256 gh = _mm256_add_ps(_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
    __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ef, gh, 0x44), _mm256_shuffle_ps(ef, gh, 0xee));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
#else
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
#endif
}

INLINE float vf_sum(vf a)
{
    float out[4];
    vf_sum4(a, a, a, a, out);
    return out[0];
}

INLINE float vf_max_element(vf a)
{
    float t[VL], m;
    vf_store(t, a);
    m = t[0];
    for (int i = 1; i < VL; i++) m = t[i] > m ? t[i] : m;
    return m;
}

INLINE double vd_sum(vd a)
{
    double t[VL / 2], s = 0;
    memcpy(t, &a, sizeof t);
    for (int i = 0; i < VL / 2; i++) s += t[i];
    return s;
}

/* exp(x) for x ≤ 88, at most 2 ulp off (measured 1.0 where the result is normal); 0 from about −104 down, −inf
 * included; NaN stays NaN. Cody-Waite reduction to |r| ≤ ln2/2 and a polynomial of degree 6 for exp(r). */
INLINE vf vf_exp(vf x)
{
    x = vf_max(vf_set1(-126.0f), x); /* in this order a NaN passes */
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504088896341f)));
    vf r = vf_fnma(n, vf_set1(0.693359375f), x);
    r = vf_fnma(n, vf_set1(-2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(r, r), p, vf_add(r, vf_set1(1.0f)));
    return vf_scale2(p, n);
}

/* exp(x) in double for x ≤ 709, relative error below 1e-15; 0 stands for everything under about 2^-1000 (−inf
 * included); NaN stays NaN. Taylor of degree 12 on |r| ≤ ln2/2 (truncation 2e-16). */
INLINE vd vd_exp(vd x)
{
    x = vd_max(vd_set1(-700.0), x);
    vd n = vd_round(vd_mul(x, vd_set1(1.4426950408889634074)));
    vd r = vd_fma(n, vd_set1(-0.693145751953125), x);
    r = vd_fma(n, vd_set1(-1.42860682030941723212e-6), r);
    static const double c[13] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                                 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
    vd p = vd_set1(c[12]);
    for (int i = 11; i >= 0; i--) p = vd_fma(p, r, vd_set1(c[i]));
    return vd_scale2(p, n);
}

#endif
