/* What decoding one token costs on a GPU with compute int8, counted from shapes alone as cuda/ does it. test_backend.cpp
 * holds it against recorded steps and loaded models; tests/tools/cuda_cost.c makes predictions of it (docs/cuda.md). */
#ifndef QLAB_TESTS_CUDA_COST_H
#define QLAB_TESTS_CUDA_COST_H

#include "quantize/format.h"
#include "views/config.h"

struct cuda_cost {
    int64_t layer_kernels; /* of one layer */
    int64_t kernels;       /* of the whole step */
    int64_t weight_bytes;  /* read: linears, head, norms, biases, one row of the embedding */
    int64_t kv_bytes;      /* read with n_ctx tokens in the cache, the new one included */
};

/* All linears in `linear`, embedding and head in `ends`, floats of type `dtype`; n_sm: the device's
 * multiprocessors. */
void cuda_cost(struct cuda_cost *k, const struct config *c, const struct format *linear,
               const struct format *ends, enum dtype dtype, int64_t n_ctx, int n_sm);

#endif
