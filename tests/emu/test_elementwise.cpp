/* Small ops against the oracle; their quantized results against plain loops over the floats (matmul.h), byte for byte. */
#include "check.h"

#include "elementwise.h"

extern "C" {
#include "backend/backend_impl.h"
}

#include <cmath>
#include <cstring>

static std::vector<float> random_rows(int64_t n)
{
    std::vector<float> v(size_t(n), 0.0f);
    for (float &e : v) e = check::uniform(-2, 2) * (check::pick(0, 96) ? 1.0f : 10.0f);
    return v;
}
static backend oracle()
{
    backend be;
    struct err e;
    CHECK(!cpu_ref_open(&be, COMPUTE_F32, &e), "the oracle");
    return be;
}

/* Quantized rows in memory of exactly their size. */
struct quantized {
    int n_chunks;
    dev<int8_t> q;
    dev<int2> meta;
    cuda_acts a;
    quantized(int64_t rows, int64_t n)
        : n_chunks(int((n + 63) / 64 * 2)), q(size_t(rows) * size_t(n_chunks) * 32), meta(size_t(rows) * size_t(n_chunks)),
          a{q.p, meta.p, n_chunks}
    {
    }
};

/* What matmul.h says of the floats y (rows, n). */
static void check_acts(const quantized &got, const std::vector<float> &y, int64_t rows, int64_t n, const char *what)
{
    auto q = got.q.get();
    auto meta = got.meta.get();
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < got.n_chunks; c++) {
            float x[32], max = 0;
            for (int k = 0; k < 32; k++) {
                x[k] = c * 32 + k < n ? y[size_t(r * n + c * 32 + k)] : 0;
                max = std::max(max, std::fabs(x[k]));
            }
            const size_t chunk = size_t(r) * size_t(got.n_chunks) + size_t(c);
            const float inv = max > 0 ? 127.0f / max : 0, scale = max / 127.0f;
            int sum = 0;
            bool same = true;
            for (int k = 0; k < 32; k++) {
                const int want = int(std::nearbyint(x[k] * inv)), t = k / 8, h = k / 4 % 2;
                sum += want;
                same = same && q[chunk * 32 + size_t(16 * h + 4 * t + k % 4)] == want;
            }
            float s;
            memcpy(&s, &meta[chunk].x, 4);
            CHECK(same && s == scale && meta[chunk].y == -sum, "%s %lldx%lld: row %lld chunk %d: scale %g (%g), sum %d (%d)%s",
                  what, (long long)rows, (long long)n, (long long)r, c, double(s), double(scale), meta[chunk].y, -sum,
                  same ? "" : ", other integers");
        }
}

static const struct { int rows, n; } shapes[] = {{1, 1},    {2, 31},   {3, 64},   {1, 576},  {5, 129}, {2, 1536},
                                                 {1, 4100}, {7, 8},    {40, 128}, {1, 11008}};

EMU_TEST(rmsnorm)
{
    backend be = oracle();
    for (auto &s : shapes) {
        auto x = random_rows(s.rows * s.n), w = random_rows(s.n);
        std::vector<float> want(x.size());
        be.ops->rmsnorm(&be, want.data(), x.data(), w.data(), s.rows, s.n, 1e-5);
        SHAPE("%dx%d", s.rows, s.n);
        dev<float> dx(x), dw(w), y(x.size()), z(x.size());
        rmsnorm_rows(y.p, nullptr, dx.p, dw.p, s.rows, s.n, 1e-5f, nullptr);
        CHECK_CLOSE(y.get(), want, 1e-30, 1e-6, "%dx%d", s.rows, s.n);
        quantized q(s.rows, s.n), only(s.rows, s.n);
        rmsnorm_rows(z.p, &q.a, dx.p, dw.p, s.rows, s.n, 1e-5f, nullptr);
        rmsnorm_rows(nullptr, &only.a, dx.p, dw.p, s.rows, s.n, 1e-5f, nullptr);
        CHECK(z.get() == y.get(), "%dx%d: other floats where they are quantized too", s.rows, s.n);
        check_acts(q, y.get(), s.rows, s.n, "rmsnorm");
        check_acts(only, y.get(), s.rows, s.n, "rmsnorm without y");
        rmsnorm_rows(dx.p, nullptr, dx.p, dw.p, s.rows, s.n, 1e-5f, nullptr);
        CHECK(dx.get() == y.get(), "%dx%d: in place", s.rows, s.n);
    }
}

EMU_TEST(swiglu)
{
    backend be = oracle();
    for (auto &s : shapes) {
        auto gate = random_rows(s.rows * s.n), up = random_rows(s.rows * s.n);
        for (size_t i = 0; i < gate.size(); i += 5) gate[i] *= 20; /* where exp leaves the range of f32 too */
        std::vector<float> want(gate.size());
        be.ops->swiglu(&be, want.data(), gate.data(), up.data(), s.rows * s.n);
        SHAPE("%dx%d", s.rows, s.n);
        dev<float> dg(gate), du(up), y(gate.size()), z(gate.size());
        swiglu_rows(y.p, nullptr, dg.p, du.p, s.rows, s.n, nullptr);
        CHECK_CLOSE(y.get(), want, 1e-30, 5e-7, "%dx%d", s.rows, s.n);
        quantized q(s.rows, s.n), only(s.rows, s.n);
        swiglu_rows(z.p, &q.a, dg.p, du.p, s.rows, s.n, nullptr);
        swiglu_rows(nullptr, &only.a, dg.p, du.p, s.rows, s.n, nullptr);
        CHECK(z.get() == y.get(), "%dx%d: other floats where they are quantized too", s.rows, s.n);
        check_acts(q, y.get(), s.rows, s.n, "swiglu");
        check_acts(only, y.get(), s.rows, s.n, "swiglu without y");
        swiglu_rows(dg.p, nullptr, dg.p, du.p, s.rows, s.n, nullptr);
        CHECK(dg.get() == y.get(), "%dx%d: in place", s.rows, s.n);
    }
}

EMU_TEST(add)
{
    for (int n : {1, 3, 4, 1024, 1028, 5001}) {
        auto x = random_rows(n + 1), y = random_rows(n + 1);
        SHAPE("%d", n);
        for (int off = 0; off < 2; off++) { /* aligned and not */
            dev<float> dx(x), dy(y);
            add_to(dx.p + off, dy.p + off, n, nullptr);
            auto r = dx.get();
            for (int i = 0; i <= n; i++) {
                bool in = i >= off && i < n + off;
                float want = x[size_t(i)] + (in ? y[size_t(i)] : 0);
                CHECK(r[size_t(i)] == want, "n %d offset %d element %d", n, off, i);
            }
        }
    }
}
