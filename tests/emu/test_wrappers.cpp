/* Barriers, collectives and the wrappers of device.cuh against their definitions. Run on a GPU once, they vouch for the
 * emulation (tests/gpu). */
#include "check.h"

#include "device.cuh"

/* ---- scheduling, barriers, collectives */

__global__ static void reverse(int *out, const int *in, int n)
{
    SHARED_ARRAY(int, tile, [256]);
    kernel_begin();
    tile[threadIdx.x] = in[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 256 + threadIdx.x] = tile[255 - threadIdx.x] + n * 0;
}
EMU_TEST(barrier)
{
    std::vector<int> v(1024);
    for (int i = 0; i < 1024; i++) v[size_t(i)] = i;
    dev<int> in(v), out(1024);
    launch("reverse", reverse, dim3(4), dim3(256), 0, nullptr, out.p, in.p, 3);
    auto r = out.get();
    for (int i = 0; i < 1024; i++) CHECK(r[size_t(i)] == i / 256 * 256 + 255 - i % 256, "element %d is %d", i, r[size_t(i)]);
}

/* in: 64 values a block of two full warps and one of 16 lanes; each row of out is one function's results */
__global__ static void collectives(int *out, const int *in)
{
    kernel_begin();
    const int i = int(threadIdx.x), l = i % 32, v = in[i];
    const unsigned mask = i < 64 ? full_warp : 0xffffu;
    out[0 * 80 + i] = __shfl_sync(mask, v, (l + 5) % 16);
    out[1 * 80 + i] = __shfl_up_sync(mask, v, 3, 16);
    out[2 * 80 + i] = __shfl_down_sync(mask, v, 3, 16);
    out[3 * 80 + i] = __shfl_xor_sync(mask, v, 7);
    out[4 * 80 + i] = int(__ballot_sync(mask, v & 1));
    out[5 * 80 + i] = __any_sync(mask, v == 1000);
    out[6 * 80 + i] = __all_sync(mask, v < 1000);
    out[7 * 80 + i] = __reduce_add_sync(mask, v);
    out[8 * 80 + i] = __reduce_max_sync(mask, v);
    out[9 * 80 + i] = __reduce_min_sync(mask, v);
}
EMU_TEST(warp_collectives)
{
    std::vector<int> v(80);
    for (int &e : v) e = check::pick(-999, 999);
    dev<int> in(v), out(800);
    launch("collectives", collectives, dim3(1), dim3(80), 0, nullptr, out.p, in.p);
    auto r = out.get();
    for (int i = 0; i < 80; i++) {
        int w = i / 32 * 32, n = i < 64 ? 32 : 16, l = i % 32, sum = 0, max = -9999, min = 9999;
        unsigned odd = 0;
        for (int j = 0; j < n; j++) {
            sum += v[size_t(w + j)];
            max = std::max(max, v[size_t(w + j)]);
            min = std::min(min, v[size_t(w + j)]);
            odd |= unsigned(v[size_t(w + j)] & 1) << j;
        }
        int up = l % 16 >= 3 ? i - 3 : i, down = l % 16 < 13 ? i + 3 : i;
        int want[] = {v[size_t(w + (l + 5) % 16)], v[size_t(up)], v[size_t(down)], v[size_t(w + (l ^ 7))], int(odd), 0, 1, sum, max, min};
        for (int f = 0; f < 10; f++)
            CHECK(r[size_t(f * 80 + i)] == want[f], "function %d thread %d: %d, not %d", f, i, r[size_t(f * 80 + i)], want[f]);
    }
}

__global__ static void sums(float *f, double *d, int *i, float *m, const float *in)
{
    kernel_begin();
    f[threadIdx.x] = warp_sum(in[threadIdx.x]);
    d[threadIdx.x] = warp_sum(double(in[threadIdx.x]));
    i[threadIdx.x] = warp_sum(int(in[threadIdx.x]));
    m[threadIdx.x] = warp_max(in[threadIdx.x]);
}
EMU_TEST(warp_sums)
{
    std::vector<float> v(32);
    for (float &e : v) e = float(check::pick(-50, 50));
    float sum = 0, max = -1000;
    for (float e : v) sum += e, max = std::max(max, e);
    dev<float> in(v), f(32), m(32);
    dev<double> d(32);
    dev<int> n(32);
    launch("sums", sums, dim3(1), dim3(32), 0, nullptr, f.p, d.p, n.p, m.p, in.p);
    for (size_t l = 0; l < 32; l++) {
        CHECK(f.get()[l] == sum && d.get()[l] == double(sum) && n.get()[l] == int(sum), "lane %zu of the sums", l);
        CHECK(m.get()[l] == max, "lane %zu of the maxima", l);
    }
}

__global__ static void last_block(unsigned *count, float *part, float *total, const float *in)
{
    SHARED_ARRAY(int, last, [1]);
    kernel_begin();
    const float s = warp_sum(in[blockIdx.x * 32 + threadIdx.x]);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = s;
        __threadfence();
        last[0] = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last[0]) return;
    float t = 0;
    for (unsigned b = 0; b < gridDim.x; b++) t += __ldcg(part + b);
    if (threadIdx.x == 0) *total = t;
}
EMU_TEST(last_block_done)
{
    std::vector<float> v(32 * 9);
    float sum = 0;
    for (float &e : v) sum += e = float(check::pick(-50, 50));
    dev<float> in(v), part(9), total(1);
    dev<unsigned> count(std::vector<unsigned>{0});
    for (int i = 0; i < 2; i++) { /* the counter is left at 0 */
        launch("last_block", last_block, dim3(9), dim3(32), 0, nullptr, count.p, part.p, total.p, in.p);
        CHECK(total.get()[0] == sum && count.get()[0] == 0, "run %d: %g, not %g", i, double(total.get()[0]), double(sum));
    }
}

/* ---- wrappers of PTX */

template <int Kind> __global__ static void mma_probe(float *d, const uint32_t *a, const uint32_t *b)
{
    kernel_begin();
    const int l = threadIdx.x;
    uint32_t fa[4], fb[2];
    for (int r = 0; r < 4; r++) fa[r] = a[(l / 4 + r % 2 * 8) * 8 + r / 2 * 4 + l % 4];
    for (int r = 0; r < 2; r++) fb[r] = b[l / 4 * 8 + r * 4 + l % 4];
    float f[4] = {1, 2, 3, 4};
    int s[4] = {1, 2, 3, 4};
    if (Kind == 0) mma_s8_m16n8k32(s, fa, fb);
    if (Kind == 1) mma_s8_by_m8n8k16(s, fa, fb);
    if (Kind == 2) mma_f16_m16n8k16(f, fa, fb);
    if (Kind == 3) mma_f16_by_m16n8k8(f, fa, fb);
    if (Kind == 4) mma_bf16_m16n8k16(f, fa, fb);
    if (Kind == 5) mma_bf16_by_shuffles(f, fa, fb);
    for (int i = 0; i < 4; i++) d[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = Kind < 2 ? float(s[i]) : f[i];
}
template <int Kind, class T> static void mma()
{
    constexpr size_t P = 4 / sizeof(T), K = 8 * P;
    std::vector<T> a(16 * K), b(8 * K);
    for (T &e : a) e = T(float(check::pick(-127, 127)));
    for (T &e : b) e = T(float(check::pick(-127, 127)));
    std::vector<uint32_t> wa(16 * 8), wb(8 * 8);
    memcpy(wa.data(), a.data(), 4 * wa.size());
    memcpy(wb.data(), b.data(), 4 * wb.size());
    dev<uint32_t> da(wa), db(wb);
    dev<float> dd(128);
    launch("mma_probe", mma_probe<Kind>, dim3(1), dim3(32), 0, nullptr, dd.p, da.p, db.p);
    auto d = dd.get();
    for (size_t m = 0; m < 16; m++)
        for (size_t n = 0; n < 8; n++) {
            float s = float(1 + n % 2 + m / 8 * 2);
            for (size_t k = 0; k < K; k++) s += float(a[m * K + k]) * float(b[n * K + k]);
            CHECK(d[m * 8 + n] == s, "kind %d, row %zu column %zu: %g, not %g", Kind, m, n, double(d[m * 8 + n]), double(s));
        }
}
EMU_TEST(mma)
{
    mma<0, int8_t>();
    mma<1, int8_t>();
    mma<2, __half>();
    mma<3, __half>();
    mma<4, __nv_bfloat16>();
    mma<5, __nv_bfloat16>();
}

__global__ static void ldmatrix_probe(uint32_t *out)
{
    SHARED_ARRAY(uint16_t, tile, [32][8]);
    kernel_begin();
    const int l = threadIdx.x;
    for (int i = 0; i < 8; i++) tile[l][i] = uint16_t(l * 8 + i);
    __syncwarp();
    uint32_t r[4], t[4], x2[2];
    ldmatrix_x4(r, tile[l]);
    ldmatrix_x4_trans(t, tile[l]);
    ldmatrix_x2(x2, tile[l % 16 + 16]);
    for (int i = 0; i < 4; i++) out[l * 10 + i] = r[i], out[l * 10 + 4 + i] = t[i];
    for (int i = 0; i < 2; i++) out[l * 10 + 8 + i] = x2[i];
}
EMU_TEST(ldmatrix)
{
    dev<uint32_t> out(320);
    launch("ldmatrix_probe", ldmatrix_probe, dim3(1), dim3(32), 0, nullptr, out.p);
    auto r = out.get();
    for (unsigned l = 0; l < 32; l++)
        for (unsigned i = 0; i < 4; i++) {
            unsigned e = i * 64 + l / 4 * 8 + l % 4 * 2, t = i * 64 + l % 4 * 16 + l / 4;
            CHECK(r[l * 10 + i] == (e | (e + 1) << 16), "lane %u register %u", l, i);
            CHECK(r[l * 10 + 4 + i] == (t | (t + 8) << 16), "lane %u register %u, transposed", l, i);
            if (i < 2) CHECK(r[l * 10 + 8 + i] == ((e + 128) | (e + 129) << 16), "lane %u register %u of two", l, i);
        }
}
template <int Bytes> __global__ static void cp_async_probe(uint8_t *out, const uint8_t *in, int src_bytes)
{
    DYN_SHARED(uint8_t, buf);
    kernel_begin();
    for (int s = 0; s < 3; s++) { /* three groups in flight, waited for one by one */
        cp_async<Bytes>(buf + (s * 32 + threadIdx.x) * Bytes, in + (s * 32 + threadIdx.x) * Bytes, src_bytes);
        cp_async_commit();
    }
    cp_async_wait<2>();
    __syncthreads();
    for (int i = 0; i < Bytes; i++) out[threadIdx.x * Bytes + i] = buf[(threadIdx.x ^ 1) * Bytes + i];
    cp_async_wait<0>();
    __syncthreads();
    for (int i = 32 * Bytes; i < 96 * Bytes; i += 32) out[i + threadIdx.x] = buf[i + threadIdx.x];
}
template <int Bytes> static void copies(int src_bytes)
{
    std::vector<uint8_t> v(96 * Bytes);
    for (uint8_t &e : v) e = uint8_t(check::pick(0, 255));
    dev<uint8_t> in(v), out(v.size());
    launch("cp_async_probe", cp_async_probe<Bytes>, dim3(1), dim3(32), 96 * Bytes, nullptr, out.p, in.p, src_bytes);
    auto r = out.get();
    for (int i = 0; i < 96 * Bytes; i++) {
        int from = i < 32 * Bytes ? i ^ Bytes : i, want = from % Bytes < src_bytes ? v[size_t(from)] : 0;
        CHECK(r[size_t(i)] == want, "%d bytes, %d read: byte %d is %d, not %d", Bytes, src_bytes, i, r[size_t(i)], want);
    }
}
EMU_TEST(cp_async)
{
    copies<16>(16);
    copies<16>(5);
    copies<16>(0);
    copies<8>(8);
    copies<4>(4);
    copies<4>(3);
}

__global__ static void integers(int *out, uint32_t a, uint32_t b)
{
    kernel_begin();
    out[0] = __dp4a(int(a), int(b), 7);
    out[1] = int(__dp4a(a, b, 7u));
    out[2] = int(__byte_perm(a, b, 0x7531));
    out[3] = int(lop3<0xca>(a, b, 0xff00ff00u)); /* a ? b : c, bit by bit */
    out[4] = int(__funnelshift_r(a, b, 12));
}
EMU_TEST(integer_functions)
{
    dev<int> out(5);
    uint32_t a = 0x81fe0203, b = 0x7f80ff04;
    launch("integers", integers, dim3(1), dim3(1), 0, nullptr, out.p, a, b);
    auto r = out.get();
    CHECK(r[0] == 7 + -127 * 127 + -2 * -128 + 2 * -1 + 3 * 4, "dp4a signed: %d", r[0]);
    CHECK(r[1] == 7 + 0x81 * 0x7f + 0xfe * 0x80 + 2 * 255 + 3 * 4, "dp4a unsigned: %d", r[1]);
    CHECK(unsigned(r[2]) == 0x7fff8102, "byte_perm: %x", unsigned(r[2]));
    CHECK(unsigned(r[3]) == ((a & b) | (~a & 0xff00ff00u)), "lop3: %x", unsigned(r[3]));
    CHECK(unsigned(r[4]) == 0xf0481fe0, "funnelshift: %x", unsigned(r[4]));
}
