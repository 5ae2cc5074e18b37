/* Small ops between matrix products. Pointers are to device memory, rows follow each other; all are deterministic, run
 * on the stream and may be captured. Where acts is given the result is quantized as well (matmul.h: quantize_acts of y
 * gives the same bytes), and y may be NULL if only that is wanted. Embedding is dequant_rows (matmul.h); rotary
 * embedding, norms of heads and the KV cache are attention.h's. */
#ifndef QLAB_CUDA_ELEMENTWISE_H
#define QLAB_CUDA_ELEMENTWISE_H

#include "matmul.h"

/* y = x · rsqrt(mean(x²) + eps) · w over rows of n, w (n). y may be x. The mean in f32, over at most 512 partial sums
 * of a thread each: within 1e-6 of the exact one up to n = 16384. */
void rmsnorm_rows(float *y, const struct cuda_acts *acts, const float *x, const float *w, int64_t n_rows, int64_t n,
                  float eps, cudaStream_t s);
/* y = gate / (1 + exp(−gate)) · up over rows of n. y may be gate or up. */
void swiglu_rows(float *y, const struct cuda_acts *acts, const float *gate, const float *up, int64_t n_rows, int64_t n,
                 cudaStream_t s);
/* x += y, n elements */
void add_to(float *x, const float *y, int64_t n, cudaStream_t s);

#endif
