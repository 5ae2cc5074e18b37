#include "elementwise.h"

#include "acts.cuh"
#include "device.cuh"

#include <climits>

constexpr int max_threads = 512;

/* One block a row. Quantizing, a warp takes a chunk of 32 columns at a time. */
__global__ void __launch_bounds__(max_threads)
rmsnorm_kernel(float *y, struct cuda_acts acts, const float *x, const float *w, int n, float eps)
{
    SHARED_ARRAY(float, of_warp, [max_threads / 32]);
    kernel_begin();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const size_t row = blockIdx.x;
    x += row * n;
    if (y) y += row * n;
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    sum = of_warp[0];
    for (int i = 1; i < warps; i++) sum += of_warp[i];
    const float scale = 1.0f / sqrtf(sum / float(n) + eps);
    if (acts.q) {
        for (int c = warp; c < acts.n_chunks; c += warps) {
            const int k = c * 32 + lane;
            const float v = k < n ? x[k] * scale * w[k] : 0.0f;
            if (y && k < n) y[k] = v;
            quantize_to(acts, row, c, v);
        }
    } else {
        for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * scale * w[i];
    }
}

__device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }
struct swiglu_of {
    __device__ __forceinline__ float operator()(float a, float b) const { return swiglu(a, b); }
};
struct sum_of {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

/* out[i] = F(a[i], b[i]); Wide: four at a time, n a multiple of 4 and all pointers of 16 bytes. out may be a or b. */
template <class F, bool Wide>
__global__ void __launch_bounds__(256) pairs_kernel(float *out, const float *a, const float *b, int64_t n)
{
    kernel_begin();
    const int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * (Wide ? 4 : 1);
    if (i >= n) return;
    if (Wide) {
        const float4 u = *reinterpret_cast<const float4 *>(a + i), v = *reinterpret_cast<const float4 *>(b + i);
        *reinterpret_cast<float4 *>(out + i) = make_float4(F()(u.x, v.x), F()(u.y, v.y), F()(u.z, v.z), F()(u.w, v.w));
    } else {
        out[i] = F()(a[i], b[i]);
    }
}

/* A warp a chunk of 32 columns; rows in x. */
__global__ void __launch_bounds__(256)
swiglu_acts_kernel(float *y, struct cuda_acts acts, const float *gate, const float *up, int n)
{
    kernel_begin();
    const int lane = threadIdx.x % 32, c = int(blockIdx.y) * 8 + threadIdx.x / 32, k = c * 32 + lane;
    if (c >= acts.n_chunks) return; /* whole warps */
    const size_t row = blockIdx.x, at = row * n + k;
    const float v = k < n ? swiglu(gate[at], up[at]) : 0.0f;
    if (y && k < n) y[at] = v;
    quantize_to(acts, row, c, v);
}

static int threads_of(int64_t n)
{
    const int64_t t = (n / 8 + 31) / 32 * 32;
    return int(t < 32 ? 32 : t > max_threads ? max_threads : t);
}
static const struct cuda_acts no_acts = {nullptr, nullptr, 0};

void rmsnorm_rows(float *y, const struct cuda_acts *acts, const float *x, const float *w, int64_t n_rows, int64_t n,
                  float eps, cudaStream_t s)
{
    launch("rmsnorm", rmsnorm_kernel, dim3(unsigned(n_rows)), dim3(unsigned(threads_of(n))), 0, s, y,
           acts ? *acts : no_acts, x, w, n, eps);
}

template <class F>
static void pairs(const char *name, float *out, const float *a, const float *b, int64_t n, cudaStream_t s)
{
    const bool wide = n % 4 == 0 && (reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(a) |
                                     reinterpret_cast<uintptr_t>(b)) % 16 == 0;
    const int64_t per_block = wide ? 1024 : 256;
    const dim3 grid(unsigned((n + per_block - 1) / per_block));
    launch(name, wide ? pairs_kernel<F, true> : pairs_kernel<F, false>, grid, dim3(256), 0, s, out, a, b, n);
}

void swiglu_rows(float *y, const struct cuda_acts *acts, const float *gate, const float *up, int64_t n_rows, int64_t n,
                 cudaStream_t s)
{
    if (acts)
        launch("swiglu_acts", swiglu_acts_kernel, dim3(unsigned(n_rows), unsigned((acts->n_chunks + 7) / 8)), dim3(256),
               0, s, y, *acts, gate, up, n);
    else
        pairs<swiglu_of>("swiglu", y, gate, up, n_rows * n, s);
}

void add_to(float *x, const float *y, int64_t n, cudaStream_t s) { pairs<sum_of>("add", x, x, y, n, s); }
