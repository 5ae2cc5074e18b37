#if defined(__x86_64__)
#include "eval/peak.h"

/* Twelve sums in zmm0 … zmm11; operands are zeros, so nothing overflows and nothing is subnormal. Assembly, because the
 * compiler is told of AVX-512 F, BW, DQ and VL only: who calls these has asked the processor. */
#define ZERO(r) "vpxord %%zmm" #r ", %%zmm" #r ", %%zmm" #r "\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CLOBBERS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14", \
                 "xmm15"
#define LOOP(X) \
    __asm__ volatile(ALL(ZERO) ZERO(14) ZERO(15) "1:\n" ALL(X) "dec %0\njnz 1b\n" : "+r"(n) : : CLOBBERS, "cc")

#define FMA(r) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #r "\n"
static void fma_f32(int64_t n) { LOOP(FMA); }
const struct probe peak_avx512_f32 = {"vfmadd231ps zmm", fma_f32, 2 * 16};

#define DPBF(r) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #r "\n"
static void dp_bf16(int64_t n) { LOOP(DPBF); }
const struct probe peak_avx512_bf16 = {"vdpbf16ps zmm", dp_bf16, 2 * 32};

#define DPBUSD(r) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #r "\n"
static void dp_int8(int64_t n) { LOOP(DPBUSD); }
const struct probe peak_avx512_int8 = {"vpdpbusd zmm", dp_int8, 2 * 64};
#endif
