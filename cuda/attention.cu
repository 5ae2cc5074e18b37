#include "attention_impl.cuh"
#include "rope.cuh"

#include <cassert>

/* ---- rotation and storing: a block a row, a warp a head -------------------------------------------------------------
 * grid (n_new of the longest span, spans), 128 threads; dynamic shared memory: head_dim / 2 float2 */

constexpr int rope_threads = 128;

template <class T>
__global__ void __launch_bounds__(rope_threads) rope_append_rows(attn_new a, attn_batch b, attn_shape s)
{
    DYN_SHARED(float2, turn);
    kernel_begin();
    const attn_span &sp = b.span[blockIdx.y];
    const int t = blockIdx.x, lane = threadIdx.x & 31, hd = s.head_dim, half = hd / 2;
    if (t >= sp.n_new) return;
    const int pos = first_pos(b, sp) + t, row = sp.row0 + t;
    if (a.inv_freq)
        for (int j = threadIdx.x; j < half; j += rope_threads) turn[j] = rope_turn(pos, a.inv_freq[j]);
    __syncthreads();
    const int n_q = a.q ? s.n_heads : 0, n_k = a.k ? s.n_kv_heads : 0;
    for (int h = threadIdx.x >> 5; h < n_q + 2 * n_k; h += rope_threads / 32) {
        const int kv = h < n_q + n_k ? h - n_q : h - n_q - n_k;
        if (h >= n_q + n_k) { /* a head of v */
            const float *x = a.v + (size_t(row) * s.n_kv_heads + kv) * hd;
            T *to = static_cast<T *>(sp.v) + (size_t(kv) * sp.capacity + pos) * hd;
            for (int j = lane; j < hd; j += 32) to[j] = from_f32<T>(x[j]);
            continue;
        }
        const bool is_q = h < n_q;
        float *x = is_q ? a.q + (size_t(row) * s.n_heads + h) * hd : a.k + (size_t(row) * s.n_kv_heads + kv) * hd;
        T *to = static_cast<T *>(sp.k) + (size_t(kv) * sp.capacity + pos) * hd; /* k's place */
        const float *norm = is_q ? a.q_norm : a.k_norm;
        const float scale = norm ? head_scale(x, hd, a.eps) : 1;
        for (int j = lane; j < half; j += 32) {
            const float2 y = rope_pair(x, j, half, norm, scale, a.inv_freq ? turn : nullptr);
            if (is_q) {
                x[j] = y.x;
                x[j + half] = y.y;
            } else {
                to[j] = from_f32<T>(y.x);
                to[j + half] = from_f32<T>(y.y);
            }
        }
    }
}

void rope_append(const attn_new &a, const attn_batch &b, const attn_shape &s, cudaStream_t st)
{
    const dim3 grid(attn_longest(b), b.n);
    const size_t smem = size_t(s.head_dim / 2) * sizeof(float2);
    launch("rope_append", s.f16 ? rope_append_rows<__half> : rope_append_rows<float>, grid, dim3(rope_threads), smem,
           st, a, b, s);
}

void rope_rows(float *x, const attn_batch &b, int n_heads, int head_dim, const float *inv_freq, cudaStream_t st)
{
    const attn_new a = {x, nullptr, nullptr, nullptr, nullptr, 0, inv_freq};
    const attn_shape s = {n_heads, 0, head_dim, false};
    launch("rope", rope_append_rows<float>, dim3(attn_longest(b), b.n), dim3(rope_threads),
           size_t(head_dim / 2) * sizeof(float2), st, a, b, s);
}

/* ---- the general path: any head, f32 arithmetic ---------------------------------------------------------------------
 * A block does R packed rows of one KV head and one span; packed row i is query head i % G (of the KV head's G) of new
 * token i / G. Keys come in chunks of `chunk`: a warp a key for the scores, then threads along head_dim for the values,
 * 256 / width groups of them each taking every so-many-th key; their sums meet at the end in a fixed order. */

constexpr int rows_threads = 256, rows_chunk = 64;

struct rows_args {
    float *out;
    const float *q;
    attn_batch b;
    attn_shape s;
    float scale;
    int width; /* of a group of threads: head_dim rounded up to 32, 64, 128 or 256 */
};

template <class T, int R> __global__ void __launch_bounds__(rows_threads) attn_rows(rows_args a)
{
    SHARED_ARRAY(float, p, [R][rows_chunk]);
    SHARED_ARRAY(float, m, [R]);
    SHARED_ARRAY(float, l, [R]);
    SHARED_ARRAY(float, keep, [R]);
    kernel_begin();
    const attn_span &sp = a.b.span[blockIdx.z];
    const int hd = a.s.head_dim, G = a.s.n_heads / a.s.n_kv_heads, kv = blockIdx.y;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, groups = rows_threads / a.width;
    const int d_first = threadIdx.x % a.width, group = threadIdx.x / a.width;
    const int row0 = blockIdx.x * R, n_rows = sp.n_new * G;
    if (row0 >= n_rows) return;
    DYN_SHARED(float, q);                /* [R][hd] */
    float *o = q + R * hd;               /* [groups][R][hd] */
    const int pos0 = first_pos(a.b, sp); /* key of the first new token */
    const int last = row0 + R < n_rows ? row0 + R - 1 : n_rows - 1, n_keys = pos0 + last / G + 1;
    const T *K = static_cast<const T *>(sp.k) + size_t(kv) * sp.capacity * hd;
    const T *V = static_cast<const T *>(sp.v) + size_t(kv) * sp.capacity * hd;
    for (int i = threadIdx.x; i < R * hd; i += rows_threads) {
        const int r = row0 + i / hd < n_rows ? row0 + i / hd : last;
        q[i] = a.q[(size_t(sp.row0 + r / G) * a.s.n_heads + kv * G + r % G) * hd + i % hd] * a.scale;
    }
    for (int i = threadIdx.x; i < groups * R * hd; i += rows_threads) o[i] = 0;
    if (threadIdx.x < R) {
        m[threadIdx.x] = minus_big;
        l[threadIdx.x] = 0;
    }
    __syncthreads();
    for (int k0 = 0; k0 < n_keys; k0 += rows_chunk) {
        const int n = n_keys - k0 < rows_chunk ? n_keys - k0 : rows_chunk;
        for (int j = warp; j < n; j += rows_threads / 32) {
            float s[R] = {};
            for (int d = lane; d < hd; d += 32) {
                const float k = to_f32(K[size_t(k0 + j) * hd + d]);
#pragma unroll
                for (int r = 0; r < R; r++) s[r] += q[r * hd + d] * k;
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                const float sum = warp_sum(s[r]);
                if (lane == 0) p[r][j] = sum;
            }
        }
        __syncthreads();
        for (int r = warp; r < R; r += rows_threads / 32) { /* softmax of a row by a warp */
            const int seen = pos0 + (row0 + r) / G + 1 - k0, mine = seen < n ? seen : n; /* keys this row may see */
            float top = m[r], sum = 0;
            for (int j = lane; j < mine; j += 32) top = fmaxf(top, p[r][j]);
            top = warp_max(top);
            for (int j = lane; j < n; j += 32) {
                const float e = j < mine ? exp2f(p[r][j] - top) : 0;
                p[r][j] = e;
                sum += e;
            }
            sum = warp_sum(sum);
            __syncwarp();
            if (lane == 0) {
                keep[r] = exp2f(m[r] - top);
                l[r] = l[r] * keep[r] + sum;
                m[r] = top;
            }
        }
        __syncthreads();
        for (int d = d_first; d < hd; d += a.width) {
            float sum[R] = {};
            for (int j = group; j < n; j += groups) {
                const float v = to_f32(V[size_t(k0 + j) * hd + d]);
#pragma unroll
                for (int r = 0; r < R; r++) sum[r] += p[r][j] * v;
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                float *to = o + (group * R + r) * hd + d;
                *to = *to * keep[r] + sum[r];
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < R * hd; i += rows_threads) {
        const int r = row0 + i / hd;
        if (r >= n_rows) break;
        float sum = o[i];
        for (int g = 1; g < groups; g++) sum += o[g * R * hd + i];
        a.out[(size_t(sp.row0 + r / G) * a.s.n_heads + kv * G + r % G) * hd + i % hd] = sum / l[i / hd];
    }
}

template <class T, int R> static void launch_rows(const rows_args &a, cudaStream_t st)
{
    const int packed = attn_longest(a.b) * (a.s.n_heads / a.s.n_kv_heads);
    const size_t smem = size_t(1 + rows_threads / a.width) * R * size_t(a.s.head_dim) * sizeof(float);
    launch("attention_rows", attn_rows<T, R>, dim3((packed + R - 1) / R, a.s.n_kv_heads, a.b.n), dim3(rows_threads),
           smem, st, a);
}

static void attention_rows(float *out, const float *q, const attn_batch &b, const attn_shape &s, cudaStream_t st)
{
    rows_args a = {out, q, b, s, score_scale(s), 32};
    while (a.width < s.head_dim && a.width < rows_threads) a.width *= 2;
    const bool wide = s.head_dim > 256;
    if (s.f16) wide ? launch_rows<__half, 1>(a, st) : launch_rows<__half, 8>(a, st);
    else wide ? launch_rows<float, 1>(a, st) : launch_rows<float, 8>(a, st);
}

/* ---- which path -------------------------------------------------------------------------------------------------- */

void attention(float *out, const float *q, const attn_batch &b, const attn_shape &s, void *work, int n_sm,
               cudaStream_t st)
{
    assert(b.n > 0 && b.n <= attn_batch_max && s.n_heads % s.n_kv_heads == 0 && s.head_dim <= attn_head_max);
    const attn_new in = {const_cast<float *>(q), nullptr, nullptr, nullptr, nullptr, 0, nullptr};
    if (attn_longest(b) == 1 && attn_fast(s)) attention_decode(out, in, false, b, s, work, n_sm, st);
    else if (s.f16 && attn_fast(s)) attention_prefill(out, q, b, s, st);
    else attention_rows(out, q, b, s, st);
}

void rope_attention(float *out, const attn_new &a, const attn_batch &b, const attn_shape &s, void *work, int n_sm,
                    cudaStream_t st)
{
    if (attn_longest(b) == 1 && attn_fast(s)) {
        attention_decode(out, a, true, b, s, work, n_sm, st);
        return;
    }
    rope_append(a, b, s, st);
    attention(out, a.q, b, s, work, n_sm, st);
}
