/* Weights as floats on the device: the values of qweight_rows_f32, bit for bit (each operation rounded as there: no
 * contraction). */
#ifndef QLAB_CUDA_DEQUANT_CUH
#define QLAB_CUDA_DEQUANT_CUH

#include "device.cuh"

extern "C" {
#include "backend/cuda/weight.h"
}

__device__ __forceinline__ float half_bits(unsigned h)
{
    return __half2float(__ushort_as_half(static_cast<unsigned short>(h)));
}
__device__ __forceinline__ float bf16_bits(unsigned h) { return __uint_as_float(h << 16); }
/* A 16-bit float of either kind. */
__device__ __forceinline__ float float16_bits(unsigned h, enum cuda_float t)
{
    return t == CUF_F16 ? half_bits(h) : bf16_bits(h);
}

__device__ __forceinline__ float round_to(enum cuda_float t, float v)
{
    if (t == CUF_F16) return __half2float(__float2half_rn(v));
    if (t == CUF_BF16) return __bfloat162float(__float2bfloat16_rn(v));
    return v;
}

/* Element i of a plane of scales. */
__device__ __forceinline__ float scale_at(const uint8_t *scales, enum cuda_float t, size_t i)
{
    if (t == CUF_F32) return __ldg(reinterpret_cast<const float *>(scales) + i);
    return float16_bits(__ldg(reinterpret_cast<const unsigned short *>(scales) + i), t);
}

/* absmax of flat block b (CUW_BOOK). data: the weight's block. */
__device__ __forceinline__ float absmax_at(const struct cuda_weight &w, const uint8_t *data, size_t b)
{
    const uint8_t *scales = data + w.scales_at;
    if (w.scale != CUF_DQ) return __ldg(reinterpret_cast<const float *>(scales) + b);
    const float v = __ldg(reinterpret_cast<const float *>(data + w.map_at) + __ldg(scales + b));
    return __fadd_rn(__fmul_rn(v, __ldg(reinterpret_cast<const float *>(data + w.nested_at) + b / 256)), w.offset);
}

/* Eight codes of a word of CUW_BOOK (nibble j: column j) as signed bytes of a table of 16: columns 0 … 3 in lo, 4 … 7
 * in hi. A byte permute picks from eight bytes by three bits; bit 3 of a code then picks between the two. */
__device__ __forceinline__ void book_bytes(uint32_t codes, const uint32_t (&table)[4], int &lo, int &hi)
{
    const uint32_t three = codes & 0x77777777u, pick = (codes & 0x88888888u) >> 1 | 0x32103210u;
    lo = int(__byte_perm(__byte_perm(table[0], table[1], three), __byte_perm(table[2], table[3], three), pick));
    hi = int(__byte_perm(__byte_perm(table[0], table[1], three >> 16), __byte_perm(table[2], table[3], three >> 16),
                         pick >> 16));
}

/* Columns k0 … k0+7 (k0 a multiple of 8) of row `row` from their packed codes: 4 bits: lo is their word; 8 bits: lo has
 * the first four, hi the others. Behind n_in the values are 0. book: CUW_BOOK's 16 values. */
template <enum cuda_kind Kind>
__device__ __forceinline__ void dequant8(const struct cuda_weight &w, const float *book, int row, int k0, uint32_t lo,
                                         uint32_t hi, float (&v)[8])
{
    const int n_in = int(w.n_in), group = int(w.group);
    const uint8_t *scales = w.data + w.scales_at, *zeros = w.data + w.zeros_at;
    if (Kind == CUW_STRIDED) {
        const size_t at = size_t(row) * 128 + k0 % 128; /* eight groups side by side, 16 bytes */
        const uint4 sv = __ldg(reinterpret_cast<const uint4 *>(scales + at * 2));
        const uint4 zv = __ldg(reinterpret_cast<const uint4 *>(zeros + at * 2));
        const uint32_t s[4] = {sv.x, sv.y, sv.z, sv.w}, z[4] = {zv.x, zv.y, zv.z, zv.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int u = int(lo >> (i % 4 * 8 + i / 4 * 4) & 15u);
            const float q = round_to(CUF_F16, __fsub_rn(float(u), half_bits(z[i / 2] >> i % 2 * 16 & 0xffffu)));
            v[i] = round_to(w.type, round_to(CUF_F16, __fmul_rn(q, half_bits(s[i / 2] >> i % 2 * 16 & 0xffffu))));
        }
    } else if (Kind == CUW_BOOK) {
        /* eights of columns never straddle blocks if both are made of eights; else block by block */
        const bool whole = n_in % 8 == 0 && group % 8 == 0;
        const size_t flat = size_t(row) * n_in + k0;
        size_t block = whole ? unsigned(flat / 8) / unsigned(group / 8) : flat / group;
        int left = whole ? 8 : int((block + 1) * group - flat);
        float absmax = absmax_at(w, w.data, block);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (!whole && left == i && k0 + i < n_in) {
                absmax = absmax_at(w, w.data, ++block);
                left += group;
            }
            v[i] = round_to(w.type, __fmul_rn(book[lo >> 4 * i & 15u], absmax));
        }
    } else {
        const bool packed = Kind == CUW_INT4, whole = group % 8 == 0;
        int g = k0 / group, left = (g + 1) * group - k0; /* columns until the next group */
        size_t at = size_t(row) * w.n_groups + g;
        float s = scale_at(scales, w.scale, at);
        int z = w.zeros_at ? static_cast<int8_t>(__ldg(zeros + at)) : packed ? 8 : 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (!whole && left == i && k0 + i < n_in) {
                at++;
                left += group;
                s = scale_at(scales, w.scale, at);
                if (w.zeros_at) z = static_cast<int8_t>(__ldg(zeros + at));
            }
            const int q =
                packed ? int(lo >> (i % 4 * 8 + i / 4 * 4) & 15u) : static_cast<int8_t>((i < 4 ? lo : hi) >> i % 4 * 8);
            v[i] = round_to(w.type, __fmul_rn(float(q - z), s));
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (k0 + i >= n_in) v[i] = 0.0f;
}

#endif
