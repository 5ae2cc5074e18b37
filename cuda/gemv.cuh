/* What both matrix-vector kernels (gemv.cu: integer products, gemv_f32.cu: floats) share: which rows a warp has, the
 * end of a row's sum, and the normalization that a block does for itself.
 *
 * A block is 8 warps. `split` warps (1, 2, 4, 8) share R rows, the others have rows of their own; a lane takes 16 or 32
 * bytes of each of the R rows at a time, neighbouring lanes neighbouring bytes. A job with a partner (SwiGLU)
 * interleaves: the warp's even rows are the gate's, the odd ones the same rows of up. A block does `passes` rounds:
 * with a quantized output, so that its rows are one chunk of 32; else where rows are very many. More than one only
 * where split is 1: rows that need splitting are few. A sum's order depends on the shape and the number of
 * multiprocessors alone. */
#ifndef QLAB_CUDA_GEMV_CUH
#define QLAB_CUDA_GEMV_CUH

#include "acts.cuh"
#include "dequant.cuh"
#include "grid_constant.cuh"
#include "weight_load.cuh"

enum { GEMV_WARPS = 8, GEMV_THREADS = 32 * GEMV_WARPS, GEMV_JOBS = 4, GEMV_TOKENS = 8 };

struct gemv_job {
    struct cuda_weight w;
    const uint8_t *up; /* data of the partner, laid out as w; or NULL */
    float up_offset;
    const float *bias, *up_bias, *add;
    float *y;
    unsigned end; /* first block that is another job's */
};

struct gemv_args {
    struct gemv_job job[GEMV_JOBS];
    int n_tok, n_in, split, passes;
    int per; /* rows of x a token, whose results are added: 1; 2 (gemv.cu, from two rows on, without out) */
    int slabs; /* blocks that have the same rows and other tokens, side by side in the grid */
    struct cuda_acts acts; /* gemv.cu, unless it normalizes */
    const float *x;        /* gemv_f32.cu, or to be normalized */
    const float *norm;
    float eps;
    struct cuda_acts out; /* q NULL: none */
};

/* Launchers: jobs of one kind (same kernel: kind, type, class of scales), n_tok ≤ GEMV_TOKENS. The caller fills in
 * everything but split, passes and end (per 0: 1). norm needs one token and n_in within gemv_*_norm_fits. */
void gemv_int8(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s);
void gemv_f32(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s);
static inline bool gemv_int8_norm_fits(int64_t n_in) { return (n_in + 31) / 32 * 40 <= 40 * 1024; }
static inline bool gemv_f32_norm_fits(int64_t n_in) { return (n_in + 7) / 8 * 32 <= 40 * 1024; }

/* Fills in split, passes, slabs and every end; returns the number of blocks and *rows, what a warp has at once: 4 where
 * that is `wide` and rows are many, else 2. units: what the lanes of a warp can share of a row. */
unsigned gemv_divide(const struct cuda_env *env, struct gemv_args *a, int n_jobs, int units, bool wide, int *rows);

/* ---- device */

struct gemv_warp {
    int job, row0;   /* the block's first output row in its job */
    int t0, n_tok;   /* its tokens, at most T */
    int step;        /* output rows a pass of the block */
    int part, mine;  /* which part of the columns; the warp's first output row in a pass */
    bool pair;
};

template <int R, int T> __device__ __forceinline__ struct gemv_warp gemv_where(const struct gemv_args &a)
{
    struct gemv_warp p;
    const int warp = threadIdx.x >> 5;
    p.job = 0;
    unsigned first = 0;
    const unsigned block = T == 4 ? blockIdx.x / a.slabs : blockIdx.x;
    p.t0 = T == 4 ? int(blockIdx.x % a.slabs) * T : 0;
    p.n_tok = min(T, a.n_tok - p.t0);
    while (block >= a.job[p.job].end) first = a.job[p.job++].end;
    p.pair = a.job[p.job].up != nullptr;
    const int rows = p.pair ? R / 2 : R;
    p.step = GEMV_WARPS / a.split * rows;
    p.part = warp % a.split;
    p.mine = warp / a.split * rows;
    p.row0 = int(block - first) * p.step * a.passes;
    return p;
}

/* Row r of the warp's R in a pass: which weight's, and which row (repeating the last one behind the end). */
__device__ __forceinline__ const uint8_t *gemv_data(const struct gemv_job &job, bool pair, int r)
{
    return pair && (r & 1) ? job.up : job.w.data;
}
__device__ __forceinline__ int gemv_row(const struct gemv_job &job, const struct gemv_warp &p, int pass, int r)
{
    const int row = p.row0 + pass * p.step + p.mine + (p.pair ? r >> 1 : r);
    return min(row, int(job.w.n_out) - 1);
}

__device__ __forceinline__ float silu(float g) { return g / (1.0f + expf(-g)); }

/* The end of one pass: sums over lanes and over the warps that share rows, then the row's scale (integer products,
 * one_scale), bias, partner or residual. part: [GEMV_WARPS][R·T], tile: [T][32] (only with a quantized output). Called
 * by all threads. */
template <int R, int T, bool ScaleAtEnd>
__device__ __forceinline__ void gemv_finish(const struct gemv_args &a, const struct gemv_job &job,
                                            const struct gemv_warp &p, int pass, const float (&acc)[R][T],
                                            float (*part)[R * T], float (*tile)[32])
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float v = 0.0f; /* lane r·T + t: row r, token t */
#pragma unroll
    for (int i = 0; i < R * T; i++) {
        const float sum = warp_sum(acc[i / T][i % T]);
        if (lane == i) v = sum;
    }
    if (a.split > 1) {
        if (lane < R * T) part[warp][lane] = v;
        __syncthreads();
        if (p.part == 0 && lane < R * T)
            for (int w = 1; w < a.split; w++) v += part[warp + w][lane];
    }
    const int r = lane / T, t = lane % T, n_out = int(job.w.n_out);
    if (T > 1 && a.per == 2) v += __shfl_down_sync(full_warp, v, 1);
    const int at = pass * p.step + p.mine + (p.pair ? r >> 1 : r), row = p.row0 + at;
    const bool real = p.part == 0 && r < R && t < p.n_tok && row < n_out && t % a.per == 0;
    const bool up = p.pair && (r & 1);
    if (real) {
        if (ScaleAtEnd && job.w.one_scale)
            v *= scale_at((up ? job.up : job.w.data) + job.w.scales_at, job.w.scale, row);
        const float *bias = up ? job.up_bias : job.bias;
        if (bias) v += bias[row];
    }
    if (p.pair) {
        const float partner = __shfl_down_sync(full_warp, v, T);
        v = silu(v) * partner;
    }
    if (real && !up) {
        const size_t to = size_t((p.t0 + t) / a.per) * n_out + row;
        if (job.add) v = job.add[to] + v;
        if (job.y) job.y[to] = v;
    }
    if (a.out.q && p.part == 0 && r < R && t < p.n_tok && !up) tile[t][at] = real ? v : 0.0f;
}

/* The block's 32 rows of each token, quantized. Called by all threads after the last pass. */
template <int T>
__device__ __forceinline__ void gemv_quantize_out(const struct gemv_args &a, const struct gemv_job &job,
                                                  const struct gemv_warp &p, const float (*tile)[32])
{
    if (!a.out.q) return;
    const int lane = threadIdx.x & 31, t = threadIdx.x >> 5, chunk = p.row0 / 32;
    __syncthreads();
    if (t >= p.n_tok) return;
    quantize_to(a.out, p.t0 + t, chunk, tile[t][lane]);
    const bool last = p.row0 + 32 >= int(job.w.n_out);
    if (last && chunk + 1 < a.out.n_chunks) quantize_to(a.out, p.t0 + t, chunk + 1, 0.0f);
}

/* 1 / rms of x. red: [GEMV_WARPS]. Called by all threads. */
__device__ __forceinline__ float gemv_rms(const float *x, int n, float eps, float *red)
{
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += GEMV_THREADS) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int w = 0; w < GEMV_WARPS; w++) sum += red[w];
    return 1.0f / sqrtf(sum / float(n) + eps);
}

#endif
