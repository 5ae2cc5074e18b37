/* The kernels in plain C. */
#include "backend/cpu/k_table.h"
