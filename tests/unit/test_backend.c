/* Weights on the CPU backends: dequantization bit for bit, embedding, and matmul of every instruction set this machine
 * has against the oracle, over formats and ragged shapes. */
#include "backend/backend_impl.h"
#include "backend/cpu/arena.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/panels.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/par.h"
#include "qrandom.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The table, and formats of folders made elsewhere: other group sizes, int8 in groups with and without zero point. */
static struct format formats[40];
static size_t n_formats;

static void list_formats(void)
{
    size_t n;
    const struct format *t = format_table(&n);
    for (size_t i = 0; i < n; i++) formats[n_formats++] = t[i];
    static const struct format others[] = {
        {"g16", CODE_INT, CONT_CT, DT_F32, 4, 16, false, NULL, false},
        {"g24", CODE_INT, CONT_CT, DT_F32, 4, 24, false, NULL, false},
        {"g5-sym", CODE_INT, CONT_CT, DT_F32, 4, 5, true, NULL, false},
        {"g48-int8", CODE_INT, CONT_CT, DT_F32, 8, 48, false, NULL, false},
        {"row-int8-asym", CODE_INT, CONT_CT, DT_F32, 8, 0, false, NULL, false},
        {"g192-sym", CODE_INT, CONT_CT, DT_F32, 4, 192, true, NULL, false},
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) formats[n_formats++] = others[i];
    struct format book = *format_find("nf4");
    book.name = "nf4-b128";
    book.group = 128;
    formats[n_formats++] = book;
}

static const enum dtype model_dtypes[] = {DT_F16, DT_BF16, DT_F32};

static void test_dequant_is_exact(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 7, 16, 31, 33, 48, 64, 96, 160, 192, 200, 576, 641};
    struct rng rng = {1};
    int checked = 0;
    for (size_t f = 0; f < n_formats; f++)
        for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
            for (int d = 0; d < 6; d++) {
                int64_t n_in = widths[s], n_out = 11;
                struct qbuffer b;
                qrandom(&b, &formats[f], n_out, n_in, model_dtypes[d % 3], &rng, d >= 3);
                float *want = mem_array((size_t)n_in, 4);
                for (int isa = 0; isa <= (int)isa_best() && dequant_ok(&b.w); isa++)
                    for (int64_t r = 0; r < n_out; r++) {
                        qweight_rows_f32(&b.w, r, 1, want);
                        for (int64_t k0 = 0; k0 < n_in; k0 += 64) {
                            int64_t n = r % 2 ? n_in - k0 : n_in - k0 < 64 ? n_in - k0 : 64;
                            float *got = guard_new(n);
                            kernels_of((enum isa)isa)->dequant(&b.w, r, k0, n, got);
                            if (memcmp(got, want + k0, (size_t)n * 4))
                                fail_msg("%s %s: row %d of width %d differs", formats[f].name, isa_name((enum isa)isa),
                                         (int)r, (int)n_in);
                            guard_check(got, n, formats[f].name);
                            checked++;
                        }
                    }
                free(want);
                qbuffer_free(&b);
            }
    assert_true(checked > 10000);
}

/* Σ|x·w| bounds what rounding can do: per element n·2^-24 of it, and the oracle's one rounding. */
static void check_matmul(const float *got, const float *want, const float *x, const struct qweight *w, int64_t n_tok,
                         const char *what)
{
    float *row = mem_array((size_t)w->n_in, 4);
    for (int64_t r = 0; r < w->n_out; r++) {
        qweight_rows_f32(w, r, 1, row);
        for (int64_t t = 0; t < n_tok; t++) {
            double sum = 1e-30;
            for (int64_t k = 0; k < w->n_in; k++) sum += fabs((double)row[k] * x[t * w->n_in + k]);
            compare(got + t * w->n_out + r, want + t * w->n_out + r, 1, 1e30,
                    (double)(w->n_in + 4) * 0x1p-24 * sum + 4e-7, 1e-6, what);
        }
    }
    free(row);
}

struct shape {
    int64_t n_out, n_in, n_tok;
};

static void one_matmul(const struct format *f, enum dtype dtype, struct shape s, bool extreme, struct rng *rng)
{
    struct qbuffer b[2];
    struct backend ref, be;
    struct weight wr[2], w[2];
    struct err e;
    int64_t n_out[2] = {s.n_out, s.n_out + 3};
    float *x = guard_new(s.n_tok * s.n_in), *bias = mem_array((size_t)n_out[1], 4), *want[2], *first[2];
    random_floats(rng, x, s.n_tok * s.n_in);
    random_floats(rng, bias, n_out[1]);
    assert_int_equal(cpu_ref_open(&ref, COMPUTE_F32, &e), 0);
    for (int j = 0; j < 2; j++) {
        qrandom(&b[j], f, n_out[j], s.n_in, dtype, rng, extreme);
        assert_int_equal(ref.ops->load_weight(&ref, &wr[j], &b[j].w, &e), 0);
        want[j] = mem_array((size_t)(s.n_tok * n_out[j]), 4);
        first[j] = NULL;
    }
    ref.ops->matmul(&ref, (struct matmul[]){{want[0], &wr[0], NULL}, {want[1], &wr[1], bias}}, 2, x, s.n_tok);

    for (int isa = 0; isa <= (int)isa_best(); isa++) {
        char what[160];
        snprintf(what, sizeof what, "matmul %s %s %dx%d, %d tokens", f->name, isa_name((enum isa)isa), (int)s.n_out,
                 (int)s.n_in, (int)s.n_tok);
        assert_int_equal(cpu_open(&be, COMPUTE_F32, (enum isa)isa, &e), 0);
        for (int j = 0; j < 2; j++) assert_int_equal(be.ops->load_weight(&be, &w[j], &b[j].w, &e), 0);
        for (int threads = 1; threads <= 3; threads++) {
            par_set_threads(threads);
            float *y[2] = {guard_new(s.n_tok * n_out[0]), guard_new(s.n_tok * n_out[1])};
            be.ops->matmul(&be, (struct matmul[]){{y[0], &w[0], NULL}, {y[1], &w[1], bias}}, 2, x, s.n_tok);
            for (int j = 0; j < 2; j++) {
                size_t bytes = (size_t)(s.n_tok * n_out[j]) * 4;
                if (threads == 1) {
                    compare(y[j], want[j], s.n_tok * n_out[j], 1e-11, 1e30, 0, what);
                    if (j == 0) check_matmul(y[0], want[0], x, &b[0].w, s.n_tok, what);
                    first[j] = memcpy(mem_array(bytes, 1), y[j], bytes);
                } else if (memcmp(y[j], first[j], bytes)) {
                    fail_msg("%s: %d threads give other bits than one", what, threads);
                }
                guard_check(y[j], s.n_tok * n_out[j], what);
            }
        }
        /* the last token alone gives the bits it has in the batch */
        float *one = guard_new(n_out[0]);
        be.ops->matmul(&be, &(struct matmul){one, &w[0], NULL}, 1, x + (s.n_tok - 1) * s.n_in, 1);
        if (memcmp(one, first[0] + (s.n_tok - 1) * n_out[0], (size_t)n_out[0] * 4))
            fail_msg("%s: a token alone gives other bits than in the batch", what);
        guard_check(one, n_out[0], what);
        for (int j = 0; j < 2; j++) {
            be.ops->free_weight(&be, &w[j]);
            free(first[j]);
        }
        backend_close(&be);
    }
    for (int j = 0; j < 2; j++) {
        ref.ops->free_weight(&ref, &wr[j]);
        qbuffer_free(&b[j]);
        free(want[j]);
    }
    backend_close(&ref);
    guard_check(x, s.n_tok * s.n_in, "x");
    free(bias);
}

static void test_matmul_formats(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{13, 160, 5}, {29, 576, 3}, {7, 200, 9}};
    struct rng rng = {2};
    for (size_t f = 0; f < n_formats; f++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            one_matmul(&formats[f], model_dtypes[s], shapes[s], s == 2, &rng);
}

/* Enough tokens for the gemm of packed operands; g24 is read by the reference only. */
static void test_matmul_many(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{70, 577, 53}, {5, 48, 48}, {64, 16, 600}, {131, 1, 50}, {67, 3100, 65}};
    struct rng rng = {4};
    for (size_t f = 0; f < n_formats; f++)
        if (strchr("fbg", formats[f].name[0]) || !strcmp(formats[f].name, "int4-g64"))
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                one_matmul(&formats[f], DT_F16, shapes[s], s == 1, &rng);
}

static void test_matmul_shapes(void **state)
{
    (void)state;
    static const char *const names[] = {"f32", "f16", "bf16", "int4-g64", "int8-row", "nf4"};
    static const int64_t widths[] = {1, 3, 16, 33, 64, 577, 1552, 3100}, heights[] = {1, 5, 6, 37};
    struct rng rng = {3};
    int64_t n_tok = 1;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++)
        for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
            for (size_t r = 0; r < sizeof heights / sizeof *heights; r++) {
                one_matmul(format_find(names[f]), DT_F16, (struct shape){heights[r], widths[k], n_tok}, false, &rng);
                n_tok = n_tok % 17 + 1;
            }
    /* large enough that several threads really share it */
    one_matmul(format_find("f16"), DT_F16, (struct shape){700, 1600, 17}, false, &rng);
    one_matmul(format_find("int4-g32"), DT_F16, (struct shape){700, 1600, 2}, false, &rng);
}

/* ---- compute int8, int8x2 ---- */

/* Activations as the int8 path sees them: groups of 32, absmax/127, nearest even; what that leaves once more, if passes
 * are two. */
static void emulate_int8(const float *x, float *out, int64_t n_tok, int64_t n_in, int passes)
{
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t k0 = 0; k0 < n_in; k0 += 32) {
            float left[32] = {0};
            int64_t n = k0 + 32 < n_in ? 32 : n_in - k0, at = t * n_in + k0;
            memcpy(left, x + at, (size_t)n * 4);
            for (int p = 0; p < passes; p++) {
                float max = 0;
                for (int64_t k = 0; k < n; k++) max = fmaxf(max, fabsf(left[k]));
                for (int64_t k = 0; k < n; k++) {
                    float q = max > 0 ? rintf(left[k] * (127.0f / max)) : 0, s = max / 127.0f;
                    out[at + k] = (p ? out[at + k] : 0) + q * s;
                    left[k] = (float)(left[k] - (double)q * s);
                }
            }
        }
}

/* Values of rows as the int8 path recodes them where integers times scales do not fit: groups of 32, a scale of at least
 * max/127 that f16 rounds up, steps of it; with two passes what that leaves in steps of 1/254 of it. */
static void emulate_recoded(float *w, int64_t n_out, int64_t n_in, bool f16, int passes)
{
    for (int64_t r = 0; r < n_out; r++)
        for (int64_t k0 = 0; k0 < n_in; k0 += 32) {
            float *v = w + r * n_in + k0, max = 0;
            int64_t n = k0 + 32 < n_in ? 32 : n_in - k0;
            for (int64_t k = 0; k < n; k++) max = fmaxf(max, fabsf(v[k]));
            float s = max / 127;
            if (f16) s = f16_to_f32(f32_to_f16(s));
            while (s * 127 < max) s = f16 ? f16_to_f32((uint16_t)(f32_to_f16(s) + 1)) : nextafterf(s, 1);
            for (int64_t k = 0; k < n && s > 0; k++) {
                float q = fmaxf(-127, fminf(127, rintf(v[k] / s))), left = v[k] - q * s, step = s * (1.0f / 254);
                if (!(fabsf(left) <= 0.50001f * s)) fail_msg("recoded: off by %g of a step of %g", left, s);
                v[k] = (float)((double)q * s + (passes == 2 ? (double)rintf(left / step) * step : 0));
            }
        }
}

static void one_int8(const struct format *f, enum dtype dtype, struct shape s, bool extreme, int passes, struct rng *rng)
{
    struct qbuffer b;
    struct backend ref, be;
    struct weight wr, w;
    struct panels plan;
    struct err e;
    qrandom(&b, f, s.n_out, s.n_in, dtype, rng, extreme);
    int64_t n = s.n_tok * s.n_out, nx = s.n_tok * s.n_in;
    float *x = guard_new(nx), *xq = mem_array((size_t)nx, 4), *want = mem_array((size_t)n, 4), *plain = NULL;
    float *bias = mem_array((size_t)s.n_out, 4), *full = mem_array((size_t)n, 4), *avx2 = NULL;
    random_floats(rng, x, nx);
    random_floats(rng, bias, s.n_out);
    if (s.n_in > 40) memset(x + 33, 0, (size_t)(s.n_in - 33 < 31 ? s.n_in - 33 : 31) * 4); /* a group of zeros but one */
    bool panels = panels_plan(&plan, &b.w, passes > 1);
    emulate_int8(x, xq, s.n_tok, s.n_in, passes);
    assert_int_equal(cpu_ref_open(&ref, COMPUTE_F32, &e), 0);
    struct qweight exact = b.w; /* the int8 path multiplies codes by scales without rounding the product to f16 */
    struct qbuffer recoded = {0};
    if (panels && plan.recoded) {
        qbuffer_alloc(&recoded, format_find("f32"), s.n_out, s.n_in, DT_F32);
        qweight_rows_f32(&b.w, 0, s.n_out, recoded.codes);
        emulate_recoded(recoded.codes, s.n_out, s.n_in, b.w.out_dtype == DT_F16, passes);
        exact = recoded.w;
    } else if (panels) {
        exact.out_dtype = DT_F32;
    }
    assert_int_equal(ref.ops->load_weight(&ref, &wr, &exact, &e), 0);
    ref.ops->matmul(&ref, &(struct matmul){want, &wr, bias}, 1, panels ? xq : x, s.n_tok);
    ref.ops->matmul(&ref, &(struct matmul){full, &wr, bias}, 1, x, s.n_tok);
    for (int isa = 0; isa <= (int)isa_best(); isa++) {
        char what[160];
        snprintf(what, sizeof what, "int8 x%d matmul %s %s %dx%d, %d tokens%s", passes, f->name, isa_name((enum isa)isa),
                 (int)s.n_out, (int)s.n_in, (int)s.n_tok, extreme ? ", extreme" : "");
        assert_int_equal(cpu_open(&be, passes == 1 ? COMPUTE_INT8 : COMPUTE_INT8X2, (enum isa)isa, &e), 0);
        assert_int_equal(be.ops->load_weight(&be, &w, &b.w, &e), 0);
        float *first = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            par_set_threads(threads);
            float *y = guard_new(n);
            be.ops->matmul(&be, &(struct matmul){y, &w, bias}, 1, x, s.n_tok);
            if (!first) {
                /* integers that stand for a code book are off by up to 0.4 % of its range, of what that leaves with two */
                double book = passes == 1 ? 5e-5 : 1e-9;
                compare(y, want, n, f->kind == CODE_BOOK && panels ? book : 1e-11, 1e30, 0, what);
                /* with scales of 20 beside 0.002 in 32 recoded columns the small ones get few of the large ones' steps */
                if (passes == 2) compare(y, full, n, extreme && plan.recoded ? 1e-6 : 2e-8, 1e30, 0, what);
                if (plain) compare(y, plain, n, 1e-12, 1e30, 0, what);
                first = memcpy(mem_array((size_t)n, 4), y, (size_t)n * 4);
            }
            if (memcmp(y, first, (size_t)n * 4)) fail_msg("%s: %d threads give other bits than one", what, threads);
            guard_check(y, n, what);
        }
        float *one = guard_new(s.n_out);
        be.ops->matmul(&be, &(struct matmul){one, &w, bias}, 1, x + nx - s.n_in, 1);
        if (memcmp(one, first + n - s.n_out, (size_t)s.n_out * 4))
            fail_msg("%s: a token alone gives other bits than in the batch", what);
        guard_check(one, s.n_out, what);
        be.ops->free_weight(&be, &w);
        backend_close(&be);
        /* The sums are exact in either, and what is made of them is one source. */
        if (panels && isa == ISA_AVXVNNI && memcmp(first, avx2, (size_t)n * 4)) fail_msg("%s: other bits than AVX2", what);
        if (isa == ISA_PLAIN) plain = first;
        if (isa == ISA_AVX2) avx2 = first;
        if (isa > ISA_AVX2) free(first);
    }
    ref.ops->free_weight(&ref, &wr);
    backend_close(&ref);
    qbuffer_free(&b);
    qbuffer_free(&recoded);
    guard_check(x, nx, "x");
    free(avx2);
    free(xq);
    free(want);
    free(full);
    free(bias);
    free(plain);
}

static void test_int8(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{13, 160, 5}, {70, 576, 3}, {64, 200, 9}, {33, 64, 12}, {5, 641, 8}, {81, 320, 17},
                                          {16, 31, 1}, {100, 33, 2}, {37, 1568, 4}};
    struct rng rng = {12};
    for (size_t f = 0; f < n_formats; f++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (int extreme = 0; extreme < 2; extreme++)
                for (int passes = 1; passes <= 2; passes++)
                    one_int8(&formats[f], model_dtypes[s % 3], shapes[s], extreme, passes, &rng);
    for (int passes = 1; passes <= 2; passes++) {
        one_int8(format_find("int4-g64"), DT_F16, (struct shape){700, 1600, 300}, false, passes, &rng);
        one_int8(format_find("nf4"), DT_F16, (struct shape){100, 1600, 140}, false, passes, &rng);
        one_int8(format_find("int8-row"), DT_F16, (struct shape){700, 1600, 2}, false, passes, &rng);
        one_int8(format_find("int4-strided128"), DT_F16, (struct shape){300, 1600, 140}, false, passes, &rng);
    }
}

/* A layer that mixes formats, and activations that are not finite: NaN comes out, and only for its token. */
static void test_int8_mixed_and_nan(void **state)
{
    (void)state;
    static const char *const names[] = {"f16", "int4-g64", "int4-strided128", "int8-row"};
    enum { K = 192, N = 20, T = 6 };
    struct rng rng = {13};
    for (int i = 0; i < 2 * ((int)isa_best() + 1); i++) {
        enum isa isa = (enum isa)(i / 2);
        struct backend be;
        struct err e;
        struct qbuffer b[4];
        struct weight w[4];
        struct matmul jobs[4];
        float *x = mem_array(T * K, 4), one[T * N];
        random_floats(&rng, x, T * K);
        assert_int_equal(cpu_open(&be, i % 2 ? COMPUTE_INT8X2 : COMPUTE_INT8, isa, &e), 0);
        for (int j = 0; j < 4; j++) {
            qrandom(&b[j], format_find(names[j]), N, K, DT_F16, &rng, false);
            assert_int_equal(be.ops->load_weight(&be, &w[j], &b[j].w, &e), 0);
            jobs[j] = (struct matmul){guard_new(T * N), &w[j], NULL};
        }
        be.ops->matmul(&be, jobs, 4, x, T);
        for (int j = 0; j < 4; j++) {
            be.ops->matmul(&be, &(struct matmul){one, &w[j], NULL}, 1, x, T);
            assert_memory_equal(one, jobs[j].y, sizeof one);
        }
        x[2 * K + 70] = NAN;
        x[4 * K + 3] = INFINITY;
        be.ops->matmul(&be, jobs, 4, x, T);
        for (int j = 0; j < 4; j++) {
            for (int t = 0; t < T; t++)
                for (int r = 0; r < N; r++) assert_int_equal(!isfinite(jobs[j].y[t * N + r]), t == 2 || t == 4);
            guard_check(jobs[j].y, T * N, names[j]);
            be.ops->free_weight(&be, &w[j]);
            qbuffer_free(&b[j]);
        }
        backend_close(&be);
        free(x);
    }
}

static void test_embed(void **state)
{
    (void)state;
    struct rng rng = {4};
    for (size_t f = 0; f < n_formats; f++) {
        struct qbuffer b;
        struct backend be;
        struct weight w;
        struct err e;
        enum { V = 50, N = 96, T = 40 };
        int32_t tokens[T];
        for (int t = 0; t < T; t++) tokens[t] = t < 2 ? t * (V - 1) : (int32_t)rng_below(&rng, V);
        qrandom(&b, &formats[f], V, N, DT_F16, &rng, false);
        for (int isa = 0; isa <= (int)isa_best(); isa++) {
            assert_int_equal(cpu_open(&be, COMPUTE_F32, (enum isa)isa, &e), 0);
            assert_int_equal(be.ops->load_weight(&be, &w, &b.w, &e), 0);
            float *x = guard_new(T * N), want[N];
            be.ops->embed(&be, x, &w, tokens, T);
            for (int t = 0; t < T; t++) {
                qweight_rows_f32(&b.w, tokens[t], 1, want);
                assert_memory_equal(x + t * N, want, sizeof want);
            }
            guard_check(x, T * N, "embed");
            be.ops->free_weight(&be, &w);
            backend_close(&be);
        }
        qbuffer_free(&b);
    }
}

static void test_open(void **state)
{
    (void)state;
    struct backend be;
    struct err e;
    static const char *const bad[][3] = {{"cuda:77", "f32", "cuda:77"}, /* neither the build nor a machine has it */
                                         {"tpu", "f32", "unknown"},       {"cudax", "f32", "unknown"},
                                         {"cpu", "f64", "unknown"},       {"cpu", "f16", "not offered"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(backend_open(&be, bad[i][0], bad[i][1], false, &e), -1);
        if (!strstr(e.msg, bad[i][2])) fail_msg("%s %s: %s", bad[i][0], bad[i][1], e.msg);
        backend_close(&be);
    }
    for (int floats = 0; floats < 2; floats++) {
        assert_int_equal(backend_open(&be, "cpu", "auto", floats, &e), 0);
        assert_string_equal(be.ops->name, "cpu");
        assert_string_equal(compute_name(be.compute), floats && isa_has_bf16() ? "bf16" : "int8");
        backend_close(&be);
    }
}

/* Blocks keep their contents while others come and go, and what is freed is used again. */
static void test_arena(void **state)
{
    (void)state;
    struct arena a = {0};
    enum { N = 64 };
    uint8_t *p[N] = {0};
    size_t n[N] = {0};
    struct rng rng = {14};
    for (int i = 0; i < 5000; i++) {
        int k = (int)rng_below(&rng, N);
        if (p[k]) {
            for (size_t j = 0; j < n[k]; j += 997) assert_int_equal(p[k][j], k);
            arena_free(&a, p[k]);
            p[k] = NULL;
        } else {
            n[k] = (size_t)rng_below(&rng, i % 100 ? 300000 : 40000000);
            p[k] = arena_alloc(&a, n[k]);
            assert_int_equal((uintptr_t)p[k] % 64, 0);
            for (size_t j = 0; j < n[k]; j += 997) p[k][j] = (uint8_t)k;
        }
    }
    for (int k = 0; k < N; k++) arena_free(&a, p[k]);
    assert_null(a.slabs);
    uint8_t *kept = arena_alloc(&a, 100), *q = arena_alloc(&a, 1000000);
    for (int i = 0; i < 1000; i++) { /* one weight swapped for another, over and over */
        arena_free(&a, q);
        uint8_t *again = arena_alloc(&a, 1000000);
        assert_ptr_equal(again, q);
    }
    arena_free(&a, kept);
    arena_free(&a, q);
    assert_null(a.slabs);
}

int main(void)
{
    list_formats();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),           cmocka_unit_test(test_dequant_is_exact), cmocka_unit_test(test_embed),
        cmocka_unit_test(test_matmul_formats), cmocka_unit_test(test_matmul_shapes), cmocka_unit_test(test_matmul_many),
        cmocka_unit_test(test_int8),           cmocka_unit_test(test_int8_mixed_and_nan),
        cmocka_unit_test(test_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
