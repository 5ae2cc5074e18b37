/* vpdpbusd on 256 bits, in the encoding that VPDPBUSD names: it multiplies 4 unsigned weights of each of 8 rows with the
 * same 4 signed activations and adds the exact sum to the row's 32-bit lane; sums start at −bias·Σq. As an instruction:
 * with the intrinsic GCC 12 spills the sums of `many`, and the files need no more than AVX2's flags. */
#include "backend/cpu/panels.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { WIDE_BIAS = 128, BLOCK = 2, TOKENS = 6, FEW_WHOLE = 2 };

INLINE __m256i quad(const int8_t *q, int64_t i)
{
    int32_t v;
    memcpy(&v, q + 4 * i, 4);
    return _mm256_set1_epi32(v);
}

INLINE __m256i sum_start(__m256i offset) { return offset; }

INLINE __m256i sum_add(__m256i sum, __m256i w, __m256i q, const bool wide)
{
    (void)wide;
    __asm__(VPDPBUSD " %2, %1, %0" : "+x"(sum) : "x"(w), "x"(q));
    return sum;
}

INLINE __m256i sum_end(__m256i sum, __m256i offset, const bool wide)
{
    (void)offset;
    (void)wide;
    return sum;
}

#define TWO(from, t)                                                                                        \
    "vpbroadcastd " from ", %[v]\n\t" VPDPBUSD " %[v], %[w0], %[a" #t "]\n\t" VPDPBUSD " %[v], %[w1], %[b" #t "]\n\t"
#define QUAD(i)                                                                                             \
    "vmovdqu 64*" #i "(%[u]), %[w0]\n\tvmovdqu 64*" #i "+32(%[u]), %[w1]\n\t"                              \
    TWO("4*" #i "(%[q0])", 0) TWO("4*" #i "(%[q0],%[ld])", 1) TWO("4*" #i "(%[q0],%[ld],2)", 2)             \
    TWO("4*" #i "(%[q3])", 3) TWO("4*" #i "(%[q3],%[ld])", 4) TWO("4*" #i "(%[q3],%[ld],2)", 5)
#define FIRST(t) "vpbroadcastd 4*" #t "(%[offset]), %[a" #t "]\n\tvmovdqa %[a" #t "], %[b" #t "]\n\t"
#define SUMS(t) [a##t] "=&x"(n[t][0]), [b##t] "=&x"(n[t][1])

/* 15 of the 16 registers: 12 sums. */
INLINE void tile(__m256i n[TOKENS][2], const uint8_t *u, const int8_t *q, int64_t ld, const int32_t *offset,
                 const bool wide)
{
    (void)wide;
    __m256i w0, w1, v;
    __asm__(FIRST(0) FIRST(1) FIRST(2) FIRST(3) FIRST(4) FIRST(5)
            QUAD(0) QUAD(1) QUAD(2) QUAD(3) QUAD(4) QUAD(5) QUAD(6) QUAD(7)
            : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), [w0] "=&x"(w0), [w1] "=&x"(w1), [v] "=&x"(v)
            : [u] "r"(u), [q0] "r"(q), [q3] "r"(q + 3 * ld), [ld] "r"(ld), [offset] "r"(offset)
            : "memory");
}

#include "backend/cpu/k_int8_ymm.h"
