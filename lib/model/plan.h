/* What a model needs in memory, from its checkpoint alone: nothing is loaded. */
#ifndef QLAB_MODEL_PLAN_H
#define QLAB_MODEL_PLAN_H

#include "backend/backend.h"
#include "views/checkpoint.h"

struct memory_plan {
    int64_t weights_bytes; /* linears, embedding, head as stored (GGUF blocks and permuted rows as model_load expands
                              them) or as the device lays them out; norms and biases in f32 */
    int64_t kv_bytes;      /* one sequence of ctx tokens */
    int64_t scratch_bytes; /* activations of `batch` rows, and one row of logits */
};
/* On this backend; its own buffers and its runtime come on top (eval/device.h). */
int memory_plan(struct memory_plan *p, const struct checkpoint *c, struct backend *be, int64_t ctx, int64_t batch,
                struct err *e);

/* The terms, shared with model.h's allocations. */
enum dtype plan_kv_dtype(enum compute compute); /* f32 in the exact path, else f16 */
int64_t plan_kv_capacity(int64_t n_tok);     /* rounded up to what backends want */
int64_t plan_kv_bytes(const struct config *c, enum compute compute, int64_t capacity);
int64_t plan_scratch_bytes(const struct config *c, int64_t rows); /* with one row of logits */
/* Weights and what decoding reads of them are counted over these: every linear of the decoder, the embedding, and the
 * head unless it is the embedding. fn returns 0 or −1 (stop). */
int plan_each_weight(const struct checkpoint *c, int (*fn)(void *ctx, const char *name, const struct qweight *w,
                                                           struct err *e),
                     void *ctx, struct err *e);
/* Values in all tensors, the head counted once where it is the embedding: what people call the number of parameters. */
int64_t plan_n_params(const struct config *c, bool tied);

#endif
