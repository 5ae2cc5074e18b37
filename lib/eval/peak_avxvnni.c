#if defined(__x86_64__)
#include "eval/peak.h"

/* Twelve sums in ymm0 … ymm11, in both encodings (base/host.h). */
#define ZERO(r) "vpxor %%ymm" #r ", %%ymm" #r ", %%ymm" #r "\n"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define CLOBBERS "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm14", \
                 "ymm15"
#define LOOP(X) \
    __asm__ volatile(ALL(ZERO) ZERO(14) ZERO(15) "1:\n" ALL(X) "dec %0\njnz 1b\n" : "+r"(n) : : CLOBBERS, "cc")

#define VEX(r) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #r "\n"
#define EVEX(r) "%{evex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #r "\n"
static void dp_vex(int64_t n) { LOOP(VEX); }
static void dp_evex(int64_t n) { LOOP(EVEX); }
const struct probe peak_avxvnni_int8 = {"vpdpbusd ymm", dp_vex, 2 * 32};
const struct probe peak_avxvnni_evex_int8 = {"vpdpbusd ymm", dp_evex, 2 * 32};
#endif
