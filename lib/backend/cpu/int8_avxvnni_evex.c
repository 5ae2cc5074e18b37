/* The AVX-VNNI kernels encoded with EVEX, as AVX512_VNNI and AVX512_VL have the instruction: for tests where there is no
 * AVX-VNNI (QLAB_ISA=avxvnni). */
#if defined(__x86_64__)
#define VPDPBUSD "%{evex%} vpdpbusd"
#include "backend/cpu/k_int8_avxvnni.h"

const struct int8_kernels int8_avxvnni_evex = {quantize, few, BLOCK, TOKENS, unpack, many};
#endif
