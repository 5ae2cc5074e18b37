/* The device as the backend holds it: opening, memory and its ledger, copies, and how failures end. */
#ifndef QLAB_CUDA_CONTEXT_H
#define QLAB_CUDA_CONTEXT_H

#include "attention.h"
#include "matmul.h"

#include <cuda_runtime.h>

extern "C" {
#include "backend/backend.h"
}

/* A buffer of the backend's own that grows when an op needs more. It never grows while a step is recorded: the same ops
 * have run before. */
struct workspace {
    void *p;
    size_t bytes;
};

/* What a recorded step starts from; in device memory. */
struct step_state {
    int32_t token, pos;
};

struct cuda_ctx {
    int index;
    char who[32]; /* "device cuda:0", for messages */
    enum compute compute;
    struct cuda_env env;
    struct blas *blas; /* NULL: our own products only */
    struct nvml *nvml;
    char name[128], driver[64];
    cudaStream_t stream;
    cudaEvent_t begin, end; /* of a timed op */
    void *chill; /* what context_chill overwrites; not in the ledger: only timed ops have it */

    /* ledger */
    struct block *blocks; /* every allocation and its size */
    size_t n_blocks, used, peak, context_bytes, total_bytes;
    uint64_t generation; /* rises when memory is freed: recorded steps hold pointers */

    /* pinned staging for uploads: one is filled while the other is copied */
    void *staging[2];
    cudaEvent_t staged[2];
    int next_staging;

    struct workspace attention, matmul, normed, acts, host_ints, results, logits;
    float *inv_freq; /* on the device; what it holds: */
    float *inv_freq_host;
    int64_t n_inv_freq;

    /* rows already quantized: those of the tensor at acts_of */
    const float *acts_of;
    struct cuda_acts made; /* in */
    struct workspace made_mem;

    struct recorded *step; /* step.cu */
};

/* Device of that number, or one clear line: driver missing or too old, no device, no such index, feature missing. */
struct cuda_ctx *context_open(int index, enum compute compute, struct err *e);
void context_close(struct cuda_ctx *c);

/* NULL and "device cuda:0: out of memory: …" */
void *context_alloc(struct cuda_ctx *c, size_t bytes, struct err *e);
void context_free(struct cuda_ctx *c, void *p);
/* At least that much, dying where there is none; zeroed when it is new. */
void *workspace_get(struct cuda_ctx *c, struct workspace *w, size_t bytes, const char *what);

/* The planes of a weight, through staging, into dst. */
int context_put_weight(struct cuda_ctx *c, const struct cuda_weight *w, const struct qweight *src, struct err *e);
void context_upload(struct cuda_ctx *c, void *dst, const void *src, size_t bytes);
void context_download(struct cuda_ctx *c, void *dst, const void *src, size_t bytes);

/* End the process with one line if launches since the last call failed; context_sync waits for the device first. */
void context_check(struct cuda_ctx *c);
void context_sync(struct cuda_ctx *c);
/* End the process with "WHO: WHAT: reason" unless rc is success; the reason names the newest kernel: it may be it */
void cuda_must(const struct cuda_ctx *c, cudaError_t rc, const char *what);

/* Queues a fill of twice the second-level cache: what follows it finds nothing of its operands there, as in a step
 * whose weights are larger than the cache, and the device is busy while the host queues it. */
void context_chill(struct cuda_ctx *c);

/* Bytes per second of copies on the device, reads and writes both counted. */
double context_copy_bandwidth(struct cuda_ctx *c);

#endif
