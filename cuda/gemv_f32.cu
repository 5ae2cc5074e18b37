/* Matrix times 1 … 8 vectors in f32: float weights, which stream as they are (the fast path of f16, bf16 and f32
 * models), and every quantized format, dequantized exactly in registers (verification, and what has no integer form).
 *
 * Float weights: a lane loads 16 bytes (f32: 32) of each of R rows, two steps ahead; R = 4 where rows are many: 8 loads
 * of 16 bytes under way a lane, 16 warps a multiprocessor: 64 KB, over three times what an H100 needs (gemv.cu).
 * Vectors come from the first-level cache, 32 bytes for 16·R of weights. Products of quantized weights are limited by
 * the conversions, not by memory; that is accepted, as nothing that is timed goes there but strided128. */
#include "gemv.cuh"

enum form { FORM_F32, FORM_F16, FORM_BF16, FORM_INT4, FORM_INT8, FORM_STRIDED, FORM_BOOK };

template <enum form F> struct form_traits {
    static constexpr bool is_float = F <= FORM_BF16;
    static constexpr int columns = is_float ? 8 : 32; /* a lane takes at a time */
    static constexpr int loads = F == FORM_F32 || F == FORM_INT8 ? 2 : 1;
    static constexpr enum cuda_kind kind = F == FORM_INT4 ? CUW_INT4 : F == FORM_INT8 ? CUW_INT8
                                           : F == FORM_STRIDED ? CUW_STRIDED : F == FORM_BOOK ? CUW_BOOK : CUW_FLOAT;
};

template <enum form F, int R> struct raw_unit {
    uint4 q[R][form_traits<F>::loads];
};

/* Rows, worked out once a pass, so that the loop over their units only adds. */
template <int R> struct lane_rows {
    const uint4 *q[R];
    int row[R];
    unsigned parts; /* of 16 bytes a row has */
};

template <int R>
__device__ __forceinline__ void find_rows(struct lane_rows<R> &l, const struct gemv_job &job, const struct gemv_warp &p,
                                          int pass)
{
#pragma unroll
    for (int r = 0; r < R; r++) {
        l.row[r] = gemv_row(job, p, pass, r);
        l.q[r] = reinterpret_cast<const uint4 *>(gemv_data(job, p.pair, r) + job.w.codes_at +
                                                 size_t(l.row[r]) * job.w.row_bytes);
    }
    l.parts = unsigned(job.w.row_bytes / 16);
}

template <bool Early, enum form F, int R>
__device__ __forceinline__ void load_unit(struct raw_unit<F, R> &k, const struct lane_rows<R> &l, int u)
{
    constexpr int N = form_traits<F>::loads;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int i = 0; i < N; i++) { /* an f32 row may end in the middle of a unit */
            k.q[r][i] = F != FORM_F32 || unsigned(u * N + i) < l.parts ? load_once<Early>(l.q[r] + u * N + i)
                                                                       : make_uint4(0, 0, 0, 0);
            if (Early) issued(k.q[r][i]);
        }
}

/* Eight columns of a float row from their words. */
template <enum form F> __device__ __forceinline__ void floats(const uint4 (&q)[form_traits<F>::loads], float (&v)[8])
{
    const uint32_t w[4] = {q[0].x, q[0].y, q[0].z, q[0].w};
    if (F == FORM_F32) {
        const uint4 &h = q[form_traits<F>::loads - 1];
        const uint32_t x[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = __uint_as_float(w[i]);
            v[4 + i] = __uint_as_float(x[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[2 * i] = F == FORM_F16 ? half_bits(w[i] & 0xffffu) : bf16_bits(w[i] & 0xffffu);
            v[2 * i + 1] = F == FORM_F16 ? half_bits(w[i] >> 16) : __uint_as_float(w[i] & 0xffff0000u);
        }
    }
}

/* Columns k0 … k0+7 of a row of x, zeros behind n. */
template <bool Padded> __device__ __forceinline__ void load_x(float (&v)[8], const float *row, int k0, int n)
{
    if (Padded || n % 4 == 0) {
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            float4 f = make_float4(0, 0, 0, 0);
            if (Padded || k0 + i < n) f = *reinterpret_cast<const float4 *>(row + k0 + i);
            v[i] = f.x, v[i + 1] = f.y, v[i + 2] = f.z, v[i + 3] = f.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = k0 + i < n ? row[k0 + i] : 0.0f;
    }
}

/* Grid: all jobs' blocks; see gemv.cuh. Dynamic shared memory: with Norm, n_in floats rounded up to 8. */
template <enum form F, int R, int T, bool Norm>
__global__ void __launch_bounds__(GEMV_THREADS, R > 2 || T > 2 || !form_traits<F>::is_float ? 2 : 3)
    gemv_f32_kernel(const GRID_CONSTANT struct gemv_args a)
{
    using traits = form_traits<F>;
    SHARED_ARRAY(float, part, [GEMV_WARPS][R * T]);
    SHARED_ARRAY(float, tile, [T][32]);
    SHARED_ARRAY(float, book, [16]);
    SHARED_ARRAY(float, red, [GEMV_WARPS]);
    const struct gemv_warp p = gemv_where<R, T>(a);
    const struct gemv_job &job = a.job[p.job];
    const int units = (a.n_in + traits::columns - 1) / traits::columns;
    const int u0 = p.part * 32 + (threadIdx.x & 31), step = a.split * 32;

    struct lane_rows<R> rows;
    struct raw_unit<F, R> now, next;
    find_rows(rows, job, p, 0);
    if (u0 < units) load_unit<true>(now, rows, u0);
    if (traits::is_float && u0 + step < units) load_unit<true>(next, rows, u0 + step);
    kernel_begin();

    const float *x = a.x + size_t(p.t0) * a.n_in;
    if (F == FORM_BOOK) {
        if (threadIdx.x < 16) book[threadIdx.x] = job.w.book[threadIdx.x];
        if (!Norm) __syncthreads();
    }
    if (Norm) {
        DYN_SHARED(float, mem);
        const float rms = gemv_rms(a.x, a.n_in, a.eps, red);
        for (int k = threadIdx.x; k < (a.n_in + 7) / 8 * 8; k += GEMV_THREADS)
            mem[k] = k < a.n_in ? a.x[k] * rms * a.norm[k] : 0.0f;
        __syncthreads();
        x = mem;
    }

    for (int pass = 0; pass < a.passes; pass++) {
        float acc[R][T] = {};
        auto multiply = [&](int u) {
#pragma unroll
            for (int j = 0; j < traits::columns / 8; j++) {
                const int k0 = u * traits::columns + j * 8;
                float v[R][8];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if constexpr (traits::is_float) {
                        floats<F>(now.q[r], v[r]);
                    } else {
                        const uint4 &q = now.q[r][0], &h = now.q[r][traits::loads - 1];
                        const uint32_t lo[4] = {q.x, q.y, q.z, q.w}, hi[4] = {h.x, h.y, h.z, h.w};
                        struct cuda_weight w = job.w;
                        if (p.pair && (r & 1)) {
                            w.data = job.up;
                            w.offset = job.up_offset;
                        }
                        dequant8<traits::kind>(w, book, rows.row[r], k0, lo[j], hi[j], v[r]);
                    }
                }
                const float *row = x;
#pragma unroll
                for (int t = 0; t < T; t++) {
                    float xv[8];
                    if (t > 0 && t < p.n_tok) row += a.n_in; /* behind the last token it is read again */
                    load_x<Norm>(xv, row, k0, a.n_in);
#pragma unroll
                    for (int r = 0; r < R; r++)
#pragma unroll
                        for (int i = 0; i < 8; i++) acc[r][t] = fmaf(v[r][i], xv[i], acc[r][t]);
                }
            }
        };
        for (int u = u0; u < units; u += step) {
            multiply(u);
            if constexpr (traits::is_float) { /* as in gemv.cu */
                now = next;
                if (u + 2 * step < units) load_unit<false>(next, rows, u + 2 * step);
            } else {
                if (u + step < units) load_unit<false>(now, rows, u + step);
            }
        }
        if (pass + 1 < a.passes) {
            find_rows(rows, job, p, pass + 1);
            if (u0 < units) load_unit<false>(now, rows, u0);
            if (traits::is_float && u0 + step < units) load_unit<false>(next, rows, u0 + step);
        }
        gemv_finish<R, T, false>(a, job, p, pass, acc, part, tile);
    }
    gemv_quantize_out<T>(a, job, p, tile);
}

template <enum form F>
static void gemv_f32_of(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s)
{
    using traits = form_traits<F>;
    int rows, units = (a->n_in + traits::columns - 1) / traits::columns;
    constexpr int Wide = F == FORM_F16 || F == FORM_BF16 ? 4 : 2;
    const unsigned blocks = gemv_divide(env, a, n_jobs, units, Wide == 4 && a->n_tok == 1, &rows);
    const size_t smem = a->norm ? size_t(a->n_in + 7) / 8 * 32 : 0;
    auto go = [&](void (*kernel)(struct gemv_args)) {
        launch("gemv_f32", kernel, dim3(blocks), dim3(GEMV_THREADS), smem, s, *a);
    };
    if constexpr (traits::is_float) {
        if (a->n_tok == 1 && a->norm)
            return go(rows == 4 ? gemv_f32_kernel<F, Wide, 1, true> : gemv_f32_kernel<F, 2, 1, true>);
        if (a->n_tok == 1)
            return go(rows == 4 ? gemv_f32_kernel<F, Wide, 1, false> : gemv_f32_kernel<F, 2, 1, false>);
        if (a->n_tok == 2) return go(gemv_f32_kernel<F, 2, 2, false>);
    } else {
        if (a->n_tok == 1) return go(gemv_f32_kernel<F, 2, 1, false>);
    }
    go(gemv_f32_kernel<F, 2, 4, false>);
}

void gemv_f32(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s)
{
    const struct cuda_weight *w = &a->job[0].w;
    switch (w->kind) {
    case CUW_FLOAT:
        if (w->type == CUF_F16) return gemv_f32_of<FORM_F16>(env, a, n_jobs, s);
        if (w->type == CUF_BF16) return gemv_f32_of<FORM_BF16>(env, a, n_jobs, s);
        return gemv_f32_of<FORM_F32>(env, a, n_jobs, s);
    case CUW_INT4: return gemv_f32_of<FORM_INT4>(env, a, n_jobs, s);
    case CUW_INT8: return gemv_f32_of<FORM_INT8>(env, a, n_jobs, s);
    case CUW_STRIDED: return gemv_f32_of<FORM_STRIDED>(env, a, n_jobs, s);
    case CUW_BOOK: return gemv_f32_of<FORM_BOOK>(env, a, n_jobs, s);
    }
}
