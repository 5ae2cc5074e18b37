/* y = x · Wᵀ on the device: what the backend asks for; gemv*.cu, gemm*.cu and matmul.cu do it. Everything runs on one
 * stream, allocates nothing, may be captured in a graph, and gives the same bits every time. Pointers are to device
 * memory unless said otherwise. Errors of launches: launch.h.
 *
 * compute    up to 8 tokens                              more tokens
 * f32        products and sums in f32 of x and the       the same, in tiles
 *            weights of qweight_rows_f32, bit for bit
 * f16, bf16  as f32                                      x and weights rounded to that type, sums in f32
 * int8       weights with int8_ok: as panels.h, the      the same, or (env.blas, many tokens, data-centre GPUs) as f16
 *            same integers; others as f32                or bf16, whichever the weights are; others likewise, f32 ones
 *                                                        as f32
 * int8x2     int8 with two quantized rows a token (backend/cpu/matmul_int8.c), books with a second table; others as f32
 */
#ifndef QLAB_CUDA_MATMUL_H
#define QLAB_CUDA_MATMUL_H

#include <cuda_runtime.h>

extern "C" {
#include "backend/backend.h"
#include "backend/cuda/weight.h"
}

/* Rows quantized to int8 in chunks of 32 columns: x ≈ scale·q, scale = max|x|/127. A row has n_chunks chunks, the
 * number of them in n_in rounded up to even; what lies behind n_in is 0 with scale 0.
 *   q     32 bytes a chunk; column 8t + 4h + c of it (c < 4) is byte 16h + 4t + c: the order of weight.h
 *   meta  x: the bits of the scale (f32), y: −Σq
 * Made by quantize_acts, or by any kernel with the functions of acts.cuh. */
struct cuda_acts {
    int8_t *q;
    int2 *meta;
    int n_chunks;
};
size_t acts_bytes(int64_t n_tok, int64_t n_in);                       /* multiple of 256 */
struct cuda_acts acts_at(void *mem, int64_t n_tok, int64_t n_in);     /* mem: acts_bytes, 256-byte aligned */
void quantize_acts(const struct cuda_acts *a, const float *x, int64_t n_tok, int64_t n_in, cudaStream_t s);

/* The device, as far as choices depend on it, and cuBLAS where it was found. */
struct cuda_env {
    int sm;    /* 75, 80, 86 … */
    int n_sm;  /* multiprocessors */
    size_t l2_bytes;
    /* y (n_tok, ldy) = x (n_tok, ldx) · wᵀ (n_out, ldw) + beta·y; x and w of `type` (F32, F16, BF16), sums in f32 and
     * no TF32; NULL: our own kernels. Returns 0, or −1 when it failed (the backend keeps the reason). */
    int (*blas)(void *ctx, float *y, int64_t ldy, const void *w, int64_t ldw, const void *x, int64_t ldx,
                enum cuda_float type, int64_t n_out, int64_t n_tok, int64_t n_in, float beta, cudaStream_t s);
    void *blas_ctx;
};

/* y (n_tok, w->n_out) = x · wᵀ + bias, then one of:
 *   add   y = add + that; add may be y
 *   up    y = silu(that) · (x · upᵀ + up_bias); up has w's shape. up_y (n_tok, n_out): scratch that some paths use
 * y may be NULL where the result is only wanted quantized (see out). */
struct cuda_job {
    float *y;
    const struct cuda_weight *w; /* host memory, with device data */
    const float *bias;
    const float *add;
    const struct cuda_weight *up;
    const float *up_bias;
    float *up_y;
};

struct cuda_matmul {
    const struct cuda_job *jobs;
    int n_jobs;
    const float *x;  /* (n_tok, n_in); may be NULL if acts has them and matmul_uses_acts */
    int64_t n_tok, n_in;
    enum compute compute;
    const struct cuda_acts *acts; /* x already quantized, or NULL */
    const float *norm; /* x is to be normalized first: rmsnorm(x; norm, eps). Only where matmul_fuses_norm. */
    float eps;
    const struct cuda_acts *out; /* n_jobs 1: the result quantized as well, for the next matmul; or NULL */
    void *scratch;               /* matmul_scratch bytes, 256-byte aligned */
};
/* The plain product of these jobs, in f32 and without scratch until the caller says otherwise. */
static inline struct cuda_matmul matmul_of(const struct cuda_job *jobs, int n_jobs, const float *x, int64_t n_tok,
                                           int64_t n_in)
{
    struct cuda_matmul m = {};
    m.jobs = jobs;
    m.n_jobs = n_jobs;
    m.x = x;
    m.n_tok = n_tok;
    m.n_in = n_in;
    return m;
}
/* All weights have n_in columns. Returns 0, or −1 if env->blas failed. */
int cuda_matmul(const struct cuda_env *env, const struct cuda_matmul *m, cudaStream_t s);

/* Bytes of scratch: enough for any weights of up to n_in columns and up to n_tok tokens. The memory is zeroed once, when
 * it is made; products of one `compute` and device may share it, and leave its counters zero. */
size_t matmul_scratch(const struct cuda_env *env, enum compute compute, int64_t n_tok, int64_t n_in);
/* Every job reads quantized activations: quantize them once, in the kernel that makes x, and give acts. */
bool matmul_uses_acts(const struct cuda_env *env, const struct cuda_matmul *m);
/* The normalization costs no launch of its own: give x as it is, and norm. */
bool matmul_fuses_norm(const struct cuda_env *env, const struct cuda_matmul *m);

/* dst (n, ld) of type F32, F16 or BF16 = rows of w, zeros behind n_in up to ld (a multiple of 8): rows[i] if rows is
 * given (device memory; embedding: the caller has checked them), else r0 + i. f32: as qweight_rows_f32, bit for bit. */
void dequant_rows(void *dst, enum cuda_float type, int64_t ld, const struct cuda_weight *w, const int32_t *rows,
                  int64_t r0, int64_t n, cudaStream_t s);

#endif
