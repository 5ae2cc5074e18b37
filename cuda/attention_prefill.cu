/* Prefill: tiles of keys meet tiles of queries on the tensor cores, f16 with sums in f32, softmax on the way.
 *
 * A block does 64 packed rows of one KV head and one span: packed row i is query head i % G (of the KV head's G) of new
 * token i / G, so that a few tokens fill a tile too; each of its 4 warps does 16 rows. Keys come in tiles of KT, K and
 * V of a tile in turn: while K's products run V is on its way, and the next K while V's run. Rows of K and V in shared
 * memory are D + 8 elements apart (D: head_dim rounded up), an odd number of 16-byte pieces, so that the 8 rows of an
 * ldmatrix lie in different banks. Elements behind head_dim and tokens behind the last are zeros. */
#include "attention_impl.cuh"

constexpr int prefill_rows = 64, prefill_threads = 128;

struct prefill_args {
    float *out;
    const float *q;
    attn_batch b;
    attn_shape s;
    float scale;
};

template <int D> struct prefill_shape {
    static constexpr int KT = D <= 128 ? 64 : 32, stride = D + 8;
    static constexpr size_t smem = size_t(2 * KT * stride) * sizeof(__half);
};

/* Starts copying keys k0 … k0 + KT − 1 of src (n_keys, hd) into tile (KT, D + 8). */
template <int D>
__device__ __forceinline__ void load_tile(__half *tile, const __half *src, int k0, int n_keys, int hd)
{
    constexpr int pieces = D / 8, KT = prefill_shape<D>::KT, stride = prefill_shape<D>::stride;
#pragma unroll
    for (int i = threadIdx.x; i < KT * pieces; i += prefill_threads) {
        const int r = i / pieces, c = i % pieces * 8;
        const bool ok = k0 + r < n_keys && c < hd;
        cp_async<16>(tile + r * stride + c, ok ? src + size_t(k0 + r) * hd + c : src, ok ? 16 : 0);
    }
    cp_async_commit();
}

__device__ __forceinline__ uint32_t pack_half(float lo, float hi)
{
    return uint32_t(__half_as_ushort(__float2half_rn(lo))) | uint32_t(__half_as_ushort(__float2half_rn(hi))) << 16;
}

/* grid (tiles of packed rows, KV heads, spans); dynamic shared memory: K, V tiles */
template <int D> __global__ void __launch_bounds__(prefill_threads) attn_prefill(prefill_args a)
{
    using shape = prefill_shape<D>;
    constexpr int KT = shape::KT, stride = shape::stride;
    kernel_begin();
    const attn_span &sp = a.b.span[blockIdx.z];
    const int hd = a.s.head_dim, G = a.s.n_heads / a.s.n_kv_heads, kv = blockIdx.y, n_rows = sp.n_new * G;
    const int tiles = (n_rows + prefill_rows - 1) / prefill_rows;
    const int tile = tiles - 1 - int(blockIdx.x); /* longest first */
    if (tile < 0) return;
    DYN_SHARED(__half, k_tile); /* [KT][stride] */
    __half *v_tile = k_tile + KT * stride;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const int pos0 = first_pos(a.b, sp);
    const int row0 = tile * prefill_rows, row_end = row0 + prefill_rows < n_rows ? row0 + prefill_rows : n_rows;
    const int n_keys = pos0 + (row_end - 1) / G + 1;
    const __half *K = static_cast<const __half *>(sp.k) + size_t(kv) * sp.capacity * hd;
    const __half *V = static_cast<const __half *>(sp.v) + size_t(kv) * sp.capacity * hd;
    load_tile<D>(k_tile, K, 0, n_keys, hd);

    /* this lane's two rows: their place in q and out, and the last key they see; rows behind the end repeat it */
    size_t at[2];
    int seen[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = row0 + warp * 16 + g + 8 * i, rr = r < row_end ? r : row_end - 1;
        at[i] = (size_t(sp.row0 + rr / G) * a.s.n_heads + kv * G + rr % G) * hd;
        seen[i] = pos0 + rr / G;
    }
    uint32_t q[D / 16][4]; /* A fragments */
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int d = kk * 16 + r / 2 * 8 + t * 2;
            float2 v = make_float2(0, 0);
            if (d < hd) v = *reinterpret_cast<const float2 *>(a.q + at[r % 2] + d);
            q[kk][r] = pack_half(v.x * a.scale, v.y * a.scale);
        }
    float o[D / 8][4], m[2] = {minus_big, minus_big}, l[2] = {};
#pragma unroll
    for (int j = 0; j < D / 8; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;

    for (int k0 = 0; k0 < n_keys; k0 += KT) {
        cp_async_wait<0>();
        __syncthreads(); /* K is there; V of the tile before is no longer read */
        load_tile<D>(v_tile, V, k0, n_keys, hd);

        float s[KT / 8][4]; /* rows g, g + 8; keys 8j + 2t, + 1 */
#pragma unroll
        for (int j = 0; j < KT / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
            for (int j = 0; j < KT / 8; j += 2) {
                uint32_t r[4]; /* keys 8j …, low and high half of the 16 elements; keys 8j + 8 … */
                ldmatrix_x4(r, k_tile + (j * 8 + lane / 16 * 8 + lane % 8) * stride + kk * 16 + lane / 8 % 2 * 8);
                mma_f16_m16n8k16(s[j], q[kk], {r[0], r[1]});
                mma_f16_m16n8k16(s[j + 1], q[kk], {r[2], r[3]});
            }

        if (k0 + KT > pos0 + row0 / G) { /* some row does not see all of the tile */
#pragma unroll
            for (int j = 0; j < KT / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (k0 + j * 8 + t * 2 + i % 2 > seen[i / 2]) s[j][i] = minus_big;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = m[i];
#pragma unroll
            for (int j = 0; j < KT / 8; j++) top = fmaxf(top, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
            top = fmaxf(top, __shfl_xor_sync(full_warp, top, 1));
            top = fmaxf(top, __shfl_xor_sync(full_warp, top, 2));
            const float keep = exp2f(m[i] - top);
            m[i] = top;
            l[i] *= keep; /* of this lane's keys */
#pragma unroll
            for (int j = 0; j < KT / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &p = s[j][2 * i + c];
                    p = exp2f(p - top); /* a row always sees key 0, so top is a real score */
                    l[i] += p;
                }
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                o[j][2 * i] *= keep;
                o[j][2 * i + 1] *= keep;
            }
        }

        cp_async_wait<0>();
        __syncthreads(); /* V is there; K is no longer read */
        if (k0 + KT < n_keys) load_tile<D>(k_tile, K, k0 + KT, n_keys, hd);
#pragma unroll
        for (int kk = 0; kk < KT / 16; kk++) {
            const uint32_t p[4] = {pack_half(s[2 * kk][0], s[2 * kk][1]), pack_half(s[2 * kk][2], s[2 * kk][3]),
                                   pack_half(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                                   pack_half(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
            for (int j = 0; j < D / 8; j += 2) {
                uint32_t r[4]; /* columns 8j …, keys 16kk … and 16kk + 8 …; columns 8j + 8 … */
                ldmatrix_x4_trans(r, v_tile + (kk * 16 + lane % 16) * stride + j * 8 + lane / 16 * 8);
                mma_f16_m16n8k16(o[j], p, {r[0], r[1]});
                mma_f16_m16n8k16(o[j + 1], p, {r[2], r[3]});
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = l[i];
        sum += __shfl_xor_sync(full_warp, sum, 1);
        sum += __shfl_xor_sync(full_warp, sum, 2);
        if (row0 + warp * 16 + g + 8 * i >= row_end) continue;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const int d = j * 8 + t * 2;
            if (d >= hd) continue;
            *reinterpret_cast<float2 *>(a.out + at[i] + d) = make_float2(o[j][2 * i] / sum, o[j][2 * i + 1] / sum);
        }
    }
}

template <int D> static void launch_prefill(const prefill_args &a, cudaStream_t st)
{
    const int packed = attn_longest(a.b) * (a.s.n_heads / a.s.n_kv_heads);
    launch("attention_prefill", attn_prefill<D>,
           dim3((packed + prefill_rows - 1) / prefill_rows, a.s.n_kv_heads, a.b.n), dim3(prefill_threads),
           prefill_shape<D>::smem, st, a);
}

void attention_prefill(float *out, const float *q, const attn_batch &b, const attn_shape &s, cudaStream_t st)
{
    const prefill_args a = {out, q, b, s, score_scale(s)};
    if (s.head_dim <= 64) launch_prefill<64>(a, st);
    else if (s.head_dim <= 96) launch_prefill<96>(a, st);
    else if (s.head_dim <= 128) launch_prefill<128>(a, st);
    else launch_prefill<256>(a, st);
}
