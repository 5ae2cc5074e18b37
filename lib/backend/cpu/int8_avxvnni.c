/* Integer dot products with AVX-VNNI, for processors that have it and no AVX-512: encoded with VEX. */
#if defined(__x86_64__)
#define VPDPBUSD "%{vex%} vpdpbusd"
#include "backend/cpu/k_int8_avxvnni.h"

const struct int8_kernels int8_avxvnni = {quantize, few, BLOCK, TOKENS, unpack, many};
#endif
