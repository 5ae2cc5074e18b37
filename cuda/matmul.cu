/* Which kernel multiplies what (pick), the scratch it needs, and the small kernels around the products: quantizing and
 * converting activations, dequantizing weights. */
#include "matmul.h"

#include "acts.cuh"
#include "dequant.cuh"
#include "gemm.cuh"
#include "gemv.cuh"

#include <cassert>
#include <cstring>

static int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

/* ---- activations */

static int act_chunks(int64_t n_in) { return int(round_up(n_in, 64) / 32); }

size_t acts_bytes(int64_t n_tok, int64_t n_in)
{
    return size_t(round_up(n_tok * act_chunks(n_in) * 32, 256) + round_up(n_tok * act_chunks(n_in) * 8, 256));
}

struct cuda_acts acts_at(void *mem, int64_t n_tok, int64_t n_in)
{
    int n = act_chunks(n_in);
    int8_t *q = static_cast<int8_t *>(mem);
    return {q, reinterpret_cast<int2 *>(q + round_up(n_tok * n * 32, 256)), n};
}

/* Kernels by rows have the row in x, whose number is not limited, and pieces of the row in y; threads of a block: as
 * many as a short row has pieces, so that few are idle. */
static dim3 row_block(int64_t pieces) { return dim3(unsigned(pieces < 256 ? round_up(pieces, 32) : 256)); }
static dim3 row_grid(int64_t rows, int64_t pieces, dim3 block)
{
    return dim3(unsigned(rows), unsigned((pieces + block.x - 1) / block.x));
}

/* A warp a chunk. per 2: each row twice, the second time what the first left of it. */
__global__ void __launch_bounds__(256) quantize_kernel(const struct cuda_acts a, const float *x, int n_in, int per)
{
    kernel_begin();
    const size_t row = blockIdx.x;
    const int chunk = blockIdx.y * (blockDim.x / 32) + (threadIdx.x >> 5), k = chunk * 32 + (threadIdx.x & 31);
    if (chunk >= a.n_chunks) return;
    const float rest = quantize_to(a, row * per, chunk, k < n_in ? x[row * n_in + k] : 0.0f);
    if (per == 2) quantize_to(a, row * 2 + 1, chunk, rest);
}

static void quantize_rows(const struct cuda_acts *a, const float *x, int64_t n_tok, int64_t n_in, int per,
                          cudaStream_t s)
{
    const dim3 block = row_block(int64_t(a->n_chunks) * 32);
    launch("quantize", quantize_kernel, row_grid(n_tok, int64_t(a->n_chunks) * 32, block), block, 0, s, *a, x, n_in,
           per);
}
void quantize_acts(const struct cuda_acts *a, const float *x, int64_t n_tok, int64_t n_in, cudaStream_t s)
{
    quantize_rows(a, x, n_tok, n_in, 1, s);
}

/* ---- eight values as a type */

__device__ __forceinline__ unsigned pair_bits(float a, float b, enum cuda_float t)
{
    if (t == CUF_F16)
        return __half_as_ushort(__float2half_rn(a)) | unsigned(__half_as_ushort(__float2half_rn(b))) << 16;
    return __bfloat16_as_ushort(__float2bfloat16_rn(a)) | unsigned(__bfloat16_as_ushort(__float2bfloat16_rn(b))) << 16;
}
/* dst: 16-byte aligned */
__device__ __forceinline__ void store8(void *dst, enum cuda_float t, const float (&v)[8])
{
    if (t == CUF_F32) {
        float4 *to = static_cast<float4 *>(dst);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        *static_cast<uint4 *>(dst) = make_uint4(pair_bits(v[0], v[1], t), pair_bits(v[2], v[3], t),
                                                pair_bits(v[4], v[5], t), pair_bits(v[6], v[7], t));
    }
}
__host__ __device__ __forceinline__ size_t float_bytes(enum cuda_float t) { return t == CUF_F32 ? 4 : 2; }

/* x (n_tok, n_in) to dst (n_tok, ld) of 16 bits, zeros behind n_in; a thread eight columns. */
__global__ void __launch_bounds__(256)
    convert_kernel(void *dst, enum cuda_float type, int64_t ld, const float *x, int n_in)
{
    kernel_begin();
    const int64_t row = blockIdx.x;
    const int k0 = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (k0 >= ld) return;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = k0 + j < n_in ? x[row * n_in + k0 + j] : 0.0f;
    store8(static_cast<uint8_t *>(dst) + (row * ld + k0) * float_bytes(type), type, v);
}

/* ---- rows of weights as floats */

template <enum cuda_kind Kind>
__global__ void __launch_bounds__(256)
    dequant_kernel(void *dst, enum cuda_float type, int64_t ld, const GRID_CONSTANT struct cuda_weight w,
                   const int32_t *rows, int r0)
{
    SHARED_ARRAY(float, book, [16]);
    kernel_begin();
    if (Kind == CUW_BOOK) {
        if (threadIdx.x < 16) book[threadIdx.x] = w.book[threadIdx.x];
        __syncthreads();
    }
    const int64_t to = blockIdx.x;
    const int k0 = (blockIdx.y * blockDim.x + threadIdx.x) * 8, row = rows ? rows[to] : r0 + int(to);
    if (k0 >= ld) return;
    const uint8_t *codes = w.data + w.codes_at + size_t(row) * w.row_bytes;
    float v[8] = {};
    if (k0 < w.n_in) {
        if constexpr (Kind == CUW_FLOAT) { /* rows are padded with zeros to 16 bytes */
            if (w.type == CUF_F32) {
                const float4 *f = reinterpret_cast<const float4 *>(codes) + k0 / 4;
                const float4 a = __ldg(f), b = k0 + 4 < w.n_in ? __ldg(f + 1) : make_float4(0, 0, 0, 0);
                v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
            } else {
                const uint4 q = __ldg(reinterpret_cast<const uint4 *>(codes) + k0 / 8);
                const uint32_t h[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
                for (int j = 0; j < 8; j++) v[j] = float16_bits(h[j / 2] >> j % 2 * 16 & 0xffffu, w.type);
            }
        } else {
            const uint32_t *chunk = reinterpret_cast<const uint32_t *>(codes + k0 / 32 * (Kind == CUW_INT8 ? 32 : 16));
            const int t = k0 % 32 / 8;
            const uint32_t lo = __ldg(chunk + t), hi = Kind == CUW_INT8 ? __ldg(chunk + 4 + t) : 0;
            dequant8<Kind>(w, book, row, k0, lo, hi, v);
        }
    }
    store8(static_cast<uint8_t *>(dst) + (to * ld + k0) * float_bytes(type), type, v);
}

void dequant_rows(void *dst, enum cuda_float type, int64_t ld, const struct cuda_weight *w, const int32_t *rows,
                  int64_t r0, int64_t n, cudaStream_t s)
{
    assert(ld % 8 == 0);
    const dim3 block = row_block(ld / 8);
    auto go = [&](auto kernel) {
        launch("dequant", kernel, row_grid(n, ld / 8, block), block, 0, s, dst, type, ld, *w, rows, r0);
    };
    switch (w->kind) {
    case CUW_FLOAT: return go(dequant_kernel<CUW_FLOAT>);
    case CUW_INT4: return go(dequant_kernel<CUW_INT4>);
    case CUW_INT8: return go(dequant_kernel<CUW_INT8>);
    case CUW_STRIDED: return go(dequant_kernel<CUW_STRIDED>);
    case CUW_BOOK: return go(dequant_kernel<CUW_BOOK>);
    }
}

/* ---- what cuBLAS leaves to do: y = (y + bias) with partner or residual */

__global__ void __launch_bounds__(256) finish_kernel(float *y, const float *bias, const float *add, const float *up,
                                                     const float *up_bias, int n_out)
{
    kernel_begin();
    const int k = blockIdx.y * blockDim.x + threadIdx.x;
    if (k >= n_out) return;
    const size_t i = size_t(blockIdx.x) * n_out + k;
    float v = y[i];
    if (bias) v += bias[k];
    if (add) v = add[i] + v;
    if (up) v = silu(v) * (up[i] + (up_bias ? up_bias[k] : 0.0f));
    y[i] = v;
}

static void finish(const struct cuda_job *j, const float *bias, const float *add, const float *up, int64_t n_tok,
                   cudaStream_t s)
{
    const dim3 block = row_block(j->w->n_out);
    if (bias || add || up)
        launch("finish", finish_kernel, row_grid(n_tok, j->w->n_out, block), block, 0, s, j->y, bias, add, up,
               j->up_bias, j->w->n_out);
}

/* ---- the choice */

enum path { PATH_GEMV_INT8, PATH_GEMV_F32, PATH_GEMM_INT8, PATH_HALF, PATH_F32 };
enum {
    BLAS_TOKENS = 256, /* from here on data-centre GPUs are faster with f16 by cuBLAS than with int8 tiles */
    /* Up to here, where tiles of 64 rows would leave half of the multiprocessors idle and those at work wait for memory
     * most of the time, four tokens at a time by the vector kernel: codes come from memory once, then from the cache.
     * 2048 rows of 11008 int4 on an H100: 32 blocks with 8 KB under way each bring 0.3 TB/s, 40 µs; eight times 11 MB
     * from the second-level cache take 16 µs. */
    SLAB_TOKENS = 32
};

/* Rows of quantized activations a token. */
static int rows_of(enum compute c) { return c == COMPUTE_INT8X2 ? 2 : 1; }

/* type: PATH_HALF's. */
static enum path pick(const struct cuda_env *env, enum compute compute, const struct cuda_weight *w, int64_t n_tok,
                      enum cuda_float *type)
{
    const bool ints = (compute == COMPUTE_INT8 || compute == COMPUTE_INT8X2) && w->int8_ok;
    *type = compute == COMPUTE_F16    ? CUF_F16
            : compute == COMPUTE_BF16 ? CUF_BF16
            : compute == COMPUTE_INT8 ? w->type
                                      : CUF_F32;
    if (ints) n_tok *= rows_of(compute);
    if (n_tok <= GEMV_TOKENS) return ints ? PATH_GEMV_INT8 : PATH_GEMV_F32;
    if (ints && n_tok <= SLAB_TOKENS && w->n_out < 32 * int64_t(env->n_sm)) return PATH_GEMV_INT8;
    if (*type == CUF_BF16 && env->sm < 80) *type = CUF_F32; /* no such instruction there */
    const bool data_centre = env->sm == 80 || env->sm == 90 || env->sm == 100 || env->sm == 103;
    if (ints && !(env->blas && data_centre && n_tok >= BLAS_TOKENS && *type != CUF_F32)) return PATH_GEMM_INT8;
    return *type == CUF_F32 ? PATH_F32 : PATH_HALF;
}

static bool path_uses_acts(enum path p) { return p == PATH_GEMV_INT8 || p == PATH_GEMM_INT8; }

bool matmul_uses_acts(const struct cuda_env *env, const struct cuda_matmul *m)
{
    enum cuda_float type;
    if (rows_of(m->compute) > 1) return false; /* of one row a token */
    for (int i = 0; i < 2 * m->n_jobs; i++) {
        const struct cuda_weight *w = i % 2 ? m->jobs[i / 2].up : m->jobs[i / 2].w;
        if (w && !path_uses_acts(pick(env, m->compute, w, m->n_tok, &type))) return false;
    }
    return true;
}

bool matmul_fuses_norm(const struct cuda_env *env, const struct cuda_matmul *m)
{
    enum cuda_float type;
    if (m->n_tok != 1 || rows_of(m->compute) > 1) return false;
    for (int i = 0; i < 2 * m->n_jobs; i++) {
        const struct cuda_weight *w = i % 2 ? m->jobs[i / 2].up : m->jobs[i / 2].w;
        if (!w) continue;
        const bool ints = pick(env, m->compute, w, 1, &type) == PATH_GEMV_INT8;
        if (ints ? !gemv_int8_norm_fits(m->n_in) : w->kind != CUW_FLOAT || !gemv_f32_norm_fits(m->n_in)) return false;
    }
    return true;
}

/* Bytes of dequantized rows at once: half of the second-level cache, so that they are still there when multiplied. */
static size_t slice_bytes(const struct cuda_env *env, int64_t ld)
{
    size_t n = env->l2_bytes / 2, least = size_t(64 * ld * 4);
    n = n < (4u << 20) ? 4u << 20 : n > (32u << 20) ? 32u << 20 : n;
    return size_t(round_up(int64_t(n > least ? n : least), 256));
}
static int64_t padded(int64_t n_in) { return round_up(n_in, 32); }

/* In this order: counters of the integer tiles, which stay zero between launches whatever their shapes and are in
 * nobody's way; activations; dequantized rows, or sums of parts of the columns. */
size_t matmul_scratch(const struct cuda_env *env, enum compute compute, int64_t n_tok, int64_t n_in)
{
    const bool ints = compute == COMPUTE_INT8 || compute == COMPUTE_INT8X2;
    const bool halves = compute != COMPUTE_F32 && compute != COMPUTE_INT8X2 && n_tok > GEMV_TOKENS;
    size_t acts = ints ? acts_bytes(n_tok * rows_of(compute), n_in) : 0;
    size_t half = halves ? size_t(round_up(n_tok * padded(n_in) * 2, 256)) : 0;
    return (ints ? gemm_counters(env) : 0) + (acts > half ? acts : half) +
           (n_tok <= GEMV_TOKENS ? 0 : slice_bytes(env, padded(n_in)));
}

/* ---- few tokens */

/* One kernel can do both. */
static bool same_kernel(const struct cuda_weight *a, const struct cuda_weight *b, enum path p)
{
    auto group = [](const struct cuda_weight *w) { return w->scale == CUF_F32 ? 0 : w->scale == CUF_DQ ? 1 : 2; };
    if (a->kind != b->kind) return false;
    return p == PATH_GEMV_INT8 ? group(a) == group(b) : a->kind != CUW_FLOAT || a->type == b->type;
}

/* The partner can be interleaved: apart from its data and offset it is laid out alike. */
static bool alike(const struct cuda_weight *a, const struct cuda_weight *b)
{
    return a->kind == b->kind && a->type == b->type && a->scale == b->scale && a->n_out == b->n_out &&
           a->n_in == b->n_in && a->group == b->group && a->n_groups == b->n_groups && a->zeros_at == b->zeros_at &&
           a->bytes == b->bytes && a->factor == b->factor && !memcmp(a->book, b->book, sizeof a->book);
}

static void gemv_jobs(const struct cuda_env *env, const struct cuda_matmul *m, const struct cuda_job *jobs, int n,
                      enum path p, const struct cuda_acts *acts, bool out, cudaStream_t s)
{
    bool done[GEMV_JOBS] = {};
    assert(n <= GEMV_JOBS);
    for (int i = 0; i < n; i++) {
        if (done[i]) continue;
        struct gemv_args a = {};
        int k = 0;
        for (int j = i; j < n; j++) {
            if (done[j] || !same_kernel(jobs[i].w, jobs[j].w, p)) continue;
            done[j] = true;
            struct gemv_job *g = &a.job[k++];
            g->w = *jobs[j].w;
            g->bias = jobs[j].bias;
            g->add = jobs[j].add;
            g->y = jobs[j].y;
            if (jobs[j].up) {
                g->up = jobs[j].up->data;
                g->up_offset = jobs[j].up->offset;
                g->up_bias = jobs[j].up_bias;
            }
        }
        a.per = p == PATH_GEMV_INT8 ? rows_of(m->compute) : 1;
        a.n_tok = int(m->n_tok) * a.per;
        a.n_in = int(m->n_in);
        a.x = m->x;
        a.norm = m->norm;
        a.eps = m->eps;
        if (acts) a.acts = *acts;
        if (out) a.out = *m->out;
        (p == PATH_GEMV_INT8 ? gemv_int8 : gemv_f32)(env, &a, k, s);
    }
}

/* ---- many tokens */

/* Rows r0 … r0+n−1 of a float weight, or of scratch, as a weight of their own. */
static struct cuda_weight float_rows(const uint8_t *data, size_t codes_at, int64_t row_bytes, int64_t r0, int64_t n,
                                     int64_t n_in)
{
    struct cuda_weight w = {};
    w.kind = CUW_FLOAT;
    w.n_out = n;
    w.n_in = n_in;
    w.row_bytes = row_bytes;
    w.data = data + codes_at + r0 * row_bytes;
    return w;
}

struct many {
    const struct cuda_env *env;
    const struct cuda_matmul *m;
    enum cuda_float type;
    const void *x; /* of type */
    int64_t ldx;
    void *slice;
    cudaStream_t s;
};

/* y (n_tok, w->n_out) = x · wᵀ in `type`: rows as they are or a slice at a time through scratch; our own kernels
 * finish as j says. */
static int float_product(const struct many *c, const struct cuda_weight *w, struct gemm_job j)
{
    const int64_t n_in = c->m->n_in, size = int64_t(float_bytes(c->type)), ld = padded(n_in);
    const bool direct = w->kind == CUW_FLOAT && w->type == c->type;
    int64_t step = direct ? w->n_out : int64_t(slice_bytes(c->env, ld)) / (ld * size) / 64 * 64;
    for (int64_t r0 = 0; r0 < w->n_out; r0 += step) {
        const int64_t n = w->n_out - r0 < step ? w->n_out - r0 : step;
        struct cuda_weight rows = direct ? float_rows(w->data, w->codes_at, w->row_bytes, r0, n, n_in)
                                         : float_rows(static_cast<const uint8_t *>(c->slice), 0, ld * size, 0, n, n_in);
        if (!direct) dequant_rows(c->slice, c->type, ld, w, nullptr, r0, n, c->s);
        if (c->env->blas) {
            if (c->env->blas(c->env->blas_ctx, j.y + r0, j.ldy, rows.data, rows.row_bytes / size, c->x, c->ldx, c->type,
                             n, c->m->n_tok, n_in, j.add == j.y ? 1.0f : 0.0f, c->s))
                return -1;
            continue;
        }
        struct gemm_args a = {};
        a.job[0] = j;
        a.job[0].w = rows;
        a.job[0].y = j.y + r0;
        a.job[0].bias = j.bias ? j.bias + r0 : nullptr;
        a.job[0].add = j.add ? j.add + r0 : nullptr;
        a.n_jobs = 1;
        a.n_tok = int(c->m->n_tok);
        a.n_in = int(n_in);
        a.x = c->x;
        a.ldx = c->ldx;
        if (c->type == CUF_F32)
            gemm_f32(&a, c->s);
        else
            gemm_half(&a, c->type, c->s);
    }
    return 0;
}

static int float_job(const struct many *c, const struct cuda_job *job)
{
    const int64_t n_out = job->w->n_out;
    struct gemm_job j = {};
    j.bias = job->bias;
    j.add = job->add;
    j.y = job->y;
    j.ldy = n_out;
    if (float_product(c, job->w, j)) return -1;
    if (c->env->blas) {
        if (job->up) {
            struct gemm_job u = {};
            u.y = job->up_y;
            u.ldy = n_out;
            if (float_product(c, job->up, u)) return -1;
        }
        finish(job, job->bias, job->add == job->y ? nullptr : job->add, job->up ? job->up_y : nullptr, c->m->n_tok,
               c->s);
    } else if (job->up) {
        j.bias = job->up_bias;
        j.swiglu = true;
        return float_product(c, job->up, j);
    }
    return 0;
}

/* The scratch of integer tiles: m's counters, and what dequantized rows would have. */
struct room {
    unsigned *count;
    float4 *parts;
    size_t parts_bytes;
};

/* Integer tiles: all jobs of a kind in one launch, then the partners, which need the gates. */
static void int8_jobs(const struct cuda_env *env, const struct cuda_matmul *m, const struct room *room,
                      const struct cuda_job *jobs, int n, const struct cuda_acts *acts, cudaStream_t s)
{
    for (int partner = 0; partner < 2; partner++)
        for (int kind = CUW_INT4; kind <= CUW_BOOK; kind++) {
            struct gemm_args a = {};
            for (int j = 0; j < n; j++) {
                const struct cuda_weight *w = partner ? jobs[j].up : jobs[j].w;
                if (!w || w->kind != kind) continue;
                struct gemm_job *g = &a.job[a.n_jobs++];
                g->w = *w;
                g->bias = partner ? jobs[j].up_bias : jobs[j].bias;
                g->add = jobs[j].add;
                g->y = jobs[j].y;
                g->ldy = w->n_out;
                g->swiglu = partner;
            }
            a.per = rows_of(m->compute);
            a.n_tok = int(m->n_tok) * a.per;
            a.n_in = int(m->n_in);
            a.acts = *acts;
            a.count = room->count;
            a.parts = room->parts;
            a.parts_bytes = room->parts_bytes;
            if (a.n_jobs) gemm_int8(env, &a, s);
        }
}

static void int_jobs(const struct cuda_env *env, const struct cuda_matmul *m, const struct room *room,
                     const struct cuda_job *jobs, int n, enum path p, const struct cuda_acts *acts, bool out,
                     cudaStream_t s)
{
    if (p == PATH_GEMV_INT8)
        gemv_jobs(env, m, jobs, n, p, acts, out, s);
    else
        int8_jobs(env, m, room, jobs, n, acts, s);
}

/* int8x2 of code books: what the first table left of the values, by the second one, added to y. */
static void rest_of_books(const struct cuda_env *env, const struct cuda_matmul *m, const struct room *room,
                          const struct cuda_job *jobs, int n, enum path p, const struct cuda_acts *acts, cudaStream_t s)
{
    struct cuda_weight w[GEMV_JOBS];
    struct cuda_job rest[GEMV_JOBS];
    int k = 0;
    for (int i = 0; i < n; i++) {
        if (jobs[i].w->kind != CUW_BOOK) continue;
        w[k] = *jobs[i].w;
        memcpy(w[k].table, w[k].rest_table, sizeof w[k].table);
        w[k].factor *= w[k].rest_factor;
        rest[k] = {jobs[i].y, &w[k], nullptr, jobs[i].y, nullptr, nullptr, nullptr};
        k++;
    }
    if (k) int_jobs(env, m, room, rest, k, p, acts, false, s);
}

/* ---- */

int cuda_matmul(const struct cuda_env *env, const struct cuda_matmul *m, cudaStream_t s)
{
    enum { MANY = GEMV_JOBS };
    static_assert(int(MANY) == int(GEMM_JOBS), "as many jobs a launch");
    if (m->n_tok <= 0) return 0;
    if (m->n_jobs > MANY) {
        struct cuda_matmul first = *m, rest = *m;
        first.n_jobs = MANY;
        rest.jobs += MANY;
        rest.n_jobs -= MANY;
        return cuda_matmul(env, &first, s) || cuda_matmul(env, &rest, s) ? -1 : 0;
    }
    assert(!m->norm || matmul_fuses_norm(env, m));
    struct cuda_job of[5][MANY], apart[MANY]; /* by path; partners that cannot be interleaved */
    enum cuda_float type[MANY], t;
    int n_of[5] = {}, n_apart = 0, n_half = 0;
    for (int i = 0; i < m->n_jobs; i++) {
        struct cuda_job j = m->jobs[i];
        assert(j.w->n_in == m->n_in && !(j.up && j.add));
        const enum path p = pick(env, m->compute, j.w, m->n_tok, &t);
        /* a partner of another kind: apart, joined at the end */
        if (p == PATH_HALF) type[n_half++] = t;
        const bool books = rows_of(m->compute) > 1 && j.w->kind == CUW_BOOK; /* two launches, then the partner */
        if (j.up &&
            (books || !(p <= PATH_GEMV_F32 ? alike(j.w, j.up) : pick(env, m->compute, j.up, m->n_tok, &t) == p))) {
            apart[n_apart++] = j;
            j.up = nullptr;
        }
        of[p][n_of[p]++] = j;
    }

    struct cuda_acts acts = {};
    const int64_t ldx = padded(m->n_in);
    const int per = rows_of(m->compute);
    const bool few = m->n_tok <= GEMV_TOKENS;
    uint8_t *const scratch = static_cast<uint8_t *>(m->scratch);
    uint8_t *const mem =
        scratch + (m->compute == COMPUTE_INT8 || m->compute == COMPUTE_INT8X2 ? gemm_counters(env) : 0);
    const size_t slice = few ? 0 : slice_bytes(env, ldx);
    uint8_t *const behind = scratch + matmul_scratch(env, m->compute, m->n_tok, m->n_in) - slice;
    const struct room room = {reinterpret_cast<unsigned *>(scratch), reinterpret_cast<float4 *>(behind), slice};
    assert(!(m->acts || m->out || m->norm) || per == 1);
    if (n_of[PATH_GEMV_INT8] + n_of[PATH_GEMM_INT8]) {
        if (m->acts)
            acts = *m->acts;
        else if (!m->norm)
            quantize_rows(&(acts = acts_at(mem, m->n_tok * per, m->n_in)), m->x, m->n_tok, m->n_in, per, s);
    }
    /* the one result is wanted quantized: in the kernel, if its blocks of 32 rows fill the device */
    const bool out_inside = m->out && few && !n_apart && m->jobs[0].w->n_out >= 32 * int64_t(env->n_sm);
    for (enum path p : {PATH_GEMV_INT8, PATH_GEMM_INT8}) {
        int_jobs(env, m, &room, of[p], n_of[p], p, &acts, out_inside, s);
        if (per > 1) rest_of_books(env, m, &room, of[p], n_of[p], p, &acts, s);
    }
    gemv_jobs(env, m, of[PATH_GEMV_F32], n_of[PATH_GEMV_F32], PATH_GEMV_F32, &acts, out_inside, s);

    struct many c = {env, m, CUF_F32, m->x, m->n_in, nullptr, s};
    c.slice = behind;
    for (int i = 0; i < n_of[PATH_F32]; i++)
        if (float_job(&c, &of[PATH_F32][i])) return -1;
    c.x = mem; /* quantized activations are no longer needed there */
    c.ldx = ldx;
    for (int i = 0; i < n_half; i++) {
        if (i == 0 || type[i] != c.type) {
            c.type = type[i];
            const dim3 block = row_block(ldx / 8);
            launch("convert", convert_kernel, row_grid(m->n_tok, ldx / 8, block), block, 0, s, static_cast<void *>(mem),
                   c.type, ldx, m->x, m->n_in);
        }
        if (float_job(&c, &of[PATH_HALF][i])) return -1;
    }

    for (int i = 0; i < n_apart; i++) {
        const struct cuda_job up = {apart[i].up_y, apart[i].up, nullptr, nullptr, nullptr, nullptr, nullptr};
        struct cuda_matmul one = *m;
        one.jobs = &up;
        one.n_jobs = 1;
        one.out = nullptr;
        if (cuda_matmul(env, &one, s)) return -1;
        finish(&apart[i], nullptr, nullptr, apart[i].up_y, m->n_tok, s);
    }
    if (m->out && !out_inside) quantize_acts(m->out, m->jobs[0].y, m->n_tok, m->jobs[0].w->n_out, s);
    return 0;
}
