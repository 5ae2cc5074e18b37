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
#include "views/config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* BF16: float weights and activations in bf16; weights of other formats as in F32. INT8: activations in int8, one pass.
 * INT8X2: two, the second over what the first left. */
enum compute { COMPUTE_F32, COMPUTE_F16, COMPUTE_BF16, COMPUTE_INT8, COMPUTE_INT8X2, N_COMPUTE };
const char *compute_name(enum compute c);

struct backend;

/* A weight on the device, laid out as the backend likes it. */
struct weight {
    int64_t n_out, n_in;
    char format[32];       /* name, for records and kernels' tables */
    size_t resident_bytes; /* memory it holds, mapped or repacked */
    size_t read_bytes;     /* bytes one token's matmul reads */
    bool mapped;           /* resident_bytes are pages of the checkpoint's file */
    enum compute compute;  /* what its products compute in, on the CPU: floats may stay in f32 where codes are int8 */
    bool copied;           /* of the source only rows are read from now on, if the host (memory) looks them up */
    const void *memory;    /* memory_bytes of them that the host's threads read in one piece; NULL: on a device, or in parts */
    size_t memory_bytes;
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

struct rope_attention {
    float *q, *k;                /* (rows, n_heads·head_dim), (rows, n_kv_heads·head_dim) */
    const float *v;              /* as k */
    const float *q_norm, *k_norm; /* (head_dim) or NULL */
    double eps;
    const float *inv_freq; /* (head_dim/2), host */
};

/* A decode step as the backend may record it: body(ctx) calls the ops of one forward pass of one row, embed of `token`
 * first, argmax last, and moves kv->n. The same key promises the same calls with the same pointers; a backend
 * that frees memory forgets what it has recorded. */
struct step {
    struct kv_cache *kv;
    int32_t token; /* the newest id: goes in at position kv->n */
    void (*body)(void *ctx);
    void *ctx;
    uint64_t key;
};

struct device {
    char name[128], driver[64]; /* "" where unknown */
    int64_t memory_bytes, free_bytes;
    int64_t context_bytes; /* taken by the device's runtime before anything of ours */
    int64_t peak_bytes;    /* most that was in use for this process, runtime included */
};

/* NAN: the device does not tell. */
struct sensors {
    double sm_mhz, memory_mhz, temperature_c, power_w;
    double energy_j; /* since some time in the past: differences count */
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

    /* Optional from here on: NULL where a backend has none.
     *
     * Several ops at once. Each gives what the ops it stands for give one after the other, to rounding; the forward pass
     * calls them where nobody looks at what lies between. Jobs as in matmul. */
    /* y_i = rmsnorm(x; norm, eps) · W_iᵀ + bias_i; no y is x */
    void (*norm_matmul)(struct backend *be, const struct matmul *jobs, int n, const float *x, const float *norm,
                        double eps, int64_t n_tok);
    /* y (n_tok, w->n_out) += in · Wᵀ + bias */
    void (*matmul_add)(struct backend *be, float *y, const struct weight *w, const float *bias, const float *in,
                       int64_t n_tok);
    /* y = silu(g)·u with g, u = rmsnorm(x; norm, eps) · W_iᵀ + bias_i for jobs {gate, up}; the jobs' y are scratch of
     * their shape, y may be the first */
    void (*gate_up)(struct backend *be, float *y, const struct matmul jobs[2], const float *x, const float *norm,
                    double eps, int64_t n_tok);
    /* rmsnorm of q's and k's heads (norms NULL: none), rope, kv_append, attention; q and k are changed */
    void (*rope_attention)(struct backend *be, float *out, const struct rope_attention *a, const struct span *spans,
                           int n_spans, int64_t layer, int64_t n_heads);

    /* The argmax that score finds in head · hidden (one row); logits: scratch (head->n_out) */
    int32_t (*argmax)(struct backend *be, const struct weight *head, const float *hidden, float *logits);

    /* One greedy step of one sequence, recorded once and replayed: returns the argmax of its logits and moves kv->n. */
    int32_t (*step)(struct backend *be, const struct step *s);

    /* What a device apart from the host can say of itself. */
    void (*describe)(struct backend *be, struct device *d);
    void (*sense)(struct backend *be, struct sensors *s);
    /* Bytes per second of a device's own copies (read and written both counted), measured now. */
    double (*copy_bandwidth)(struct backend *be);
    /* Seconds the device spent on the ops called between the two, by its own clock. */
    void (*time_begin)(struct backend *be);
    double (*time_end)(struct backend *be);
    /* Memory before anything is loaded: of one weight; of the backend's own buffers for passes of up to `rows` rows. */
    size_t (*weight_bytes)(struct backend *be, const struct qweight *src);
    size_t (*workspace_bytes)(struct backend *be, const struct config *c, int64_t rows);
};

struct backend {
    const struct backend_ops *ops;
    enum compute compute; /* what matmul computes in */
    void *ctx;
};

/* device: "cpu", "cuda", "cuda:N", or "cpu-ref" (tests); compute: "f32", … or "auto", which on the CPU is int8, or bf16
 * for a model of float weights (floats) where the processor multiplies bf16. A device or compute kind this build or machine
 * lacks is an error that says so. */
int backend_open(struct backend *be, const char *device, const char *compute, bool floats, struct err *e);
/* Is the device there? For tools that run nothing on it. */
int backend_check(const char *device, struct err *e);
void backend_close(struct backend *be);

#endif
