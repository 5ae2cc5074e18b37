#include "views/dtype.h"

#include "base/half.h"
#include "base/wide.h"
#include "views/gguf_blocks.h"

#include <assert.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "qlab reads and writes little-endian files in place: a little-endian host is needed"
#endif

static void f32_copy(const void *src, float *dst, int64_t n) { memcpy(dst, src, (size_t)n * 4); }

WIDE static void f16_widen(const void *src, float *dst, int64_t n)
{
    const uint16_t *s = src;
    for (int64_t i = 0; i < n; i++) dst[i] = f16_to_f32(s[i]);
}

WIDE static void bf16_widen(const void *src, float *dst, int64_t n)
{
    const uint16_t *s = src;
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(s[i]);
}

WIDE static void f16_narrow(const float *src, uint16_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = f32_to_f16(src[i]);
}

WIDE static void bf16_narrow(const float *src, uint16_t *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) dst[i] = f32_to_bf16(src[i]);
}

/* name, safetensors name, ggml type, elements and bytes a block, decoder */
static const struct dtype_traits table[DT_COUNT] = {
    [DT_F64] = {"F64", "F64", -1, 1, 8, NULL},
    [DT_F32] = {"F32", "F32", 0, 1, 4, f32_copy},
    [DT_F16] = {"F16", "F16", 1, 1, 2, f16_widen},
    [DT_BF16] = {"BF16", "BF16", 30, 1, 2, bf16_widen},
    [DT_I64] = {"I64", "I64", -1, 1, 8, NULL},
    [DT_I32] = {"I32", "I32", -1, 1, 4, NULL},
    [DT_I16] = {"I16", "I16", -1, 1, 2, NULL},
    [DT_I8] = {"I8", "I8", -1, 1, 1, NULL},
    [DT_U8] = {"U8", "U8", -1, 1, 1, NULL},
    [DT_BOOL] = {"BOOL", "BOOL", -1, 1, 1, NULL},
    [DT_Q8_0] = {"Q8_0", NULL, 8, 32, 34, q8_0_to_f32},
    [DT_Q4_0] = {"Q4_0", NULL, 2, 32, 18, q4_0_to_f32},
    [DT_Q4_1] = {"Q4_1", NULL, 3, 32, 20, q4_1_to_f32},
    [DT_Q5_0] = {"Q5_0", NULL, 6, 32, 22, q5_0_to_f32},
    [DT_Q5_1] = {"Q5_1", NULL, 7, 32, 24, q5_1_to_f32},
    [DT_Q4_K] = {"Q4_K", NULL, 12, 256, 144, q4_k_to_f32},
    [DT_Q5_K] = {"Q5_K", NULL, 13, 256, 176, q5_k_to_f32},
    [DT_Q6_K] = {"Q6_K", NULL, 14, 256, 210, q6_k_to_f32},
};

const struct dtype_traits *dtype_traits(enum dtype t)
{
    assert((unsigned)t < DT_COUNT);
    return &table[t];
}

bool dtype_is_float(enum dtype t) { return t == DT_F32 || t == DT_F16 || t == DT_BF16; }
bool dtype_is_block(enum dtype t) { return t >= DT_Q8_0 && t <= DT_Q6_K; }

size_t dtype_bytes(enum dtype t, int64_t n)
{
    const struct dtype_traits *d = dtype_traits(t);
    assert(n >= 0 && n % d->block_elems == 0);
    return (size_t)(n / d->block_elems) * d->block_bytes;
}

void dtype_from_f32(enum dtype t, const float *src, void *dst, int64_t n)
{
    switch (t) {
    case DT_F32: memcpy(dst, src, (size_t)n * 4); break;
    case DT_F16: f16_narrow(src, dst, n); break;
    case DT_BF16: bf16_narrow(src, dst, n); break;
    default: assert(!"a float dtype");
    }
}
