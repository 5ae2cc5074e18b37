/* The one place that knows whether kernels run on a GPU or, in tests, on the CPU (tests/emu): shared memory, launches,
 * thin wrappers of PTX instructions, sums over a warp. Kernels include this and nothing else of CUDA, and have neither
 * PTX nor __CUDA_ARCH__ of their own. Rules that keep them testable are in tests/emu/README.md. */
#ifndef QLAB_CUDA_DEVICE_CUH
#define QLAB_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "launch.h"

constexpr unsigned full_warp = 0xffffffffu;

/* SHARED_ARRAY(float, red, [4][32]); is `__shared__ float red[4][32];`
 * DYN_SHARED(int8_t, buf); is the array whose bytes the launch gives. */
#ifdef CUDA_EMU
#define SHARED_ARRAY(T, name, dims)                                                                                   \
    static char name##_tag;                                                                                           \
    using name##_type = T dims;                                                                                       \
    name##_type &name = *static_cast<name##_type *>(emu::shared_array(&name##_tag, sizeof(name##_type), alignof(T)))
#define DYN_SHARED(T, name) T *name = static_cast<T *>(emu::shared_dynamic())
#define PTX_HERE , EMU_HERE
#else
#define SHARED_ARRAY(T, name, dims) __shared__ __align__(16) T name dims
#define DYN_SHARED(T, name)                                                                                           \
    extern __shared__ __align__(128) unsigned char dynamic_shared[];                                                  \
    T *name = reinterpret_cast<T *>(dynamic_shared)
#define PTX_HERE
#endif

/* The first statement of every kernel but for declarations of shared memory and first loads of weights
 * (weight_load.cuh): waits until the kernels before it have ended and what they wrote is seen, then lets the next one
 * start, which waits here in turn. So a kernel launched early (launch.h) is ordered after all earlier ones, not only
 * after its neighbour. Does nothing in a kernel that was not launched early, and before sm_90. The emulation refuses
 * kernels without it and accesses before it; check-sass looks for it in the machine code. __ldg is only for what no
 * kernel writes: such reads could be moved before the wait. */
__device__ __forceinline__ void kernel_begin()
{
#ifdef CUDA_EMU
    emu::kernel_begin();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* launch("name", kernel<64>, grid, block, dynamic_smem, stream, args…): arguments are converted to the kernel's own
 * types. Errors are kept for launch_failed (launch.h), which says the name and the shape. */
template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t s, A... args)
{
    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has");
    cudaError_t rc = cudaSuccess;
    if (smem > 48 * 1024) rc = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem));
    if (rc == cudaSuccess) {
#ifdef CUDA_EMU
        rc = emu::launch(name, reinterpret_cast<const void *>(kernel), grid, block, smem, s,
                         [=] { kernel(static_cast<P>(args)...); });
#else
        cudaLaunchAttribute early = {};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = grid;
        config.blockDim = block;
        config.dynamicSmemBytes = smem;
        config.stream = s;
        config.attrs = &early;
        config.numAttrs = launch_early(reinterpret_cast<const void *>(kernel)) ? 1 : 0;
        rc = cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
        cudaGetLastError(); /* rc has it */
#endif
    }
    launch_note(name, grid, block, smem, s, rc);
}

/* ---- sums and maxima over a warp; all lanes must come, all get the result, in the same order every time */

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(full_warp, v, m);
    return v;
}
__device__ __forceinline__ double warp_sum(double v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(full_warp, v, m);
    return v;
}
__device__ __forceinline__ int warp_sum(int v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(full_warp, v, m);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int m = 16; m; m >>= 1) v = fmaxf(v, __shfl_xor_sync(full_warp, v, m));
    return v;
}

/* ---- blocks that each do a part; the last one to come adds the parts up, in their order. *count is zero before and
 * after. */

/* Whether this block is the last of n to come here; what all have written before is then visible. Whole block. */
__device__ __forceinline__ bool last_of(unsigned *count, int n)
{
    SHARED_ARRAY(unsigned, arrived, [1]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived[0] = atomicInc(count, unsigned(n - 1));
    __syncthreads();
    const bool last = arrived[0] == unsigned(n - 1);
    if (last) __threadfence();
    __syncthreads(); /* arrived may be written again */
    return last;
}

/* ---- cp.async: Bytes (4, 8 or 16) from global to shared memory, of which src_bytes are read and the rest are zeros.
 * Before sm_80, which has no such instruction, the copy is done at once. */

template <int Bytes>
__device__ __forceinline__ void cp_async(void *dst, const void *src, int src_bytes = Bytes PTX_HERE)
{
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "what the instruction can copy");
#ifdef CUDA_EMU
    emu::cp_async(dst, src, Bytes, src_bytes, EMU_WHERE);
#elif __CUDA_ARCH__ >= 800
    const unsigned d = static_cast<unsigned>(__cvta_generic_to_shared(dst));
    if (Bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(d), "l"(src), "r"(src_bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(d), "l"(src), "r"(src_bytes), "n"(Bytes)
                     : "memory");
#else
    uint32_t word[Bytes / 4];
#pragma unroll
    for (int i = 0; i < Bytes / 4; i++) word[i] = 0;
    if (src_bytes == Bytes) {
#pragma unroll
        for (int i = 0; i < Bytes / 4; i++) word[i] = static_cast<const uint32_t *>(src)[i];
    } else {
        for (int i = 0; i < src_bytes; i++)
            word[i / 4] |= uint32_t(static_cast<const uint8_t *>(src)[i]) << (i % 4 * 8);
    }
#pragma unroll
    for (int i = 0; i < Bytes / 4; i++) static_cast<uint32_t *>(dst)[i] = word[i];
#endif
}
__device__ __forceinline__ void cp_async_commit()
{
#ifdef CUDA_EMU
    emu::cp_async_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* Until at most Pending of this thread's groups are under way; others' copies need a barrier after it. */
template <int Pending> __device__ __forceinline__ void cp_async_wait()
{
#ifdef CUDA_EMU
    emu::cp_async_wait(Pending);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

/* ---- ldmatrix: matrices of 8 rows of 8 16-bit elements in shared memory; lane 8m + i brings the address of row i of
 * matrix m, r[m] becomes elements 2t, 2t + 1 of row g (trans: of column g), g = lane / 4, t = lane % 4 */

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row PTX_HERE)
{
#ifdef CUDA_EMU
    emu::ldmatrix<4, false>(r, row, EMU_WHERE);
#else
    const unsigned a = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row PTX_HERE)
{
#ifdef CUDA_EMU
    emu::ldmatrix<4, true>(r, row, EMU_WHERE);
#else
    const unsigned a = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a)
                 : "memory");
#endif
}
/* Two matrices; addresses of lanes 0 … 15 count. */
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void *row PTX_HERE)
{
#ifdef CUDA_EMU
    emu::ldmatrix<2, false>(r, row, EMU_WHERE);
#else
    const unsigned a = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(a)
                 : "memory");
#endif
}

/* ---- mma.sync: d += a · b. A: 16 rows of K, B: 8 columns of K. With g = lane / 4, t = lane % 4 and P elements a
 * register: a[r] is row g + 8·(r % 2), k = P·t + 4P·(r / 2) …; b[r] is column g, k = P·t + 4P·r …; d[i] is row
 * g + 8·(i / 2), column 2t + i % 2. Before sm_80 the same sums are made of the smaller instructions Turing has. */

/* the s8 instruction of Turing: 8 rows, K 16 */
__device__ __forceinline__ void mma_s8_m8n8k16(int &d0, int &d1, uint32_t a, uint32_t b PTX_HERE)
{
#ifdef CUDA_EMU
    int d[2] = {d0, d1};
    emu::mma<int8_t, int, 8, 16>(d, &a, &b, EMU_WHERE);
    d0 = d[0];
    d1 = d[1];
#else
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(d0), "+r"(d1)
                 : "r"(a), "r"(b));
#endif
}
__device__ __forceinline__ void mma_s8_by_m8n8k16(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    mma_s8_m8n8k16(d[0], d[1], a[0], b[0]);
    mma_s8_m8n8k16(d[2], d[3], a[1], b[0]);
    mma_s8_m8n8k16(d[0], d[1], a[2], b[1]);
    mma_s8_m8n8k16(d[2], d[3], a[3], b[1]);
}
__device__ __forceinline__ void mma_s8_m16n8k32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] PTX_HERE)
{
#ifdef CUDA_EMU
    emu::mma<int8_t, int, 16, 32>(d, a, b, EMU_WHERE);
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_s8_by_m8n8k16(d, a, b);
#endif
}

/* the f16 instruction of Turing: K 8 */
__device__ __forceinline__ void mma_f16_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b PTX_HERE)
{
#ifdef CUDA_EMU
    uint32_t a[2] = {a0, a1};
    emu::mma<__half, float, 16, 8>(d, a, &b, EMU_WHERE);
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
#endif
}
__device__ __forceinline__ void mma_f16_by_m16n8k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    mma_f16_m16n8k8(d, a[0], a[1], b[0]);
    mma_f16_m16n8k8(d, a[2], a[3], b[1]);
}
__device__ __forceinline__ void mma_f16_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] PTX_HERE)
{
#ifdef CUDA_EMU
    emu::mma<__half, float, 16, 16>(d, a, b, EMU_WHERE);
#elif __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_f16_by_m16n8k8(d, a, b);
#endif
}

/* Turing has no bf16 there: every lane fetches its two rows and columns by shuffles. Right, and slow. */
__device__ __forceinline__ void mma_bf16_by_shuffles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const uint32_t a0 = __shfl_sync(full_warp, a[half * 2], g * 4 + q);
            const uint32_t a1 = __shfl_sync(full_warp, a[half * 2 + 1], g * 4 + q);
            const uint32_t b0 = __shfl_sync(full_warp, b[half], t * 8 + q);
            const uint32_t b1 = __shfl_sync(full_warp, b[half], t * 8 + 4 + q);
#pragma unroll
            for (int i = 0; i < 2; i++) { /* a bf16 is the upper half of an f32 */
                const float x0 = __uint_as_float(i ? a0 & 0xffff0000u : a0 << 16);
                const float x1 = __uint_as_float(i ? a1 & 0xffff0000u : a1 << 16);
                const float w0 = __uint_as_float(i ? b0 & 0xffff0000u : b0 << 16);
                const float w1 = __uint_as_float(i ? b1 & 0xffff0000u : b1 << 16);
                d[0] += x0 * w0;
                d[1] += x0 * w1;
                d[2] += x1 * w0;
                d[3] += x1 * w1;
            }
        }
}
__device__ __forceinline__ void mma_bf16_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2] PTX_HERE)
{
#ifdef CUDA_EMU
    emu::mma<__nv_bfloat16, float, 16, 16>(d, a, b, EMU_WHERE);
#elif __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_bf16_by_shuffles(d, a, b);
#endif
}

/* ---- lop3: any function of three bits; Lut is that function of 0xf0, 0xcc, 0xaa */

template <int Lut> __device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c)
{
#ifdef CUDA_EMU
    uint32_t r = 0;
    for (int i = 0; i < 8; i++)
        if (Lut >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
#else
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(Lut));
    return r;
#endif
}

#endif
