#include "blas.h"

extern "C" {
#include "base/mem.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

/* Of cublas_api.h as NVIDIA documents it, the same from 11 to 13. */
enum { OP_N = 0, OP_T = 1, R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68, GEMM_DEFAULT = -1 };
constexpr size_t workspace_bytes = size_t(32) << 20; /* given, so that a captured product needs no memory of its own */

struct blas {
    void *library, *handle, *workspace;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t s);
    int (*set_workspace)(void *handle, void *p, size_t bytes);
    int (*gemm)(void *handle, int opa, int opb, int m, int n, int k, const void *alpha, const void *a, int at, int lda,
                const void *b, int bt, int ldb, const void *beta, void *c, int ct, int ldc, int compute, int algo);
    char reason[64];
};

struct blas *blas_open(void)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"};
    const char *wanted = getenv("QLAB_CUDA_BLAS");
    if (wanted && !strcmp(wanted, "0")) return NULL;
    void *library = NULL;
    for (const char *n : names)
        if (!library) library = dlopen(n, RTLD_LAZY | RTLD_LOCAL);
    if (!library) return NULL;
    struct blas *b = static_cast<struct blas *>(mem_new(1, sizeof *b));
    b->library = library;
    struct {
        const char *name;
        void **to;
    } functions[] = {{"cublasCreate_v2", reinterpret_cast<void **>(&b->create)},
                     {"cublasDestroy_v2", reinterpret_cast<void **>(&b->destroy)},
                     {"cublasSetStream_v2", reinterpret_cast<void **>(&b->set_stream)},
                     {"cublasSetWorkspace_v2", reinterpret_cast<void **>(&b->set_workspace)},
                     {"cublasGemmEx", reinterpret_cast<void **>(&b->gemm)}};
    for (auto &f : functions)
        if (!(*f.to = dlsym(library, f.name))) {
            blas_close(b);
            return NULL;
        }
    if (b->create(&b->handle)) b->handle = NULL;
    if (b->handle && cudaMalloc(&b->workspace, workspace_bytes) == cudaSuccess) return b;
    cudaGetLastError(); /* it is no launch's */
    blas_close(b);
    return NULL;
}

void blas_close(struct blas *b)
{
    if (!b) return;
    if (b->handle) b->destroy(b->handle);
    if (b->workspace) cudaFree(b->workspace);
    dlclose(b->library);
    free(b);
}

static int failed(struct blas *b, const char *call, int status)
{
    snprintf(b->reason, sizeof b->reason, "%s: status %d", call, status);
    return -1;
}

static int start(struct blas *b, cudaStream_t s)
{
    int rc;
    if ((rc = b->set_stream(b->handle, s))) return failed(b, "cublasSetStream", rc);
    /* a change of stream takes it away */
    if ((rc = b->set_workspace(b->handle, b->workspace, workspace_bytes))) return failed(b, "cublasSetWorkspace", rc);
    return 0;
}

/* Row-major y (n_tok, n_out) is column-major (n_out, n_tok); so are w, transposed there, and x. */
int blas_product(void *ctx, float *y, int64_t ldy, const void *w, int64_t ldw, const void *x, int64_t ldx,
                 enum cuda_float type, int64_t n_out, int64_t n_tok, int64_t n_in, float beta, cudaStream_t s)
{
    struct blas *b = static_cast<struct blas *>(ctx);
    const float one = 1;
    const int t = type == CUF_F32 ? R_32F : type == CUF_F16 ? R_16F : R_16BF;
    if (start(b, s)) return -1;
    int rc = b->gemm(b->handle, OP_T, OP_N, int(n_out), int(n_tok), int(n_in), &one, w, t, int(ldw), x, t, int(ldx),
                     &beta, y, R_32F, int(ldy), COMPUTE_32F, GEMM_DEFAULT);
    return rc ? failed(b, "cublasGemmEx", rc) : 0;
}

const char *blas_reason(const struct blas *b) { return b->reason; }
