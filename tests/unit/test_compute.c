/* Every compute of the CPU backend in every instruction set, against sums in double: bf16 over a grid of shapes, and all
 * of them over the extremes of what weights and activations may hold. */
#include "backend/backend_impl.h"
#include "backend/cpu/bf16.h"
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

static const enum dtype model_dtypes[] = {DT_F16, DT_BF16, DT_F32};

struct shape {
    int64_t n_out, n_in, n_tok;
};

/* What a product is held against: Σ x·w in double, and Σ |x·w|. */
struct expected {
    double *sum, *size;
};

static struct expected expect(const struct qweight *w, const float *x, const float *bias, int64_t n_tok, bool bf16)
{
    size_t n = (size_t)(n_tok * w->n_out);
    struct expected e = {mem_new(n, sizeof *e.sum), mem_new(n, sizeof *e.size)};
    float *row = mem_array((size_t)w->n_in, sizeof *row);
    for (int64_t r = 0; r < w->n_out; r++) {
        qweight_rows_f32(w, r, 1, row);
        for (int64_t t = 0; t < n_tok; t++) {
            double sum = bias[r], size = fabs(bias[r]);
            for (int64_t k = 0; k < w->n_in; k++) {
                float a = row[k], b = x[t * w->n_in + k];
                double p = bf16 ? (double)round_bf16(a) * round_bf16(b) : (double)a * b;
                sum += p;
                size += fabs(p);
            }
            e.sum[t * w->n_out + r] = sum;
            e.size[t * w->n_out + r] = size;
        }
    }
    free(row);
    return e;
}

static void check(const float *y, const struct expected *e, int64_t n, double rel, double abs, const char *what)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(y[i])) fail_msg("%s: element %d is not finite", what, (int)i);
        double err = fabs(y[i] - e->sum[i]);
        if (!(err <= rel * e->size[i] + abs))
            fail_msg("%s: element %d is %.9g, %.9g was expected (off by %.3g of %.3g)", what, (int)i, y[i], e->sum[i], err,
                     e->size[i]);
    }
}

/* One product with 1 to 3 threads, which must agree to the last bit, as must the last token alone. */
static void one(enum compute compute, const struct qweight *q, const float *x, const float *bias, int64_t n_tok,
                const struct expected *e, double rel, double abs, const char *label)
{
    int64_t n_out = q->n_out, n = n_tok * n_out;
    for (int isa = 0; isa <= (int)isa_best(); isa++) {
        char what[200];
        struct backend be;
        struct weight w;
        struct err err;
        float *first = NULL;
        snprintf(what, sizeof what, "%s %s %s %dx%d, %d tokens", compute_name(compute), isa_name((enum isa)isa), label,
                 (int)n_out, (int)q->n_in, (int)n_tok);
        assert_int_equal(cpu_open(&be, compute, (enum isa)isa, &err), 0);
        assert_int_equal(be.ops->load_weight(&be, &w, q, &err), 0);
        for (int threads = 1; threads <= 3; threads++) {
            par_set_threads(threads);
            float *y = guard_new(n);
            be.ops->matmul(&be, &(struct matmul){y, &w, bias}, 1, x, n_tok);
            check(y, e, n, rel, abs, what);
            if (!first) first = memcpy(mem_array((size_t)n, 4), y, (size_t)n * 4);
            if (memcmp(y, first, (size_t)n * 4)) fail_msg("%s: %d threads give other bits than one", what, threads);
            guard_check(y, n, what);
        }
        float *alone = guard_new(n_out);
        be.ops->matmul(&be, &(struct matmul){alone, &w, bias}, 1, x + (n_tok - 1) * q->n_in, 1);
        if (memcmp(alone, first + n - n_out, (size_t)n_out * 4)) fail_msg("%s: a token alone gives other bits", what);
        guard_check(alone, n_out, what);
        free(first);
        be.ops->free_weight(&be, &w);
        backend_close(&be);
    }
}

/* ---- bf16 ---- */

static void one_bf16(const char *format, struct shape s, struct rng *rng)
{
    struct qbuffer b;
    qrandom(&b, format_find(format), s.n_out, s.n_in, DT_F16, rng, false);
    float *x = guard_new(s.n_tok * s.n_in), *bias = mem_array((size_t)s.n_out, 4);
    random_floats(rng, x, s.n_tok * s.n_in);
    random_floats(rng, bias, s.n_out);
    struct expected e = expect(&b.w, x, bias, s.n_tok, true);
    one(COMPUTE_BF16, &b.w, x, bias, s.n_tok, &e, (double)(s.n_in + 2) * 0x1p-24, 1e-30, format);
    guard_check(x, s.n_tok * s.n_in, "x");
    free(e.sum);
    free(e.size);
    free(bias);
    qbuffer_free(&b);
}

static void test_bf16_shapes(void **state)
{
    (void)state;
    static const char *const names[] = {"f32", "f16", "bf16"};
    static const int64_t widths[] = {1, 2, 3, 16, 33, 64, 577, 1552}, heights[] = {1, 31, 32, 33, 64, 100, 129};
    struct rng rng = {31};
    int64_t n_tok = 1;
    for (size_t f = 0; f < sizeof names / sizeof *names; f++)
        for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
            for (size_t r = 0; r < sizeof heights / sizeof *heights; r++) {
                one_bf16(names[f], (struct shape){heights[r], widths[k], n_tok}, &rng);
                n_tok = n_tok % 17 + 1;
            }
    one_bf16("f16", (struct shape){700, 1600, 300}, &rng);
    one_bf16("bf16", (struct shape){700, 1600, 2}, &rng);
}

/* The kernels themselves: the same bits from all of them. */
static void test_bf16_kernels_agree(void **state)
{
    (void)state;
    const struct bf16_kernels *k[4] = {&bf16_plain};
    int n = 1;
#if defined(__x86_64__)
    if (isa_best() >= ISA_AVX2) k[n++] = &bf16_avx2;
    if (isa_best() >= ISA_AVX512) k[n++] = &bf16_avx512;
    if (isa_has_bf16()) k[n++] = &bf16_dot;
#endif
    enum { PAIRS = 301, LD = 2 * PAIRS, T = BF16_MOST_TOKENS };
    struct rng rng = {32};
    size_t panel = (size_t)PAIRS * BF16_ROWS * 4;
    void *aligned;
    assert_int_equal(posix_memalign(&aligned, 64, 2 * panel), 0);
    uint16_t *w = aligned, *x = mem_array(T * LD, sizeof *x);
    for (size_t i = 0; i < panel; i++) w[i] = f32_to_bf16((float)rng_normal(&rng));
    for (int i = 0; i < T * LD; i++) x[i] = f32_to_bf16((float)rng_normal(&rng));
    float want[T * 2 * BF16_ROWS], y[T * 2 * BF16_ROWS];
    for (int i = 0; i < n; i++) {
        for (int t = 0; t < T; t += k[i]->tokens) {
            int nt = T - t < k[i]->tokens ? T - t : k[i]->tokens;
            k[i]->two(aligned, (uint8_t *)aligned + panel, PAIRS, x + t * LD, LD, nt, y + t * 2 * BF16_ROWS);
        }
        if (i == 0) memcpy(want, y, sizeof want);
        assert_memory_equal(y, want, sizeof want);
        for (int p = 0; p < 2; p++)
            for (int nt = 1; nt <= BF16_TOKENS; nt++) {
                k[i]->one((uint8_t *)aligned + (size_t)p * panel, PAIRS, x, LD, nt, y);
                for (int t = 0; t < nt; t++)
                    assert_memory_equal(y + t * BF16_ROWS, want + (2 * t + p) * BF16_ROWS, BF16_ROWS * 4);
            }
    }
    free(aligned);
    free(x);
}

/* What is not finite comes out as such, and only for its token. */
static void test_bf16_not_finite(void **state)
{
    (void)state;
    enum { K = 70, N = 40, T = 11 };
    struct rng rng = {33};
    struct qbuffer b;
    float x[T * K], y[T * N];
    qrandom(&b, format_find("f16"), N, K, DT_F16, &rng, false);
    random_floats(&rng, x, T * K);
    x[2 * K + 69] = NAN;
    x[9 * K] = INFINITY;
    for (int isa = 0; isa <= (int)isa_best(); isa++)
        for (int n = 3; n <= T; n += T - 3) {
            struct backend be;
            struct weight w;
            struct err e;
            assert_int_equal(cpu_open(&be, COMPUTE_BF16, (enum isa)isa, &e), 0);
            assert_int_equal(be.ops->load_weight(&be, &w, &b.w, &e), 0);
            be.ops->matmul(&be, &(struct matmul){y, &w, NULL}, 1, x, n);
            for (int t = 0; t < n; t++)
                for (int r = 0; r < N; r++) assert_int_equal(!isfinite(y[t * N + r]), t == 2 || t == 9);
            be.ops->free_weight(&be, &w);
            backend_close(&be);
        }
    qbuffer_free(&b);
}

/* ---- extremes ---- */

/* Activations of one magnitude, so that all their integers are 127 or −127: alike, alternating, or at random. */
static void extreme_activations(float *x, int64_t n, int kind, struct rng *rng)
{
    for (int64_t i = 0; i < n; i++) x[i] = kind == 0 ? 1.5f : (kind == 1 ? i % 2 : (int)rng_below(rng, 2)) ? -1.5f : 1.5f;
}

static void one_extreme(const struct format *f, enum compute c, struct shape s, uint8_t codes, uint8_t zeros, float scale,
                        int kind, struct rng *rng)
{
    struct qbuffer b;
    struct panels plan;
    char label[100];
    qfill(&b, f, s.n_out, s.n_in, model_dtypes[s.n_tok % 3], codes, zeros, scale);
    float *x = guard_new(s.n_tok * s.n_in), *bias = mem_new((size_t)s.n_out, 4);
    extreme_activations(x, s.n_tok * s.n_in, kind, rng);
    struct qweight exact = b.w; /* integers times scales, without rounding the product to 16 bits */
    bool ints = (c == COMPUTE_INT8 || c == COMPUTE_INT8X2) && panels_plan(&plan, &b.w, c == COMPUTE_INT8X2);
    if (ints && !plan.recoded) exact.out_dtype = DT_F32;
    struct expected e = expect(&exact, x, bias, s.n_tok, c == COMPUTE_BF16 && f->kind == CODE_FLOAT);
    double rel = (double)(s.n_in + 8) * 0x1p-23, abs = 1e-36;
    /* integers for a book's values are off by half a step of their largest, and those of what is left by as much of that */
    if (ints && f->kind == CODE_BOOK) abs += (double)s.n_in * 1.5 * scale * (c == COMPUTE_INT8 ? 0x1p-7 : 0x1p-14);
    /* recoded weights by half a step of their largest in 32 columns */
    float most = 0, *row = mem_array((size_t)s.n_in, sizeof *row);
    for (int64_t r = 0; r < s.n_out; r++) {
        qweight_rows_f32(&b.w, r, 1, row);
        for (int64_t k = 0; k < s.n_in; k++) most = fmaxf(most, fabsf(row[k]));
    }
    free(row);
    if (ints && plan.recoded) abs += (double)s.n_in * 1.5 * (most * (c == COMPUTE_INT8 ? 1. / 254 : 1. / 64516) + 0x1p-26);
    snprintf(label, sizeof label, "%s, codes %02x, zeros %02x, scale %g, activations %d", f->name, codes, zeros, scale, kind);
    one(c, &b.w, x, bias, s.n_tok, &e, rel, abs, label);
    guard_check(x, s.n_tok * s.n_in, "x");
    free(e.sum);
    free(e.size);
    free(bias);
    qbuffer_free(&b);
}

static void test_extremes(void **state)
{
    (void)state;
    static const enum compute computes[] = {COMPUTE_F32, COMPUTE_BF16, COMPUTE_INT8, COMPUTE_INT8X2};
    static const float scales[] = {0, 6e-8f, 0.0625f, 0.0123f}; /* 6e-8: subnormal in f16 */
    static const int64_t widths[] = {1, 31, 64, 200, 320, 577};
    static const struct format others[] = {{"g24", CODE_INT, CONT_CT, DT_F32, 4, 24, false, NULL, false},
                                           {"g32-int8", CODE_INT, CONT_CT, DT_F32, 8, 32, true, NULL, false},
                                           {"row-int8-asym", CODE_INT, CONT_CT, DT_F32, 8, 0, false, NULL, false}};
    size_t n, n_more = sizeof others / sizeof *others, turn = 0;
    const struct format *table = format_table(&n);
    struct rng rng = {34};
    for (size_t i = 0; i < n + n_more; i++) {
        const struct format *f = i < n ? &table[i] : &others[i - n];
        if (f->double_quant) continue;
        for (size_t c = 0; c < sizeof computes / sizeof *computes; c++)
            for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
                for (int bytes = 0; bytes < (f->kind == CODE_FLOAT ? 1 : 4); bytes++, turn++) {
                    struct shape at = {1 + (int64_t)(turn * 7 % 40), widths[turn % 6], 1 + (int64_t)(turn * 5 % 17)};
                    if (f->kind == CODE_BOOK && at.n_in % 2) at.n_in = 96; /* a book's rows are whole bytes */
                    one_extreme(f, computes[c], at, bytes % 2 ? 0xff : 0, bytes / 2 ? 0xff : 0, scales[s],
                                (int)(turn % 3), &rng);
                }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16_shapes), cmocka_unit_test(test_bf16_kernels_agree),
                                       cmocka_unit_test(test_bf16_not_finite), cmocka_unit_test(test_extremes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
