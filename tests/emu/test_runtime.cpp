/* The emulated runtime API: order of work, captures, memory, and everything that can be made to fail; launch.h. */
#include "check.h"

#include "device.cuh"

extern "C" {
#include "base/err.h"
}

#include <cstring>

__global__ static void add_one(int *p, int n)
{
    kernel_begin();
    if (int(threadIdx.x) < n) p[threadIdx.x]++;
}
static void add_one_to(dev<int> &d, cudaStream_t s) { launch("add_one", add_one, dim3(1), dim3(32), 0, s, d.p, int(d.n)); }

struct stream {
    cudaStream_t s;
    explicit stream(unsigned flags = cudaStreamNonBlocking) { cudaStreamCreateWithFlags(&s, flags); }
    ~stream() { cudaStreamDestroy(s); }
};
struct event {
    cudaEvent_t e;
    event() { cudaEventCreate(&e); }
    ~event() { cudaEventDestroy(e); }
};

EMU_TEST(work_waits)
{
    stream a;
    dev<int> d(std::vector<int>{1, 2, 3});
    int *host;
    CHECK(!cudaMallocHost(&host, 12), "pinned memory");
    add_one_to(d, a.s);
    CHECK(!cudaMemcpyAsync(host, d.p, 12, cudaMemcpyDeviceToHost, a.s), "copy");
    CHECK(host[0] != 2 && cudaStreamQuery(a.s) == cudaErrorNotReady, "the copy did not wait");
    CHECK(!cudaStreamSynchronize(a.s) && host[0] == 2 && host[2] == 4, "the copy was not done");
    CHECK(!cudaStreamQuery(a.s), "an idle stream");

    /* a non-blocking stream is not waited for by the default stream, another is */
    add_one_to(d, a.s);
    CHECK(d.get()[0] == 2, "the default stream waited for a non-blocking one");
    cudaStreamSynchronize(a.s);
    stream b(cudaStreamDefault);
    add_one_to(d, b.s);
    CHECK(d.get()[0] == 4, "the default stream did not wait");
    cudaFreeHost(host);
}

EMU_TEST(events)
{
    stream a, b;
    dev<int> d(std::vector<int>{10});
    event first, second;
    CHECK(!cudaEventRecord(first.e, a.s), "record");
    add_one_to(d, a.s);
    CHECK(!cudaEventRecord(second.e, a.s), "record");
    float ms;
    CHECK(cudaEventElapsedTime(&ms, first.e, second.e) == cudaErrorNotReady, "time of events not reached");
    CHECK(!cudaStreamWaitEvent(b.s, second.e, 0), "wait");
    int out = 0;
    CHECK(!cudaMemcpyAsync(&out, d.p, 4, cudaMemcpyDeviceToHost, b.s) && out == 11, "%d after the event, not 11", out);
    CHECK(!cudaEventSynchronize(second.e) && !cudaEventElapsedTime(&ms, first.e, second.e) && ms >= 0, "time");
}

EMU_TEST(graphs)
{
    stream a;
    dev<int> d(std::vector<int>{0});
    cudaGraph_t g;
    cudaGraphExec_t x;
    CHECK(!cudaStreamBeginCapture(a.s, cudaStreamCaptureModeGlobal), "begin");
    for (int i = 0; i < 3; i++) add_one_to(d, a.s);
    CHECK(!cudaMemsetAsync(d.p, 0, 0, a.s), "memset of nothing");
    CHECK(!cudaStreamEndCapture(a.s, &g), "end");
    size_t n = 0;
    CHECK(!cudaGraphGetNodes(g, nullptr, &n) && n == 3, "%zu nodes, not 3", n);
    CHECK(!cudaGraphInstantiate(&x, g, 0) && !cudaGraphDestroy(g), "instantiate");
    CHECK(d.get()[0] == 0, "a captured launch ran");
    for (int i = 0; i < 2; i++) CHECK(!cudaGraphLaunch(x, a.s), "launch");
    cudaStreamSynchronize(a.s);
    CHECK(d.get()[0] == 6, "%d after two launches, not 6", d.get()[0]);
    cudaGraphExecDestroy(x);

    /* what must not be done meanwhile breaks the capture */
    for (int what = 0; what < 3; what++) {
        void *p = nullptr;
        cudaStreamBeginCapture(a.s, cudaStreamCaptureModeGlobal);
        cudaError_t rc = what == 0 ? cudaStreamSynchronize(a.s) : what == 1 ? cudaMalloc(&p, 4) : cudaMemcpy(d.p, &n, 4, cudaMemcpyHostToDevice);
        CHECK(rc == cudaErrorStreamCaptureUnsupported, "call %d during a capture: %s", what, cudaGetErrorName(rc));
        CHECK(cudaStreamEndCapture(a.s, &g) == cudaErrorStreamCaptureInvalidated && !g, "the capture survived call %d", what);
    }
    cudaGetLastError();
}

EMU_TEST(copies_are_checked)
{
    dev<int> d(4), o(4);
    int host[8] = {};
    CHECK(cudaMemcpy(d.p, host, 20, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "20 bytes into 16");
    CHECK(cudaMemcpy(d.p + 2, host, 12, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "past the end");
    CHECK(cudaMemcpy(host, host + 4, 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "host memory as device memory");
    CHECK(cudaMemcpy(d.p, o.p, 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "device memory as host memory");
    CHECK(cudaMemset(d.p, 0, 17) == cudaErrorInvalidValue, "memset past the end");
    CHECK(cudaFree(host) == cudaErrorInvalidValue && cudaFree(d.p + 1) == cudaErrorInvalidValue, "free of no allocation");
    CHECK(!cudaMemset(d.p, 0, 16) && !cudaMemcpy(o.p, d.p, 16, cudaMemcpyDeviceToDevice) && o.get()[3] == 0, "copy");
    int grid[6] = {1, 2, 3, 4, 5, 6};
    CHECK(!cudaMemcpy2DAsync(d.p, 8, grid + 1, 12, 8, 2, cudaMemcpyHostToDevice, nullptr), "2-D copy");
    CHECK(d.get() == (std::vector<int>{2, 3, 5, 6}), "2-D copy: %d %d", d.get()[0], d.get()[2]);
    cudaGetLastError();
}

EMU_TEST(devices)
{
    emu::machine &m = emu::the_machine(), saved = m;
    int n = -1;
    void *p;
    cudaDeviceProp props;
    m.devices = 0;
    CHECK(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0 && cudaMalloc(&p, 4) == cudaErrorNoDevice, "no device");
    m.devices = 2;
    m.driver = 11080;
    CHECK(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver, "an old driver");
    m.driver = saved.driver;
    CHECK(!cudaSetDevice(1) && cudaSetDevice(2) == cudaErrorInvalidDevice, "choice of device");
    m.capability = 75;
    CHECK(!cudaGetDeviceProperties(&props, 0) && props.major == 7 && props.minor == 5, "capability");
    m = saved;
    cudaSetDevice(0);
    cudaGetLastError();
}

EMU_TEST(memory_runs_out)
{
    emu::machine &m = emu::the_machine(), saved = m;
    void *p, *q;
    size_t avail, total;
    m.memory = 1000;
    CHECK(!cudaMalloc(&p, 600) && cudaMalloc(&q, 600) == cudaErrorMemoryAllocation && !q, "600 and 600 of 1000");
    CHECK(!cudaMemGetInfo(&avail, &total) && avail == 400 && total == 1000, "%zu of %zu free", avail, total);
    cudaFree(p);
    m.fail_alloc = 2;
    CHECK(!cudaMalloc(&p, 4) && cudaMalloc(&q, 4) == cudaErrorMemoryAllocation, "the second allocation fails");
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess, "the last error");
    cudaFree(p);
    m = saved;
}

EMU_TEST(launch_errors)
{
    emu::machine &m = emu::the_machine(), saved = m;
    struct err e;
    dev<int> d(std::vector<int>{0});
    unsigned long long before = launch_count();
    launch("too_wide", add_one, dim3(1), dim3(2048), 0, nullptr, d.p, 1);
    launch("fine", add_one, dim3(1), dim3(32), 0, nullptr, d.p, 1);
    CHECK(launch_count() == before + 2, "%llu launches", launch_count() - before);
    CHECK(launch_failed(cudaDeviceSynchronize(), &e) == -1 &&
              !strcmp(e.msg, "kernel too_wide (grid 1x1x1, block 2048x1x1, 0 bytes of shared memory): invalid configuration argument"),
          "%s", e.msg);
    CHECK(!launch_failed(cudaDeviceSynchronize(), &e) && d.get()[0] == 1, "the error was not forgotten: %s", e.msg);
    launch("too_much", add_one, dim3(1), dim3(32), 100 * 1024, nullptr, d.p, 1);
    CHECK(launch_failed(cudaSuccess, &e) == -1 && strstr(e.msg, "too_much") && strstr(e.msg, "102400 bytes"), "%s", e.msg);
    launch("much", add_one, dim3(1), dim3(32), 99 * 1024, nullptr, d.p, 1);
    CHECK(!launch_failed(cudaDeviceSynchronize(), &e) && d.get()[0] == 2, "99 KiB of shared memory: %s", e.msg);
    m.fail_launch = 1;
    launch("refused", add_one, dim3(1), dim3(32), 0, nullptr, d.p, 1);
    CHECK(launch_failed(cudaSuccess, &e) == -1 && strstr(e.msg, "kernel refused"), "%s", e.msg);
    m = saved;
    cudaGetLastError();
}

EMU_TEST(launches_early)
{
    emu::machine &m = emu::the_machine(), saved = m;
    const void *k = reinterpret_cast<const void *>(add_one);
    m.capability = 90;
    unsetenv("QLAB_CUDA_PDL");
    CHECK(!launch_early(k), "without being asked");
    setenv("QLAB_CUDA_PDL", "0", 1);
    CHECK(!launch_early(k), "told not to");
    setenv("QLAB_CUDA_PDL", "1", 1);
    CHECK(launch_early(k), "not on sm_90");
    m.capability = 89;
    CHECK(!launch_early(k), "before sm_90");
    m.capability = 120, m.driver = 12020;
    CHECK(!launch_early(k), "by a driver that has no such edges in graphs");
    m.driver = 12030;
    CHECK(launch_early(k), "not by the first driver that has");
    unsetenv("QLAB_CUDA_PDL");
    m = saved;
}

/* A kernel that dies makes every later call fail; in a process of its own, since that cannot be mended. */
EMU_TEST(a_kernel_dies)
{
    CHECK_DIES("at or before kernel dying (grid 3x1x1, block 32x1x1", [] {
        struct err e;
        emu::the_machine().fail_run = 1;
        dev<int> d(std::vector<int>{0});
        launch("dying", add_one, dim3(3), dim3(32), 0, nullptr, d.p, 1);
        int rc = launch_failed(cudaDeviceSynchronize(), &e);
        if (rc && cudaMalloc(&d.p, 4) == cudaErrorLaunchFailure && cudaDeviceSynchronize() == cudaErrorLaunchFailure)
            emu::die("%s", e.msg);
    });
}
