/* Products of bf16 pairs (bf16.h) with vdpbf16ps, as an instruction: the compiler is told of AVX-512 F, BW, DQ and VL only
 * (who calls these has asked the processor), and GCC 12 spills the sums of `two` where they are intrinsics. */
#if defined(__x86_64__)
#include "backend/cpu/bf16.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m512 dot(__m512 sum, __m512i w, __m512i x)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

INLINE __m512i pair(const uint16_t *x) /* in every lane */
{
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

INLINE void rows(const uint8_t *panel, int64_t n_pairs, const uint16_t *x, int64_t ld, const int nt, float *y)
{
    __m512 sum[2][BF16_TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) sum[0][t] = sum[1][t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < n_pairs; k++, panel += 128) {
        __m512i w0 = _mm512_load_si512(panel), w1 = _mm512_load_si512(panel + 64);
#pragma GCC unroll 4
        for (int t = 0; t < nt; t++) {
            __m512i v = pair(x + t * ld + 2 * k);
            sum[0][t] = dot(sum[0][t], w0, v);
            sum[1][t] = dot(sum[1][t], w1, v);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < nt; t++) {
        _mm512_storeu_ps(y + t * BF16_ROWS, sum[0][t]);
        _mm512_storeu_ps(y + t * BF16_ROWS + 16, sum[1][t]);
    }
}

static void one(const uint8_t *panel, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok, float *y)
{
    switch (n_tok) {
    case 1: rows(panel, n_pairs, x, ld, 1, y); break;
    case 2: rows(panel, n_pairs, x, ld, 2, y); break;
    case 3: rows(panel, n_pairs, x, ld, 3, y); break;
    default: rows(panel, n_pairs, x, ld, 4, y); break;
    }
}

/* 6 tokens × 64 rows: zmm0 … 3 the weights of a pair, zmm4 and 5 broadcasts, zmm(8 + 4t + i) sums of token t and line i. */
#define ZERO(r) "vpxord %%zmm" #r ", %%zmm" #r ", %%zmm" #r "\n\t"
#define ZERO4(a, b, c, d) ZERO(a) ZERO(b) ZERO(c) ZERO(d)
#define DOT4(from, v, a, b, c, d)                                                                           \
    "vpbroadcastd " from ", %%zmm" #v "\n\t"                                                                \
    "vdpbf16ps %%zmm" #v ", %%zmm0, %%zmm" #a "\n\tvdpbf16ps %%zmm" #v ", %%zmm1, %%zmm" #b "\n\t"         \
    "vdpbf16ps %%zmm" #v ", %%zmm2, %%zmm" #c "\n\tvdpbf16ps %%zmm" #v ", %%zmm3, %%zmm" #d "\n\t"
#define PUT4(t, a, b, c, d)                                                                                 \
    "vmovups %%zmm" #a ", 256*" #t "(%[y])\n\tvmovups %%zmm" #b ", 256*" #t "+64(%[y])\n\t"                \
    "vmovups %%zmm" #c ", 256*" #t "+128(%[y])\n\tvmovups %%zmm" #d ", 256*" #t "+192(%[y])\n\t"

static void two(const uint8_t *panel, const uint8_t *next, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok,
                float *y)
{
    (void)n_tok;
    const uint16_t *x3 = x + 3 * ld;
    __asm__ volatile(
        ZERO4(8, 9, 10, 11) ZERO4(12, 13, 14, 15) ZERO4(16, 17, 18, 19) ZERO4(20, 21, 22, 23)
        ZERO4(24, 25, 26, 27) ZERO4(28, 29, 30, 31)
        "1:\n\t"
        "vmovdqa64 (%[p]), %%zmm0\n\tvmovdqa64 64(%[p]), %%zmm1\n\t"
        "vmovdqa64 (%[q]), %%zmm2\n\tvmovdqa64 64(%[q]), %%zmm3\n\t"
        DOT4("(%[x])", 4, 8, 9, 10, 11) DOT4("(%[x],%[ld])", 5, 12, 13, 14, 15)
        DOT4("(%[x],%[ld],2)", 4, 16, 17, 18, 19) DOT4("(%[x3])", 5, 20, 21, 22, 23)
        DOT4("(%[x3],%[ld])", 4, 24, 25, 26, 27) DOT4("(%[x3],%[ld],2)", 5, 28, 29, 30, 31)
        "add $128, %[p]\n\tadd $128, %[q]\n\tadd $4, %[x]\n\tadd $4, %[x3]\n\t"
        "dec %[n]\n\tjnz 1b\n\t"
        PUT4(0, 8, 9, 10, 11) PUT4(1, 12, 13, 14, 15) PUT4(2, 16, 17, 18, 19) PUT4(3, 20, 21, 22, 23)
        PUT4(4, 24, 25, 26, 27) PUT4(5, 28, 29, 30, 31)
        : [p] "+r"(panel), [q] "+r"(next), [x] "+r"(x), [x3] "+r"(x3), [n] "+r"(n_pairs)
        : [ld] "r"(2 * ld), [y] "r"(y)
        : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
          "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
          "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}

const struct bf16_kernels bf16_dot = {one, BF16_MOST_TOKENS, two};
#endif
