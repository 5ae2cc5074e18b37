/* Matrix times 1 … 8 vectors with integer products: packed codes of 4 or 8 bits, activations in int8, the integers and
 * scales of lib/backend/cpu/panels.h.
 *
 * What limits it is bytes in flight: an H100 needs 3.35 TB/s · 0.7 µs = 2.3 MB under way, 18 KB a multiprocessor, an RTX
 * 4090 1.0 TB/s · 0.6 µs = 5 KB. A lane loads 16 bytes of codes of each of its R rows, with their scales and zero points,
 * one step ahead of the products: 2·R loads of 16 bytes. With R = 2 and 64 registers a multiprocessor has 32 warps, 64 KB
 * under way; with R = 4 it has 16 warps, again 64 KB. Small weights do not fill that: there `split` warps share rows
 * until there are 16 warps a multiprocessor. Rows of activations come from the first-level cache, 40 bytes for 16·R bytes
 * of codes (32·R of 8 bits), hence R = 4 where there are rows enough. Arithmetic is far from a limit: 8 dp4a and some 20
 * other instructions for 16 bytes of codes, of which an H100 brings 15 a clock to a multiprocessor that issues 128.
 *
 * Up to four tokens share a pass over the codes; of eight, two blocks read the same codes at about the same time, one of
 * them from the second-level cache.
 *
 * The normalizing form (one token) computes rmsnorm(x) in every block into shared memory, after its first weights are on
 * their way: cheaper than a launch, as the vector is some KB in the second-level cache. */
#include "gemv.cuh"

enum scale_class { SC_16, SC_32, SC_DQ };

/* What a lane has of R rows for one chunk, as it comes from memory. */
template <enum cuda_kind Kind, int R> struct raw_chunk {
    uint4 q[R][Kind == CUW_INT8 ? 2 : 1];
    uint32_t s[R]; /* scale: f16, bf16 or f32 bits; SC_DQ: the u8 */
    float nested[R]; /* SC_DQ */
    int z[R];
};

template <enum cuda_kind Kind, enum scale_class Sc, int R>
__device__ __forceinline__ void load_chunk(struct raw_chunk<Kind, R> &k, const struct gemv_job &job,
                                           const struct gemv_warp &p, int pass, int c, int chunks)
{
    const struct cuda_weight &w = job.w;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint8_t *data = gemv_data(job, p.pair, r);
        const int row = gemv_row(job, p, pass, r);
        const uint4 *q = reinterpret_cast<const uint4 *>(data + w.codes_at + size_t(row) * w.row_bytes);
        if (Kind == CUW_INT8) {
            k.q[r][0] = __ldcs(q + 2 * c);
            k.q[r][1] = __ldcs(q + 2 * c + 1);
        } else {
            k.q[r][0] = __ldcs(q + c);
        }
        if (Kind == CUW_BOOK) {
            const unsigned b = __umulhi(2u * (unsigned(row) * unsigned(chunks) + unsigned(c)), w.group_div);
            if (Sc == SC_DQ) {
                k.s[r] = __ldg(data + w.scales_at + b);
                k.nested[r] = __ldg(reinterpret_cast<const float *>(data + w.nested_at) + b / 256);
            } else {
                k.s[r] = __ldg(reinterpret_cast<const uint32_t *>(data + w.scales_at) + b);
            }
        } else {
            const size_t g = size_t(row) * w.n_groups + __umulhi(2u * unsigned(c), w.group_div);
            if (!w.one_scale)
                k.s[r] = Sc == SC_32 ? __ldg(reinterpret_cast<const uint32_t *>(data + w.scales_at) + g)
                                     : __ldg(reinterpret_cast<const unsigned short *>(data + w.scales_at) + g);
            if (Kind == CUW_INT4) k.z[r] = w.zeros_at ? int(__ldg(data + w.zeros_at + g)) : 8;
        }
    }
}

/* The integers of one row: word t of lo has columns 8t …, of hi columns 8t+4 …, as activations have them. */
template <enum cuda_kind Kind, int N>
__device__ __forceinline__ void integers(const uint4 (&q)[N], const uint32_t (&table)[4], int (&lo)[4], int (&hi)[4])
{
    const uint32_t w[4] = {q[0].x, q[0].y, q[0].z, q[0].w};
#pragma unroll
    for (int t = 0; t < 4; t++) {
        if (Kind == CUW_INT8) {
            const uint4 &h = q[N - 1];
            lo[t] = int(w[t]);
            hi[t] = int(t == 0 ? h.x : t == 1 ? h.y : t == 2 ? h.z : h.w);
        } else if (Kind == CUW_BOOK) {
            book_bytes(w[t], table, lo[t], hi[t]);
        } else {
            lo[t] = int(w[t] & 0x0f0f0f0fu);
            hi[t] = int(w[t] >> 4 & 0x0f0f0f0fu);
        }
    }
}

template <enum cuda_kind Kind, enum scale_class Sc, int R, int T, bool Norm>
__device__ __forceinline__ void multiply(float (&acc)[R][T], const struct raw_chunk<Kind, R> &k, const struct gemv_job &job, const struct gemv_warp &p, int c,
                                         const uint32_t (&table)[4],
                                         const int8_t *xq, const int2 *xmeta, int n_chunks, const float *map)
{
    const struct cuda_weight &w = job.w;
    int lo[R][4], hi[R][4];
    float s[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        integers<Kind>(k.q[r], table, lo[r], hi[r]);
        if (Kind == CUW_BOOK) {
            float absmax = __uint_as_float(k.s[r]);
            if (Sc == SC_DQ)
                absmax = __fadd_rn(__fmul_rn(map[k.s[r] + (p.pair && (r & 1) ? 256 : 0)], k.nested[r]),
                                   p.pair && (r & 1) ? job.up_offset : w.offset);
            s[r] = w.factor * absmax;
        } else if (w.one_scale) {
            s[r] = 1.0f;
        } else {
            s[r] = Sc == SC_32 ? __uint_as_float(k.s[r]) : float16_bits(k.s[r], w.scale);
        }
    }
    const uint4 *xp = reinterpret_cast<const uint4 *>(xq + size_t(c) * 32);
    const int2 *mp = xmeta + c;
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (t > 0 && t < p.n_tok) { /* behind the last token it is read again */
            xp += 2 * n_chunks;
            mp += n_chunks;
        }
        const uint4 xa = Norm ? xp[0] : __ldg(xp), xb = Norm ? xp[1] : __ldg(xp + 1);
        const int2 meta = Norm ? *mp : __ldg(mp);
        const float xs = __int_as_float(meta.x);
#pragma unroll
        for (int r = 0; r < R; r++) {
            int dot = Kind == CUW_INT4 ? k.z[r] * meta.y : 0;
            dot = __dp4a(lo[r][0], int(xa.x), dot);
            dot = __dp4a(lo[r][1], int(xa.y), dot);
            dot = __dp4a(lo[r][2], int(xa.z), dot);
            dot = __dp4a(lo[r][3], int(xa.w), dot);
            dot = __dp4a(hi[r][0], int(xb.x), dot);
            dot = __dp4a(hi[r][1], int(xb.y), dot);
            dot = __dp4a(hi[r][2], int(xb.z), dot);
            dot = __dp4a(hi[r][3], int(xb.w), dot);
            acc[r][t] += float(dot) * (s[r] * xs);
        }
    }
}

/* Grid: all jobs' blocks; see gemv.cuh. Dynamic shared memory: with Norm, 40 bytes a chunk. */
template <enum cuda_kind Kind, enum scale_class Sc, int R, int T, bool Norm>
__global__ void __launch_bounds__(GEMV_THREADS, R > 2 || T > 2 ? 2 : T > 1 || Norm || Kind == CUW_INT8 ? 3 : 4)
    gemv_int8_kernel(const GRID_CONSTANT struct gemv_args a)
{
    SHARED_ARRAY(float, part, [GEMV_WARPS][R * T]);
    SHARED_ARRAY(float, tile, [T][32]);
    SHARED_ARRAY(float, map, [Sc == SC_DQ ? 512 : 1]); /* the job's, then its partner's */
    SHARED_ARRAY(float, red, [GEMV_WARPS]);
    const struct gemv_warp p = gemv_where<R, T>(a);
    const struct gemv_job &job = a.job[p.job];
    const int lane = threadIdx.x & 31, chunks = (a.n_in + 31) / 32, c0 = p.part * 32 + lane, step = a.split * 32;
    const uint32_t *const tw = reinterpret_cast<const uint32_t *>(job.w.table);
    const uint32_t table[4] = {tw[0], tw[1], tw[2], tw[3]};

    struct raw_chunk<Kind, R> now, next;
    if (c0 < chunks) load_chunk<Kind, Sc, R>(now, job, p, 0, c0, chunks);

    const int8_t *xq = a.acts.q + size_t(p.t0) * a.acts.n_chunks * 32;
    const int2 *xmeta = a.acts.meta + size_t(p.t0) * a.acts.n_chunks;
    int n_chunks = a.acts.n_chunks;
    if (Sc == SC_DQ) {
        for (int i = threadIdx.x; i < (p.pair ? 512 : 256); i += GEMV_THREADS)
            map[i] = __ldg(reinterpret_cast<const float *>((i < 256 ? job.w.data : job.up) + job.w.map_at) + i % 256);
        if (!Norm) __syncthreads();
    }
    if (Norm) {
        DYN_SHARED(int8_t, mem);
        n_chunks = chunks;
        int2 *meta = reinterpret_cast<int2 *>(mem + 32 * chunks);
        const float rms = gemv_rms(a.x, a.n_in, a.eps, red);
        for (int c = threadIdx.x >> 5; c < chunks; c += GEMV_WARPS) {
            const int k = c * 32 + lane;
            quantize_to(mem, meta, c, k < a.n_in ? a.x[k] * rms * a.norm[k] : 0.0f);
        }
        __syncthreads();
        xq = mem;
        xmeta = meta;
    }

    for (int pass = 0; pass < a.passes; pass++) {
        float acc[R][T] = {};
        for (int c = c0; c < chunks; c += step) {
            const bool more = c + step < chunks;
            if (more) load_chunk<Kind, Sc, R>(next, job, p, pass, c + step, chunks);
            multiply<Kind, Sc, R, T, Norm>(acc, now, job, p, c, table, xq, xmeta, n_chunks, map);
            if (more) now = next;
        }
        if (pass + 1 < a.passes && c0 < chunks) load_chunk<Kind, Sc, R>(now, job, p, pass + 1, c0, chunks);
        gemv_finish<R, T, true>(a, job, p, pass, acc, part, tile);
    }
    gemv_quantize_out<T>(a, job, p, tile);
}

unsigned gemv_divide(const struct cuda_env *env, struct gemv_args *a, int n_jobs, int units, bool wide, int *rows)
{
    const int64_t warps = int64_t(16) * env->n_sm; /* wanted at least */
    int64_t all = 0;
    for (int j = 0; j < n_jobs; j++) all += a->job[j].w.n_out * (a->job[j].up ? 2 : 1);
    *rows = wide && all / 4 >= warps ? 4 : 2;
    a->split = 1;
    while (!a->out.q && a->split < GEMV_WARPS && all / *rows * a->split < warps && units > 32 * a->split) a->split *= 2;
    a->passes = 1;
    a->slabs = (a->n_tok + 3) / 4;
    unsigned blocks = 0;
    for (int j = 0; j < n_jobs; j++) {
        int step = GEMV_WARPS / a->split * (a->job[j].up ? *rows / 2 : *rows);
        if (a->out.q) a->passes = 32 / step;
        step *= a->passes;
        blocks += unsigned((a->job[j].w.n_out + step - 1) / step);
        a->job[j].end = blocks;
    }
    for (int j = n_jobs; j < GEMV_JOBS; j++) a->job[j].end = blocks;
    return blocks * unsigned(a->slabs);
}

template <enum cuda_kind Kind, enum scale_class Sc>
static void gemv_int8_of(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s)
{
    int rows, chunks = (a->n_in + 31) / 32;
    constexpr int Wide = Kind == CUW_INT8 ? 2 : 4;
    const unsigned blocks = gemv_divide(env, a, n_jobs, chunks, Wide == 4 && a->n_tok == 1, &rows);
    const size_t smem = a->norm ? size_t(chunks) * 40 : 0;
    auto go = [&](void (*kernel)(struct gemv_args)) { launch("gemv_int8", kernel, dim3(blocks), dim3(GEMV_THREADS), smem, s, *a); };
    if (a->n_tok == 1 && a->norm)
        go(rows == 4 ? gemv_int8_kernel<Kind, Sc, Wide, 1, true> : gemv_int8_kernel<Kind, Sc, 2, 1, true>);
    else if (a->n_tok == 1)
        go(rows == 4 ? gemv_int8_kernel<Kind, Sc, Wide, 1, false> : gemv_int8_kernel<Kind, Sc, 2, 1, false>);
    else if (a->n_tok == 2)
        go(gemv_int8_kernel<Kind, Sc, 2, 2, false>);
    else
        go(gemv_int8_kernel<Kind, Sc, 2, 4, false>);
}

void gemv_int8(const struct cuda_env *env, struct gemv_args *a, int n_jobs, cudaStream_t s)
{
    const struct cuda_weight *w = &a->job[0].w;
    const bool f32 = w->scale == CUF_F32;
    if (w->kind == CUW_INT4)
        (f32 ? gemv_int8_of<CUW_INT4, SC_32> : gemv_int8_of<CUW_INT4, SC_16>)(env, a, n_jobs, s);
    else if (w->kind == CUW_INT8)
        (f32 ? gemv_int8_of<CUW_INT8, SC_32> : gemv_int8_of<CUW_INT8, SC_16>)(env, a, n_jobs, s);
    else
        (f32 ? gemv_int8_of<CUW_BOOK, SC_32> : gemv_int8_of<CUW_BOOK, SC_DQ>)(env, a, n_jobs, s);
}
