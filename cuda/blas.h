/* cuBLAS, where it is found at run time (libcublas.so.13, .12, .11): the products of large batches. */
#ifndef QLAB_CUDA_BLAS_H
#define QLAB_CUDA_BLAS_H

#include "matmul.h"

struct blas;

/* NULL where there is none or it does not start on the current device: products are then our own. QLAB_CUDA_BLAS=0 in
 * the environment looks for none. */
struct blas *blas_open(void);
void blas_close(struct blas *b);
/* cuda_env's function; ctx: struct blas. */
int blas_product(void *ctx, float *y, int64_t ldy, const void *w, int64_t ldw, const void *x, int64_t ldx,
                 enum cuda_float type, int64_t n_out, int64_t n_tok, int64_t n_in, float beta, cudaStream_t s);
/* "cublasGemmEx: status 13": what made blas_product return −1. */
const char *blas_reason(const struct blas *b);

#endif
