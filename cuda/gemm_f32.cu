/* Matrix times many vectors in f32, for the exact path: f32 rows of weights (as they are, or dequantized into scratch
 * by matmul.cu) times f32 activations, products and sums in f32, over columns in rising order.
 *
 * A block has 64 tokens × 64 rows, a thread 8 × 4 of them; steps of 16 columns, transposed into shared memory, the next
 * step on its way in registers meanwhile. 32 fused multiply-adds for 3 shared loads of 16 bytes; 128 threads, so that
 * four and more blocks share a multiprocessor and small matrices still make many blocks. */
#include "gemm.cuh"

#include "device.cuh"
#include "grid_constant.cuh"

enum { FM = 64, FN = 64, FK = 16, F_THREADS = 128, F_PAD = 4 };

/* Columns k … k+3 of row r; zeros outside. width: floats a row really has; vector: rows are 16-byte aligned. */
__device__ __forceinline__ float4 four(const float *rows, int64_t ld, int r, int n_rows, int k, int width, bool vector)
{
    float4 v = make_float4(0, 0, 0, 0);
    if (r >= n_rows) return v;
    const float *p = rows + r * ld + k;
    if (vector && k + 3 < width) return *reinterpret_cast<const float4 *>(p);
    if (k < width) v.x = p[0];
    if (k + 1 < width) v.y = p[1];
    if (k + 2 < width) v.z = p[2];
    if (k + 3 < width) v.w = p[3];
    return v;
}

/* Grid: x token tiles, y row tiles of all jobs. */
__global__ void __launch_bounds__(F_THREADS, 4) gemm_f32_kernel(const GRID_CONSTANT struct gemm_args a)
{
    SHARED_ARRAY(float, xs, [FK][FM + F_PAD]);
    SHARED_ARRAY(float, ws, [FK][FN + F_PAD]);
    kernel_begin();
    int which;
    const unsigned first = gemm_job_of(a, blockIdx.y, &which);
    const struct gemm_job &job = a.job[which];
    const int m0 = blockIdx.x * FM, n0 = int(blockIdx.y - first) * FN, tid = threadIdx.x;
    const float *x = static_cast<const float *>(a.x);
    const float *w = reinterpret_cast<const float *>(job.w.data + job.w.codes_at);
    const int64_t ldw = job.w.row_bytes / 4;
    const bool x_vector = a.ldx % 4 == 0;
    const int lr = tid / 4, lk = tid % 4 * 4;   /* what this thread loads: rows lr and lr + 32 */
    const int tm = tid / 16 * 8, tn = tid % 16 * 4; /* what it computes */

    float4 xr[2], wr[2];
    auto read = [&](int k) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            xr[i] = four(x, a.ldx, m0 + lr + i * 32, a.n_tok, k + lk, a.n_in, x_vector);
            wr[i] = four(w, ldw, n0 + lr + i * 32, int(job.w.n_out), k + lk, a.n_in, true);
        }
    };
    float acc[8][4] = {};
    read(0);
    for (int k = 0; k < a.n_in; k += FK) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = lr + i * 32;
            xs[lk][r] = xr[i].x, xs[lk + 1][r] = xr[i].y, xs[lk + 2][r] = xr[i].z, xs[lk + 3][r] = xr[i].w;
            ws[lk][r] = wr[i].x, ws[lk + 1][r] = wr[i].y, ws[lk + 2][r] = wr[i].z, ws[lk + 3][r] = wr[i].w;
        }
        __syncthreads();
        if (k + FK < a.n_in) read(k + FK);
#pragma unroll
        for (int kk = 0; kk < FK; kk++) {
            const float4 x0 = *reinterpret_cast<const float4 *>(&xs[kk][tm]);
            const float4 x1 = *reinterpret_cast<const float4 *>(&xs[kk][tm + 4]);
            const float4 wv = *reinterpret_cast<const float4 *>(&ws[kk][tn]);
            const float xm[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w}, wn[4] = {wv.x, wv.y, wv.z, wv.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(xm[i], wn[j], acc[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int m = m0 + tm + i, n = n0 + tn + j;
            if (m < a.n_tok && n < job.w.n_out) gemm_store(job, m, n, acc[i][j]);
        }
}

void gemm_f32(struct gemm_args *a, cudaStream_t s)
{
    const dim3 grid(unsigned((a->n_tok + FM - 1) / FM), gemm_divide(a, FN));
    launch("gemm_f32", gemm_f32_kernel, grid, dim3(F_THREADS), 0, s, *a);
}
