/* The kernels of the CPU backend: one table an instruction set, chosen once. Kernels are single-threaded and know
 * nothing of spans, jobs or caches; matmul.c, attention.c and their neighbours cut the work. */
#ifndef QLAB_BACKEND_CPU_KERNELS_H
#define QLAB_BACKEND_CPU_KERNELS_H

#include "backend/backend.h"
#include "base/host.h"

/* Elements a dot product can read directly. */
enum elem { ELEM_F32, ELEM_F16, ELEM_BF16, N_ELEM };

enum {
    DOT_TOKENS = 4,  /* tokens a dot tile has */
    GEMM_ROWS = 64,  /* rows and tokens a gemm tile has */
    GEMM_TOKENS = 6,
    KV_BLOCK = 16,   /* keys a block of the K cache (cpu/attention.c) */
    ATTN_CHUNK = 128 /* keys whose partial attention is computed at once; a multiple of KV_BLOCK */
};

/* Scores of a slice of one logits row, for merging in order: sum = Σ exp(x − max). */
struct slice_sum {
    float max;
    int32_t argmax; /* within the slice, lowest among equals */
    double sum;
};

/* The largest of a run of floats and its first index; a NaN counts as none, and if there is nothing else 0 is the index. */
struct top {
    float max;
    int32_t at;
};

struct kernels {
    int dot_rows; /* rows a dot tile has */

    /* y[i·4 + t] = Σ_k w[i][k]·x[t][k], i < dot_rows, t < n_tok ≤ DOT_TOKENS. Each sum is formed in VL lanes over k in
     * rising order, then across lanes: it does not depend on its place in the tile or on n_tok. dot: rows of floats in
     * the cache; dot_stream: rows of any element type as they come from memory, the same bits. */
    void (*dot)(const void *const *w, const float *const *x, int64_t n, int n_tok, float *y);
    void (*dot_stream[N_ELEM])(const void *const *w, const float *const *x, int64_t n, int n_tok, float *y);

    /* The same sums for many tokens, NULL where dot is as good: y (GEMM_TOKENS, GEMM_ROWS) of packed operands. With
     * s = ⌈n/16⌉ steps and run = s rounded up to 16, w is (16, s, GEMM_ROWS), packed 16 rows at a time, which begin at
     * to + 16·i; x is (16, GEMM_TOKENS, run). Column k is step k/16 of the kernel's place for lane k mod 16. What n_rows,
     * n_tok and n leave of a tile is zero. ld: floats from row to row. All packed ones and y are 64-byte aligned. */
    void (*gemm_pack_w)(float *to, const float *w, int64_t ld, int n_rows, int64_t n);
    void (*gemm_pack_x)(float *to, const float *x, int64_t ld, int n_tok, int64_t n);
    void (*gemm)(const float *w, const float *x, int64_t n, float *y);

    /* Columns k0 … k0+n−1 of row r as floats, bit for bit those of qweight_rows_f32. Whether it can: dequant_ok. */
    void (*dequant)(const struct qweight *w, int64_t r, int64_t k0, int64_t n, float *dst);

    void (*rmsnorm)(float *y, const float *x, const float *w, int64_t n, double eps);
    /* x: (n_heads, 2·half); c, s: (half) */
    void (*rope)(float *x, const float *c, const float *s, int64_t n_heads, int64_t half);
    void (*swiglu)(float *y, const float *gate, const float *up, int64_t n);
    void (*add)(float *x, const float *y, int64_t n);
    void (*to_f16)(uint16_t *y, const float *x, int64_t n);

    /* Partial attention of n_q queries (each hd floats) over n ≤ ATTN_CHUNK keys; query i sees the first seen[i] ≥ 0
     * of them. k: one pointer to (hd, KV_BLOCK) each KV_BLOCK keys, v: (n, hd), both f32 or f16. m = max of the scaled scores (−inf: none),
     * l = Σ exp(score − m), o (n_q, hd) = Σ exp(score − m)·v. p: scratch (n_q, ATTN_CHUNK). A query's result does not
     * depend on the others. exp is off by 2 ulp at most. */
    void (*attn_chunk)(const float *const *q, const int32_t *seen, int n_q, int64_t hd, bool f16,
                       const void *const *k, const void *v, float scale, float *m, float *l, float *o, float *p);
    /* (m, l, o) ← merged with (m2, l2, o2) */
    void (*attn_merge)(float *m, float *l, float *o, float m2, float l2, const float *o2, int64_t hd);

    struct top (*top)(const float *x, int64_t n);
    struct slice_sum (*slice_sum)(const float *x, int64_t n);
    /* Σ exp(a − lse_a)·((a − lse_a) − (b − lse_b)) */
    double (*slice_kld)(const float *a, const float *b, int64_t n, double lse_a, double lse_b);
};

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx512;

const struct kernels *kernels_of(enum isa isa);
struct int8_kernels; /* panels.h */
const struct int8_kernels *int8_kernels_of(enum isa isa);
/* False for layouts that only the reference reads (groups that are no multiple of 16, odd rows, GGUF blocks). */
bool dequant_ok(const struct qweight *w);
/* Row r (n_in) as floats, by the kernels where they can. */
void dequant_whole_row(const struct kernels *k, const struct qweight *w, int64_t r, float *dst);

#endif
