#include "views/gguf_blocks.h"

#include "base/half.h"

#include <assert.h>

/* Every product below is exact in f32 (an 11-bit f16 mantissa times at most 6 + 5 or 8 + 5 bits of scale and code), so
 * a value is rounded once, at the addition of the minimum: the same bits as gguf-py and ggml give. */

#define QK 32   /* elements of a simple block */
#define QKK 256 /* elements of a K block */

/* Q8_0, 34 bytes: w_j = d · q_j
 * | d f16 | q0 q1 … q31, int8 |
 *  0       2                34 */
struct block_q8_0 {
    uint16_t d;
    int8_t qs[QK];
};
static_assert(sizeof(struct block_q8_0) == 34, "Q8_0");

/* Q4_0, 18 bytes: w = d · (q − 8)
 * | d f16 | qs[16]: byte j = element j (low nibble), element j + 16 (high nibble) |
 *  0       2                                                                    18 */
struct block_q4_0 {
    uint16_t d;
    uint8_t qs[QK / 2];
};
static_assert(sizeof(struct block_q4_0) == 18, "Q4_0");

/* Q4_1, 20 bytes: w = d · q + m
 * | d f16 | m f16 | qs[16] as Q4_0 |
 *  0       2       4             20 */
struct block_q4_1 {
    uint16_t d, m;
    uint8_t qs[QK / 2];
};
static_assert(sizeof(struct block_q4_1) == 20, "Q4_1");

/* Q5_0, 22 bytes: w = d · (q − 16), q = nibble | fifth bit << 4
 * | d f16 | qh u32: bit j = fifth bit of element j | qs[16] as Q4_0 |
 *  0       2                                        6             22 */
struct block_q5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[QK / 2];
};
static_assert(sizeof(struct block_q5_0) == 22, "Q5_0");

/* Q5_1, 24 bytes: w = d · q + m
 * | d f16 | m f16 | qh u32 | qs[16] |
 *  0       2       4        8      24 */
struct block_q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[QK / 2];
};
static_assert(sizeof(struct block_q5_1) == 24, "Q5_1");

/* Q4_K, 144 bytes, 8 sub-blocks of 32: w = d·sc[j] · q − dmin·mn[j]
 * | d f16 | dmin f16 | scales[12] | qs[128]: bytes 32k … 32k+31 = sub-block 2k (low), 2k+1 (high nibbles) |
 *  0       2          4            16                                                                  144
 * scales, 6 bits each:        bits 0-5                bits 6-7
 *   byte j,   j = 0 … 3       sc[j]                   sc[j+4] bits 4-5
 *   byte j+4, j = 0 … 3       mn[j]                   mn[j+4] bits 4-5
 *   byte j+8, j = 0 … 3       bits 0-3: sc[j+4] bits 0-3, bits 4-7: mn[j+4] bits 0-3 */
struct block_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[QKK / 2];
};
static_assert(sizeof(struct block_q4_k) == 144, "Q4_K");

/* Q5_K, 176 bytes: as Q4_K with a fifth bit: bit j of qh[l] belongs to element l of sub-block j
 * | d f16 | dmin f16 | scales[12] | qh[32] | qs[128] |
 *  0       2          4            16       48     176 */
struct block_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[QKK / 8];
    uint8_t qs[QKK / 2];
};
static_assert(sizeof(struct block_q5_k) == 176, "Q5_K");

/* Q6_K, 210 bytes, 16 sub-blocks of 16: w = d·sc[e / 16] · (q − 32)
 * | ql[128] | qh[64] | sc int8[16] | d f16 |
 *  0         128      192           208  210
 * Half n (128 elements), quarter r (32 of them), element l: the low four bits are a nibble of ql[64n + 32(r mod 2) + l]
 * (low for r < 2, else high), the upper two are bits 2r, 2r+1 of qh[32n + l]. */
struct block_q6_k {
    uint8_t ql[QKK / 2];
    uint8_t qh[QKK / 4];
    int8_t sc[QKK / 16];
    uint16_t d;
};
static_assert(sizeof(struct block_q6_k) == 210, "Q6_K");

void q8_0_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QK == 0);
    const struct block_q8_0 *b = src;
    for (; n; n -= QK, b++, dst += QK) {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < QK; j++) dst[j] = d * (float)b->qs[j];
    }
}

void q4_0_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QK == 0);
    const struct block_q4_0 *b = src;
    for (; n; n -= QK, b++, dst += QK) {
        float d = f16_to_f32(b->d);
        for (int j = 0; j < QK / 2; j++) {
            dst[j] = d * (float)((b->qs[j] & 15) - 8);
            dst[j + 16] = d * (float)((b->qs[j] >> 4) - 8);
        }
    }
}

void q4_1_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QK == 0);
    const struct block_q4_1 *b = src;
    for (; n; n -= QK, b++, dst += QK) {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        for (int j = 0; j < QK / 2; j++) {
            dst[j] = d * (float)(b->qs[j] & 15) + m;
            dst[j + 16] = d * (float)(b->qs[j] >> 4) + m;
        }
    }
}

static uint32_t load_u32(const uint8_t p[4])
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void q5_0_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QK == 0);
    const struct block_q5_0 *b = src;
    for (; n; n -= QK, b++, dst += QK) {
        float d = f16_to_f32(b->d);
        uint32_t qh = load_u32(b->qh);
        for (int j = 0; j < QK / 2; j++) {
            dst[j] = d * (float)((int)((b->qs[j] & 15) | (qh >> j & 1) << 4) - 16);
            dst[j + 16] = d * (float)((int)((b->qs[j] >> 4) | (qh >> (j + 16) & 1) << 4) - 16);
        }
    }
}

void q5_1_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QK == 0);
    const struct block_q5_1 *b = src;
    for (; n; n -= QK, b++, dst += QK) {
        float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
        uint32_t qh = load_u32(b->qh);
        for (int j = 0; j < QK / 2; j++) {
            dst[j] = d * (float)((b->qs[j] & 15) | (qh >> j & 1) << 4) + m;
            dst[j + 16] = d * (float)((b->qs[j] >> 4) | (qh >> (j + 16) & 1) << 4) + m;
        }
    }
}

/* The 6-bit scale and minimum of sub-block j. */
static void scale_min(const uint8_t s[12], int j, int *sc, int *mn)
{
    if (j < 4) {
        *sc = s[j] & 63;
        *mn = s[j + 4] & 63;
    } else {
        *sc = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *mn = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

void q4_k_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QKK == 0);
    const struct block_q4_k *b = src;
    for (; n; n -= QKK, b++, dst += QKK) {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int j = 0; j < 8; j++) {
            int sc, mn;
            scale_min(b->scales, j, &sc, &mn);
            float ds = d * (float)sc, dm = dmin * (float)mn;
            const uint8_t *qs = b->qs + 32 * (j / 2);
            int shift = 4 * (j & 1);
            for (int l = 0; l < 32; l++) dst[32 * j + l] = ds * (float)(qs[l] >> shift & 15) - dm;
        }
    }
}

void q5_k_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QKK == 0);
    const struct block_q5_k *b = src;
    for (; n; n -= QKK, b++, dst += QKK) {
        float d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin);
        for (int j = 0; j < 8; j++) {
            int sc, mn;
            scale_min(b->scales, j, &sc, &mn);
            float ds = d * (float)sc, dm = dmin * (float)mn;
            const uint8_t *qs = b->qs + 32 * (j / 2);
            int shift = 4 * (j & 1);
            for (int l = 0; l < 32; l++)
                dst[32 * j + l] = ds * (float)((qs[l] >> shift & 15) | (b->qh[l] >> j & 1) << 4) - dm;
        }
    }
}

void q6_k_to_f32(const void *src, float *dst, int64_t n)
{
    assert(n % QKK == 0);
    const struct block_q6_k *b = src;
    for (; n; n -= QKK, b++, dst += QKK) {
        float d = f16_to_f32(b->d);
        for (int e = 0; e < QKK; e += 16) {
            int half = e / 128, r = e / 32 % 4, l0 = e % 32;
            const uint8_t *ql = b->ql + 64 * half + 32 * (r & 1) + l0, *qh = b->qh + 32 * half + l0;
            float ds = d * (float)b->sc[e / 16];
            for (int l = 0; l < 16; l++) {
                int q = (ql[l] >> 4 * (r >> 1) & 15) | (qh[l] >> 2 * r & 3) << 4;
                dst[e + l] = ds * (float)(q - 32);
            }
        }
    }
}
