/* Products of more than 8 tokens: integer tiles exactly, f16, bf16 and f32 tiles within what rounding explains, the
 * choice between them, slices through scratch, and cuBLAS's place taken by a plain function. */
#include "mm.h"

using namespace mm;

static const double eps32 = 0x1p-24;

struct extras {
    const std::vector<float> *bias = nullptr, *add = nullptr;
    bool apart = false; /* add is not y */
};

static std::vector<float> run(const struct cuda_env &e, const filled &w, const std::vector<float> &x, int64_t n_tok,
                              enum compute compute, struct extras with = {})
{
    const size_t n = size_t(n_tok * w.d.n_out);
    dev<float> y(n), dx(x), db(with.bias ? *with.bias : std::vector<float>(1));
    dev<float> apart(with.apart ? *with.add : std::vector<float>(1));
    if (with.add && !with.apart) y.put(*with.add);
    dev<uint8_t> scratch(matmul_scratch(&e, compute, n_tok, w.d.n_in));
    struct cuda_job j = {};
    j.y = y.p;
    j.w = &w.d;
    j.bias = with.bias ? db.p : nullptr;
    j.add = with.apart ? apart.p : with.add ? y.p : nullptr;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, n_tok, w.d.n_in);
    m.compute = compute;
    m.scratch = scratch.p;
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    return y.get();
}

static bool book(const char *format) { return format[0] == 'n' || format[1] == 'p'; }

/* Activations whose scales are powers of two: integers with one ±127 in each chunk. */
static std::vector<float> integers(int64_t n_tok, int64_t n_in)
{
    std::vector<float> x;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t k0 = 0; k0 < n_in; k0 += 32) {
            const float s = std::ldexp(1.0f, -check::pick(0, 2));
            for (int64_t k = k0; k < k0 + 32 && k < n_in; k++)
                x.push_back(s * float(k == k0 ? -127 : check::pick(-127, 127)));
        }
    return x;
}

static void exactly(const std::vector<float> &got, const std::vector<double> &want, const char *what)
{
    for (size_t i = 0; i < got.size(); i++) {
        if (double(got[i]) == want[i]) continue;
        CHECK(false, "%s: element %zu is %.9g, not exactly %.9g", what, i, double(got[i]), want[i]);
        break;
    }
}

static void one_int8(const char *format, enum dtype dtype, int n_out, int n_in, int n_tok, filled::fill how)
{
    if (book(format)) n_in = (n_in + 31) / 32 * 32;
    filled w(format, n_out, n_in, dtype, how);
    const bool exact = how == filled::EXACT;
    const auto x = exact ? integers(n_tok, n_in) : activations(n_tok, n_in, how == filled::EXTREME);
    const struct sums want = int8_product(w, x, n_tok);
    const auto got = run(env(86, 1), w, x, n_tok, COMPUTE_INT8);
    char what[96];
    snprintf(what, sizeof what, "%s %s %dx%d, %d tokens", format, dtype_traits(dtype)->name, n_out, n_in, n_tok);
    SHAPE("%s %dx%d·%d", format, n_out, n_in, n_tok);
    if (exact) exactly(got, want.y, what);
    else compare(got, want.y, want.magnitude, eps32 * (n_in / 32 + 8), what);
}

EMU_TEST(gemm_int8)
{
    static const char *const formats[] = {"int8-row",     "int8-g64",  "int4-row",      "int4-row-sym", "int4-g32",
                                          "int4-g64-sym", "int4-g128", "int4-g256-sym", "int4-g96",     "nf4",
                                          "nf4-dq",       "fp4",       "nf4-g128"};
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_F32};
    static const struct { int n_out, n_in; } shapes[] = {{1, 1}, {70, 33}, {64, 128}, {33, 420}};
    int i = int(check::seed());
    for (const char *f : formats)
        for (const auto &s : shapes) {
            i++;
            if (check::slow() ? i % 4 : i % 2) continue;
            one_int8(f, dtypes[i % 3], s.n_out, s.n_in, check::pick(9, 40), i % 8 ? filled::EXACT : filled::EXTREME);
        }
    one_int8("int4-g32", DT_F16, 66, 200, 65 + check::pick(0, 70), filled::EXACT); /* tiles of 128 tokens */
    one_int8("nf4", DT_F16, 20, 96, 70, filled::EXACT);
    one_int8("int8-row", DT_BF16, 65, 100, 129, filled::EXACT);
    one_int8("int8-row", DT_F16, 17, 96, 17, filled::RANDOM);
}

static void one_float(const char *format, enum dtype dtype, int n_out, int n_in, int n_tok, enum compute compute,
                      enum cuda_float type, int sm, filled::fill how = filled::RANDOM)
{
    filled w(format, n_out, n_in, dtype, how);
    const auto x = activations(n_tok, n_in, false), bias = mm::random_floats(n_out),
               add = mm::random_floats(n_out * n_tok);
    struct sums want = product(w, x, n_tok, type);
    struct extras with;
    with.bias = &bias;
    with.add = &add;
    for (size_t i = 0; i < want.y.size(); i++) {
        const double more = double(bias[i % bias.size()]) + double(add[i]);
        want.y[i] += more;
        want.magnitude[i] += std::fabs(double(bias[i % bias.size()])) + std::fabs(double(add[i]));
    }
    char what[96];
    snprintf(what, sizeof what, "%s %dx%d, %d tokens, compute %s on sm_%d", format, n_out, n_in, n_tok,
             compute_name(compute), sm);
    SHAPE("%s %dx%d·%d", format, n_out, n_in, n_tok);
    compare(run(env(sm), w, x, n_tok, compute, with), want.y, want.magnitude, eps32 * (n_in + 8), what);
}

EMU_TEST(gemm_half)
{
    one_float("f16", DT_F16, 70, 100, 9, COMPUTE_F16, CUF_F16, 86);
    one_float("bf16", DT_BF16, 33, 75, 33, COMPUTE_BF16, CUF_BF16, 86);
    one_float("f16", DT_F16, 65, 129, 80, COMPUTE_INT8, CUF_F16, 86);
    one_float("bf16", DT_BF16, 65, 64, 70, COMPUTE_INT8, CUF_BF16, 86);
    one_float("bf16", DT_BF16, 20, 40, 12, COMPUTE_F16, CUF_F16, 86); /* converted */
    one_float("int4-g32", DT_F16, 70, 100, 20, COMPUTE_F16, CUF_F16, 86);
    one_float("nf4-dq", DT_BF16, 31, 64, 10, COMPUTE_BF16, CUF_BF16, 86);
    one_float("int4-strided128", DT_F16, 31, 200, 10, COMPUTE_INT8, CUF_F16, 86);
    one_float("int4-g24", DT_BF16, 18, 100, 11, COMPUTE_INT8, CUF_BF16, 86);
    one_float("bf16", DT_BF16, 18, 40, 11, COMPUTE_BF16, CUF_F32, 75); /* Turing: no bf16 tiles */
    one_float("f16", DT_F16, 18, 40, 11, COMPUTE_F16, CUF_F16, 75);
}

EMU_TEST(gemm_f32)
{
    static const char *const formats[] = {"f32",      "f16",         "bf16",      "int8-row",        "int8-row-asym",
                                          "int4-g32", "int4-g5-sym", "int4-g128", "int4-strided128", "nf4",
                                          "nf4-dq",   "fp4"};
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_F32};
    int i = int(check::seed());
    for (const char *f : formats) {
        i++;
        if (check::slow() && i % 3) continue;
        one_float(f, dtypes[i % 3], check::pick(1, 70), check::pick(1, 130), check::pick(9, 70), COMPUTE_F32, CUF_F32,
                  86, i % 4 ? filled::RANDOM : filled::EXTREME);
    }
    one_float("f32", DT_F32, 65, 68, 65, COMPUTE_F32, CUF_F32, 86);
    one_float("f32", DT_F32, 64, 16, 64, COMPUTE_INT8, CUF_F32, 86); /* f32 weights stay f32 */
}

/* Weights larger than the scratch for dequantized rows go through it in slices, with bias and residual in place. */
EMU_TEST(gemm_slices)
{
    const int n_in = 32, n_out = (4 << 20) / (32 * 4) + 100;
    if (check::slow()) return one_float("int4-g32", DT_F16, 65, n_in, 9, COMPUTE_F32, CUF_F32, 86);
    one_float("int4-g32", DT_F16, n_out, n_in, 9, COMPUTE_F32, CUF_F32, 86);
}

/* ---- several jobs, SwiGLU */

static double silu_of(double g) { return g / (1 + std::exp(-g)); }

static int blas_calls;
/* What the backend gives where cuBLAS is found. */
static int plain_blas(void *ctx, float *y, int64_t ldy, const void *w, int64_t ldw, const void *x, int64_t ldx,
                      enum cuda_float type, int64_t n_out, int64_t n_tok, int64_t n_in, float beta, cudaStream_t s)
{
    if (ctx) return -1;
    blas_calls++;
    const size_t size = type == CUF_F32 ? 4 : 2;
    std::vector<uint8_t> hw(size_t((n_out - 1) * ldw + n_in) * size), hx(size_t((n_tok - 1) * ldx + n_in) * size);
    std::vector<float> hy(size_t((n_tok - 1) * ldy + n_out));
    auto copy = [](void *to, const void *from, size_t n, cudaMemcpyKind kind) {
        return cudaMemcpy(to, from, n, kind) != cudaSuccess;
    };
    if (cudaStreamSynchronize(s) || copy(hw.data(), w, hw.size(), cudaMemcpyDeviceToHost) ||
        copy(hx.data(), x, hx.size(), cudaMemcpyDeviceToHost) ||
        copy(hy.data(), y, hy.size() * 4, cudaMemcpyDeviceToHost))
        return -1;
    auto at = [&](const std::vector<uint8_t> &v, int64_t i) {
        float f;
        uint16_t h;
        if (type == CUF_F32) return memcpy(&f, &v[size_t(i) * 4], 4), f;
        memcpy(&h, &v[size_t(i) * 2], 2);
        return type == CUF_F16 ? f16_to_f32(h) : bf16_to_f32(h);
    };
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t r = 0; r < n_out; r++) {
            double sum = 0;
            for (int64_t k = 0; k < n_in; k++) sum += double(at(hx, t * ldx + k)) * double(at(hw, r * ldw + k));
            float *to = &hy[size_t(t * ldy + r)];
            *to = float(sum) + (beta != 0 ? beta * *to : 0);
        }
    return copy(y, hy.data(), hy.size() * 4, cudaMemcpyHostToDevice) ? -1 : 0;
}

static void swiglu_of(const char *gate, const char *up, enum compute compute, enum cuda_float type, int n_tok,
                      bool blas, int n_sm = 2)
{
    const int n_out = 70, n_in = 96;
    struct cuda_env e = env(blas ? 90 : 86, n_sm);
    if (blas) e.blas = plain_blas;
    filled g(gate, n_out, n_in, DT_F16), u(up, n_out, n_in, DT_F16);
    const auto x = activations(n_tok, n_in, false), bg = mm::random_floats(n_out), bu = mm::random_floats(n_out);
    dev<float> dx(x), dbg(bg), dbu(bu), y(size_t(n_tok * n_out)), uy(size_t(n_tok * n_out));
    dev<uint8_t> scratch(matmul_scratch(&e, compute, n_tok, n_in));
    device_acts out(n_tok, n_out);
    struct cuda_job j = {};
    j.w = &g.d;
    j.up = &u.d;
    j.y = y.p;
    j.up_y = uy.p;
    j.bias = dbg.p;
    j.up_bias = dbu.p;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, n_tok, n_in);
    m.compute = compute;
    m.out = &out.a;
    m.scratch = scratch.p;
    CHECK(!matmul_fuses_norm(&e, &m), "many tokens are normalized apart");
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    auto of = [&](const filled &w) {
        return compute == COMPUTE_INT8 && w.d.int8_ok ? int8_product(w, x, n_tok) : product(w, x, n_tok, type);
    };
    const struct sums a = of(g), b = of(u);
    std::vector<double> want, tol;
    for (size_t i = 0; i < a.y.size(); i++) {
        const double gv = a.y[i] + double(bg[i % bg.size()]), uv = b.y[i] + double(bu[i % bu.size()]);
        const double slack = eps32 * (n_in + 8) * (a.magnitude[i] + b.magnitude[i] + 5);
        want.push_back(silu_of(gv) * uv);
        tol.push_back(slack * (1.2 * std::fabs(uv) + std::fabs(gv) + slack) + 1e-6 * std::fabs(want.back()));
    }
    char what[96];
    snprintf(what, sizeof what, "swiglu of %s, %s, %d tokens%s", gate, up, n_tok, blas ? ", cuBLAS" : "");
    const auto got = y.get();
    compare(got, want, tol, 1, what);
    check_acts(out, got, what);
    SHAPE("%s+%s·%d", gate, up, n_tok);
}

EMU_TEST(gemm_swiglu)
{
    swiglu_of("int4-g32", "int4-g32", COMPUTE_INT8, CUF_F32, 20, false);
    swiglu_of("int4-g32", "int4-g32", COMPUTE_INT8, CUF_F32, 14, false, 3); /* four tokens at a time */
    swiglu_of("int4-g32", "int8-row", COMPUTE_INT8, CUF_F32, 12, false);
    swiglu_of("int8-row", "f16", COMPUTE_INT8, CUF_F16, 12, false); /* joined at the end */
    swiglu_of("f16", "f16", COMPUTE_F16, CUF_F16, 10, false);
    swiglu_of("nf4", "nf4", COMPUTE_F32, CUF_F32, 10, false);
    swiglu_of("f16", "f16", COMPUTE_F16, CUF_F16, 10, true);
    swiglu_of("int4-g32", "int4-g32", COMPUTE_F32, CUF_F32, 10, true);
}

EMU_TEST(gemm_jobs)
{
    const int n_in = 96, n_tok = 19, n_out[] = {70, 65, 8};
    const struct cuda_env e = env(86);
    filled w0("int4-g32", n_out[0], n_in, DT_F16), w1("int4-g64-sym", n_out[1], n_in, DT_F16),
        w2("f16", n_out[2], n_in, DT_F16);
    const filled *w[] = {&w0, &w1, &w2};
    const auto x = activations(n_tok, n_in, false);
    dev<float> dx(x), y0(70 * 19), y1(65 * 19), y2(8 * 19);
    dev<float> *y[] = {&y0, &y1, &y2};
    dev<uint8_t> scratch(matmul_scratch(&e, COMPUTE_INT8, n_tok, n_in));
    struct cuda_job j[3] = {};
    for (int i = 0; i < 3; i++) {
        j[i].w = &w[i]->d;
        j[i].y = y[i]->p;
    }
    struct cuda_matmul m = matmul_of(j, 3, dx.p, n_tok, n_in);
    m.compute = COMPUTE_INT8;
    m.scratch = scratch.p;
    CHECK(!matmul_uses_acts(&e, &m), "one is f16");
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    for (int i = 0; i < 3; i++) {
        const struct sums want = i < 2 ? int8_product(*w[i], x, n_tok) : product(*w[i], x, n_tok, CUF_F16);
        compare(y[i]->get(), want.y, want.magnitude, eps32 * (n_in + 8), "job");
    }
    SHAPE("3 jobs");
}

/* Which path: cuBLAS for many tokens on data-centre GPUs, else integer tiles; its failure is handed on. */
EMU_TEST(gemm_blas)
{
    const int n_in = 40, n_out = 5;
    static const struct { int sm, n_tok; bool apart, blas; } cases[] = {
        {86, 256, false, false}, {90, 256, false, true}, {90, 256, true, true}, {90, 40, true, false}};
    for (const auto &c : cases) {
        struct cuda_env e = env(c.sm);
        e.blas = plain_blas;
        filled w("int4-g32", n_out, n_in, DT_F16);
        const auto x = activations(c.n_tok, n_in, false), bias = mm::random_floats(n_out),
                   add = mm::random_floats(n_out * c.n_tok);
        struct extras with;
        with.bias = &bias;
        with.add = &add;
        with.apart = c.apart;
        blas_calls = 0;
        const auto got = run(e, w, x, c.n_tok, COMPUTE_INT8, with);
        CHECK(blas_calls == c.blas, "sm_%d, %d tokens: %d calls", c.sm, c.n_tok, blas_calls);
        struct sums want = c.blas ? product(w, x, c.n_tok, CUF_F16) : int8_product(w, x, c.n_tok);
        for (size_t i = 0; i < want.y.size(); i++) {
            want.y[i] += double(bias[i % 5]) + double(add[i]);
            want.magnitude[i] += std::fabs(double(bias[i % 5])) + std::fabs(double(add[i]));
        }
        compare(got, want.y, want.magnitude, eps32 * (n_in + 8), "cuBLAS or tiles");
        SHAPE("sm_%d·%d", c.sm, c.n_tok);
    }
    struct cuda_env e = env(90);
    e.blas = plain_blas;
    e.blas_ctx = &e; /* fails */
    filled w("f16", n_out, n_in, DT_F16);
    const auto x = activations(9, n_in, false);
    dev<float> dx(x), y(9 * n_out);
    dev<uint8_t> scratch(matmul_scratch(&e, COMPUTE_F16, 9, n_in));
    struct cuda_job j = {};
    j.w = &w.d;
    j.y = y.p;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, 9, n_in);
    m.compute = COMPUTE_F16;
    m.scratch = scratch.p;
    CHECK(cuda_matmul(&e, &m, nullptr) == -1, "a failing cuBLAS is told");
    CHECK(cudaDeviceSynchronize() == cudaSuccess, "what was queued ends");
}

/* ---- columns cut among blocks, where tiles are few */

struct cut {
    const char *format;
    int n_out, n_in, n_tok, n_sm;
    int blocks; /* of tiles: these times the parts of the columns */
    filled::fill how;
    bool twice; /* int8x2 */
};

static uint64_t blocks_run()
{
#ifdef CUDA_EMU
    return emu::counts.blocks;
#else
    return 0;
#endif
}
/* begin: blocks_run before the product, which quantizes n_tok rows. */
static void check_blocks(uint64_t begin, int64_t n_tok, int64_t n_in, int want, const char *what)
{
#ifdef CUDA_EMU
    const int64_t quantize = n_tok * ((acts_at(nullptr, 1, n_in).n_chunks * 32 + 255) / 256);
    CHECK(int64_t(emu::counts.blocks - begin) - quantize == want, "%s: %d blocks, not %d", what,
          int(int64_t(emu::counts.blocks - begin) - quantize), want);
#else
    (void)begin, (void)n_tok, (void)n_in, (void)want, (void)what;
#endif
}

/* As the backend gives it: one for products of all shapes, zero when it is new. Here only the counters are. */
struct shared_scratch : dev<uint8_t> {
    static constexpr size_t counters = 256; /* of up to 64 multiprocessors */
    explicit shared_scratch(size_t bytes) : dev<uint8_t>(bytes)
    {
        if (cudaMemset(p, 0, counters) != cudaSuccess) check::broken("counters", bytes);
    }
    void check_counters(const char *what) const
    {
        const std::vector<uint8_t> v = get();
        for (size_t i = 0; i < counters; i++) CHECK(v[i] == 0, "%s: byte %zu of the counters is %d", what, i, v[i]);
    }
};

static void one_cut(const struct cut &c, const shared_scratch &scratch)
{
    const bool exact = c.how == filled::EXACT;
    const struct cuda_env e = env(86, c.n_sm);
    filled w(c.format, c.n_out, c.n_in, DT_F16, c.how);
    const auto x = exact ? integers(c.n_tok, c.n_in) : activations(c.n_tok, c.n_in, true);
    const struct sums want = int8_product(w, x, c.n_tok, c.twice);
    char what[96];
    snprintf(what, sizeof what, "%s %dx%d, %d tokens, %d multiprocessors", c.format, c.n_out, c.n_in, c.n_tok, c.n_sm);
    SHAPE("%s %dx%d·%d", c.format, c.n_out, c.n_in, c.n_tok);
    dev<float> dx(x), y(want.y.size());
    struct cuda_job j = {};
    j.y = y.p;
    j.w = &w.d;
    struct cuda_matmul m = matmul_of(&j, 1, dx.p, c.n_tok, c.n_in);
    m.compute = c.twice ? COMPUTE_INT8X2 : COMPUTE_INT8;
    m.scratch = scratch.p;
    const device_acts acts(c.n_tok, c.n_in);
    if (!c.twice) {
        quantize_acts(&acts.a, dx.p, c.n_tok, c.n_in, nullptr);
        CHECK(cudaDeviceSynchronize() == cudaSuccess, "quantize");
        m.acts = &acts.a;
    }
    std::vector<float> first;
    for (int again = 0; again < 2; again++) {
        const uint64_t begin = blocks_run();
#ifdef CUDA_EMU
        emu::cfg.seed += unsigned(again); /* blocks come in another order */
#endif
        CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
        const auto got = y.get();
#ifdef CUDA_EMU
        emu::cfg.seed = check::seed();
#endif
        check_blocks(begin, c.twice ? c.n_tok : 0, c.n_in, c.blocks, what);
        if (again) CHECK(got == first, "%s: other bits the second time", what);
        else if (exact) exactly(got, want.y, what);
        else compare(got, want.y, want.magnitude, eps32 * (c.n_in / 32 + 8), what);
        first = got;
    }
    scratch.check_counters(what);
}

EMU_TEST(gemm_cut)
{
    static const struct cut all[] = {
        {"int4-g128", 130, 2100, 9, 4, 3 * 2, filled::EXACT, false},
        {"nf4-dq", 97, 3072, 10, 3, 2 * 3, filled::EXACT, false},
        {"int8-row", 97, 4300, 9, 3, 2 * 4, filled::RANDOM, false},   /* the last step is half a one */
        {"int4-row", 17, 2048, 33, 3, 2 * 2, filled::EXTREME, false}, /* two tiles of tokens */
        {"int4-g128", 97, 2047 - 64, 9, 3, 2, filled::EXACT, false},  /* too few columns */
        {"int4-g32", 97, 2050, 9, 3, 2 * 2, filled::RANDOM, true},
        {"nf4", 97, 2080, 9, 3, 2 * (2 * 2), filled::RANDOM, true},   /* and once more with the second table */
        {"int4-g128", 64, 2048, 5, 2, 1, filled::RANDOM, true},       /* no room: so few tokens have none */
        {"int4-g128", 70, 2100, 9, 2, 2, filled::EXACT, false},       /* a tile for each multiprocessor */
        {"int4-g32", 9, 2090, 65, 2, 1 * 2, filled::RANDOM, false},   /* a tile of 128 tokens */
    };
    size_t bytes = 0;
    for (const struct cut &c : all) {
        const struct cuda_env e = env(86, c.n_sm);
        const size_t n = matmul_scratch(&e, c.twice ? COMPUTE_INT8X2 : COMPUTE_INT8, c.n_tok, c.n_in);
        bytes = n > bytes ? n : bytes;
    }
    const shared_scratch scratch(bytes);
    int i = int(check::seed());
    for (const struct cut &c : all)
        if (!check::slow() || ++i % 2) one_cut(c, scratch);
}

/* A gate with its partner beside a job with bias and residual, all cut. */
EMU_TEST(gemm_cut_jobs)
{
    const int n_in = 2080, n_tok = 35, n_gate = 66, n_out = 20;
    const struct cuda_env e = env(86, 8);
    filled gate("int4-g32", n_gate, n_in, DT_F16), up("int4-g32", n_gate, n_in, DT_F16),
        plain("int4-g128", n_out, n_in, DT_F16);
    const auto x = activations(n_tok, n_in, false), bias = mm::random_floats(n_out),
               add = mm::random_floats(n_out * n_tok);
    dev<float> dx(x), db(bias), y0(size_t(n_gate * n_tok)), y1(add);
    const shared_scratch scratch(matmul_scratch(&e, COMPUTE_INT8, n_tok, n_in));
    struct cuda_job j[2] = {};
    j[0].w = &gate.d;
    j[0].up = &up.d;
    j[0].y = y0.p;
    j[1].w = &plain.d;
    j[1].bias = db.p;
    j[1].add = j[1].y = y1.p;
    struct cuda_matmul m = matmul_of(j, 2, dx.p, n_tok, n_in);
    m.compute = COMPUTE_INT8;
    m.scratch = scratch.p;
    const uint64_t begin = blocks_run();
    CHECK(cuda_matmul(&e, &m, nullptr) == 0, "cuda_matmul");
    const auto got0 = y0.get(), got1 = y1.get();
    check_blocks(begin, n_tok, n_in, 2 * (2 + 1) * 2 + 2 * 2 * 2, "gate and residual, then the partner");
    struct sums a = int8_product(gate, x, n_tok), b = int8_product(up, x, n_tok), c = int8_product(plain, x, n_tok);
    const double eps = eps32 * (n_in / 32 + 8);
    std::vector<double> want, tol;
    for (size_t i = 0; i < a.y.size(); i++) {
        const double slack = eps * (a.magnitude[i] + b.magnitude[i]);
        want.push_back(silu_of(a.y[i]) * b.y[i]);
        tol.push_back(slack * (1.2 * std::fabs(b.y[i]) + std::fabs(a.y[i]) + slack));
    }
    compare(got0, want, tol, 1, "gate and partner");
    for (size_t i = 0; i < c.y.size(); i++) {
        c.y[i] += double(bias[i % bias.size()]) + double(add[i]);
        c.magnitude[i] += std::fabs(double(bias[i % bias.size()])) + std::fabs(double(add[i]));
    }
    compare(got1, c.y, c.magnitude, eps, "bias and residual");
    scratch.check_counters("jobs");
    SHAPE("2 jobs");
}

#ifdef CUDA_EMU
/* Tiles in shared memory are read without bank conflicts. */
EMU_TEST(gemm_conflicts)
{
    const uint64_t before = emu::counts.ldmatrix_conflicts, reads = emu::counts.ldmatrix;
    one_int8("int4-g32", DT_F16, 64, 64, 32, filled::EXACT);
    one_int8("int8-row", DT_F16, 64, 64, 32, filled::EXACT);
    one_float("f16", DT_F16, 64, 64, 32, COMPUTE_F16, CUF_F16, 86);
    CHECK(emu::counts.ldmatrix > reads, "no ldmatrix");
    CHECK(emu::counts.ldmatrix_conflicts == before, "%d bank conflicts", int(emu::counts.ldmatrix_conflicts - before));
}
#endif
