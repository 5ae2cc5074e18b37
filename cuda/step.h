/* Decode steps recorded as a CUDA graph. A step's first call runs its ops as they are, the second records them, later
 * ones launch the graph: token and position lie in device memory, each step leaves them ready for the next one, and one
 * token id is read back. QLAB_CUDA_GRAPH=0 in the environment records nothing. */
#ifndef QLAB_CUDA_STEP_H
#define QLAB_CUDA_STEP_H

#include "context.h"

int32_t step_run(struct cuda_ctx *c, const struct step *s);
/* While a step is being recorded: where its ops find token and position; else NULL. */
const struct step_state *step_state_of(const struct cuda_ctx *c);
/* The argmax of one row of logits (work: logits.h), with which a step ends; while one is recorded nothing has run yet
 * and the result is 0. */
int32_t step_choose(struct cuda_ctx *c, const float *logits, int64_t n_vocab, void *work);
void step_forget(struct cuda_ctx *c);

#endif
