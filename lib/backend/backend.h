/* The ops contract: everything the forward pass needs, once per device. `cpu_ref` (clarity, the oracle) and `cpu`
 * (threads, SIMD) implement it; a CUDA backend does too. Only backend.c knows which exist.
 *
 * Device memory is what alloc returns; on the CPU backends that is host memory and the pointers below can be read
 * directly. All activations are f32, row-major, one row a token. Every op is deterministic, and its result does not
 * depend on the number of threads. Compute functions return void and assert shapes. */
#ifndef QLAB_BACKEND_BACKEND_H
#define QLAB_BACKEND_BACKEND_H

#include "base/err.h"
#include "quantize/qweight.h"

#include <stddef.h>
#include <stdint.h>

enum compute { COMPUTE_F32, COMPUTE_F16, COMPUTE_BF16, COMPUTE_INT8 };
const char *compute_name(enum compute c);

struct backend;

/* A weight on the device, laid out as the backend likes it. */
struct weight {
    int64_t n_out, n_in;
    char format[32];       /* name, for records and kernels' tables */
    size_t resident_bytes; /* memory it holds, mapped or repacked */
    size_t read_bytes;     /* bytes one token's matmul reads */
    bool mapped;           /* resident_bytes are pages of the checkpoint's file */
    void *data;            /* backend-private */
};

/* K and V of one sequence and all layers: k and v hold n_layers · capacity · n_kv_heads · head_dim elements of `dtype`
 * each, in an order that is the backend's own. capacity is a multiple of KV_ROUND. */
enum { KV_ROUND = 16 };
struct kv_cache {
    enum dtype dtype; /* F32 (compute f32) or F16 */
    int64_t n_layers, capacity, n_kv_heads, head_dim;
    int64_t n;  /* tokens stored so far */
    void *k, *v;
    size_t bytes; /* both */
};

/* One sequence's part of a batch: n_new tokens, rows row0 … row0+n_new−1 of the activations, at positions
 * kv->n … kv->n+n_new−1. */
struct span {
    struct kv_cache *kv;
    int64_t row0, n_new;
};

/* Scores of one token's logits row. */
struct score {
    double lse;       /* log Σ exp(logits) */
    float target;     /* logit of the target */
    int32_t argmax;   /* lowest index among equals */
};

/* Two rows of logits compared: KL(reference ‖ model) in nats, in double. */
struct divergence {
    double kld;
    double p_ref, p_model; /* probability of the target */
    int32_t argmax_ref, argmax_model;
    double nll_ref, nll_model;
};

struct matmul {
    float *y; /* (n_tok, w->n_out) */
    const struct weight *w;
    const float *bias; /* (w->n_out) or NULL */
};

struct backend_ops {
    const char *name;
    void (*close)(struct backend *be);

    /* memory: alloc dies on the CPU when there is none (base/mem.h) and returns NULL with an error on a device */
    void *(*alloc)(struct backend *be, size_t bytes, struct err *e);
    void (*free)(struct backend *be, void *p);
    void (*upload)(struct backend *be, void *dst, const void *src, size_t bytes);
    void (*download)(struct backend *be, void *dst, const void *src, size_t bytes);

    /* src must stay valid while the weight lives (mapped weights point into it). */
    int (*load_weight)(struct backend *be, struct weight *out, const struct qweight *src, struct err *e);
    void (*free_weight)(struct backend *be, struct weight *w);

    /* y_i = x · W_iᵀ + bias_i for n jobs that share x (n_tok, n_in). compute f32: with the dequantized weights of
     * qweight.h, bit for bit; sums of products in f32, blocked (error ≤ n_in·2^-24·Σ|x·w|). */
    void (*matmul)(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok);
    /* x[t] = row tokens[t] of the table; tokens in host memory */
    void (*embed)(struct backend *be, float *x, const struct weight *table, const int32_t *tokens, int64_t n_tok);
    /* y = x · rsqrt(mean(x²) + eps) · w over rows of n; y may be x */
    void (*rmsnorm)(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n, double eps);
    /* rotate-half RoPE in place on x (rows, n_heads, head_dim) at positions pos0 … of each span; inv_freq in host
     * memory; angle = f32(pos)·inv_freq rounded to f32 */
    void (*rope)(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads, int64_t head_dim,
                 const float *inv_freq);
    /* store rows of k, v (rows, n_kv_heads·head_dim) at positions kv->n …; does not move kv->n */
    void (*kv_append)(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                      const float *v);
    /* causal attention of q (rows, n_heads·head_dim) over each span's cache incl. the new tokens; scores·1/√head_dim,
     * kv head of query head h is h / (n_heads/n_kv_heads) */
    void (*attention)(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                      int64_t layer, int64_t n_heads);
    void (*swiglu)(struct backend *be, float *y, const float *gate, const float *up, int64_t n); /* silu(gate)·up */
    void (*add)(struct backend *be, float *x, const float *y, int64_t n);                        /* x += y */
    /* results in host memory; logits (n_tok, n_vocab) on the device */
    void (*score)(struct backend *be, struct score *out, const float *logits, const int32_t *targets, int64_t n_tok,
                  int64_t n_vocab);
    void (*diverge)(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                    const int32_t *targets, int64_t n_tok, int64_t n_vocab);
    void (*sync)(struct backend *be);
};

struct backend {
    const struct backend_ops *ops;
    enum compute compute; /* what matmul computes in */
    void *ctx;
};

/* device: "cpu", "cuda", "cuda:N", or "cpu-ref" (tests); compute: "f32", … or "auto". A device or compute kind this
 * build or machine lacks is an error that says so. */
int backend_open(struct backend *be, const char *device, const char *compute, struct err *e);
void backend_close(struct backend *be);

#endif
