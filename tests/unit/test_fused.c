/* Fused ops of the CPU backend against the ops they stand for: the same bits, for every instruction set, compute, mix of
 * formats, number of tokens and threads. */
#include "backend/backend_impl.h"
#include "base/mem.h"
#include "base/par.h"
#include "qrandom.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const double eps = 1e-5;

/* n weights of one input width, their biases (every second one) and places for results. */
struct set {
    int n;
    struct qbuffer b[3];
    struct weight w[3];
    float *bias[3];
    struct matmul got[3], want[3];
    int64_t n_tok;
};

static void set_open(struct set *s, struct backend *be, const char *const *formats, const int64_t *n_out, int n, int64_t n_in,
                     int64_t n_tok, struct rng *rng)
{
    struct err e;
    *s = (struct set){.n = n, .n_tok = n_tok};
    for (int j = 0; j < n; j++) {
        qrandom(&s->b[j], format_find(formats[j]), n_out[j], n_in, DT_F16, rng, false);
        assert_int_equal(be->ops->load_weight(be, &s->w[j], &s->b[j].w, &e), 0);
        if (j % 2 == 0) {
            s->bias[j] = mem_array((size_t)n_out[j], 4);
            random_floats(rng, s->bias[j], n_out[j]);
        }
        s->got[j] = (struct matmul){guard_new(n_tok * n_out[j]), &s->w[j], s->bias[j]};
        s->want[j] = (struct matmul){guard_new(n_tok * n_out[j]), &s->w[j], s->bias[j]};
    }
}

static void set_close(struct set *s, struct backend *be, const char *what)
{
    for (int j = 0; j < s->n; j++) {
        guard_check(s->got[j].y, s->n_tok * s->w[j].n_out, what);
        guard_check(s->want[j].y, s->n_tok * s->w[j].n_out, what);
        be->ops->free_weight(be, &s->w[j]);
        qbuffer_free(&s->b[j]);
        free(s->bias[j]);
    }
}

static void same(const float *got, const float *want, int64_t n, const char *what)
{
    if (memcmp(got, want, (size_t)n * sizeof *got)) fail_msg("%s: other bits than the ops it stands for", what);
}

struct shape {
    int64_t n_in, n_out, n_tok;
};

static void one(struct backend *be, const char *const *formats, struct shape s, struct rng *rng, const char *label)
{
    const struct backend_ops *ops = be->ops;
    char what[160];
    int64_t n_x = s.n_tok * s.n_in, n_y = s.n_tok * s.n_out;
    float *x = guard_new(n_x), *h = mem_array((size_t)n_x, 4), *norm = mem_array((size_t)s.n_in, 4);
    random_floats(rng, x, n_x);
    random_floats(rng, norm, s.n_in);
    ops->rmsnorm(be, h, x, norm, s.n_tok, s.n_in, eps);

    struct set q;
    snprintf(what, sizeof what, "norm_matmul %s, %d to %d, %d tokens", label, (int)s.n_in, (int)s.n_out, (int)s.n_tok);
    set_open(&q, be, formats, (const int64_t[]){s.n_out, 5, s.n_out + 7}, 3, s.n_in, s.n_tok, rng);
    ops->matmul(be, q.want, 3, h, s.n_tok);
    ops->norm_matmul(be, q.got, 3, x, norm, eps, s.n_tok);
    for (int j = 0; j < 3; j++) same(q.got[j].y, q.want[j].y, s.n_tok * q.w[j].n_out, what);
    set_close(&q, be, what);

    snprintf(what, sizeof what, "matmul_add %s, %d to %d, %d tokens", label, (int)s.n_in, (int)s.n_out, (int)s.n_tok);
    set_open(&q, be, formats, &s.n_out, 1, s.n_in, s.n_tok, rng);
    float *sum = guard_new(n_y), *expect = guard_new(n_y);
    random_floats(rng, sum, n_y);
    memcpy(expect, sum, (size_t)n_y * 4);
    ops->matmul(be, q.want, 1, x, s.n_tok);
    ops->add(be, expect, q.want[0].y, n_y);
    ops->matmul_add(be, sum, &q.w[0], q.bias[0], x, s.n_tok);
    same(sum, expect, n_y, what);
    guard_check(sum, n_y, what);
    guard_check(expect, n_y, what);
    set_close(&q, be, what);

    snprintf(what, sizeof what, "gate_up %s, %d to %d, %d tokens", label, (int)s.n_in, (int)s.n_out, (int)s.n_tok);
    set_open(&q, be, formats, (const int64_t[]){s.n_out, s.n_out}, 2, s.n_in, s.n_tok, rng);
    ops->matmul(be, q.want, 2, h, s.n_tok);
    ops->swiglu(be, q.want[0].y, q.want[0].y, q.want[1].y, n_y);
    float *y = guard_new(n_y);
    ops->gate_up(be, y, q.got, x, norm, eps, s.n_tok);
    same(y, q.want[0].y, n_y, what);
    ops->gate_up(be, q.got[0].y, q.got, x, norm, eps, s.n_tok); /* in place, as the forward pass has it */
    same(q.got[0].y, q.want[0].y, n_y, what);
    guard_check(y, n_y, what);
    set_close(&q, be, what);
    guard_check(x, n_x, "x");
    free(h);
    free(norm);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const char *const mixes[][3] = {{"int4-g64", "int4-g64", "int4-g64"}, {"int8-row", "int4-g32-sym", "nf4"},
                                           {"f16", "f16", "f16"},                {"f32", "bf16", "int4-strided128"},
                                           {"int4-g128", "f16", "int8-row"},     {"bf16", "int4-g64", "f16"}};
    static const struct shape shapes[] = {{64, 40, 1},   {576, 192, 1}, {192, 33, 3},  {256, 16, 4},   {320, 77, 5},
                                          {64, 1, 8},    {128, 130, 9}, {576, 50, 17}, {192, 200, 70}, {640, 300, 2},
                                          {1600, 300, 1}};
    struct rng rng = {21};
    for (int isa = 0; isa <= (int)isa_best(); isa++)
        for (int c = 0; c < 2; c++) {
            struct backend be;
            struct err e;
            assert_int_equal(cpu_open(&be, c ? COMPUTE_INT8 : COMPUTE_F32, (enum isa)isa, &e), 0);
            for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++)
                for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                    for (int threads = 1; threads <= 3; threads++) {
                        char label[80];
                        snprintf(label, sizeof label, "%s %s %s…, %d threads", isa_name((enum isa)isa), c ? "int8" : "f32",
                                 mixes[m][0], threads);
                        par_set_threads(threads);
                        one(&be, mixes[m], shapes[s], &rng, label);
                    }
            backend_close(&be);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
