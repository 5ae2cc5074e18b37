/* Fused ops of the CPU backend against the ops they stand for: the same bits, for every instruction set, compute, mix of
 * formats, number of tokens and threads. */
#include "backend/backend_impl.h"
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

static const double eps = 1e-5;
static const enum compute computes[] = {COMPUTE_F32, COMPUTE_BF16, COMPUTE_INT8, COMPUTE_INT8X2};
enum { N_COMPUTES = sizeof computes / sizeof *computes };

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
        for (size_t c = 0; c < N_COMPUTES; c++) {
            struct backend be;
            struct err e;
            assert_int_equal(cpu_open(&be, computes[c], (enum isa)isa, &e), 0);
            for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++)
                for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                    for (int threads = 1; threads <= 3; threads += 2) {
                        char label[80];
                        snprintf(label, sizeof label, "%s %s %s…, %d threads", isa_name((enum isa)isa), compute_name(computes[c]),
                                 mixes[m][0], threads);
                        par_set_threads(threads);
                        one(&be, mixes[m], shapes[s], &rng, label);
                    }
            backend_close(&be);
        }
}

/* ---- rotation, append and attention ---- */

enum { SPANS = 3 };

static struct kv_cache kv_new(int64_t capacity, int64_t heads, int64_t hd, enum dtype t, struct rng *rng)
{
    struct kv_cache kv = {.dtype = t, .n_layers = 2, .capacity = (capacity + KV_ROUND - 1) / KV_ROUND * KV_ROUND,
                          .n_kv_heads = heads, .head_dim = hd};
    int64_t n = kv.n_layers * kv.capacity * heads * hd;
    kv.bytes = 2 * (size_t)n * (t == DT_F32 ? 4 : 2);
    kv.k = mem_array(kv.bytes / 2, 1);
    kv.v = mem_array(kv.bytes / 2, 1);
    for (int64_t i = 0; i < n; i++)
        for (int side = 0; side < 2; side++) {
            void *p = side ? kv.v : kv.k;
            if (t == DT_F32)
                ((float *)p)[i] = (float)rng_normal(rng);
            else
                ((uint16_t *)p)[i] = f32_to_f16((float)rng_normal(rng));
        }
    return kv;
}

struct heads {
    int64_t n_heads, n_kv, hd;
};

static void one_attention(struct backend *be, struct heads h, enum dtype t, const int64_t *depth, const int64_t *n_new,
                          bool norms, struct rng *rng, const char *what)
{
    const struct backend_ops *ops = be->ops;
    struct kv_cache kv[2][SPANS];
    struct span spans[2][SPANS];
    int64_t rows = 0;
    float inv_freq[64];
    for (int64_t j = 0; j < h.hd / 2; j++) inv_freq[j] = (float)pow(10000, -2.0 * (double)j / (double)h.hd);
    for (int s = 0; s < SPANS; s++) {
        kv[0][s] = kv_new(depth[s] + n_new[s], h.n_kv, h.hd, t, rng);
        kv[0][s].n = depth[s];
        kv[1][s] = kv[0][s];
        kv[1][s].k = memcpy(mem_array(kv[0][s].bytes / 2, 1), kv[0][s].k, kv[0][s].bytes / 2);
        kv[1][s].v = memcpy(mem_array(kv[0][s].bytes / 2, 1), kv[0][s].v, kv[0][s].bytes / 2);
        for (int i = 0; i < 2; i++) spans[i][s] = (struct span){&kv[i][s], rows, n_new[s]};
        rows += n_new[s];
    }
    int64_t nq = rows * h.n_heads * h.hd, nk = rows * h.n_kv * h.hd;
    float *q[2], *k[2], *v = guard_new(nk), *out[2], *norm = mem_array((size_t)h.hd * 2, 4);
    random_floats(rng, v, nk);
    random_floats(rng, norm, 2 * h.hd);
    for (int i = 0; i < 2; i++) {
        q[i] = guard_new(nq);
        k[i] = guard_new(nk);
        out[i] = guard_new(nq);
    }
    for (int64_t i = 0; i < nq; i++) q[0][i] = q[1][i] = (float)rng_normal(rng);
    for (int64_t i = 0; i < nk; i++) k[0][i] = k[1][i] = (float)rng_normal(rng);
    if (norms) {
        ops->rmsnorm(be, q[0], q[0], norm, rows * h.n_heads, h.hd, eps);
        ops->rmsnorm(be, k[0], k[0], norm + h.hd, rows * h.n_kv, h.hd, eps);
    }
    ops->rope(be, q[0], spans[0], SPANS, h.n_heads, h.hd, inv_freq);
    ops->rope(be, k[0], spans[0], SPANS, h.n_kv, h.hd, inv_freq);
    ops->kv_append(be, spans[0], SPANS, 1, k[0], v);
    ops->attention(be, out[0], q[0], spans[0], SPANS, 1, h.n_heads);
    struct rope_attention a = {q[1], k[1], v, norms ? norm : NULL, norms ? norm + h.hd : NULL, eps, inv_freq};
    ops->rope_attention(be, out[1], &a, spans[1], SPANS, 1, h.n_heads);
    same(out[1], out[0], nq, what);
    for (int s = 0; s < SPANS; s++) {
        if (memcmp(kv[0][s].k, kv[1][s].k, kv[0][s].bytes / 2) || memcmp(kv[0][s].v, kv[1][s].v, kv[0][s].bytes / 2))
            fail_msg("%s: the cache holds other bits", what);
        for (int i = 0; i < 2; i++) {
            free(kv[i][s].k);
            free(kv[i][s].v);
        }
    }
    for (int i = 0; i < 2; i++) {
        guard_check(q[i], nq, what);
        guard_check(k[i], nk, what);
        guard_check(out[i], nq, what);
    }
    guard_check(v, nk, what);
    free(norm);
}

static void test_rope_attention(void **state)
{
    (void)state;
    static const struct heads heads[] = {{4, 2, 16}, {9, 3, 64}, {2, 2, 20}, {4, 4, 128}, {7, 1, 48}};
    static const int64_t cases[][2][SPANS] = {{{0, 0, 0}, {1, 1, 1}},       {{127, 128, 129}, {1, 1, 1}},
                                              {{700, 15, 255}, {1, 1, 1}},  {{300, 0, 31}, {1, 2, 1}},
                                              {{0, 17, 130}, {40, 0, 1}}};
    struct rng rng = {22};
    for (int isa = 0; isa <= (int)isa_best(); isa++) {
        struct backend be;
        struct err e;
        assert_int_equal(cpu_open(&be, COMPUTE_F32, (enum isa)isa, &e), 0);
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
            for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
                for (int i = (int)c % 2; i < 12; i += 2) { /* every second variant, in turn */
                    char what[120];
                    snprintf(what, sizeof what, "rope_attention %s, %d heads of %d, depth %d, %d threads",
                             isa_name((enum isa)isa), (int)heads[h].n_heads, (int)heads[h].hd, (int)cases[c][0][0], i / 4 + 1);
                    par_set_threads(i / 4 + 1);
                    one_attention(&be, heads[h], (i + (int)h) % 2 ? DT_F16 : DT_F32, cases[c][0], cases[c][1],
                                  i / 2 % 2, &rng, what);
                }
        backend_close(&be);
    }
}

/* ---- greedy choice ---- */

static void test_argmax(void **state)
{
    (void)state;
    static const char *const names[] = {"f32", "f16", "int8-row", "int4-g64", "int4-strided128"};
    static const int64_t sizes[] = {1, 15, 17, 300, 5003};
    enum { K = 256 };
    struct rng rng = {23};
    for (int isa = 0; isa <= (int)isa_best(); isa++)
        for (size_t c = 0; c < N_COMPUTES; c++)
            for (size_t f = 0; f < sizeof names / sizeof *names; f++)
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                    for (int zero = 0; zero < 2; zero++) { /* all logits equal: the lowest index */
                        struct backend be;
                        struct err e;
                        struct qbuffer b;
                        struct weight w;
                        struct score sc;
                        float x[K], *logits = guard_new(sizes[s]);
                        int32_t target = 0;
                        random_floats(&rng, x, K);
                        if (zero) memset(x, 0, sizeof x);
                        assert_int_equal(cpu_open(&be, computes[c], (enum isa)isa, &e), 0);
                        qrandom(&b, format_find(names[f]), sizes[s], K, DT_F16, &rng, false);
                        assert_int_equal(be.ops->load_weight(&be, &w, &b.w, &e), 0);
                        be.ops->matmul(&be, &(struct matmul){logits, &w, NULL}, 1, x, 1);
                        be.ops->score(&be, &sc, logits, &target, 1, sizes[s]);
                        for (int threads = 1; threads <= 3; threads++) {
                            par_set_threads(threads);
                            assert_int_equal(be.ops->argmax(&be, &w, x, logits), sc.argmax);
                            if (zero) assert_int_equal(sc.argmax, 0);
                        }
                        guard_check(logits, sizes[s], names[f]);
                        be.ops->free_weight(&be, &w);
                        qbuffer_free(&b);
                        backend_close(&be);
                    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_rope_attention),
                                       cmocka_unit_test(test_argmax)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
