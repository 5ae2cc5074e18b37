/* Products of 1 … 8 tokens: every format and kernel against plain loops, exactly where sums are exact, and everything
 * that rides along: bias, residual, SwiGLU, normalization, quantized output, mixed jobs. */
#include "mm.h"

using namespace mm;

static const double eps32 = 0x1p-24;

/* One job through cuda_matmul. */
static std::vector<float> run(const struct cuda_env &e, const filled &w, const std::vector<float> &x, int64_t n_tok,
                              enum compute compute, const std::vector<float> *bias = nullptr)
{
    dev<float> y(size_t(n_tok * w.d.n_out)), dx(x), db(bias ? *bias : std::vector<float>(1));
    dev<uint8_t> scratch(matmul_scratch(&e, compute, n_tok, w.d.n_in) + 1);
    struct cuda_job j = {};
    j.y = y.p;
    j.w = &w.d;
    j.bias = bias ? db.p : nullptr;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, n_tok, w.d.n_in);
    m.compute = compute;
    m.scratch = scratch.p;
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    return y.get();
}

struct shape {
    int n_out, n_in;
};

static void one_exact(const char *format, enum dtype dtype, struct shape s, int n_tok, filled::fill how)
{
    filled w(format, s.n_out, s.n_in, dtype, how);
    const auto x = activations(n_tok, s.n_in, how != filled::RANDOM), bias = mm::random_floats(s.n_out);
    struct sums want = product(w, x, n_tok);
    for (size_t i = 0; i < want.y.size(); i++) want.magnitude[i] += std::fabs(double(bias[i % bias.size()]));
    char what[96];
    snprintf(what, sizeof what, "%s %s %dx%d, %d tokens", format, dtype_traits(dtype)->name, s.n_out, s.n_in, n_tok);
    SHAPE("%s %dx%d·%d", format, s.n_out, s.n_in, n_tok);
    compare(run(env(86), w, x, n_tok, COMPUTE_F32, &bias), plus_bias(want.y, bias), want.magnitude,
            eps32 * (s.n_in + 8), what);
}

EMU_TEST(gemv_f32)
{
    static const char *const formats[] = {
        "f32",      "f16",          "bf16",      "int8-row", "int8-g64",    "int8-row-asym",   "int4-row",
        "int4-g32", "int4-g64-sym", "int4-g128", "int4-g24", "int4-g5-sym", "int4-strided128", "nf4",
        "nf4-dq",   "fp4",          "nf4-g128"};
    static const struct shape shapes[] = {{1, 1}, {5, 33}, {9, 200}, {17, 416}, {33, 1100}};
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_F32};
    int i = int(check::seed());
    for (const char *f : formats) {
        for (const struct shape &s : shapes) {
            if (check::slow() && i % 2) {
                i++;
                continue;
            }
            one_exact(f, dtypes[i % 3], s, i % 4 == 0 ? 1 : check::pick(2, 8),
                      i % 5 ? filled::RANDOM : filled::EXTREME);
            i++;
        }
    }
    for (int t = 1; t <= 8; t++) one_exact("f16", DT_F16, {11, 136}, t, filled::RANDOM);
}

static const char *const int8_formats[] = {"int8-row",     "int8-g64",  "int4-row",      "int4-row-sym", "int4-g32",
                                           "int4-g64-sym", "int4-g128", "int4-g256-sym", "int4-g96",     "nf4",
                                           "nf4-dq",       "fp4",       "nf4-g128"};

static bool book(const char *format) { return format[0] == 'n' || format[1] == 'p'; }

/* Activations whose scales are powers of two: integers with one ±127 in each chunk. */
static std::vector<float> integers(int64_t n_tok, int64_t n_in)
{
    std::vector<float> x;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t k0 = 0; k0 < n_in; k0 += 32) {
            const float s = std::ldexp(1.0f, -check::pick(0, 2));
            for (int64_t k = k0; k < k0 + 32 && k < n_in; k++)
                x.push_back(s * float(k == k0 ? 127 : check::pick(-127, 127)));
        }
    return x;
}

static void one_int8(const char *format, enum dtype dtype, struct shape s, int n_tok, filled::fill how)
{
    if (book(format)) s.n_in = (s.n_in + 31) / 32 * 32;
    filled w(format, s.n_out, s.n_in, dtype, how);
    CHECK(w.d.int8_ok, "%s has an integer form", format);
    const bool exact = how == filled::EXACT;
    const auto x = exact ? integers(n_tok, s.n_in) : activations(n_tok, s.n_in, how == filled::EXTREME);
    const struct sums want = int8_product(w, x, n_tok);
    char what[96];
    snprintf(what, sizeof what, "%s %s %dx%d, %d tokens", format, dtype_traits(dtype)->name, s.n_out, s.n_in, n_tok);
    SHAPE("%s %dx%d·%d", format, s.n_out, s.n_in, n_tok);
    const auto got = run(env(86), w, x, n_tok, COMPUTE_INT8);
    if (exact)
        for (size_t i = 0; i < got.size(); i++) {
            if (double(got[i]) == want.y[i]) continue;
            CHECK(false, "%s: element %zu is %.9g, not exactly %.9g", what, i, double(got[i]), want.y[i]);
            break;
        }
    else
        compare(got, want.y, want.magnitude, eps32 * (s.n_in / 32 + 8), what);
}

EMU_TEST(gemv_int8)
{
    static const struct shape shapes[] = {{1, 1}, {9, 33}, {5, 96}, {17, 416}, {35, 1100}};
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_F32};
    int i = int(check::seed());
    for (const char *f : int8_formats)
        for (const struct shape &s : shapes) {
            i++;
            if (check::slow() && i % 2) continue;
            one_int8(f, dtypes[i % 3], s, 1, filled::EXACT);
            one_int8(f, dtypes[i % 3], s, check::pick(2, 8), i % 2 ? filled::EXTREME : filled::EXACT);
        }
    for (int t = 1; t <= 8; t++) one_int8("int4-g32", DT_BF16, {11, 160}, t, filled::EXACT);
}

/* Two quantized rows a token: by vectors and, from five tokens on, by tiles; few rows with a slab of tokens. */
EMU_TEST(int8x2)
{
    static const char *const some[] = {"int8-row", "int4-g32", "int4-row", "nf4", "nf4-dq", "fp4"};
    int i = int(check::seed());
    for (const char *f : some)
        for (int n_tok : {1, 2, 3, 4, 7, 21}) {
            if (check::slow() && ++i % 4) continue;
            const int n_out = n_tok == 7 ? 70 : 37, n_in = n_tok == 2 ? 1088 : 96;
            const enum dtype dtype = i++ % 2 ? DT_F16 : DT_BF16;
            filled w(f, n_out, n_in, dtype, filled::RANDOM);
            const auto x = activations(n_tok, n_in, true), bias = mm::random_floats(n_out);
            struct sums want = int8_product(w, x, n_tok, true);
            char what[96];
            snprintf(what, sizeof what, "%s, %d tokens", f, n_tok);
            SHAPE("%s %dx%d·%d", f, n_out, n_in, n_tok);
            for (size_t k = 0; k < want.y.size(); k++) want.magnitude[k] += std::fabs(double(bias[k % bias.size()]));
            compare(run(env(86, n_tok == 21 ? 1 : 2), w, x, n_tok, COMPUTE_INT8X2, &bias), plus_bias(want.y, bias),
                    want.magnitude, eps32 * (n_in / 32 + 8), what);
        }
}

/* Rows enough for four a warp, rows few enough for all eight warps to share them. */
EMU_TEST(gemv_cuts)
{
    one_int8("int4-g64", DT_F16, {32 * 16 * 4 / 8 + 3, 70}, 1, filled::EXACT);
    one_int8("nf4-dq", DT_F16, {32 * 16 * 4 / 8 + 1, 64}, 1, filled::EXACT);
    one_int8("int4-g128", DT_F16, {3, 2100}, 1, filled::EXACT);
    one_int8("int8-row", DT_F16, {2, 9000}, 3, filled::RANDOM);
    one_int8("int8-row", DT_F16, {2 * 32 * 16 + 30, 33}, 1, filled::EXACT); /* several passes a block */
    one_exact("f16", DT_F16, {32 * 16 * 4 / 8 + 3, 40}, 1, filled::RANDOM);
    one_exact("bf16", DT_BF16, {3, 2101}, 1, filled::RANDOM);
    one_exact("int4-g32", DT_F16, {66, 1040}, 1, filled::RANDOM); /* a lane takes more than one unit of a row */
}

/* q, k and v of one layer in formats of their own, with what rides along, in one call. */
static void jobs_of(const char *f0, const char *f1, const char *f2, enum compute compute, int n_tok)
{
    const int n_in = 224;
    const struct cuda_env e = env(86);
    filled w0(f0, 37, n_in, DT_BF16), w1(f1, 12, n_in, DT_F16), w2(f2, 8, n_in, DT_F16);
    const filled *w[] = {&w0, &w1, &w2};
    const auto x = activations(n_tok, n_in, false), bias = mm::random_floats(37), add = mm::random_floats(12 * n_tok);
    dev<float> dx(x), db(bias), y0(37 * size_t(n_tok)), y1(add), y2(8 * size_t(n_tok));
    dev<uint8_t> scratch(matmul_scratch(&e, compute, n_tok, n_in) + 1);
    struct cuda_job j[3] = {};
    float *y[] = {y0.p, y1.p, y2.p};
    for (int i = 0; i < 3; i++) {
        j[i].w = &w[i]->d;
        j[i].y = y[i];
    }
    j[0].bias = db.p;
    j[1].add = y1.p; /* in place */
    struct cuda_matmul m = matmul_of(j, 3, dx.p, n_tok, n_in);
    m.compute = compute;
    m.scratch = scratch.p;
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    const std::vector<float> got[] = {y0.get(), y1.get(), y2.get()};
    for (int i = 0; i < 3; i++) {
        const bool ints = compute == COMPUTE_INT8 && w[i]->d.int8_ok;
        struct sums want = ints ? int8_product(*w[i], x, n_tok) : product(*w[i], x, n_tok);
        for (size_t k = 0; k < want.y.size(); k++) {
            double more = i == 0 ? double(bias[k % 37]) : i == 1 ? double(add[k]) : 0.0;
            want.y[k] += more;
            want.magnitude[k] += std::fabs(more);
        }
        char what[96];
        snprintf(what, sizeof what, "job %d of %s, %s, %s, %d tokens", i, f0, f1, f2, n_tok);
        compare(got[i], want.y, want.magnitude, eps32 * (n_in + 8), what);
    }
    SHAPE("%s+%s+%s·%d", f0, f1, f2, n_tok);
}

EMU_TEST(gemv_jobs)
{
    jobs_of("int4-g32", "int4-g32", "int4-g32", COMPUTE_INT8, 1);
    jobs_of("int4-g32", "int8-row", "f16", COMPUTE_INT8, 2);
    jobs_of("nf4", "nf4-dq", "int4-g24", COMPUTE_INT8, 5);
    jobs_of("f16", "bf16", "f16", COMPUTE_F16, 1);
    jobs_of("int4-g64", "int4-strided128", "int4-g64", COMPUTE_F32, 3);
}

/* More jobs than a launch takes. */
EMU_TEST(gemv_many_jobs)
{
    enum { N = 6 };
    const int n_in = 96, n_out = 20;
    const struct cuda_env e = env(86);
    filled w("int4-g32", n_out, n_in, DT_F16);
    const auto x = activations(1, n_in, false);
    const auto want = run(e, w, x, 1, COMPUTE_INT8);
    dev<float> dx(x), y(N * n_out);
    dev<uint8_t> scratch(matmul_scratch(&e, COMPUTE_INT8, 1, n_in));
    struct cuda_job j[N] = {};
    for (int i = 0; i < N; i++) {
        j[i].w = &w.d;
        j[i].y = y.p + i * n_out;
    }
    struct cuda_matmul m = matmul_of(j, N, dx.p, 1, n_in);
    m.compute = COMPUTE_INT8;
    m.scratch = scratch.p;
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    const auto got = y.get();
    for (size_t i = 0; i < got.size(); i++)
        CHECK(got[i] == want[i % n_out], "job %d, row %d", int(i / n_out), int(i % n_out));
}

static double silu_of(double g) { return g / (1 + std::exp(-g)); }

/* SwiGLU, its result quantized for the next product, and the normalization before. */
static void swiglu_of(const char *gate, const char *up, enum compute compute, int n_tok, int n_out, int n_in, bool norm,
                      int n_sm, bool biases)
{
    const struct cuda_env e = env(86, n_sm);
    filled g(gate, n_out, n_in, DT_F16), u(up, n_out, n_in, DT_F16);
    auto x = activations(n_tok, n_in, false);
    const auto bg = mm::random_floats(n_out), bu = mm::random_floats(n_out);
    std::vector<float> nw(static_cast<size_t>(n_in));
    for (float &v : nw) v = check::uniform(0.5f, 1.5f);
    dev<float> dx(x), dn(nw), dbg(bg), dbu(bu), y(size_t(n_tok * n_out)), uy(size_t(n_tok * n_out));
    dev<uint8_t> scratch(matmul_scratch(&e, compute, n_tok, n_in) + 1);
    device_acts out(n_tok, n_out);
    struct cuda_job j = {};
    j.w = &g.d;
    j.up = &u.d;
    j.y = y.p;
    j.up_y = uy.p;
    j.bias = biases ? dbg.p : nullptr;
    j.up_bias = biases ? dbu.p : nullptr;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, n_tok, n_in);
    m.compute = compute;
    m.norm = norm ? dn.p : nullptr;
    m.eps = 0.25f;
    m.out = &out.a;
    m.scratch = scratch.p;
    CHECK(!norm || matmul_fuses_norm(&e, &m), "%s: the normalization is part of the kernel", gate);
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    if (norm) {
        double sum = 0;
        for (float v : x) sum += double(v) * double(v);
        const double scale = 1 / std::sqrt(sum / n_in + 0.25);
        for (int k = 0; k < n_in; k++) x[size_t(k)] = float(double(x[size_t(k)]) * scale * double(nw[size_t(k)]));
    }
    const bool ints = compute == COMPUTE_INT8 && g.d.int8_ok;
    const struct sums a = ints ? int8_product(g, x, n_tok) : product(g, x, n_tok);
    const struct sums b = ints && u.d.int8_ok ? int8_product(u, x, n_tok) : product(u, x, n_tok);
    std::vector<double> want, tol;
    for (size_t i = 0; i < a.y.size(); i++) {
        const double gv = a.y[i] + (biases ? double(bg[i % bg.size()]) : 0),
                     uv = b.y[i] + (biases ? double(bu[i % bu.size()]) : 0);
        /* a value next to the middle of two integers may be quantized the other way after its own normalization */
        const double slack = (norm && ints ? 2e-3 : eps32 * (n_in + 8)) * (a.magnitude[i] + b.magnitude[i] + 1);
        want.push_back(silu_of(gv) * uv);
        tol.push_back(slack * (1.2 * std::fabs(uv) + std::fabs(gv) + slack) + 1e-6 * std::fabs(want.back()));
    }
    char what[96];
    snprintf(what, sizeof what, "swiglu of %s, %s %dx%d, %d tokens%s", gate, up, n_out, n_in, n_tok,
             norm ? ", normalized" : "");
    const auto got = y.get();
    compare(got, want, tol, 1, what);
    check_acts(out, got, what);
    SHAPE("%s %dx%d·%d", gate, n_out, n_in, n_tok);
}

EMU_TEST(gemv_swiglu)
{
    swiglu_of("int4-g32", "int4-g32", COMPUTE_INT8, 1, 100, 96, false, 1, true); /* quantized in the kernel */
    swiglu_of("int4-g128", "int4-g128", COMPUTE_INT8, 1, 64, 2200, true, 1, false); /* three chunks a lane, two passes */
    swiglu_of("nf4-dq", "nf4-dq", COMPUTE_INT8, 3, 70, 128, false, 1, true);
    swiglu_of("int8-row", "int8-row", COMPUTE_INT8, 8, 33, 100, false, 1, false);
    swiglu_of("f16", "f16", COMPUTE_F16, 1, 34, 603, true, 1, true);
    swiglu_of("bf16", "bf16", COMPUTE_F32, 6, 34, 72, false, 1, false);
    swiglu_of("int4-g32", "int4-g32", COMPUTE_INT8, 2, 20, 96, false, 9, true); /* quantized by a launch of its own */
    swiglu_of("int4-g32", "int8-row", COMPUTE_INT8, 1, 40, 96, false, 1, true);  /* not alike: two products */
    swiglu_of("int4-g24", "int4-g24", COMPUTE_F32, 1, 40, 96, false, 1, true);
    swiglu_of("nf4-dq", "nf4-dq", COMPUTE_F32, 2, 40, 96, false, 1, false);
}

/* Normalized in the kernel: exactly what quantizing the kernel's own normalization gives cannot be seen from outside,
 * so values are chosen that normalize exactly: all of one magnitude, norm weights powers of two. */
EMU_TEST(gemv_norm_exact)
{
    const int n_in = 160, n_out = 520; /* several passes a block */
    const struct cuda_env e = env(86, 1);
    for (const char *f : {"int4-g32", "nf4", "nf4-dq", "int8-row", "f16", "bf16", "f32"}) {
        filled w(f, n_out, n_in, DT_F16, filled::EXACT);
        std::vector<float> x(n_in), nw(n_in), normed(n_in);
        for (int k = 0; k < n_in; k++) {
            x[size_t(k)] = check::pick(0, 1) ? 4.0f : -4.0f;
            nw[size_t(k)] = k % 32 == 0 ? 127.0f : std::ldexp(1.0f, check::pick(0, 6));
            normed[size_t(k)] = x[size_t(k)] / 4 * nw[size_t(k)];
        }
        dev<float> dx(x), dn(nw), y(n_out);
        dev<uint8_t> scratch(matmul_scratch(&e, COMPUTE_INT8, 1, n_in));
        struct cuda_job j = {};
        j.w = &w.d;
        j.y = y.p;
        struct cuda_matmul m = matmul_of(&j, 1, dx.p, 1, n_in);
        m.compute = COMPUTE_INT8;
        m.norm = dn.p;
        m.scratch = scratch.p;
        CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
        const struct sums want = w.d.int8_ok ? int8_product(w, normed, 1) : product(w, normed, 1);
        compare(y.get(), want.y, want.magnitude, w.d.int8_ok ? 0 : eps32 * n_in, f);
        SHAPE("%s", f);
    }
}

EMU_TEST(quantize)
{
    for (int n_in : {1, 31, 32, 33, 64, 100, 416}) {
        const int n_tok = check::pick(1, 5);
        auto x = activations(n_tok, n_in, true);
        if (n_in == 33) x[32] = NAN, x[0] = INFINITY;
        dev<float> dx(x);
        device_acts a(n_tok, n_in);
        quantize_acts(&a.a, dx.p, n_tok, n_in, nullptr);
        check_acts(a, x, "quantize");
        SHAPE("%d·%d", n_in, n_tok);
    }
}

/* Activations quantized before give the bits that the call itself gives; a NaN reaches every result. */
EMU_TEST(gemv_given_acts)
{
    const int n_in = 96, n_out = 20, n_tok = 3;
    const struct cuda_env e = env(86);
    filled w("int4-g32", n_out, n_in, DT_F16);
    auto x = activations(n_tok, n_in, false);
    const auto want = run(e, w, x, n_tok, COMPUTE_INT8);
    dev<float> dx(x), y(size_t(n_tok * n_out));
    device_acts a(n_tok, n_in);
    quantize_acts(&a.a, dx.p, n_tok, n_in, nullptr);
    struct cuda_job j = {};
    j.w = &w.d;
    j.y = y.p;
    struct cuda_matmul m = matmul_of(&j, 1, nullptr, n_tok, n_in);
    m.compute = COMPUTE_INT8;
    m.acts = &a.a;
    dev<uint8_t> scratch(matmul_scratch(&e, COMPUTE_INT8, n_tok, n_in));
    m.scratch = scratch.p;
    CHECK(matmul_uses_acts(&e, &m), "integers");
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    CHECK(y.get() == want, "given activations give other bits");
    x[n_in + 5] = NAN;
    const auto bad = run(e, w, x, n_tok, COMPUTE_INT8);
    for (int r = 0; r < n_out; r++)
        CHECK(std::isnan(bad[size_t(n_out + r)]) && bad[size_t(r)] == want[size_t(r)], "row %d of a token with a NaN",
              r);
}

EMU_TEST(dequant)
{
    for (const char *f :
         {"f32", "f16", "bf16", "int8-row", "int8-row-asym", "int8-g64", "int4-row", "int4-g32", "int4-g24",
          "int4-g5-sym", "int4-g128-sym", "int4-strided128", "nf4", "nf4-dq", "fp4", "nf4-g128"})
        for (int n_in : {1, 40, 133, 321})
            for (enum dtype dt : {DT_F16, DT_BF16, DT_F32}) {
                const int n_out = 7, ld = (n_in + 7) / 8 * 8 + 8;
                filled w(f, n_out, n_in, dt, check::pick(0, 1) ? filled::EXTREME : filled::RANDOM);
                const auto rows = w.rows();
                const std::vector<int32_t> ids = {6, 0, 6, 3, 1};
                dev<int32_t> di(ids);
                dev<float> d(ids.size() * size_t(ld)), part(size_t(3 * ld));
                dev<uint16_t> half(size_t(n_out * ld));
                dequant_rows(d.p, CUF_F32, ld, &w.d, di.p, 0, int64_t(ids.size()), nullptr);
                dequant_rows(part.p, CUF_F32, ld, &w.d, nullptr, 4, 3, nullptr);
                dequant_rows(half.p, dt == DT_BF16 ? CUF_BF16 : CUF_F16, ld, &w.d, nullptr, 0, n_out, nullptr);
                const auto got = d.get(), got_part = part.get();
                const auto got_half = half.get();
                int bad = 0;
                for (int k = 0; k < ld; k++) {
                    auto at = [&](int r) { return k < n_in ? rows[size_t(r * n_in + k)] : 0.0f; };
                    for (size_t i = 0; i < ids.size(); i++)
                        bad += f32_bits(got[i * size_t(ld) + size_t(k)]) != f32_bits(at(ids[i]));
                    for (int i = 0; i < 3; i++) bad += f32_bits(got_part[size_t(i * ld + k)]) != f32_bits(at(4 + i));
                    for (int i = 0; i < n_out; i++)
                        bad += got_half[size_t(i * ld + k)] != (dt == DT_BF16 ? f32_to_bf16(at(i)) : f32_to_f16(at(i)));
                }
                CHECK(!bad, "%s %s of %d columns: %d values differ", f, dtype_traits(dt)->name, n_in, bad);
                SHAPE("%s %d", f, n_in);
            }
}
