/* The tile kernels of gemm.cu and gemm_f32.cu, as matmul.cu calls them. */
#ifndef QLAB_CUDA_GEMM_CUH
#define QLAB_CUDA_GEMM_CUH

#include "matmul.h"

enum { GEMM_JOBS = 4 };

/* y (n_tok, ldy; from column 0 of this slice on) = x · wᵀ, then scale (one_scale), + bias, then
 * y = add + that, or y = silu(y) · that. Rows of the slice: w.n_out. */
struct gemm_job {
    struct cuda_weight w; /* float tiles: codes_at and row_bytes say where rows are, whatever the kind was */
    const float *bias, *add;
    float *y;
    int64_t ldy;
    bool swiglu;
    unsigned end; /* first block of rows that is another job's; set by the launcher */
};

struct gemm_args {
    struct gemm_job job[GEMM_JOBS];
    int n_jobs, n_tok, n_in;
    int per;               /* rows of x a token, whose results are added: 1, or 2 (gemm_int8; n_tok counts rows) */
    struct cuda_acts acts; /* gemm_int8 */
    const void *x;         /* gemm_half: (n_tok, ldx) of the type, zeros behind n_in; gemm_f32: f32 (n_tok, ldx) */
    int64_t ldx;           /* gemm_half: a multiple of 32 */
    /* gemm_int8: where blocks that have a part of the columns each leave their sums, as many bytes as there are (0: no
     * such blocks), and gemm_counters bytes, zero before the first launch and after each */
    float4 *parts;
    size_t parts_bytes;
    unsigned *count;
};

/* A tile whose columns are cut has one; with as many tiles as multiprocessors none is cut. */
static inline size_t gemm_counters(const struct cuda_env *env)
{
    return (size_t(env->n_sm) * sizeof(unsigned) + 255) / 256 * 256;
}

/* Jobs of one kind. gemm_half and gemm_f32: w has rows of `type` (f32), row_bytes a multiple of 16 and zeros behind
 * n_in. */
void gemm_int8(const struct cuda_env *env, struct gemm_args *a, cudaStream_t s);
void gemm_half(struct gemm_args *a, enum cuda_float type, cudaStream_t s);
void gemm_f32(struct gemm_args *a, cudaStream_t s);

/* Which job a block of rows belongs to; returns its first block. */
__device__ __forceinline__ unsigned gemm_job_of(const struct gemm_args &a, unsigned block, int *job)
{
    unsigned first = 0;
    int j = 0;
    while (block >= a.job[j].end) first = a.job[j++].end;
    *job = j;
    return first;
}

/* Blocks of `rows` rows over all jobs, at least one past the last job's end for the unused ones. */
static inline unsigned gemm_divide(struct gemm_args *a, int rows)
{
    unsigned blocks = 0;
    for (int j = 0; j < GEMM_JOBS; j++) {
        if (j < a->n_jobs) blocks += unsigned((a->job[j].w.n_out + rows - 1) / rows);
        a->job[j].end = blocks;
    }
    return blocks;
}

/* One result. */
__device__ __forceinline__ void gemm_store(const struct gemm_job &job, int m, int n, float v)
{
    const size_t at = size_t(m) * job.ldy + n;
    if (job.bias) v += __ldg(job.bias + n);
    if (job.add) v = job.add[at] + v;
    if (job.swiglu) {
        const float g = job.y[at];
        v = g / (1.0f + expf(-g)) * v;
    }
    job.y[at] = v;
}

#endif
