/* The kernels for AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__)
#include "backend/cpu/k_table.h"
#endif
