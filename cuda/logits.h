/* Scores of rows of logits (n_tok, n_vocab), on the device: nothing of that size goes to the host or is written. As
 * backend.h says; exp, log and all sums in double, cut into slices and added in a fixed order. Pointers are to device
 * memory; everything runs on the stream and may be captured. */
#ifndef QLAB_CUDA_LOGITS_H
#define QLAB_CUDA_LOGITS_H

#include <cuda_runtime.h>

#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "backend/backend.h"
}

/* Bytes of `work` for that many rows; zeroed once, when it is made: calls of any size leave their counters zero. */
size_t logits_work_bytes(int64_t n_tok, int64_t n_vocab);

/* out[t]: log Σ exp, the target's logit, the first index of the maximum. A NaN in a row makes lse NaN. */
void logits_score(struct score *out, const float *logits, const int32_t *targets, int64_t n_tok, int64_t n_vocab,
                  void *work, cudaStream_t s);
/* Two rows of logits compared, for each token; equal rows give exactly 0. */
void logits_diverge(struct divergence *out, const float *logits_ref, const float *logits, const int32_t *targets,
                    int64_t n_tok, int64_t n_vocab, void *work, cudaStream_t s);
/* Of one row: *token = the first index of the maximum, and *pos += 1 (pos may be NULL). Ends a recorded step. */
void logits_greedy(int32_t *token, int32_t *pos, const float *logits, int64_t n_vocab, void *work, cudaStream_t s);

#endif
