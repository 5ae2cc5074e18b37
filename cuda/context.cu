#include "context.h"

#include "blas.h"
#include "device.cuh"
#include "launch.h"
#include "nvml.h"

extern "C" {
#include "base/mem.h"
#include "base/msg.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>

struct block {
    void *p;
    size_t bytes;
};

constexpr size_t staging_bytes = size_t(16) << 20;
constexpr int oldest = 75; /* compute capability: Turing */

static double mib(size_t n) { return double(n) / (1 << 20); }

/* ---- opening */

/* CUDA 13.0 as 13000 */
static void version_text(char *buf, size_t size, int v) { snprintf(buf, size, "%d.%d", v / 1000, v % 1000 / 10); }

static int find_device(int index, const char *who, struct err *e)
{
    int n = 0, have = 0, need = 0;
    char h[16], w[16];
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaErrorInsufficientDriver) {
        cudaDriverGetVersion(&have);
        cudaRuntimeGetVersion(&need);
        version_text(h, sizeof h, have);
        version_text(w, sizeof w, need);
        if (!have)
            return err_set(e, "%s: no NVIDIA driver is installed (one for CUDA %s was expected; cpu works)", who, w);
        return err_set(e, "%s: the NVIDIA driver is too old: it knows CUDA %s (%s was expected; cpu works)", who, h, w);
    }
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && n == 0))
        return err_set(e, "%s: there is no NVIDIA device (cpu works)", who);
    if (rc != cudaSuccess) return err_set(e, "%s: %s (cpu works)", who, cudaGetErrorString(rc));
    if (index >= n)
        return err_set(e, "%s: there is no such device (cuda:0%s was expected)", who, n > 1 ? " and up" : "");
    return 0;
}

__global__ void probe_kernel(int *p)
{
    kernel_begin();
    *p = 1;
}

/* A kernel runs at all: this binary has code for the device. */
static int probe(struct cuda_ctx *c, struct err *e)
{
    int *p = static_cast<int *>(context_alloc(c, sizeof *p, e));
    if (!p) return -1;
    launch("probe", probe_kernel, dim3(1), dim3(1), 0, c->stream, p);
    cudaError_t rc = cudaStreamSynchronize(c->stream);
    int bad = launch_failed(rc, e);
    context_free(c, p);
    if (bad) err_prefix(e, "%s (%s, compute capability %d.%d)", c->who, c->name, c->env.sm / 10, c->env.sm % 10);
    return bad;
}

static int set_up(struct cuda_ctx *c, struct err *e)
{
    cudaDeviceProp p;
    size_t free_bytes;
    char bus[32];
    cudaError_t rc = cudaGetDeviceProperties(&p, c->index);
    if (rc != cudaSuccess) return err_set(e, "%s: %s", c->who, cudaGetErrorString(rc));
    snprintf(c->name, sizeof c->name, "%.120s", p.name);
    c->env.sm = p.major * 10 + p.minor;
    c->env.n_sm = p.multiProcessorCount;
    c->env.l2_bytes = size_t(p.l2CacheSize);
    if (c->env.sm < oldest)
        return err_set(e, "%s: %s has compute capability %d.%d, without the integer matrix products of 7.5 and newer "
                          "(Turing or newer was expected; cpu works)", c->who, c->name, p.major, p.minor);
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, c->index) == cudaSuccess) c->nvml = nvml_open(bus);
    nvml_driver(c->nvml, c->driver, sizeof c->driver);
    long long before = nvml_used_bytes(c->nvml);
    if ((rc = cudaSetDevice(c->index)) != cudaSuccess ||
        (rc = cudaMemGetInfo(&free_bytes, &c->total_bytes)) != cudaSuccess ||
        (rc = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking)) != cudaSuccess ||
        (rc = cudaEventCreate(&c->begin)) != cudaSuccess || (rc = cudaEventCreate(&c->end)) != cudaSuccess)
        return err_set(e, "%s: %s", c->who, cudaGetErrorString(rc));
    if (probe(c, e)) return -1;
    if (c->compute != COMPUTE_F32 && c->compute != COMPUTE_INT8X2 && (c->blas = blas_open())) {
        c->env.blas = blas_product;
        c->env.blas_ctx = c->blas;
    }
    long long after = nvml_used_bytes(c->nvml);
    if (before >= 0 && after > before) c->context_bytes = size_t(after - before);
    return 0;
}

struct cuda_ctx *context_open(int index, enum compute compute, struct err *e)
{
    struct cuda_ctx *c = static_cast<struct cuda_ctx *>(mem_new(1, sizeof *c));
    c->index = index;
    c->compute = compute;
    snprintf(c->who, sizeof c->who, "device cuda:%d", index);
    if (find_device(index, c->who, e) || set_up(c, e)) {
        context_close(c);
        return NULL;
    }
    return c;
}

void context_close(struct cuda_ctx *c)
{
    struct workspace *own[] = {&c->attention, &c->matmul,  &c->normed,  &c->acts,
                               &c->made_mem,  &c->results, &c->logits,  &c->host_ints};
    for (struct workspace *w : own)
        if (w->p) context_free(c, w->p);
    if (c->inv_freq) context_free(c, c->inv_freq);
    if (c->chill) cudaFree(c->chill);
    for (int i = 0; i < 2; i++) {
        if (c->staging[i]) cudaFreeHost(c->staging[i]);
        if (c->staged[i]) cudaEventDestroy(c->staged[i]);
    }
    blas_close(c->blas);
    if (c->begin) cudaEventDestroy(c->begin);
    if (c->end) cudaEventDestroy(c->end);
    if (c->stream) cudaStreamDestroy(c->stream);
    nvml_close(c->nvml);
    free(c->blocks);
    free(c->inv_freq_host);
    free(c);
}

/* ---- failures */

void cuda_must(const struct cuda_ctx *c, cudaError_t rc, const char *what)
{
    struct err e;
    if (rc != cudaSuccess && launch_failed(rc, &e)) die("%s: %s: %s", c->who, what, e.msg);
}

void context_check(struct cuda_ctx *c)
{
    struct err e;
    if (launch_failed(cudaSuccess, &e)) die("%s: %s", c->who, e.msg);
}

void context_sync(struct cuda_ctx *c)
{
    struct err e;
    if (launch_failed(cudaStreamSynchronize(c->stream), &e)) die("%s: %s", c->who, e.msg);
}

/* ---- memory */

void *context_alloc(struct cuda_ctx *c, size_t bytes, struct err *e)
{
    void *p = NULL;
    if (!bytes) bytes = 1;
    cudaError_t rc = cudaMalloc(&p, bytes);
    if (rc == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total = 0;
        cudaGetLastError(); /* it is not a launch's */
        cudaMemGetInfo(&free_bytes, &total);
        err_set(e, "%s: out of memory: %.1f MiB wanted, %.1f MiB of %.1f MiB free, %.1f MiB held by this process "
                   "(%.1f MiB are missing)", c->who, mib(bytes), mib(free_bytes), mib(total), mib(c->used),
                mib(bytes > free_bytes ? bytes - free_bytes : bytes));
        return NULL;
    }
    if (rc != cudaSuccess) {
        err_set(e, "%s: %.1f MiB of memory: %s", c->who, mib(bytes), cudaGetErrorString(rc));
        return NULL;
    }
    if (c->n_blocks % 256 == 0)
        c->blocks = static_cast<struct block *>(mem_grow(c->blocks, c->n_blocks + 256, sizeof *c->blocks));
    c->blocks[c->n_blocks++] = {p, bytes};
    c->used += bytes;
    if (c->used > c->peak) c->peak = c->used;
    return p;
}

void context_free(struct cuda_ctx *c, void *p)
{
    for (size_t i = c->n_blocks; i-- > 0;)
        if (c->blocks[i].p == p) {
            c->used -= c->blocks[i].bytes;
            c->blocks[i] = c->blocks[--c->n_blocks];
            break;
        }
    c->generation++;
    cudaFree(p); /* what failed before is told by the next call that waits */
}

void *workspace_get(struct cuda_ctx *c, struct workspace *w, size_t bytes, const char *what)
{
    if (bytes <= w->bytes) return w->p;
    struct err e;
    if (w->p) {
        context_sync(c);
        context_free(c, w->p);
        w->p = NULL;
        w->bytes = 0;
    }
    w->p = context_alloc(c, bytes, &e);
    if (!w->p) die("%s: %s", what, e.msg);
    w->bytes = bytes;
    cuda_must(c, cudaMemsetAsync(w->p, 0, bytes, c->stream), what);
    return w->p;
}

/* ---- copies */

static int staging_make(struct cuda_ctx *c, struct err *e)
{
    for (int i = 0; i < 2; i++) {
        if (c->staging[i]) continue;
        cudaError_t rc = cudaMallocHost(&c->staging[i], staging_bytes);
        if (rc == cudaSuccess) rc = cudaEventCreateWithFlags(&c->staged[i], cudaEventDisableTiming);
        if (rc != cudaSuccess)
            return err_set(e, "%s: %.0f MiB of pinned memory: %s", c->who, mib(staging_bytes), cudaGetErrorString(rc));
    }
    return 0;
}

int context_put_weight(struct cuda_ctx *c, const struct cuda_weight *w, const struct qweight *src, struct err *e)
{
    struct cuda_piece it = {};
    if (staging_make(c, e)) return -1;
    while (cuda_weight_next(w, &it, staging_bytes)) {
        int i = c->next_staging;
        c->next_staging = !i;
        cudaError_t rc = cudaEventSynchronize(c->staged[i]); /* its last copy; at once if there was none */
        if (rc == cudaSuccess) {
            cuda_weight_pack(w, src, &it, c->staging[i]);
            rc = cudaMemcpyAsync(const_cast<uint8_t *>(w->data) + it.at, c->staging[i], it.bytes,
                                 cudaMemcpyHostToDevice, c->stream);
        }
        if (rc == cudaSuccess) rc = cudaEventRecord(c->staged[i], c->stream);
        if (rc != cudaSuccess)
            return err_set(e, "%s: copying %zu bytes to it: %s", c->who, it.bytes, cudaGetErrorString(rc));
    }
    return 0;
}

void context_upload(struct cuda_ctx *c, void *dst, const void *src, size_t bytes)
{
    if (bytes) cuda_must(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, c->stream), "copying to it");
}

void context_download(struct cuda_ctx *c, void *dst, const void *src, size_t bytes)
{
    if (bytes) cuda_must(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, c->stream), "copying from it");
    context_sync(c);
}

void context_chill(struct cuda_ctx *c)
{
    const size_t n = 2 * c->env.l2_bytes;
    if (!c->chill && (!n || cudaMalloc(&c->chill, n) != cudaSuccess)) {
        cudaGetLastError(); /* without: the times of short ops have the host's in them */
        c->chill = NULL;
        return;
    }
    cuda_must(c, cudaMemsetAsync(c->chill, 0, n, c->stream), "clearing the cache");
}

double context_copy_bandwidth(struct cuda_ctx *c)
{
    size_t free_bytes = 0, total = 0, n = size_t(256) << 20;
    struct err e;
    cuda_must(c, cudaMemGetInfo(&free_bytes, &total), "its memory");
    while (n > free_bytes / 4) n /= 2;
    if (n < (size_t(1) << 20)) return 0;
    void *a = context_alloc(c, n, &e), *b = a ? context_alloc(c, n, &e) : NULL;
    double best = 0;
    for (int i = -3; b && i < 10; i++) {
        float ms;
        cuda_must(c, cudaEventRecord(c->begin, c->stream), "a timer");
        cuda_must(c, cudaMemcpyAsync(b, a, n, cudaMemcpyDeviceToDevice, c->stream), "a copy");
        cuda_must(c, cudaEventRecord(c->end, c->stream), "a timer");
        context_sync(c);
        cuda_must(c, cudaEventElapsedTime(&ms, c->begin, c->end), "a timer");
        if (i >= 0 && ms > 0 && 2e3 * double(n) / double(ms) > best) best = 2e3 * double(n) / double(ms);
    }
    if (b) context_free(c, b);
    if (a) context_free(c, a);
    return best;
}
