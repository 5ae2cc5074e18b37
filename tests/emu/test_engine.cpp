/* The emulation itself: that it notices what it should. */
#include "check.h"

#include "device.cuh"
#include "weight_load.cuh"

__global__ static void conflicts(uint32_t *out)
{
    SHARED_ARRAY(uint16_t, tile, [32][64]);
    kernel_begin();
    for (int i = 0; i < 64; i++) tile[threadIdx.x][i] = 0;
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, tile[threadIdx.x]);
    out[threadIdx.x] = r[0];
}
EMU_TEST(ldmatrix_conflicts)
{
    dev<uint32_t> out(32);
    emu::counts.ldmatrix_conflicts = 0;
    launch("conflicts", conflicts, dim3(1), dim3(32), 0, nullptr, out.p);
    out.get();
    CHECK(emu::counts.ldmatrix_conflicts == 28, "%lu conflicts counted, not 28", emu::counts.ldmatrix_conflicts);
}

/* ---- what must be noticed */

__global__ static void diverging(int *out)
{
    kernel_begin();
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_sync(full_warp, 1, 0);
    else
        out[threadIdx.x] = int(__ballot_sync(full_warp, 1));
}
__global__ static void half_barrier() { kernel_begin(); if (threadIdx.x < 32) __syncthreads(); else __syncwarp(0x1); }
__global__ static void lone_shuffle(int *out) { kernel_begin(); out[threadIdx.x] = __shfl_sync(0x3, 1, 1); }
__global__ static void absent_lane(int *out) { kernel_begin(); out[threadIdx.x] = __shfl_sync(0xffff, 1, 20); }
__global__ static void two_barriers()
{
    kernel_begin();
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ static void overrun(int by)
{
    SHARED_ARRAY(int, a, [32]);
    kernel_begin();
    int *p = a;
    p[int(threadIdx.x) + by] = 1;
}
__global__ static void unwaited(const uint4 *in)
{
    SHARED_ARRAY(uint4, a, [32]);
    kernel_begin();
    cp_async<16>(&a[threadIdx.x], in + threadIdx.x);
    cp_async_commit();
}
__global__ static void too_much()
{
    SHARED_ARRAY(char, a, [50000]);
    kernel_begin();
    a[threadIdx.x] = 0;
}
__global__ static void early(int *out, int n)
{
    if (int(threadIdx.x) >= n) return;
    kernel_begin();
    out[threadIdx.x] = 1;
}
/* Reads before the wait: w through the one way there is, or as it is. */
__global__ static void reads_early(int *out, const int *w, bool plainly)
{
    int v = plainly ? w[threadIdx.x] : load_weight<true>(w + threadIdx.x);
    kernel_begin();
    __syncthreads();
    out[threadIdx.x] = v;
}
__global__ static void out_of_bounds(float *p, int n) { kernel_begin(); p[n + int(threadIdx.x)] = 1; }
template <class... P, class... A> static void run(void (*kernel)(P...), int threads, A... args)
{
    launch("k", kernel, dim3(1), dim3(unsigned(threads)), 0, nullptr, args...);
    cudaDeviceSynchronize();
}
EMU_TEST(notices_misuse)
{
    CHECK_DIES("the warp diverged", [] { dev<int> o(32); run(diverging, 32, o.p); });
    CHECK_DIES("the calling lane is not in its mask", [] { run(half_barrier, 64); });
    CHECK_DIES("the calling lane is not in its mask", [] { dev<int> o(32); run(lone_shuffle, 32, o.p); });
    CHECK_DIES("lane 0 reads lane 20", [] { dev<int> o(16); run(absent_lane, 16, o.p); });
    CHECK_DIES("__syncthreads at different places", [] { run(two_barriers, 64); });
    CHECK_DIES("without kernel_begin", [] { dev<int> o(31); run(early, 32, o.p, 31); });
    CHECK_DIES("not filled by copies from the host alone", [] { dev<int> o(32), w(32); run(reads_early, 32, o.p, w.p, false); });
    CHECK_DIES("not filled by copies from the host alone", [] {
        dev<int> o(32), w(std::vector<int>(32, 1));
        cudaMemset(w.p, 0, 32 * sizeof(int));
        run(reads_early, 32, o.p, w.p, false);
    });
    CHECK_DIES("was written by a kernel", [] {
        dev<int> o(32), w(std::vector<int>(32, 2));
        run(reads_early, 32, o.p, w.p, false);
        run(early, 32, w.p, 32);
    });
    CHECK_DIES("a read outside of device memory", [] { dev<int> o(32), w(std::vector<int>(31, 1)); run(reads_early, 32, o.p, w.p, false); });
    CHECK_DIES("not waited for", [] { dev<uint4> o(32); run(unwaited, 32, o.p); });
    CHECK_DIES("bytes of shared memory (at most", [] { run(too_much, 1); });
#ifdef __SANITIZE_ADDRESS__
    CHECK_DIES("use-after-poison", [] { run(overrun, 32, 8); });
    CHECK_DIES("use-after-poison", [] { dev<float> p(7); run(out_of_bounds, 1, p.p, 7); });
#else
    CHECK_DIES("a write outside shared arrays", [] { run(overrun, 32, 8); });
    CHECK_DIES("a write outside an allocation", [] { dev<float> p(7); run(out_of_bounds, 1, p.p, 7); });
#endif
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
    CHECK_DIES("host code touches device memory", [] { dev<float> p(7); p.p[3] = 1; });
    CHECK_DIES("touches device memory before kernel_begin", [] {
        dev<int> o(32), w(std::vector<int>(32, 1));
        run(reads_early, 32, o.p, w.p, true);
    });
#endif
}

EMU_TEST(reads_weights_early)
{
    dev<int> o(64), w(std::vector<int>(64, 7));
    run(reads_early, 64, o.p, w.p, false);
    CHECK(o.get()[63] == 7, "%d, not 7", o.get()[63]);
    w.put(std::vector<int>(64, 8)); /* from the host again */
    run(reads_early, 64, o.p, w.p, false);
    CHECK(o.get()[63] == 8, "%d, not 8", o.get()[63]);
}

__global__ static void missing_barrier(int *out)
{
    SHARED_ARRAY(int, a, [64]);
    kernel_begin();
    a[threadIdx.x] = int(threadIdx.x);
    out[threadIdx.x] = a[63 - threadIdx.x];
}
__global__ static void shuffle_as_fence(int *out)
{
    SHARED_ARRAY(int, a, [32]);
    kernel_begin();
    a[threadIdx.x] = int(threadIdx.x);
    __shfl_sync(full_warp, 1, 0);
    out[threadIdx.x] = a[31 - threadIdx.x];
}
__global__ static void blocks_collide(int *out)
{
    kernel_begin();
    __syncthreads();
    out[threadIdx.x] = int(blockIdx.x);
    __syncthreads();
}
__global__ static void blocks_count(int *out)
{
    kernel_begin();
    __syncthreads();
    atomicAdd(out + threadIdx.x, int(blockIdx.x));
    __syncthreads();
}
EMU_TEST(races)
{
    if (emu::under_tsan) {
        CHECK_DIES("data race", [] { dev<int> o(64); run(missing_barrier, 64, o.p); });
        CHECK_DIES("data race", [] { dev<int> o(32); run(shuffle_as_fence, 32, o.p); });
        CHECK_DIES("data race", [] {
            dev<int> o(32);
            launch("k", blocks_collide, dim3(2), dim3(32), 0, nullptr, o.p);
            cudaDeviceSynchronize();
        });
    }
    dev<int> o(std::vector<int>(32, 0));
    for (int i = 0; i < 2; i++) launch("k", blocks_count, dim3(9), dim3(32), 0, nullptr, o.p);
    CHECK(o.get()[31] == 72, "atomics: %d, not 72", o.get()[31]);
}
