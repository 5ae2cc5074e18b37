/* Constructors of the backends, for backend.c and tests. */
#ifndef QLAB_BACKEND_BACKEND_IMPL_H
#define QLAB_BACKEND_BACKEND_IMPL_H

#include "backend/backend.h"
#include "base/host.h"

/* The oracle: compute f32 only; sums of products in double. */
int cpu_ref_open(struct backend *be, enum compute compute, struct err *e);
/* Threads and SIMD; compute f32 or int8; with the kernels of one instruction set (isa_best() outside tests). */
int cpu_open(struct backend *be, enum compute compute, enum isa isa, struct err *e);

#endif
