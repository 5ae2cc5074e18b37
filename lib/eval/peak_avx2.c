#if defined(__x86_64__)
#include "eval/peak.h"

/* Twelve sums in ymm0 … ymm11; operands are zeros, so nothing overflows and nothing is subnormal. */
#define ZERO(r) "vpxor %%ymm" #r ", %%ymm" #r ", %%ymm" #r "\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CLOBBERS "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", \
                 "ymm13", "ymm14", "ymm15"
#define LOOP(X) \
    __asm__ volatile(ALL(ZERO) ZERO(14) ZERO(15) "1:\n" ALL(X) "dec %0\njnz 1b\n" : "+r"(n) : : CLOBBERS, "cc")

#define FMA(r) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #r "\n"
static void fma_f32(int64_t n) { LOOP(FMA); }
const struct probe peak_avx2_f32 = {"vfmadd231ps ymm", fma_f32, 2 * 8};

/* Products of bytes by vpmaddubsw, added up in 16 bits as far as they fit: an instruction of each a 32 products. */
#define MADD(r) "vpmaddubsw %%ymm14, %%ymm15, %%ymm13\nvpaddw %%ymm13, %%ymm" #r ", %%ymm" #r "\n"
static void madd_int8(int64_t n) { LOOP(MADD); }
const struct probe peak_avx2_int8 = {"vpmaddubsw + vpaddw ymm", madd_int8, 2 * 32};
#endif
