/* Perplexity protocols: which windows of a token stream are run, and which of their predictions count.
 * Sources: llamacpp = llama.cpp tools/perplexity; hf-sliding = the Hugging Face "Perplexity of fixed-length models"
 * recipe with its window weighting; seed = the same over the first 2,000 characters (the original experiment); gptq =
 * the GPTQ paper's evaluation (documents joined by "\n\n", non-overlapping 2,048-token windows). */
#ifndef QLAB_EVAL_PROTOCOL_H
#define QLAB_EVAL_PROTOCOL_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum protocol { PROTO_LLAMACPP, PROTO_SEED, PROTO_HF_SLIDING, PROTO_GPTQ };
#define PROTOCOL_NAMES "llamacpp|seed|hf-sliding|gptq"
/* name must be one of PROTOCOL_NAMES. */
enum protocol protocol_of(const char *name);
const char *protocol_name(enum protocol p);
#define SEED_CHARS 2000
#define SLIDING_STRIDE 512

/* One window: tokens start … start+n−1 in an empty context. Rows first … n−2 are scored, each against the next token.
 * weight: of the window's mean NLL in the total, nll = Σ weight·mean / Σ weight. */
struct window {
    int64_t start, n, first;
    double weight;
};

struct windows {
    struct window *w; /* owned */
    int64_t n, n_scored;
    int64_t longest;  /* largest w[i].n */
    bool replace_bos; /* token 0 of every window is replaced by BOS (llamacpp on a model that adds BOS) */
    int64_t ctx, stride;
};

/* ctx, stride: 0 for the protocol's own (512; 2048; min(max_position_embeddings, 4096) with stride 512). max_windows:
 * 0 for all. Too short a text, or a window longer than the model's context, is an error. */
int windows_make(struct windows *ws, enum protocol p, int64_t n_tokens, int64_t ctx, int64_t stride, int64_t max_windows,
                 int64_t max_position_embeddings, bool adds_bos, struct err *e);
void windows_free(struct windows *ws);
/* The first n windows (all, if n is 0 or more than there are): a view, not to be freed. */
struct windows windows_first(const struct windows *ws, int64_t n);

/* Weighted mean of one value a scored token, and its standard error as if tokens were independent: with
 * c_i = weight/(count·Σ weight) of the token's window, se² = n/(n−1) · Σ c_i²·(x_i − mean)²; sd/√n for equal weights. */
void windows_mean(const struct windows *ws, const double *x, double *mean, double *se);

#endif
