#include "attention_impl.cuh"
#include "rope.cuh"

/* ---- decoding: one new token a span, the cache cut into splits ------------------------------------------------------
 * A block does one split for up to G query heads of one KV head: LPT lanes hold 8 elements each of a token's K and V, a
 * warp takes 32 / LPT tokens at a time, U times in flight. How many splits there are depends on the position, which may
 * lie in device memory: blocks of the fixed grid beyond them leave at once. The last block to arrive of every 8 splits
 * merges these, the last of those merges the rest, in the order of the splits: the same bits whoever is last.
 * When the new token is not in the cache yet (fused), every block norms and rotates its queries itself, and the block
 * whose split ends at the new token does so with its key, stores key and value and adds their part. */

constexpr int split_group = 8, split_max = 64, split_keys = 32; /* splits merged at once; most; fewest keys of one */

struct decode_args {
    float *out;
    attn_new in; /* q alone, where not fused */
    attn_batch b;
    attn_shape s;
    float scale;
    bool fused;
    int splits; /* of the grid */
    float *part;     /* [span · kv · head group][splits + groups][G][head_dim] */
    float2 *part_ml; /* the same without head_dim: maximum, sum */
    unsigned *count; /* [span · kv · head group][groups + 1], zero between launches */
};

template <class T> struct vec8; /* 8 elements of K or V, as loaded */
template <> struct vec8<__half> {
    uint4 raw;
    __device__ __forceinline__ void load(const __half *p) { raw = *reinterpret_cast<const uint4 *>(p); }
    __device__ __forceinline__ void get(float (&f)[8]) const
    {
        const unsigned w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            f[2 * i] = __half2float(__ushort_as_half((unsigned short)(w[i] & 0xffff)));
            f[2 * i + 1] = __half2float(__ushort_as_half((unsigned short)(w[i] >> 16)));
        }
    }
};
template <> struct vec8<float> {
    float4 lo, hi;
    __device__ __forceinline__ void load(const float *p)
    {
        lo = reinterpret_cast<const float4 *>(p)[0];
        hi = reinterpret_cast<const float4 *>(p)[1];
    }
    __device__ __forceinline__ void get(float (&f)[8]) const
    {
        f[0] = lo.x, f[1] = lo.y, f[2] = lo.z, f[3] = lo.w;
        f[4] = hi.x, f[5] = hi.y, f[6] = hi.z, f[7] = hi.w;
    }
};

/* A lane's state: of G heads the running maximum, sum and 8 elements of the output. */
template <int G> struct softmax {
    float m[G], l[G], o[G][8];
};

/* U tokens more; every lane of the warp comes, lanes of a token have the same `ok`. */
template <class T, int LPT, int G, int U>
__device__ __forceinline__ void add_tokens(softmax<G> &st, const float (&q)[G][8], const vec8<T> (&k)[U],
                                           const vec8<T> (&v)[U], const bool (&ok)[U])
{
    float s[U][G];
#pragma unroll
    for (int u = 0; u < U; u++) {
        float f[8];
        k[u].get(f);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) sum += q[g][i] * f[i];
#pragma unroll
            for (int x = LPT / 2; x; x >>= 1) sum += __shfl_xor_sync(full_warp, sum, x);
            s[u][g] = sum;
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        float top = st.m[g];
#pragma unroll
        for (int u = 0; u < U; u++) top = ok[u] ? fmaxf(top, s[u][g]) : top;
        const float keep = exp2f(st.m[g] - top);
        st.m[g] = top;
        st.l[g] *= keep;
#pragma unroll
        for (int u = 0; u < U; u++) {
            s[u][g] = ok[u] ? exp2f(s[u][g] - top) : 0;
            st.l[g] += s[u][g];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) st.o[g][i] *= keep;
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
        float f[8];
        v[u].get(f);
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) st.o[g][i] += s[u][g] * f[i];
    }
}

/* n partial results, one after the other at o (n, G, hd) and ml (n, G), into one; dst: f(g, d, four outputs not yet
 * divided, maximum, sum). Whole block. */
template <int G, class F>
__device__ __forceinline__ void merge(const float *o, const float2 *ml, int n, int hd, F dst)
{
    for (int i = threadIdx.x * 4; i < G * hd; i += blockDim.x * 4) {
        const int g = i / hd, d = i % hd;
        float2 in[split_group];
        float4 part[split_group];
        float top = minus_big, sum = 0;
#pragma unroll
        for (int s = 0; s < split_group; s++) {
            if (s >= n) break;
            in[s] = __ldcg(ml + s * G + g);
            part[s] = __ldcg(reinterpret_cast<const float4 *>(o + size_t(s) * G * hd + i));
            top = fmaxf(top, in[s].x);
        }
        float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int s = 0; s < split_group; s++) {
            if (s >= n) break;
            const float c = exp2f(in[s].x - top);
            sum += in[s].y * c;
            out.x += part[s].x * c;
            out.y += part[s].y * c;
            out.z += part[s].z * c;
            out.w += part[s].w * c;
        }
        dst(g, d, out, top, sum);
    }
}

template <class T, int LPT, int G> struct decode_shape {
    static constexpr int warps = LPT == 32 ? 4 : 8, threads = warps * 32, hd_max = LPT * 8, tokens = 32 / LPT;
    static constexpr int U = G == 8 ? 2 : 4;
};

/* The queries of the block's heads into q [G][hd], scaled; when fused, normed and rotated. */
template <int G, int Warps>
__device__ __forceinline__ void decode_queries(float *q, const decode_args &a, const float2 *turn, int row, int h0,
                                               int n_g)
{
    const int hd = a.s.head_dim, half = hd / 2, lane = threadIdx.x & 31;
    for (int g = threadIdx.x >> 5; g < G; g += Warps) {
        const float *x = a.in.q + (size_t(row) * a.s.n_heads + h0 + (g < n_g ? g : 0)) * hd;
        const float *norm = a.in.q_norm;
        const float scale = norm ? head_scale(x, hd, a.in.eps) : 1;
        for (int j = lane; j < half; j += 32) {
            const float2 y = rope_pair(x, j, half, norm, scale, a.in.inv_freq ? turn : nullptr);
            q[g * hd + j] = y.x * a.scale;
            q[g * hd + j + half] = y.y * a.scale;
        }
    }
}

/* The new token's key (by warp 0) and value (by warp 1) into shared memory and, once, into the cache. */
template <class T>
__device__ __forceinline__ void decode_store(T *k_new, T *v_new, const decode_args &a, const attn_span &sp,
                                             const float2 *turn, int kv, int pos, bool store)
{
    const int hd = a.s.head_dim, half = hd / 2, lane = threadIdx.x & 31;
    const size_t from = (size_t(sp.row0) * a.s.n_kv_heads + kv) * hd, to = (size_t(kv) * sp.capacity + pos) * hd;
    T *k_to = static_cast<T *>(sp.k) + to, *v_to = static_cast<T *>(sp.v) + to;
    if (threadIdx.x < 32) {
        const float *x = a.in.k + from, *norm = a.in.k_norm;
        const float scale = norm ? head_scale(x, hd, a.in.eps) : 1;
        for (int j = lane; j < half; j += 32) {
            const float2 y = rope_pair(x, j, half, norm, scale, a.in.inv_freq ? turn : nullptr);
            k_new[j] = from_f32<T>(y.x);
            k_new[j + half] = from_f32<T>(y.y);
            if (store) {
                k_to[j] = k_new[j];
                k_to[j + half] = k_new[j + half];
            }
        }
    } else if (threadIdx.x < 64) {
        for (int j = lane; j < hd; j += 32) {
            v_new[j] = from_f32<T>(a.in.v[from + j]);
            if (store) v_to[j] = v_new[j];
        }
    }
}

/* grid (KV heads · groups of G query heads, splits, spans) */
template <class T, int LPT, int G>
__global__ void __launch_bounds__(decode_shape<T, LPT, G>::threads) attn_decode(decode_args a)
{
    using shape = decode_shape<T, LPT, G>;
    constexpr int warps = shape::warps, U = shape::U;
    SHARED_ARRAY(float, so, [warps * G * shape::hd_max]); /* [warps][G][hd]; before that, q [G][hd] */
    SHARED_ARRAY(float2, sml, [warps][G]);
    SHARED_ARRAY(float2, turn, [shape::hd_max / 2]);
    SHARED_ARRAY(T, k_new, [shape::hd_max]);
    SHARED_ARRAY(T, v_new, [shape::hd_max]);
    kernel_begin();
    const attn_span &sp = a.b.span[blockIdx.z];
    const int hd = a.s.head_dim, n_of = a.s.n_heads / a.s.n_kv_heads, head_groups = (n_of + G - 1) / G;
    const int kv = blockIdx.x / head_groups, g0 = blockIdx.x % head_groups * G;
    const int n_g = n_of - g0 < G ? n_of - g0 : G, h0 = kv * n_of + g0;
    const int pos = first_pos(a.b, sp), n_keys = pos + 1;
    int per = (n_keys + a.splits - 1) / a.splits;
    per = per < split_keys ? split_keys : (per + 15) / 16 * 16;
    const int n_splits = (n_keys + per - 1) / per, split = blockIdx.y;
    if (split >= n_splits) return;
    const int begin = split * per, all = begin + per < n_keys ? begin + per : n_keys;
    const bool has_new = a.fused && all == n_keys;
    const int end = has_new ? all - 1 : all; /* of what is read from the cache */

    if (a.fused && a.in.inv_freq) {
        for (int j = threadIdx.x; j < hd / 2; j += shape::threads) turn[j] = rope_turn(pos, a.in.inv_freq[j]);
        __syncthreads();
    }
    decode_queries<G, warps>(so, a, turn, sp.row0, h0, n_g);
    if (has_new) decode_store<T>(k_new, v_new, a, sp, turn, kv, pos, g0 == 0);
    __syncthreads();

    /* Lanes behind head_dim load what lane 0 loads, with a q of 0; tokens behind the end are the last one, not ok */
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sub = lane / LPT;
    const bool inside = lane % LPT * 8 < hd;
    const int d0 = inside ? lane % LPT * 8 : 0;
    float q[G][8];
    softmax<G> st;
#pragma unroll
    for (int g = 0; g < G; g++) {
        st.m[g] = minus_big;
        st.l[g] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            q[g][i] = inside ? so[g * hd + d0 + i] : 0;
            st.o[g][i] = 0;
        }
    }
    __syncthreads(); /* so is written again below */
    const T *K = static_cast<const T *>(sp.k) + size_t(kv) * sp.capacity * hd + d0;
    const T *V = static_cast<const T *>(sp.v) + size_t(kv) * sp.capacity * hd + d0;
#pragma unroll 1
    for (int t0 = begin + warp * (shape::tokens * U); t0 < end; t0 += warps * shape::tokens * U) {
        vec8<T> k[U], v[U];
        bool ok[U];
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int t = t0 + u * shape::tokens + sub;
            ok[u] = t < end;
            k[u].load(K + size_t(ok[u] ? t : end - 1) * hd);
            v[u].load(V + size_t(ok[u] ? t : end - 1) * hd);
        }
        add_tokens<T, LPT, G, U>(st, q, k, v, ok);
    }
    if (has_new) { /* counted by warp 0; the others come along, so that shuffles stay outside branches by lane */
        vec8<T> k[1], v[1];
        const bool ok[1] = {warp == 0 && sub == 0};
        k[0].load(k_new + d0);
        v[0].load(v_new + d0);
        add_tokens<T, LPT, G, 1>(st, q, k, v, ok);
    }

    /* the tokens of the warp */
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int x = LPT; x < 32; x <<= 1) {
            const float m2 = __shfl_xor_sync(full_warp, st.m[g], x), l2 = __shfl_xor_sync(full_warp, st.l[g], x);
            const float top = fmaxf(st.m[g], m2), c = exp2f(st.m[g] - top), c2 = exp2f(m2 - top);
            st.m[g] = top;
            st.l[g] = st.l[g] * c + l2 * c2;
#pragma unroll
            for (int i = 0; i < 8; i++) st.o[g][i] = st.o[g][i] * c + __shfl_xor_sync(full_warp, st.o[g][i], x) * c2;
        }
        if (sub == 0 && inside) {
#pragma unroll
            for (int i = 0; i < 8; i++) so[(warp * G + g) * hd + d0 + i] = st.o[g][i];
        }
        if (lane == 0) sml[warp][g] = make_float2(st.m[g], st.l[g]);
    }
    __syncthreads();

    /* the warps of the block: to the output, or to this split's place */
    const int item = blockIdx.z * gridDim.x + blockIdx.x, groups = (a.splits + split_group - 1) / split_group;
    float *part = a.part + size_t(item) * (a.splits + groups) * G * hd;
    float2 *ml = a.part_ml + size_t(item) * (a.splits + groups) * G;
    float *out = a.out + (size_t(sp.row0) * a.s.n_heads + h0) * hd;
    for (int i = threadIdx.x; i < G * hd; i += shape::threads) {
        const int g = i / hd;
        float top = minus_big, sum = 0, o = 0;
#pragma unroll
        for (int w = 0; w < warps; w++) top = fmaxf(top, sml[w][g].x);
#pragma unroll
        for (int w = 0; w < warps; w++) {
            const float c = exp2f(sml[w][g].x - top);
            sum += sml[w][g].y * c;
            o += so[w * G * hd + i] * c;
        }
        if (n_splits == 1) {
            if (g < n_g) out[i] = o / sum;
        } else {
            part[size_t(split) * G * hd + i] = o;
            if (i % hd == 0) ml[split * G + g] = make_float2(top, sum);
        }
    }
    if (n_splits == 1) return;

    const auto finish = [&](int g, int d, float4 o, float, float sum) {
        if (g >= n_g) return;
        *reinterpret_cast<float4 *>(out + g * hd + d) = make_float4(o.x / sum, o.y / sum, o.z / sum, o.w / sum);
    };
    unsigned *count = a.count + size_t(item) * (groups + 1);
    const int group = split / split_group, first = group * split_group;
    const int in_group = n_splits - first < split_group ? n_splits - first : split_group;
    const int n_groups = (n_splits + split_group - 1) / split_group;
    if (!last_of(count + group, in_group)) return;
    if (n_groups == 1) {
        merge<G>(part, ml, in_group, hd, finish);
        return;
    }
    float *top_part = part + size_t(a.splits) * G * hd;
    float2 *top_ml = ml + a.splits * G;
    merge<G>(part + size_t(first) * G * hd, ml + first * G, in_group, hd,
             [&](int g, int d, float4 o, float top, float sum) {
                 *reinterpret_cast<float4 *>(top_part + (size_t(group) * G + g) * hd + d) = o;
                 if (d == 0) top_ml[group * G + g] = make_float2(top, sum);
             });
    if (!last_of(count + groups, n_groups)) return;
    merge<G>(top_part, top_ml, n_groups, hd, finish);
}

/* Query heads a block does: one of the sizes there are code for. f32 caches are the exact path, where one will do. */
static int heads_together(const attn_shape &s)
{
    const int n = s.n_heads / s.n_kv_heads;
    return !s.f16 ? 4 : n == 1 ? 1 : n == 2 ? 2 : n <= 4 ? 4 : 8;
}

static int splits_of(int items, int n_sm)
{
    const int n = n_sm / items;
    return n < 1 ? 1 : n > split_max ? split_max : n;
}

struct decode_work {
    size_t part, ml, count, bytes; /* offsets */
};
/* The counters come first, in memory that no launch uses for anything else: they must be zero for the next one,
 * whatever its shape. With one split they are not used; with more, items · splits ≤ n_sm, and groups + 1 ≤ splits. */
static decode_work work_of(int items, int splits, int G, int hd, int n_sm)
{
    const size_t groups = size_t(splits + split_group - 1) / split_group, slots = size_t(items) * (splits + groups);
    decode_work w;
    w.count = 0;
    w.ml = (size_t(n_sm) * sizeof(unsigned) + 255) / 256 * 256;
    w.part = w.ml + (slots * G * sizeof(float2) + 255) / 256 * 256;
    w.bytes = w.part + slots * G * hd * sizeof(float);
    return w;
}

static int items_of(const attn_shape &s, int n_spans)
{
    const int G = heads_together(s);
    return n_spans * s.n_kv_heads * ((s.n_heads / s.n_kv_heads + G - 1) / G);
}

size_t attention_work_bytes(const attn_shape &s, int n_sm)
{
    if (!attn_fast(s)) return 0;
    size_t most = 0;
    for (int n = 1; n <= attn_batch_max; n++) {
        const int items = items_of(s, n);
        const decode_work w = work_of(items, splits_of(items, n_sm), heads_together(s), s.head_dim, n_sm);
        most = w.bytes > most ? w.bytes : most;
    }
    return most;
}

template <class T, int LPT, int G> static void launch_decode(const decode_args &a, cudaStream_t st)
{
    launch(a.fused ? "rope_attention_decode" : "attention_decode", attn_decode<T, LPT, G>,
           dim3(items_of(a.s, 1), a.splits, a.b.n), dim3(decode_shape<T, LPT, G>::threads), 0, st, a);
}
template <class T, int G> static void launch_decode_lanes(const decode_args &a, cudaStream_t st)
{
    if (a.s.head_dim <= 64) launch_decode<T, 8, G>(a, st);
    else if (a.s.head_dim <= 128) launch_decode<T, 16, G>(a, st);
    else launch_decode<T, 32, G>(a, st);
}

void attention_decode(float *out, const attn_new &in, bool fused, const attn_batch &b, const attn_shape &s, void *work,
                      int n_sm, cudaStream_t st)
{
    const int items = items_of(s, b.n), G = heads_together(s);
    decode_args a = {out, in, b, s, score_scale(s), fused, splits_of(items, n_sm), nullptr, nullptr, nullptr};
    const decode_work w = work_of(items, a.splits, G, s.head_dim, n_sm);
    char *base = static_cast<char *>(work);
    a.count = reinterpret_cast<unsigned *>(base + w.count);
    a.part_ml = reinterpret_cast<float2 *>(base + w.ml);
    a.part = reinterpret_cast<float *>(base + w.part);
    if (!s.f16) launch_decode_lanes<float, 4>(a, st);
    else if (G == 1) launch_decode_lanes<__half, 1>(a, st);
    else if (G == 2) launch_decode_lanes<__half, 2>(a, st);
    else if (G == 4) launch_decode_lanes<__half, 4>(a, st);
    else launch_decode_lanes<__half, 8>(a, st);
}
