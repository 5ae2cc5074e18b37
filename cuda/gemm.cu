/* Matrix times many vectors with mma.sync: packed codes times int8 activations (m16n8k32, s8), and f16 or bf16 weights
 * (m16n8k16, sums in f32) where there is no cuBLAS.
 *
 * A block has BM tokens × BN rows of the weight, a warp WM × WN of them; a step takes 64 bytes of each row of
 * activations: 64 columns of int8 or 32 of 16 bits. Three stages of cp.async (five in small tiles); tiles in shared
 * memory are rows of 64 bytes (packed codes of 4 bits: 32) whose 16-byte parts are permuted so that ldmatrix has no
 * bank conflicts. Packed codes are unpacked in registers, after ldmatrix: word t of a chunk is what lane t of four
 * needs of both halves of a 32-column step.
 *
 * Sums over 32 columns are exact integers and get their scale at once, as activations have one for each 32 columns.
 * That costs four instructions for each value an mma gives; the conversion to float is none: sums start at the bits
 * of 1.5·2²³, so that their bits are a float. An RTX 30 or 40 takes 16 clocks for an m16n8k32 and some 14 for its
 * scaling, so the two overlap to about half of the INT8 peak, the peak of f16 with f32 sums being an eighth to a
 * quarter of it there. On data-centre GPUs f16 by cuBLAS is faster for many tokens, and matmul.cu takes it.
 *
 * 128 × 64 with 8 warps of 32 × 32: 32 sums a lane, at most 128 registers, 39 … 44 KB of shared memory: two blocks a
 * multiprocessor everywhere. For up to 64 tokens 32 × 64. Blocks with the same rows are neighbours, so that
 * weights come from memory once.
 *
 * A matrix with few rows is fewer tiles than there are multiprocessors. Then the columns are cut too (gemm_int8), grid z:
 * each block leaves its sums in `parts`, and the last one of a tile adds all up, in the order of the columns whoever is
 * last, and stores the results. */
#include "gemm.cuh"

#include "acts.cuh"
#include "dequant.cuh"
#include "grid_constant.cuh"

enum gemm_mode { MODE_INT4, MODE_BOOK, MODE_INT8, MODE_F16, MODE_BF16 };
enum { STEP = 64 };
constexpr int magic_bits = 0x4b400000;    /* 1.5·2²³ */
constexpr float magic = 12582912.0f;

template <enum gemm_mode Mode, int BM, int BN> struct stage {
    static constexpr bool ints = Mode <= MODE_INT8, nibbles = Mode <= MODE_BOOK;
    static constexpr int b_row = nibbles ? 32 : 64;
    /* at once; blocks of small tiles are few, so that each must have more under way */
    static constexpr int count = BM == 128 ? 3 : 5;
    __align__(16) int8_t a[BM * STEP];
    __align__(16) int8_t b[BN * b_row];
    __align__(16) int2 meta[ints ? BM : 1][2];
    float scale[ints ? 2 : 1][BN];
    uint32_t zero[Mode == MODE_INT4 ? 2 : 1][BN]; /* four times the byte */
};

/* Where 16-byte part c of row r is: eight rows that ldmatrix reads at once lie in different banks. */
template <int RowBytes> __device__ __forceinline__ int part_at(int r, int c)
{
    return RowBytes == 64 ? r * 64 + ((c ^ (r >> 1 & 3)) << 4) : r * 32 + ((c ^ (r >> 2 & 1)) << 4);
}

/* What a thread copies in every step, and where from: worked out once. Parts outside of the matrices are zeros. */
template <enum gemm_mode Mode, int BM, int BN, int Threads> struct copier {
    using S = struct stage<Mode, BM, BN>;
    static constexpr int parts = S::b_row / 16; /* of 16 bytes of a row of codes */
    static constexpr int n_a = BM * 4 / Threads, n_b = (BN * parts + Threads - 1) / Threads;
    const int8_t *a[n_a];
    const uint8_t *b[n_b];
    const int2 *meta;
    int a_bytes[n_a], meta_bytes; /* 16, or 0 */
    int b_left[n_b];              /* bytes of the row from there on */

    /* From step `first` on. */
    __device__ __forceinline__ copier(const struct gemm_args &g, const struct gemm_job &job, int m0, int n0, int first)
    {
        const int8_t *x = S::ints ? g.acts.q : static_cast<const int8_t *>(g.x);
        const size_t x_row = S::ints ? size_t(g.acts.n_chunks) * 32 : size_t(g.ldx) * 2;
        const int tid = threadIdx.x, last = g.n_tok - 1;
#pragma unroll
        for (int j = 0; j < n_a; j++) {
            const int r = m0 + (tid + j * Threads) / 4;
            a[j] = x + min(r, last) * x_row + first * STEP + tid % 4 * 16;
            a_bytes[j] = r <= last ? 16 : 0;
        }
#pragma unroll
        for (int j = 0; j < n_b; j++) {
            const int r = n0 + (tid + j * Threads) / parts, at = first * S::b_row + tid % parts * 16;
            b[j] = job.w.data + job.w.codes_at + min(r, int(job.w.n_out) - 1) * size_t(job.w.row_bytes) + at;
            b_left[j] = r < job.w.n_out ? int(job.w.row_bytes) - at : 0;
        }
        meta_bytes = m0 + tid <= last ? 16 : 0;
        meta = S::ints ? g.acts.meta + size_t(min(m0 + tid, last)) * g.acts.n_chunks + first * 2 : nullptr;
    }

    /* Starts the copies of the next step. */
    __device__ __forceinline__ void start(S &st)
    {
        const int tid = threadIdx.x;
#pragma unroll
        for (int j = 0; j < n_a; j++) {
            const int i = tid + j * Threads;
            cp_async<16>(st.a + part_at<64>(i / 4, i % 4), a[j], a_bytes[j]);
            a[j] += STEP;
        }
#pragma unroll
        for (int j = 0; j < n_b; j++) {
            const int i = tid + j * Threads;
            if (BN * parts % Threads == 0 || i < BN * parts)
                cp_async<16>(st.b + part_at<S::b_row>(i / parts, i % parts), b[j], b_left[j] > 0 ? 16 : 0);
            b[j] += S::b_row;
            b_left[j] -= S::b_row;
        }
        if (S::ints) {
            if (tid < BM) cp_async<16>(st.meta[tid], meta, meta_bytes);
            meta += 2;
        }
    }
};

/* Scale and zero point of this thread's row and chunk, read while a stage is computed and stored after it. */
struct group_value {
    float scale;
    uint32_t zero;
};
template <enum gemm_mode Mode>
__device__ __forceinline__ struct group_value read_group(const struct cuda_weight &w, int row, int chunk, int chunks)
{
    struct group_value v = {1.0f, 8u};
    row = min(row, int(w.n_out) - 1);
    chunk = min(chunk, chunks - 1);
    if (Mode == MODE_BOOK) {
        const unsigned b = __umulhi(2u * (unsigned(row) * unsigned(chunks) + unsigned(chunk)), w.group_div);
        v.scale = w.factor * absmax_at(w, w.data, b);
    } else {
        const size_t g = size_t(row) * w.n_groups + __umulhi(2u * unsigned(chunk), w.group_div);
        if (!w.one_scale) v.scale = scale_at(w.data + w.scales_at, w.scale, g);
        if (Mode == MODE_INT4 && w.zeros_at) v.zero = __ldg(w.data + w.zeros_at + g);
    }
    return v;
}

/* u − z in four bytes of −15 … 15. */
__device__ __forceinline__ uint32_t minus_zero(uint32_t u, uint32_t z) { return ((u | 0x80808080u) - z) ^ 0x80808080u; }

/* Fragments of B for WN rows and 32 bytes of a row (chunk kk of the stage): b[j] of rows 8j … 8j+7. */
template <enum gemm_mode Mode, int BM, int BN, int NT>
__device__ __forceinline__ void load_b(uint32_t (&b)[NT][2], const struct stage<Mode, BM, BN> &st, int wn, int kk,
                                       const uint32_t (&table)[4])
{
    static_assert(NT == 4, "one ldmatrix of four for nibbles");
    const int lane = threadIdx.x & 31;
    uint32_t r[4];
    if (st.nibbles) {
        ldmatrix_x4(r, st.b + part_at<32>(wn + lane, kk));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (Mode == MODE_BOOK) {
                int lo, hi;
                book_bytes(r[j], table, lo, hi);
                b[j][0] = uint32_t(lo);
                b[j][1] = uint32_t(hi);
            } else {
                const uint32_t z = st.zero[Mode == MODE_INT4 ? kk : 0][wn + j * 8 + lane / 4];
                b[j][0] = minus_zero(r[j] & 0x0f0f0f0fu, z);
                b[j][1] = minus_zero(r[j] >> 4 & 0x0f0f0f0fu, z);
            }
        }
    } else {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            ldmatrix_x4(r, st.b + part_at<64>(wn + j * 8 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1)));
            b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
        }
    }
}

/* This block's sums to the others' of the tile; in its last block: true, and the sums of all. */
template <int MT, int NT, int Threads>
__device__ __forceinline__ bool add_parts(float (&acc)[MT][NT][4], const struct gemm_args &a)
{
    constexpr int part = MT * NT * Threads;
    const unsigned tile = blockIdx.y * gridDim.x + blockIdx.x;
    float4 *const first = a.parts + size_t(tile) * gridDim.z * part + threadIdx.x;
#pragma unroll
    for (int i = 0; i < MT * NT; i++) {
        const float(&v)[4] = acc[i / NT][i % NT];
        first[size_t(blockIdx.z) * part + i * Threads] = make_float4(v[0], v[1], v[2], v[3]);
    }
    if (!last_of(a.count + tile, int(gridDim.z))) return false;
#pragma unroll
    for (int i = 0; i < MT * NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[i / NT][i % NT][e] = 0;
#pragma unroll 2
    for (unsigned z = 0; z < gridDim.z; z++) {
        float4 v[MT * NT]; /* all on their way before the first is added */
#pragma unroll
        for (int i = 0; i < MT * NT; i++) v[i] = __ldcg(first + size_t(z) * part + i * Threads);
#pragma unroll
        for (int i = 0; i < MT * NT; i++) {
            float(&to)[4] = acc[i / NT][i % NT];
            to[0] += v[i].x, to[1] += v[i].y, to[2] += v[i].z, to[3] += v[i].w;
        }
    }
    return true;
}

/* Grid: x token tiles, y row tiles of all jobs, z parts of the columns. Dynamic shared memory: the stages. */
template <enum gemm_mode Mode, int BM, int BN, int WM, int WN>
__global__ void __launch_bounds__((BM / WM) * (BN / WN) * 32, BM == 128 ? 2 : 4)
    gemm_kernel(const GRID_CONSTANT struct gemm_args a)
{
    using S = struct stage<Mode, BM, BN>;
    constexpr int MT = WM / 16, NT = WN / 8, Threads = (BM / WM) * (BN / WN) * 32, STAGES = S::count;
    DYN_SHARED(S, st);
    kernel_begin();
    int which;
    const unsigned first = gemm_job_of(a, blockIdx.y, &which);
    const struct gemm_job &job = a.job[which];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const int m0 = blockIdx.x * BM, n0 = int(blockIdx.y - first) * BN;
    const int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    const int chunks = (a.n_in + 31) / 32, all = S::ints ? (chunks + 1) / 2 : chunks;
    const int begin = S::ints ? int(blockIdx.z) * all / int(gridDim.z) : 0;
    const int steps = (S::ints ? int(blockIdx.z + 1) * all / int(gridDim.z) : all) - begin;
    const uint32_t *const tw = reinterpret_cast<const uint32_t *>(job.w.table);
    const uint32_t table[4] = {tw[0], tw[1], tw[2], tw[3]};
    /* which scale this thread brings: 2·BN a step, no more than there are threads */
    static_assert(2 * BN <= Threads, "one each");
    const int my_row = threadIdx.x % BN, my_chunk = threadIdx.x / BN, chunk0 = begin * 2 + my_chunk;
    auto put_group = [&](S &to, const struct group_value &v) {
        if (!S::ints || my_chunk > 1) return;
        to.scale[S::ints ? my_chunk : 0][my_row] = v.scale;
        if (Mode == MODE_INT4) to.zero[Mode == MODE_INT4 ? my_chunk : 0][my_row] = v.zero * 0x01010101u;
    };
    struct group_value group = {};
    struct copier<Mode, BM, BN, Threads> copy(a, job, m0, n0, begin);

#pragma unroll
    for (int k = 0; k < STAGES - 1; k++) {
        if (k < steps) {
            copy.start(st[k]);
            if (S::ints) put_group(st[k], read_group<Mode>(job.w, n0 + my_row, k * 2 + chunk0, chunks));
        }
        cp_async_commit();
    }
    float acc[MT][NT][4] = {};
    for (int k = 0; k < steps; k++) {
        cp_async_wait<STAGES - 2>(); /* step k is here, this thread's part of it */
        __syncthreads();             /* everybody's; and step k − 1 is no longer read */
        const int next = k + STAGES - 1;
        if (next < steps) {
            copy.start(st[next % STAGES]);
            if (S::ints) group = read_group<Mode>(job.w, n0 + my_row, next * 2 + chunk0, chunks);
        }
        cp_async_commit();
        const S &now = st[k % STAGES];
#pragma unroll 1 /* unrolled, the compiler keeps more at once than there are registers */
        for (int kk = 0; kk < 2; kk++) {
            uint32_t b[NT][2];
            load_b<Mode, BM, BN, NT>(b, now, wn, kk, table);
            float2 sw[NT];
            if (S::ints) {
#pragma unroll
                for (int j = 0; j < NT; j++)
                    sw[j] = *reinterpret_cast<const float2 *>(&now.scale[S::ints ? kk : 0][wn + j * 8 + t * 2]);
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
                uint32_t x[4];
                ldmatrix_x4(x, now.a + part_at<64>(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
                if constexpr (S::ints) {
                    const float s0 = __int_as_float(now.meta[wm + i * 16 + g][kk].x);
                    const float s1 = __int_as_float(now.meta[wm + i * 16 + g + 8][kk].x);
#pragma unroll
                    for (int j = 0; j < NT; j++) {
                        int d[4] = {magic_bits, magic_bits, magic_bits, magic_bits};
                        mma_s8_m16n8k32(d, x, b[j]);
                        acc[i][j][0] += (__int_as_float(d[0]) - magic) * (sw[j].x * s0);
                        acc[i][j][1] += (__int_as_float(d[1]) - magic) * (sw[j].y * s0);
                        acc[i][j][2] += (__int_as_float(d[2]) - magic) * (sw[j].x * s1);
                        acc[i][j][3] += (__int_as_float(d[3]) - magic) * (sw[j].y * s1);
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < NT; j++) {
                        if (Mode == MODE_F16)
                            mma_f16_m16n8k16(acc[i][j], x, b[j]);
                        else
                            mma_bf16_m16n8k16(acc[i][j], x, b[j]);
                    }
                }
            }
        }
        if (next < steps) put_group(st[next % STAGES], group);
    }
    cp_async_wait<0>();
    if constexpr (S::ints)
        if (gridDim.z > 1 && !add_parts<MT, NT, Threads>(acc, a)) return;
    const bool one = S::ints && job.w.one_scale;
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int n = n0 + wn + j * 8 + t * 2 + e;
            const bool real = n < job.w.n_out;
            const float scale = one && real ? scale_at(job.w.data + job.w.scales_at, job.w.scale, n) : 1.0f;
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int m = m0 + wm + i * 16 + g + h * 8;
                    float v = acc[i][j][h * 2 + e] * scale;
                    if (S::ints && a.per == 2) {
                        v += __shfl_xor_sync(full_warp, v, 4); /* rows m and m ^ 1 */
                        if (real && m < a.n_tok && m % 2 == 0) gemm_store(job, m / 2, n, v);
                    } else if (real && m < a.n_tok) {
                        gemm_store(job, m, n, v);
                    }
                }
        }
}

/* Parts of the columns. Cut only where there are fewer tiles than multiprocessors, which then wait for memory most of
 * the time: into as many parts as run at once, but each of 16 steps or more (1024 columns; adding the parts up takes as
 * long as some ten steps), and no more than there is room for. */
static unsigned parts_of(const struct cuda_env *env, const struct gemm_args *a, int64_t tiles, int blocks_at_once,
                         size_t part_bytes)
{
    enum { LEAST = 16 };
    if (tiles >= env->n_sm) return 1;
    int64_t n = int64_t(env->n_sm) * blocks_at_once / tiles, most = (int64_t(a->n_in) + STEP - 1) / STEP / LEAST;
    n = n < most ? n : most;
    most = int64_t(a->parts_bytes / part_bytes) / tiles;
    n = n < most ? n : most;
    return unsigned(n < 1 ? 1 : n);
}

/* env NULL: columns are not cut. */
template <enum gemm_mode Mode, int BM, int WM>
static void gemm_go(const char *name, const struct cuda_env *env, struct gemm_args *a, cudaStream_t s)
{
    constexpr int BN = 64, WN = 32, Threads = (BM / WM) * (BN / WN) * 32;
    using S = struct stage<Mode, BM, BN>;
    dim3 grid(unsigned((a->n_tok + BM - 1) / BM), gemm_divide(a, BN));
    if (env) grid.z = parts_of(env, a, int64_t(grid.x) * grid.y, BM == 128 ? 2 : 4, BM * BN * sizeof(float));
    launch(name, gemm_kernel<Mode, BM, BN, WM, WN>, grid, dim3(Threads), S::count * sizeof(S), s, *a);
}
template <enum gemm_mode Mode>
static void gemm_of(const char *name, const struct cuda_env *env, struct gemm_args *a, cudaStream_t s)
{
    if (a->n_tok > 64)
        gemm_go<Mode, 128, 32>(name, env, a, s);
    else
        gemm_go<Mode, 32, 16>(name, env, a, s);
}

void gemm_int8(const struct cuda_env *env, struct gemm_args *a, cudaStream_t s)
{
    const enum cuda_kind kind = a->job[0].w.kind;
    if (kind == CUW_INT4)
        gemm_of<MODE_INT4>("gemm_int8", env, a, s);
    else if (kind == CUW_BOOK)
        gemm_of<MODE_BOOK>("gemm_int8", env, a, s);
    else
        gemm_of<MODE_INT8>("gemm_int8", env, a, s);
}

void gemm_half(struct gemm_args *a, enum cuda_float type, cudaStream_t s)
{
    if (type == CUF_F16)
        gemm_of<MODE_F16>("gemm_f16", nullptr, a, s);
    else
        gemm_of<MODE_BF16>("gemm_bf16", nullptr, a, s);
}
