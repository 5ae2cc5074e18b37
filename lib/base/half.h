/* IEEE half and bfloat16 conversions, bit-exact with round-to-nearest-even, subnormals and infinities kept; a NaN
 * stays a NaN (payload not kept). Plain C without branches, so that every path and every compiler gives the same bits and
 * loops vectorize; the SIMD kernels use the processor's own conversions, which agree. Checked against tests/golden/numeric.json. */
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

/* c ? a : b as arithmetic: written as a choice, compilers make a branch of it and loops do not vectorize. */
static inline uint32_t bits_if(int c, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & (0u - (uint32_t)c)); }

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u = f32_bits(f);
    uint32_t r = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40 : r); /* quiet NaN */
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = h & 0x7fff;
    uint32_t normal = (a << 13) + (a >= 0x7c00 ? 0x70000000u : 0x38000000u); /* Inf and NaN: all exponent bits */
    uint32_t small = f32_bits((float)(int32_t)a * 0x1p-24f); /* zero or subnormal: exact in f32 */
    return f32_from_bits(sign | bits_if(a < 0x400, small, normal));
}

static inline uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
    uint32_t normal = (a + 0xfffu + ((a >> 13) & 1) - 0x38000000u) >> 13;
    uint32_t small = f32_bits(f32_from_bits(a) + 0.5f) - 0x3f000000u; /* subnormal half: the sum rounds at 2^-24 */
    uint32_t r = bits_if(a < 0x38800000u, small, normal);
    r = bits_if(a >= 0x477ff000u, 0x7c00, r); /* 65520 and above round to infinity */
    r = bits_if(a > 0x7f800000u, 0x7e00, r);
    return (uint16_t)(sign | r);
}

/* ---- the value after a conversion there and back: the same, for values that are no NaN, with less work ---- */

static inline float round_f16(float v)
{
    uint32_t u = f32_bits(v), sign = u & 0x80000000u, a = u & 0x7fffffffu;
    uint32_t normal = (a + 0xfffu + ((a >> 13) & 1)) & ~0x1fffu;
    uint32_t small = f32_bits((f32_from_bits(a) + 0.5f) - 0.5f); /* multiples of 2^-24 */
    uint32_t r = bits_if(a < 0x38800000u, small, normal);
    r = bits_if(a >= 0x477ff000u, 0x7f800000u, r);
    return f32_from_bits(sign | r);
}

static inline float round_bf16(float v)
{
    uint32_t u = f32_bits(v);
    return f32_from_bits((u + 0x7fffu + ((u >> 16) & 1)) & 0xffff0000u);
}

#endif
