/* IEEE half and bfloat16 conversions, bit-exact with round-to-nearest-even, subnormals and infinities kept; a NaN
 * stays a NaN (payload not kept). Plain C, so that every path and every compiler gives the same bits; the SIMD
 * kernels use the processor's own conversions, which agree. Checked against tests/golden/numeric.json. */
#ifndef QLAB_BASE_HALF_H
#define QLAB_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40); /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 0x3ff;
    if (exp == 31) return f32_from_bits(sign | 0x7f800000u | man << 13);
    if (exp) return f32_from_bits(sign | (exp + 112) << 23 | man << 13);
    /* zero or subnormal: man × 2^-24, exact in f32 */
    float v = (float)man * 5.9604644775390625e-8f;
    return f32_from_bits(sign | f32_bits(v));
}

static inline uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_bits(f), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    if (u < 0x38800000u) {                                  /* subnormal half: adding 0.5 rounds at 2^-24 */
        float v = f32_from_bits(u) + 0.5f;
        return (uint16_t)(sign | (f32_bits(v) - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

#endif
