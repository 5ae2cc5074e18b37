/* One forward pass for Llama, Mistral, Qwen2 and Qwen3, on the backend interface. */
#ifndef QLAB_MODEL_MODEL_H
#define QLAB_MODEL_MODEL_H

#include "backend/backend.h"
#include "views/checkpoint.h"

struct layer {
    struct weight w[N_OPS];
    float *bias[N_OPS];             /* (n_out) or NULL; device */
    float *attn_norm, *mlp_norm;    /* (hidden) */
    float *q_norm, *k_norm;         /* (head_dim) or NULL */
};

/* Fields are open: qsens swaps layers[i].w[op] for a quantized weight and runs layers again. */
struct model {
    struct backend *be;
    struct config cfg;
    struct weight embed, head; /* head is embed's storage again when tied */
    bool tied;
    struct qweight table; /* embed's mapped parts, where rows are only looked up: given back after each look-up */
    bool give_back;
    struct layer *layers;
    float *final_norm; /* (hidden) */
    float *inv_freq;   /* (head_dim/2), host */
    /* ledger, bytes */
    int64_t weights_bytes;      /* resident: linears, head, embedding, norms, biases */
    int64_t read_bytes;         /* read to decode one token at depth 0 (linears + head + norms; one embedding row) */
    /* private */
    void *owned; /* expanded GGUF tensors */
};

/* The checkpoint must stay open while the model lives: weights may be mapped. */
int model_load(struct model *m, struct backend *be, const struct checkpoint *c, struct err *e);
void model_free(struct model *m);

/* Cache for one sequence of up to capacity tokens. kv->n counts what it holds; set kv->n = 0 to start again. */
int kv_alloc(struct kv_cache *kv, const struct model *m, int64_t capacity, struct err *e);
void kv_free(struct kv_cache *kv, const struct model *m);
int64_t kv_bytes(const struct model *m, int64_t capacity);

/* Activation buffers for up to max_tok rows; one for each forward that runs at a time. */
struct scratch {
    int64_t max_tok;
    float *x, *h, *q, *k, *v, *att, *gate, *up; /* (max_tok, …) on the device */
    float *logits;                              /* one row */
    size_t bytes;
};
int scratch_alloc(struct scratch *s, const struct model *m, int64_t max_tok, struct err *e);
void scratch_free(struct scratch *s, const struct model *m);

/* Called, when set, with each linear's input and output (device pointers): x (n_tok, n_in), y (n_tok, n_out). */
struct linear_hook {
    void (*fn)(void *ctx, int64_t layer, enum op op, const float *x, const float *y, int64_t n_tok);
    void *ctx;
};

/* x (rows, hidden) in place through decoder layer i. Appends to the spans' caches but does not move kv->n. */
void model_layer(const struct model *m, int64_t i, float *x, const struct span *spans, int n_spans, struct scratch *s,
                 const struct linear_hook *hook);
/* Embedding, all layers, final norm: s->x holds the final normed hidden states (rows, hidden) afterwards, and every
 * span's kv->n has moved on. tokens: host, all rows. */
void model_forward(const struct model *m, const int32_t *tokens, const struct span *spans, int n_spans,
                   struct scratch *s, const struct linear_hook *hook);
/* The same where nobody reads the states of the first skip[i] rows of span i: they are undefined afterwards, and the last
 * layer computes nothing of those rows but keys and values (all of them on a device in the fast kinds of compute). */
void model_forward_last(const struct model *m, const int32_t *tokens, const struct span *spans, const int64_t *skip,
                        int n_spans, struct scratch *s);
/* logits (n_tok, vocab) = head · hidden (n_tok, hidden), both on the device */
void model_logits(const struct model *m, const float *hidden, int64_t n_tok, float *logits);

/* Greedy continuation: feeds prompt, then n_gen tokens; out[n_gen]. on_token, when set, is called after each id is
 * known on the host (timing). kv must have room for n_prompt + n_gen − 1 more tokens. */
void model_generate(const struct model *m, struct kv_cache *kv, struct scratch *s, const int32_t *prompt,
                    int64_t n_prompt, int32_t *out, int64_t n_gen, void (*on_token)(void *ctx, int64_t i), void *ctx);

#endif
