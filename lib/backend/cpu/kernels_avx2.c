/* The kernels for AVX2, FMA and F16C. */
#if defined(__x86_64__)
#include "backend/cpu/k_table.h"
#endif
