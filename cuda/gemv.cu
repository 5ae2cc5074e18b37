/* Matrix times 1 … 8 vectors with integer products: packed codes of 4 or 8 bits, activations in int8, the integers and
 * scales of lib/backend/cpu/panels.h.
 *
 * What limits it is bytes in flight: an H100 needs 3.35 TB/s · 0.7 µs = 2.3 MB under way, 18 KB a multiprocessor, an
 * RTX 4090 1.0 TB/s · 0.6 µs = 5 KB. A lane loads 16 bytes of codes of each of its R rows, with their scales and zero
 * points, two steps ahead of the products: 2·R loads of 16 bytes. With R = 2 and 64 registers a multiprocessor has 32
 * warps, 64 KB under way; with R = 4 it has 16 warps, again 64 KB. Small weights do not fill that: there `split` warps
 * share rows until there are 16 warps a multiprocessor. Rows of activations come from the first-level cache, 40 bytes
 * for 16·R bytes of codes (32·R of 8 bits), hence R = 4 where there are rows enough. Arithmetic is far from a limit: 8
 * dp4a and some 20 other instructions for 16 bytes of codes, of which an H100 brings 15 a clock to a multiprocessor
 * that issues 128.
 *
 * Up to four tokens share a pass over the codes; of eight, two blocks read the same codes at about the same time, one
 * of them from the second-level cache.
 *
 * The first two steps are loaded before the wait for earlier kernels (weight_load.cuh). The normalizing form (one
 * token) then computes rmsnorm(x) in every block into shared memory: cheaper than a launch, as the vector is some KB in
 * the second-level cache. */
#include "gemv.cuh"

enum scale_class { SC_16, SC_32, SC_DQ };

/* Where a row's planes are: worked out once a pass, so that the loop over its chunks only adds. */
struct row_planes {
    const uint4 *q;
    const uint8_t *s, *z; /* scales and zero points of the row; CUW_BOOK: of the tensor, and z the nested ones */
    unsigned first;       /* CUW_BOOK: the tensor's number of the row's chunk 0 */
};
template <enum cuda_kind Kind, enum scale_class Sc, int R> struct lane_rows {
    struct row_planes row[R];
    unsigned group_div;
    bool one_scale, zeros;
};

template <enum cuda_kind Kind, enum scale_class Sc, int R>
__device__ __forceinline__ void find_rows(struct lane_rows<Kind, Sc, R> &l, const struct gemv_job &job,
                                          const struct gemv_warp &p, int pass, int chunks)
{
    const struct cuda_weight &w = job.w;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint8_t *data = gemv_data(job, p.pair, r);
        const size_t row = size_t(gemv_row(job, p, pass, r));
        struct row_planes &at = l.row[r];
        at.q = reinterpret_cast<const uint4 *>(data + w.codes_at + row * w.row_bytes);
        at.s = data + w.scales_at + (Kind == CUW_BOOK ? 0 : row * w.n_groups * (Sc == SC_32 ? 4 : 2));
        at.z = Kind == CUW_BOOK ? data + w.nested_at : data + w.zeros_at + row * w.n_groups;
        at.first = unsigned(row) * unsigned(chunks);
    }
    l.group_div = w.group_div;
    l.one_scale = w.one_scale;
    l.zeros = w.zeros_at != 0;
}

/* What a lane has of R rows for one chunk, as it comes from memory. */
template <enum cuda_kind Kind, int R> struct raw_chunk {
    uint4 q[R][Kind == CUW_INT8 ? 2 : 1];
    uint32_t s[R]; /* scale: f16, bf16 or f32 bits; SC_DQ: the u8 */
    float nested[R]; /* SC_DQ */
    int z[R];
};

template <bool Early, enum cuda_kind Kind, enum scale_class Sc, int R>
__device__ __forceinline__ void load_chunk(struct raw_chunk<Kind, R> &k, const struct lane_rows<Kind, Sc, R> &l, int c)
{
    const unsigned g = __umulhi(2u * unsigned(c), l.group_div);
#pragma unroll
    for (int r = 0; r < R; r++) {
        const struct row_planes &at = l.row[r];
        if (Kind == CUW_INT8) {
            k.q[r][0] = load_once<Early>(at.q + 2 * c);
            k.q[r][1] = load_once<Early>(at.q + 2 * c + 1);
        } else {
            k.q[r][0] = load_once<Early>(at.q + c);
        }
        if (Kind == CUW_BOOK) {
            const unsigned b = __umulhi(2u * (at.first + unsigned(c)), l.group_div);
            if (Sc == SC_DQ) {
                k.s[r] = load_weight<Early>(at.s + b);
                k.nested[r] = load_weight<Early>(reinterpret_cast<const float *>(at.z) + b / 256);
            } else {
                k.s[r] = load_weight<Early>(reinterpret_cast<const uint32_t *>(at.s) + b);
            }
        } else {
            if (!l.one_scale)
                k.s[r] = Sc == SC_32 ? load_weight<Early>(reinterpret_cast<const uint32_t *>(at.s) + g)
                                     : load_weight<Early>(reinterpret_cast<const unsigned short *>(at.s) + g);
            if (Kind == CUW_INT4) k.z[r] = l.zeros ? int(load_weight<Early>(at.z + g)) : 8;
        }
        if (Early) {
            issued(k.q[r][0]);
            issued(k.q[r][Kind == CUW_INT8]);
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

/* What makes a scale of what was loaded; the same for all chunks. */
struct factors {
    uint32_t table[4]; /* CUW_BOOK */
    float book, offset[2];
    const float *map; /* SC_DQ, shared */
    bool one_scale, is_half;
};

template <enum cuda_kind Kind, enum scale_class Sc, int R, int T, bool Norm>
__device__ __forceinline__ void multiply(float (&acc)[R][T], const struct raw_chunk<Kind, R> &k,
                                         const struct factors &f, const struct gemv_warp &p, int c, const int8_t *xq,
                                         const int2 *xmeta, int n_chunks)
{
    int lo[R][4], hi[R][4];
    float s[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        integers<Kind>(k.q[r], f.table, lo[r], hi[r]);
        if (Kind == CUW_BOOK) {
            float absmax = __uint_as_float(k.s[r]);
            if (Sc == SC_DQ)
                absmax =
                    __fadd_rn(__fmul_rn(f.map[k.s[r] + (p.pair && (r & 1) ? 256 : 0)], k.nested[r]), f.offset[r & 1]);
            s[r] = f.book * absmax;
        } else if (Sc == SC_32) {
            s[r] = f.one_scale ? 1.0f : __uint_as_float(k.s[r]);
        } else {
            const float half = half_bits(k.s[r] & 0xffffu), brain = bf16_bits(k.s[r]);
            s[r] = f.one_scale ? 1.0f : f.is_half ? half : brain;
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
        const uint4 xa = xp[0], xb = xp[1]; /* no __ldg: they may be written while this kernel waits (kernel_begin) */
        const int2 meta = *mp;
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

/* Blocks a multiprocessor must have room for: by registers, as many as do not spill.
 * Grid of the kernel: all jobs' blocks; see gemv.cuh. Dynamic shared memory: with Norm, 40 bytes a chunk. */
constexpr int gemv_int8_blocks(enum cuda_kind kind, int rows, int tokens, bool norm)
{
    if (rows > 2 || tokens > 2 || (tokens > 1 && kind != CUW_BOOK)) return 2;
    return tokens > 1 || norm || kind == CUW_INT8 ? 3 : 4;
}
template <enum cuda_kind Kind, enum scale_class Sc, int R, int T, bool Norm>
__global__ void __launch_bounds__(GEMV_THREADS, gemv_int8_blocks(Kind, R, T, Norm))
    gemv_int8_kernel(const GRID_CONSTANT struct gemv_args a)
{
    SHARED_ARRAY(float, part, [GEMV_WARPS][R * T]);
    SHARED_ARRAY(float, tile, [T][32]);
    SHARED_ARRAY(float, map, [Sc == SC_DQ ? 512 : 1]); /* the job's, then its partner's */
    SHARED_ARRAY(float, red, [GEMV_WARPS]);
    const struct gemv_warp p = gemv_where<R, T>(a);
    const struct gemv_job &job = a.job[p.job];
    const int lane = threadIdx.x & 31, chunks = (a.n_in + 31) / 32, c0 = p.part * 32 + lane, step = a.split * 32;

    struct lane_rows<Kind, Sc, R> rows;
    struct raw_chunk<Kind, R> now, next;
    find_rows(rows, job, p, 0, chunks);
    if (c0 < chunks) load_chunk<true>(now, rows, c0);
    if (c0 + step < chunks) load_chunk<true>(next, rows, c0 + step);
    kernel_begin();

    const uint32_t *const tw = reinterpret_cast<const uint32_t *>(job.w.table);
    const struct factors f = {{tw[0], tw[1], tw[2], tw[3]},
                              job.w.factor,
                              {job.w.offset, p.pair ? job.up_offset : job.w.offset},
                              map,
                              job.w.one_scale,
                              job.w.scale == CUF_F16};

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
            multiply<Kind, Sc, R, T, Norm>(acc, now, f, p, c, xq, xmeta, n_chunks);
            now = next; /* under way since the last round, or since before the wait */
            if (c + 2 * step < chunks) load_chunk<false>(next, rows, c + 2 * step);
        }
        if (pass + 1 < a.passes) {
            find_rows(rows, job, p, pass + 1, chunks);
            if (c0 < chunks) load_chunk<false>(now, rows, c0);
            if (c0 + step < chunks) load_chunk<false>(next, rows, c0 + step);
        }
        gemv_finish<R, T, true>(a, job, p, pass, acc, part, tile);
    }
    gemv_quantize_out<T>(a, job, p, tile);
}

/* Passes without a quantized output: the loads of the next rows are under way before a sum ends, and what a block does
 * once (with norm: all of the normalization) is done less often; but blocks enough must be left to even out the end. */
static int passes_of(const struct cuda_env *env, unsigned blocks, bool norm)
{
    const unsigned n = blocks / (unsigned(env->n_sm) * (norm ? 8 : 16));
    return n < 1 ? 1 : n > 8 ? 8 : int(n);
}

unsigned gemv_divide(const struct cuda_env *env, struct gemv_args *a, int n_jobs, int units, bool wide, int *rows)
{
    const int64_t warps = int64_t(16) * env->n_sm; /* wanted at least */
    if (!a->per) a->per = 1;
    int64_t all = 0;
    for (int j = 0; j < n_jobs; j++) all += a->job[j].w.n_out * (a->job[j].up ? 2 : 1);
    *rows = wide && all / 4 >= warps ? 4 : 2;
    a->split = 1;
    while (!a->out.q && a->split < GEMV_WARPS && all / *rows * a->split < warps && units > 32 * a->split) a->split *= 2;
    const int a_block = GEMV_WARPS / a->split * *rows; /* rows, partners counted */
    a->passes = passes_of(env, unsigned((all + a_block - 1) / a_block), a->norm != nullptr);
    a->slabs = (a->n_tok + 3) / 4;
    unsigned blocks = 0;
    for (int j = 0; j < n_jobs; j++) {
        int step = a_block / (a->job[j].up ? 2 : 1);
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
    auto go = [&](void (*kernel)(struct gemv_args)) {
        launch("gemv_int8", kernel, dim3(blocks), dim3(GEMV_THREADS), smem, s, *a);
    };
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
