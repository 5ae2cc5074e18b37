/* The other ops of the CPU backend, every instruction set this machine has, against the oracle: attention over ragged
 * batches, norms, rotary embedding, SwiGLU, scores, divergences. */
#include "backend/backend_impl.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/par.h"
#include "golden.h"
#include "qrandom.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct backend ref, cpu[ISA_AVX512 + 1];
static int n_isa;

static void same_bits(const void *a, const void *b, size_t n, const char *what)
{
    if (memcmp(a, b, n)) fail_msg("%s: other bits", what);
}

/* ---- attention ---- */

static struct kv_cache kv_new(int64_t capacity, int64_t heads, int64_t hd, enum dtype t)
{
    struct kv_cache kv = {.dtype = t, .n_layers = 2, .capacity = (capacity + KV_ROUND - 1) / KV_ROUND * KV_ROUND,
                          .n_kv_heads = heads, .head_dim = hd};
    kv.bytes = 2 * (size_t)(kv.n_layers * kv.capacity * heads * hd) * (t == DT_F32 ? 4 : 2);
    kv.k = mem_array(kv.bytes / 2, 1);
    kv.v = mem_array(kv.bytes / 2, 1);
    memset(kv.k, 0xff, kv.bytes / 2); /* NaN: what was not stored must not count */
    memset(kv.v, 0xff, kv.bytes / 2);
    return kv;
}

struct heads {
    int64_t n_heads, n_kv, hd;
};
enum { SPANS = 3 };

/* Stores `depth` tokens one way, then runs the new ones; returns the output (rows, n_heads·hd). */
static float *attend(struct backend *be, const struct heads *h, enum dtype t, const int64_t *depth, const int64_t *n_new,
                     const float *q, const float *k, const float *v)
{
    struct kv_cache kv[SPANS];
    struct span before[SPANS], now[SPANS];
    int64_t row = h->n_kv * h->hd, rows = 0, kv_row = 0;
    for (int s = 0; s < SPANS; s++) {
        kv[s] = kv_new(depth[s] + n_new[s], h->n_kv, h->hd, t);
        before[s] = (struct span){&kv[s], kv_row, depth[s]};
        kv_row += depth[s];
    }
    be->ops->kv_append(be, before, SPANS, 1, k, v);
    for (int s = 0; s < SPANS; s++) {
        kv[s].n = depth[s];
        now[s] = (struct span){&kv[s], rows, n_new[s]};
        rows += n_new[s];
    }
    be->ops->kv_append(be, now, SPANS, 1, k + kv_row * row, v + kv_row * row);
    float *out = guard_new(rows * h->n_heads * h->hd);
    be->ops->attention(be, out, q, now, SPANS, 1, h->n_heads);
    for (int s = 0; s < SPANS; s++) {
        free(kv[s].k);
        free(kv[s].v);
    }
    return out;
}

static void one_attention(const struct heads *h, enum dtype t, const int64_t *depth, const int64_t *n_new,
                          struct rng *rng)
{
    int64_t rows = 0, all = 0;
    for (int s = 0; s < SPANS; s++) {
        rows += n_new[s];
        all += depth[s] + n_new[s];
    }
    int64_t n = rows * h->n_heads * h->hd, n_kv = all * h->n_kv * h->hd;
    float *q = mem_array((size_t)n, 4), *k = mem_array((size_t)n_kv, 4), *v = mem_array((size_t)n_kv, 4);
    for (int64_t i = 0; i < n; i++) q[i] = (float)(2 * rng_normal(rng));
    for (int64_t i = 0; i < n_kv; i++) k[i] = (float)rng_normal(rng), v[i] = (float)rng_normal(rng);
    float *want = attend(&ref, h, t, depth, n_new, q, k, v);
    for (int i = 0; i < n_isa; i++) {
        char what[120];
        snprintf(what, sizeof what, "attention %s %d/%d heads of %d, depth %d, %d new", cpu[i].ops->name, (int)h->n_heads,
                 (int)h->n_kv, (int)h->hd, (int)depth[0], (int)n_new[0]);
        float *first = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            par_set_threads(threads);
            float *got = attend(&cpu[i], h, t, depth, n_new, q, k, v);
            if (!first) {
                compare(got, want, n, 1e-11, 2e-5, 0, what);
                first = memcpy(mem_array((size_t)n, 4), got, (size_t)n * 4);
            }
            same_bits(got, first, (size_t)n * 4, what);
            guard_check(got, n, what);
        }
        free(first);
    }
    guard_check(want, n, "attention of the oracle");
    free(q);
    free(k);
    free(v);
}

static void test_attention(void **state)
{
    (void)state;
    static const struct heads heads[] = {{4, 2, 16}, {9, 3, 64}, {2, 2, 20}, {6, 1, 80}, {4, 4, 128}, {7, 1, 48}};
    static const int64_t cases[][2][SPANS] = {
        {{0, 0, 0}, {1, 1, 1}},      {{0, 3, 130}, {5, 1, 2}},     {{127, 128, 129}, {1, 1, 1}},
        {{0, 17, 0}, {40, 0, 7}},    {{255, 1, 640}, {4, 3, 2}},   {{300, 0, 31}, {1, 2, 1}},
        {{0, 120, 16}, {150, 20, 33}},
    };
    struct rng rng = {5};
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            for (int t = 0; t < 2; t++)
                one_attention(&heads[h], t ? DT_F16 : DT_F32, cases[c][0], cases[c][1], &rng);
    /* wider than any piece of scratch */
    for (int t = 0; t < 2; t++) one_attention(&(struct heads){2, 1, 1100}, t ? DT_F16 : DT_F32, cases[1][0], cases[1][1], &rng);
}

/* A prompt at once, in pieces and token by token: the same bits. */
static void test_attention_pieces(void **state)
{
    (void)state;
    enum { N = 300, H = 6, KV = 2, HD = 64 };
    struct rng rng = {6};
    float *q = mem_array(N * H * HD, 4), *k = mem_array(N * KV * HD, 4), *v = mem_array(N * KV * HD, 4);
    random_floats(&rng, q, N * H * HD);
    random_floats(&rng, k, N * KV * HD);
    random_floats(&rng, v, N * KV * HD);
    static const int64_t piece[] = {N, 77, 3, 1};
    for (int i = 0; i < 2 * n_isa; i++) {
        float *first = NULL;
        struct backend *be = &cpu[i / 2];
        for (int p = 0; p < 4; p++) {
            struct kv_cache kv = kv_new(N, KV, HD, i % 2 ? DT_F32 : DT_F16);
            float *out = guard_new(N * H * HD);
            for (int64_t at = 0; at < N; at += piece[p]) {
                int64_t n = N - at < piece[p] ? N - at : piece[p];
                struct span s = {&kv, 0, n};
                be->ops->kv_append(be, &s, 1, 0, k + at * KV * HD, v + at * KV * HD);
                be->ops->attention(be, out + at * H * HD, q + at * H * HD, &s, 1, 0, H);
                kv.n += n;
            }
            if (!first) first = memcpy(mem_array(N * H * HD, 4), out, N * H * HD * 4);
            same_bits(out, first, N * H * HD * 4, "attention in pieces");
            guard_check(out, N * H * HD, "attention in pieces");
            free(kv.k);
            free(kv.v);
        }
        free(first);
    }
    free(q);
    free(k);
    free(v);
}

/* ---- elementwise ---- */

static void test_norm_swiglu_add(void **state)
{
    (void)state;
    static const int64_t widths[] = {1, 5, 16, 31, 64, 576, 1000};
    struct rng rng = {7};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int i = 0; i < n_isa; i++) {
            int64_t n = widths[s], rows = 41, all = rows * n;
            float *x = mem_array((size_t)all, 4), *u = mem_array((size_t)all, 4), *w = mem_array((size_t)n, 4);
            float *want = mem_array((size_t)all, 4);
            random_floats(&rng, x, all);
            random_floats(&rng, u, all);
            random_floats(&rng, w, n);
            const float odd[] = {0, -0.0f, 87.9f, -87.9f, 88.5f, -88.5f, 103, -103, 1e-30f, -1e4f, 1e4f, 3e-39f};
            for (int64_t j = 0; j < all && j < 12; j++) x[j * (all / 12 > 0 ? all / 12 : 1)] = odd[j];
            for (int threads = 1; threads <= 2; threads++) {
                par_set_threads(threads);
                float *got = guard_new(all);
                ref.ops->rmsnorm(&ref, want, x, w, rows, n, 1e-5);
                cpu[i].ops->rmsnorm(&cpu[i], got, x, w, rows, n, 1e-5);
                compare(got, want, all, 1e-13, 1e-37, 3e-7, "rmsnorm");
                ref.ops->swiglu(&ref, want, x, u, all);
                cpu[i].ops->swiglu(&cpu[i], got, x, u, all);
                compare(got, want, all, 1e-13, 3e-34, 6e-7, "swiglu");
                memcpy(want, x, (size_t)all * 4);
                memcpy(got, x, (size_t)all * 4);
                ref.ops->add(&ref, want, u, all);
                cpu[i].ops->add(&cpu[i], got, u, all);
                same_bits(got, want, (size_t)all * 4, "add");
                cpu[i].ops->rmsnorm(&cpu[i], got, got, w, rows, n, 1e-5); /* in place */
                ref.ops->rmsnorm(&ref, want, want, w, rows, n, 1e-5);
                compare(got, want, all, 1e-13, 1e-37, 3e-7, "rmsnorm in place");
                guard_check(got, all, "elementwise");
            }
            free(x);
            free(u);
            free(w);
            free(want);
        }
}

static void test_nan_is_not_hidden(void **state)
{
    (void)state;
    for (int i = 0; i < n_isa; i++)
        for (int64_t at = 0; at < 37; at += 5) {
            float x[37], u[37], y[37];
            for (int j = 0; j < 37; j++) x[j] = (float)j / 8, u[j] = 1;
            x[at] = NAN;
            cpu[i].ops->swiglu(&cpu[i], y, x, u, 37);
            assert_true(isnan(y[at]) && isfinite(y[(at + 1) % 37]));
            struct score s;
            cpu[i].ops->score(&cpu[i], &s, x, (int32_t[]){3}, 1, 37);
            assert_true(isnan(s.lse) && s.argmax >= 0 && s.argmax < 37);
        }
}

static void test_rope(void **state)
{
    (void)state;
    static const struct heads heads[] = {{3, 3, 64}, {2, 2, 16}, {1, 1, 50}, {5, 5, 128}};
    struct rng rng = {8};
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (int i = 0; i < n_isa; i++) {
            int64_t hd = heads[h].hd, nh = heads[h].n_heads;
            struct kv_cache kv[2] = {{.n = 0}, {.n = 100003}};
            struct span spans[2] = {{&kv[0], 0, 70}, {&kv[1], 70, 3}};
            int64_t n = 73 * nh * hd;
            float *want = mem_array((size_t)n, 4), *got = guard_new(n), inv_freq[64];
            for (int64_t j = 0; j < hd / 2; j++) inv_freq[j] = (float)pow(10000, -2.0 * (double)j / (double)hd);
            random_floats(&rng, want, n);
            memcpy(got, want, (size_t)n * 4);
            ref.ops->rope(&ref, want, spans, 2, nh, hd, inv_freq);
            cpu[i].ops->rope(&cpu[i], got, spans, 2, nh, hd, inv_freq);
            compare(got, want, n, 1e-13, 4e-6, 0, "rope");
            guard_check(got, n, "rope");
            free(want);
        }
}

/* A pair (1, 0) turns into (cos, sin): the golden values of five real settings. */
static void test_rope_golden(void **state)
{
    (void)state;
    json_t *g = golden_load("numeric.json"), *set;
    size_t s, p;
    int checked = 0;
    json_array_foreach(golden_get(g, "rope"), s, set)
    {
        size_t half, n;
        double *f = golden_nums(golden_get(set, "inv_freq"), &half);
        float inv_freq[256];
        for (size_t j = 0; j < half; j++) inv_freq[j] = (float)f[j];
        free(f);
        json_t *pos;
        json_array_foreach(golden_get(set, "positions"), p, pos)
        {
            double *c = golden_nums(json_array_get(golden_get(set, "cos"), p), &n);
            double *sn = golden_nums(json_array_get(golden_get(set, "sin"), p), &n);
            for (int i = -1; i < n_isa; i++) {
                struct backend *be = i < 0 ? &ref : &cpu[i];
                struct kv_cache kv = {.n = json_integer_value(pos)};
                float x[512] = {0};
                for (size_t j = 0; j < half; j++) x[j] = 1;
                be->ops->rope(be, x, &(struct span){&kv, 0, 1}, 1, 1, 2 * (int64_t)half, inv_freq);
                for (size_t j = 0; j < n; j++, checked++) /* every 4th pair is in the file */
                    if (!(fabs(x[4 * j] - c[j]) <= 1e-6 && fabs(x[half + 4 * j] - sn[j]) <= 1e-6))
                        fail_msg("rope: position %lld, pair %d: (%.9g, %.9g), golden (%.9g, %.9g)", (long long)kv.n,
                                 (int)(4 * j), x[4 * j], x[half + 4 * j], c[j], sn[j]);
            }
            free(c);
            free(sn);
        }
    }
    assert_true(checked > 100);
    json_decref(g);
}

/* ---- logits ---- */

static void test_score_and_diverge(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 15, 256, 8192, 8193, 49152, 50001};
    struct rng rng = {9};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int i = 0; i < n_isa; i++) {
            enum { T = 3 };
            int64_t n = sizes[s];
            float *a = mem_array((size_t)(T * n), 4), *b = mem_array((size_t)(T * n), 4);
            for (int64_t j = 0; j < T * n; j++) {
                a[j] = (float)(4 * rng_normal(&rng));
                b[j] = a[j] + (float)(0.3 * rng_normal(&rng));
            }
            for (int64_t j = n / 2; j < n; j++) a[j] = a[j] > 8 ? 8 : a[j]; /* equal maxima: the lowest index */
            if (n > 40) a[n + 7] = a[n + 33] = 60, a[2 * n + 11] = -INFINITY;
            int32_t targets[T] = {0, (int32_t)(n / 2), (int32_t)(n - 1)};
            struct score want[T], got[T], one[T];
            struct divergence dw[T], d[T], d1[T];
            ref.ops->score(&ref, want, a, targets, T, n);
            for (int64_t j = 2 * n; j < 3 * n; j++) a[j] = a[j] == -INFINITY ? -20 : a[j];
            for (int threads = 3; threads >= 1; threads--) {
                par_set_threads(threads);
                if (n > 40) a[2 * n + 11] = -INFINITY;
                cpu[i].ops->score(&cpu[i], threads == 3 ? got : one, a, targets, T, n);
                if (n > 40) a[2 * n + 11] = -20;
                cpu[i].ops->diverge(&cpu[i], threads == 3 ? d : d1, a, b, targets, T, n);
                if (threads < 3)
                    for (int t = 0; t < T; t++)
                        assert_true(one[t].lse == got[t].lse && one[t].argmax == got[t].argmax && d1[t].kld == d[t].kld &&
                                    d1[t].nll_ref == d[t].nll_ref && d1[t].nll_model == d[t].nll_model);
            }
            ref.ops->diverge(&ref, dw, a, b, targets, T, n);
            for (int t = 0; t < T; t++) {
                assert_true(isfinite(got[t].lse) && fabs(got[t].lse - want[t].lse) <= 1e-12 * (1 + fabs(want[t].lse)));
                assert_int_equal(got[t].argmax, want[t].argmax);
                assert_true(got[t].target == want[t].target);
                assert_true(isfinite(d[t].kld) && fabs(d[t].kld - dw[t].kld) <= 1e-12);
                assert_true(fabs(d[t].nll_ref - dw[t].nll_ref) <= 1e-11 && fabs(d[t].nll_model - dw[t].nll_model) <= 1e-11);
                assert_true(fabs(d[t].p_ref - dw[t].p_ref) <= 1e-12 && fabs(d[t].p_model - dw[t].p_model) <= 1e-12);
                assert_int_equal(d[t].argmax_ref, dw[t].argmax_ref);
                assert_int_equal(d[t].argmax_model, dw[t].argmax_model);
            }
            cpu[i].ops->diverge(&cpu[i], d, b, b, targets, T, n);
            for (int t = 0; t < T; t++) assert_true(d[t].kld == 0 && d[t].nll_ref == d[t].nll_model);
            free(a);
            free(b);
        }
}

int main(void)
{
    struct err e;
    if (cpu_ref_open(&ref, COMPUTE_F32, &e)) return 1;
    for (; n_isa <= (int)isa_best(); n_isa++)
        if (cpu_open(&cpu[n_isa], COMPUTE_F32, (enum isa)n_isa, &e)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_attention_pieces),
        cmocka_unit_test(test_rope),       cmocka_unit_test(test_rope_golden),
        cmocka_unit_test(test_norm_swiglu_add), cmocka_unit_test(test_nan_is_not_hidden),
        cmocka_unit_test(test_score_and_diverge),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    backend_close(&ref);
    for (int i = 0; i < n_isa; i++) backend_close(&cpu[i]);
    return failed;
}
