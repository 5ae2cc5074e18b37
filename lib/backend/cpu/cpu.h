/* Private to the CPU backend: its state, its weights, and the ops that live in files of their own. */
#ifndef QLAB_BACKEND_CPU_CPU_H
#define QLAB_BACKEND_CPU_CPU_H

#include "backend/cpu/arena.h"
#include "backend/cpu/bf16.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/panels.h"
#include "base/par.h"

enum path {
    PATH_DIRECT,   /* rows of floats are read by the dot kernels as they lie in the file */
    PATH_DEQUANT,  /* columns of a row are dequantized to floats in the cache, then as above */
    PATH_REFERENCE, /* the same by qweight_rows_f32, whole rows: layouts the kernels do not know */
    PATH_PANELS,    /* compute int8: repacked for integer dot products */
    PATH_BF16       /* compute bf16: float weights, rounded and repacked */
};

struct cpu_weight {
    struct qweight q; /* a copy; what it points to is the caller's */
    enum path path;
    enum elem elem;       /* PATH_DIRECT */
    const uint8_t *rows;  /* PATH_DIRECT: the first row, others follow without gaps; NULL: see tensor_row */
    struct panels panels; /* PATH_PANELS */
    struct bf16_panels bf16; /* PATH_BF16 */
};

/* Scratch that one thread has to itself and that grows when asked. */
struct thread_buf {
    void *p;
    size_t size;
    char pad[48]; /* a cache line each */
};

struct rope_table; /* elementwise.c */

struct cpu_ctx {
    const struct kernels *k;
    const struct int8_kernels *k8;
    const struct bf16_kernels *k16;
    int passes; /* of int8 over the activations; 0: none */
    struct thread_buf *buf; /* n_buf, at least par_threads() while an op runs */
    int n_buf;
    struct thread_buf shared; /* scratch of the op that runs */
    struct thread_buf normed, sums; /* fused ops: normed rows; products before they are added */
    struct thread_buf packed; /* x as the f32 gemm wants it */
    struct rope_table *rope;
    struct arena arena; /* panels */
};

/* To be called by every op before it starts threads that use thread_buf. */
struct cpu_ctx *cpu_begin(struct backend *be);
/* size bytes, 64-byte aligned, contents undefined; valid until the next call for that buffer. */
void *buf_get(struct thread_buf *b, size_t size);

/* par_for, or a plain call where the whole work (in elements or so) is not worth waking threads. */
void par_if(int64_t work, int64_t n, int64_t grain, par_fn *fn, void *ctx);

static inline const void *weight_row(const struct cpu_weight *w, int64_t r)
{
    if (!w->rows) return tensor_row(w->q.src, r);
    return w->rows + (size_t)(r * w->q.n_in) * (w->elem == ELEM_F32 ? 4 : 2);
}

/* A matmul with what is fused to it. Jobs share x (n_tok, n_in), whose rows are normed first if norm is set. */
enum then {
    THEN_NOTHING,
    THEN_ADD,   /* one job: y += jobs[0].y */
    THEN_SWIGLU, /* two jobs of one n_out: y = silu(jobs[0].y)·jobs[1].y */
    THEN_TOP    /* one job, one token: the largest result so far into best[thread] */
};
struct best {
    _Alignas(64) struct top top; /* at < 0: none yet */
};
struct mm {
    struct cpu_ctx *c;
    const struct matmul *jobs; /* where results go, or scratch */
    int n_jobs;
    const float *x;
    int64_t n_in, n_tok;
    const float *norm;
    double eps;
    enum then then;
    float *y; /* (n_tok, n_out) */
    struct best *best; /* one a thread */
};
/* What follows for rows r0 … r1−1 of tokens t0 … t1−1, whose products are there. */
void mm_then(const struct mm *m, int64_t r0, int64_t r1, int64_t t0, int64_t t1, int thread);
/* Jobs whose weights are all of this path; all of it. */
void mm_int8(const struct mm *m);
void mm_bf16(const struct mm *m);
/* f32 of many tokens, x normed, sums cut into blocks of bk columns. False: nothing done, other ways are better. */
bool mm_gemm(const struct mm *m, int64_t bk);

void cpu_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok);
void cpu_norm_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, const float *norm, double eps,
                     int64_t n_tok);
void cpu_matmul_add(struct backend *be, float *y, const struct weight *w, const float *bias, const float *in, int64_t n_tok);
int32_t cpu_argmax(struct backend *be, const struct weight *head, const float *hidden, float *logits);
void cpu_gate_up(struct backend *be, float *y, const struct matmul jobs[2], const float *x, const float *norm, double eps,
                 int64_t n_tok);

void cpu_rmsnorm(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n, double eps);
void cpu_rope(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads, int64_t head_dim,
              const float *inv_freq);
void cpu_swiglu(struct backend *be, float *y, const float *gate, const float *up, int64_t n);
void cpu_add(struct backend *be, float *x, const float *y, int64_t n);
void rope_table_free(struct rope_table *t);
/* Cosines of one position, then sines, `half` each; valid until a call with other inv_freq. Not by several threads. */
const float *rope_at(struct cpu_ctx *c, const float *inv_freq, int64_t half, int64_t pos);

void cpu_kv_append(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                   const float *v);
void cpu_attention(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                   int64_t layer, int64_t n_heads);
void cpu_rope_attention(struct backend *be, float *out, const struct rope_attention *a, const struct span *spans, int n_spans,
                        int64_t layer, int64_t n_heads);

void cpu_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets, int64_t n_tok,
               int64_t n_vocab);
void cpu_diverge(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                 const int32_t *targets, int64_t n_tok, int64_t n_vocab);

#endif
