/* Integer dot products with AVX2. vpmaddubsw multiplies unsigned by signed bytes and adds neighbours with saturation at
 * 16 bits, so each use keeps within them: codes up to 31 times 127 twice is 7874, four such sums fit, as do eight of codes
 * up to 15 (15·127·2·8 = 30480); 8-bit weights go in as |w| ≤ 128 with the sign moved to the activation,
 * 2·128·127 = 32512. */
#if defined(__x86_64__)
#include "backend/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

enum { WIDE_BIAS = 0, BLOCK = 1, TOKENS = 4, FEW_WHOLE = 0 };

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i quad(const int8_t *q, int64_t i)
{
    int32_t v;
    memcpy(&v, q + 4 * i, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256i sum_start(__m256i offset)
{
    (void)offset;
    return _mm256_setzero_si256();
}

/* Sums of narrow codes are of pairs, in 16 bits. */
INLINE __m256i sum_add(__m256i sum, __m256i w, __m256i q, const bool wide)
{
    if (!wide) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, q));
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE __m256i sum_end(__m256i sum, __m256i offset, const bool wide)
{
    return wide ? sum : _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), offset);
}

INLINE void tile(__m256i n[TOKENS][2], const uint8_t *u, const int8_t *q, int64_t ld, const int32_t *offset,
                 const bool wide)
{
    const int parts = wide ? 1 : 2, quads = 8 / parts; /* four quads: pair sums of 16 bits do not overflow */
#pragma GCC unroll 2
    for (int part = 0; part < parts; part++) {
        __m256i d[TOKENS][2];
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++) d[t][0] = d[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int i = 0; i < quads; i++, u += 64) {
            __m256i w0 = _mm256_loadu_si256((const __m256i *)u), w1 = _mm256_loadu_si256((const __m256i *)(u + 32));
#pragma GCC unroll 4
            for (int t = 0; t < TOKENS; t++) {
                __m256i v = quad(q + t * ld, part * quads + i);
                d[t][0] = sum_add(d[t][0], w0, v, wide);
                d[t][1] = sum_add(d[t][1], w1, v, wide);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
                n[t][h] = sum_end(d[t][h], part ? n[t][h] : _mm256_set1_epi32(offset[t]), wide);
    }
}

#include "backend/cpu/k_int8_ymm.h"

const struct int8_kernels int8_avx2 = {quantize, few, BLOCK, TOKENS, unpack, many};
#endif
