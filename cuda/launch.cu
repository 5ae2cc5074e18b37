#include "launch.h"

extern "C" {
#include "base/err.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>

struct record {
    const char *name;
    dim3 grid, block;
    size_t smem;
    cudaError_t rc;
};
static struct record first_bad, newest;
static unsigned long long n_launches;

static bool is_on(const char *name)
{
    const char *s = getenv(name);
    return s && strcmp(s, "") && strcmp(s, "0");
}

static bool told_to_sync()
{
    static int sync = -1;
    if (sync < 0) sync = is_on("QLAB_CUDA_SYNC");
    return sync;
}

bool launch_early(const void *kernel)
{
    int driver = 0;
    if (!is_on("QLAB_CUDA_PDL") || cudaDriverGetVersion(&driver) != cudaSuccess || driver < 12030) return false;
    cudaFuncAttributes a; /* of the code for this device; ptxVersion is what its source was compiled for */
    return cudaFuncGetAttributes(&a, kernel) == cudaSuccess && a.ptxVersion >= 90;
}

void launch_note(const char *name, dim3 grid, dim3 block, size_t smem, cudaStream_t s, cudaError_t rc)
{
    n_launches++;
    if (rc == cudaSuccess && told_to_sync()) {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        if (cudaStreamIsCapturing(s, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone)
            rc = cudaStreamSynchronize(s);
    }
    newest = {name, grid, block, smem, rc};
    if (rc != cudaSuccess && first_bad.rc == cudaSuccess) first_bad = newest;
}

static int say(const struct record *r, const char *when, cudaError_t rc, struct err *e)
{
    return err_set(e, "%skernel %s (grid %ux%ux%u, block %ux%ux%u, %zu bytes of shared memory): %s", when, r->name,
                   r->grid.x, r->grid.y, r->grid.z, r->block.x, r->block.y, r->block.z, r->smem,
                   cudaGetErrorString(rc));
}

int launch_failed(cudaError_t rc, struct err *e)
{
    struct record bad = first_bad;
    first_bad.rc = cudaSuccess;
    if (bad.rc != cudaSuccess) return say(&bad, "", bad.rc, e);
    if (rc == cudaSuccess) return 0;
    if (!newest.name) return err_set(e, "%s", cudaGetErrorString(rc));
    return say(&newest, "at or before ", rc, e);
}

unsigned long long launch_count() { return n_launches; }
