#include "logits.h"

#include "device.cuh"

/* A row is cut into slices of 2048 logits, a block each; the block that finishes a row's last slice adds the slices up.
 * Rows go in batches, whose counters stand at the start of `work`. */
constexpr int slice_len = 2048, threads = 256, warps = threads / 32, per_thread = slice_len / threads;
constexpr int batch_rows = 4096;

/* m: 0 where max is −∞, so that exp(−∞ − m) is 0 and not NaN */
struct slice_part {
    double sum; /* Σ exp(x − m) */
    float max;
    int argmax; /* its first index in the row; INT_MAX if nothing is a number */
};
struct best {
    float max;
    int at;
};

static constexpr int no_index = 0x7fffffff;
#define MINUS_INF __uint_as_float(0xff800000u)

__device__ __forceinline__ best better(best a, best b)
{
    return b.max > a.max || (b.max == a.max && b.at < a.at) ? b : a;
}
__device__ __forceinline__ best warp_best(best b)
{
#pragma unroll
    for (int m = 16; m; m >>= 1)
        b = better(b, {__shfl_xor_sync(full_warp, b.max, m), __shfl_xor_sync(full_warp, b.at, m)});
    return b;
}
__device__ __forceinline__ double shifted(float max) { return max == MINUS_INF ? 0.0 : double(max); }

/* This thread's logits: x[threads·i + threadIdx.x]; −∞ behind the end. */
__device__ __forceinline__ void load_slice(float (&v)[per_thread], const float *x, int n)
{
#pragma unroll
    for (int i = 0; i < per_thread; i++) {
        const int k = i * threads + int(threadIdx.x);
        v[i] = k < n ? x[k] : MINUS_INF;
    }
}

/* Over the block; every thread gets the result. */
__device__ __forceinline__ best block_best(const float (&v)[per_thread], int first)
{
    SHARED_ARRAY(best, of_warp, [warps]);
    best b = {MINUS_INF, no_index};
#pragma unroll
    for (int i = 0; i < per_thread; i++)
        if (v[i] > b.max) b = {v[i], first + i * threads + int(threadIdx.x)};
    b = warp_best(b);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = b;
    __syncthreads();
    b = of_warp[0];
#pragma unroll
    for (int w = 1; w < warps; w++) b = better(b, of_warp[w]);
    return b;
}
__device__ __forceinline__ double block_sum(double v)
{
    SHARED_ARRAY(double, of_warp, [warps]);
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    v = of_warp[0];
#pragma unroll
    for (int w = 1; w < warps; w++) v += of_warp[w];
    return v;
}

/* After thread 0 has written this block's part: true in all threads of the row's last block, which sees all parts. */
__device__ __forceinline__ bool last_of_row(unsigned *counter)
{
    SHARED_ARRAY(int, last, [1]);
    if (threadIdx.x == 0) {
        __threadfence();
        last[0] = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    return last[0];
}

/* By one warp: lse and argmax of a row from its slices; every lane gets them. */
__device__ __forceinline__ double merge_parts(const slice_part *parts, int n, int *argmax)
{
    best b = {MINUS_INF, no_index};
    for (int i = threadIdx.x % 32; i < n; i += 32) b = better(b, {__ldcg(&parts[i].max), __ldcg(&parts[i].argmax)});
    b = warp_best(b);
    const double m = shifted(b.max);
    double sum = 0;
    for (int i = threadIdx.x % 32; i < n; i += 32)
        sum += __ldcg(&parts[i].sum) * exp(shifted(__ldcg(&parts[i].max)) - m);
    sum = warp_sum(sum);
    *argmax = b.at == no_index ? 0 : b.at;
    return b.max == MINUS_INF && sum == 0 ? double(MINUS_INF) : m + log(sum);
}

struct rows_args {
    const float *logits[2]; /* [1]: diverge only */
    const int32_t *targets;
    int64_t n_vocab;
    slice_part *parts; /* (2, rows, slices) */
    double *lse;       /* (2, rows), diverge only */
    int *argmax;       /* (2, rows), diverge only */
    double *kld;       /* (rows, slices) */
    unsigned *counters; /* (2, batch_rows) */
};

/* Grid: slices, rows, inputs. out: score, else lse and argmax are kept for diverge_kernel. */
__global__ void __launch_bounds__(threads) score_kernel(struct score *out, rows_args a)
{
    kernel_begin();
    const int row = blockIdx.y, which = blockIdx.z, at = int(blockIdx.x) * slice_len;
    const int64_t n_vocab = a.n_vocab, slot = int64_t(which) * gridDim.y + row;
    const float *x = (which ? a.logits[1] : a.logits[0]) + row * n_vocab; /* an index would put `a` into local memory */
    float v[per_thread];
    load_slice(v, x + at, int(min(n_vocab - at, int64_t(slice_len))));
    const best b = block_best(v, at);
    const double m = shifted(b.max);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < per_thread; i++)
        if (i * threads + int(threadIdx.x) < n_vocab - at) sum += exp(double(v[i]) - m);
    sum = block_sum(sum);
    slice_part *parts = a.parts + slot * gridDim.x;
    if (threadIdx.x == 0) parts[blockIdx.x] = {sum, b.max, b.at};
    if (!last_of_row(a.counters + which * batch_rows + row) || threadIdx.x >= 32) return;
    int argmax;
    const double lse = merge_parts(parts, gridDim.x, &argmax);
    if (threadIdx.x) return;
    if (out) {
        out[row].lse = lse;
        out[row].target = x[a.targets[row]];
        out[row].argmax = argmax;
    } else {
        a.lse[slot] = lse;
        a.argmax[slot] = argmax;
    }
}

/* Grid: slices, rows. */
__global__ void __launch_bounds__(threads) diverge_kernel(struct divergence *out, rows_args a)
{
    kernel_begin();
    const int row = blockIdx.y, rows = gridDim.y, at = int(blockIdx.x) * slice_len;
    const int64_t from = row * a.n_vocab;
    const int n = int(min(a.n_vocab - at, int64_t(slice_len)));
    const double lse_ref = a.lse[row], lse = a.lse[rows + row];
    float r[per_thread], v[per_thread];
    load_slice(r, a.logits[0] + from + at, n);
    load_slice(v, a.logits[1] + from + at, n);
    double sum = 0;
#pragma unroll
    for (int i = 0; i < per_thread; i++)
        if (i * threads + int(threadIdx.x) < n) {
            const double p = double(r[i]) - lse_ref, q = double(v[i]) - lse;
            sum += exp(p) * (p - q);
        }
    sum = block_sum(sum);
    double *kld = a.kld + int64_t(row) * gridDim.x;
    if (threadIdx.x == 0) kld[blockIdx.x] = sum;
    if (!last_of_row(a.counters + row) || threadIdx.x >= 32) return;
    sum = 0;
    for (int i = threadIdx.x; i < int(gridDim.x); i += 32) sum += __ldcg(kld + i);
    sum = warp_sum(sum);
    if (threadIdx.x) return;
    const int target = a.targets[row];
    struct divergence d;
    d.kld = sum;
    d.nll_ref = lse_ref - a.logits[0][from + target];
    d.nll_model = lse - a.logits[1][from + target];
    d.p_ref = exp(-d.nll_ref);
    d.p_model = exp(-d.nll_model);
    d.argmax_ref = a.argmax[row];
    d.argmax_model = a.argmax[rows + row];
    out[row] = d;
}

/* Grid: slices. */
__global__ void __launch_bounds__(threads)
greedy_kernel(int32_t *token, int32_t *pos, const float *logits, int64_t n_vocab, best *parts, unsigned *counter)
{
    kernel_begin();
    const int at = int(blockIdx.x) * slice_len;
    float v[per_thread];
    load_slice(v, logits + at, int(min(n_vocab - at, int64_t(slice_len))));
    best b = block_best(v, at);
    if (threadIdx.x == 0) parts[blockIdx.x] = b;
    if (!last_of_row(counter) || threadIdx.x >= 32) return;
    b = {MINUS_INF, no_index};
    for (int i = threadIdx.x; i < int(gridDim.x); i += 32) b = better(b, {__ldcg(&parts[i].max), __ldcg(&parts[i].at)});
    b = warp_best(b);
    if (threadIdx.x) return;
    *token = b.at == no_index ? 0 : b.at;
    if (pos) *pos += 1;
}

static int64_t n_slices(int64_t n_vocab) { return (n_vocab + slice_len - 1) / slice_len; }
static size_t counters_bytes() { return 2 * batch_rows * sizeof(unsigned); }

size_t logits_work_bytes(int64_t n_tok, int64_t n_vocab)
{
    const size_t rows = size_t(n_tok < batch_rows ? n_tok : batch_rows), slices = size_t(n_slices(n_vocab));
    return counters_bytes() +
           rows * (slices * (2 * sizeof(slice_part) + sizeof(double)) + 2 * (sizeof(double) + sizeof(int)));
}

/* Rows t0 … t0 + n − 1 */
static rows_args args_of(const float *a, const float *b, const int32_t *targets, int64_t t0, int64_t n, int64_t n_vocab,
                         void *work)
{
    rows_args r;
    char *p = static_cast<char *>(work);
    const int64_t slices = n_slices(n_vocab);
    r.logits[0] = a + t0 * n_vocab;
    r.logits[1] = b ? b + t0 * n_vocab : nullptr;
    r.targets = targets + t0;
    r.n_vocab = n_vocab;
    r.counters = reinterpret_cast<unsigned *>(p);
    r.parts = reinterpret_cast<slice_part *>(p + counters_bytes());
    r.kld = reinterpret_cast<double *>(r.parts + 2 * n * slices);
    r.lse = r.kld + n * slices;
    r.argmax = reinterpret_cast<int *>(r.lse + 2 * n);
    return r;
}

void logits_score(struct score *out, const float *logits, const int32_t *targets, int64_t n_tok, int64_t n_vocab,
                  void *work, cudaStream_t s)
{
    for (int64_t t = 0; t < n_tok; t += batch_rows) {
        const int64_t n = n_tok - t < batch_rows ? n_tok - t : batch_rows;
        launch("score", score_kernel, dim3(unsigned(n_slices(n_vocab)), unsigned(n), 1), dim3(threads), 0, s, out + t,
               args_of(logits, nullptr, targets, t, n, n_vocab, work));
    }
}

void logits_diverge(struct divergence *out, const float *logits_ref, const float *logits, const int32_t *targets,
                    int64_t n_tok, int64_t n_vocab, void *work, cudaStream_t s)
{
    for (int64_t t = 0; t < n_tok; t += batch_rows) {
        const int64_t n = n_tok - t < batch_rows ? n_tok - t : batch_rows;
        const rows_args a = args_of(logits_ref, logits, targets, t, n, n_vocab, work);
        const unsigned slices = unsigned(n_slices(n_vocab));
        launch("score", score_kernel, dim3(slices, unsigned(n), 2), dim3(threads), 0, s, nullptr, a);
        launch("diverge", diverge_kernel, dim3(slices, unsigned(n)), dim3(threads), 0, s, out + t, a);
    }
}

void logits_greedy(int32_t *token, int32_t *pos, const float *logits, int64_t n_vocab, void *work, cudaStream_t s)
{
    char *p = static_cast<char *>(work);
    launch("greedy", greedy_kernel, dim3(unsigned(n_slices(n_vocab))), dim3(threads), 0, s, token, pos, logits, n_vocab,
           reinterpret_cast<best *>(p + counters_bytes()), reinterpret_cast<unsigned *>(p));
}
