/* Constructors of the backends, for backend.c and tests. */
#ifndef QLAB_BACKEND_BACKEND_IMPL_H
#define QLAB_BACKEND_BACKEND_IMPL_H

#include "backend/backend.h"
#include "base/host.h"

/* The oracle: compute f32 only; sums of products in double. */
int cpu_ref_open(struct backend *be, enum compute compute, struct err *e);
/* Threads and SIMD; any compute but f16; with the kernels of one instruction set (isa_best() outside tests). */
int cpu_open(struct backend *be, enum compute compute, enum isa isa, struct err *e);
/* The GPU of that index (cuda/backend_cuda.cu). fastest: the device's choice in place of `compute`. Where the driver or
 * the device is missing, too old or too small, the error says which. Only in builds with QLAB_CUDA. */
int cuda_open(struct backend *be, int index, enum compute compute, bool fastest, struct err *e);

#endif
