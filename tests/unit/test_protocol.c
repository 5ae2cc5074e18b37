/* Windows of each protocol, against the counts published for them, and against a re-statement of the sliding recipe. */
#include "eval/protocol.h"
#include "eval/text.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void llamacpp_counts(void **state)
{
    (void)state;
    struct windows ws;
    struct err e;
    /* WikiText-2 raw under the Llama-3 tokenizer: 564 chunks, 255 scored tokens each, BOS replaced */
    assert_int_equal(windows_make(&ws, PROTO_LLAMACPP, 289078, 0, 0, 0, 131072, true, &e), 0);
    assert_int_equal(ws.n, 564);
    assert_int_equal(ws.n_scored, 143820);
    assert_int_equal(ws.w[563].start, 563 * 512);
    assert_int_equal(ws.w[0].first, 256);
    assert_true(ws.replace_bos);
    windows_free(&ws);
    /* SmolLM2: 592 chunks, no BOS; capped */
    assert_int_equal(windows_make(&ws, PROTO_LLAMACPP, 303415, 0, 0, 0, 8192, false, &e), 0);
    assert_int_equal(ws.n, 592);
    assert_false(ws.replace_bos);
    windows_free(&ws);
    assert_int_equal(windows_make(&ws, PROTO_LLAMACPP, 303415, 0, 0, 10, 8192, false, &e), 0);
    assert_int_equal(ws.n_scored, 2550);
    windows_free(&ws);
}

static void gptq_counts(void **state)
{
    (void)state;
    struct windows ws;
    struct err e;
    assert_int_equal(windows_make(&ws, PROTO_GPTQ, 289077, 0, 0, 0, 131072, true, &e), 0);
    assert_int_equal(ws.n, 141);
    assert_int_equal(ws.n_scored, 141 * 2047);
    assert_false(ws.replace_bos);
    windows_free(&ws);
    assert_int_equal(windows_make(&ws, PROTO_GPTQ, 299078, 0, 0, 0, 32768, false, &e), 0);
    assert_int_equal(ws.n, 146);
    windows_free(&ws);
}

/* The recipe as its authors write it: which (row, weight) pairs count for n tokens. */
static void sliding_recipe(void **state)
{
    (void)state;
    const int64_t cases[][3] = {{479, 4096, 512}, {2, 4096, 512}, {513, 512, 512}, {1000, 300, 128}, {4097, 4096, 512},
                                {5000, 512, 512}, {777, 64, 1}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int64_t n = cases[k][0], ctx = cases[k][1], stride = cases[k][2];
        struct windows ws;
        struct err e;
        assert_int_equal(windows_make(&ws, PROTO_HF_SLIDING, n, ctx, stride, 0, 8192, true, &e), 0);
        int64_t prev = 0, i = 0, targets = 0;
        for (int64_t b = 0;; b += stride, i++) {
            int64_t end = b + ctx < n ? b + ctx : n, trg = end - prev;
            assert_true(i < ws.n);
            assert_int_equal(ws.w[i].start, b);
            assert_int_equal(ws.w[i].n, end - b);
            assert_true(ws.w[i].weight == (double)trg);
            /* labels end−trg … end−1 within the window, shifted by one: label 0 has no row */
            int64_t first_label = end - b - trg > 1 ? end - b - trg : 1;
            assert_int_equal(ws.w[i].first, first_label - 1);
            targets += end - b - first_label;
            prev = end;
            if (end == n) break;
        }
        assert_int_equal(ws.n, i + 1);
        assert_int_equal(ws.n_scored, targets);
        windows_free(&ws);
    }
}

static void refusals(void **state)
{
    (void)state;
    struct windows ws;
    struct err e;
    assert_int_equal(windows_make(&ws, PROTO_LLAMACPP, 1023, 0, 0, 0, 8192, false, &e), -1);
    assert_non_null(strstr(e.msg, "too short"));
    assert_int_equal(windows_make(&ws, PROTO_GPTQ, 2047, 0, 0, 0, 8192, false, &e), -1);
    assert_non_null(strstr(e.msg, "2048"));
    assert_int_equal(windows_make(&ws, PROTO_HF_SLIDING, 1, 0, 0, 0, 8192, false, &e), -1);
    assert_int_equal(windows_make(&ws, PROTO_GPTQ, 99999, 0, 0, 0, 1024, false, &e), -1);
    assert_non_null(strstr(e.msg, "--ctx"));
    assert_int_equal(windows_make(&ws, PROTO_HF_SLIDING, 99999, 100, 101, 0, 1024, false, &e), -1);
    assert_non_null(strstr(e.msg, "stride"));
}

static void weighted_mean(void **state)
{
    (void)state;
    struct window w[2] = {{0, 3, 0, 3}, {0, 5, 3, 2}}; /* 2 and 1 scored tokens */
    struct windows ws = {.w = w, .n = 2, .n_scored = 3};
    double x[3] = {1, 3, 7}, mean, se;
    windows_mean(&ws, x, &mean, &se);
    assert_true(fabs(mean - (3 * 2.0 + 2 * 7.0) / 5) < 1e-15);
    double c[3] = {3. / 10, 3. / 10, 2. / 5}, v = 0;
    for (int i = 0; i < 3; i++) v += c[i] * c[i] * (x[i] - mean) * (x[i] - mean);
    assert_true(fabs(se - sqrt(v * 3 / 2)) < 1e-15);
    /* equal weights: the ordinary standard error */
    struct window u = {0, 5, 1, 3};
    ws = (struct windows){.w = &u, .n = 1, .n_scored = 3};
    windows_mean(&ws, x, &mean, &se);
    double m = 11. / 3, ss = (1 - m) * (1 - m) + (3 - m) * (3 - m) + (7 - m) * (7 - m);
    assert_true(fabs(mean - m) < 1e-15 && fabs(se - sqrt(ss / 2 / 3)) < 1e-15);
}

static void ngrams(void **state)
{
    (void)state;
    int32_t a[100], b[100];
    for (int i = 0; i < 100; i++) {
        a[i] = i * 7 % 31;
        b[i] = 1000 + i * i % 57;
    }
    assert_int_equal(shared_ngrams(a, 100, b, 100, 4), 0);
    assert_int_equal(shared_ngrams(a, 100, a, 100, 32), 31); /* period 31: so many different runs */
    memcpy(b + 40, a + 10, 12 * sizeof *a);
    assert_int_equal(shared_ngrams(a, 100, b, 100, 12), 1);
    assert_int_equal(shared_ngrams(a, 100, b, 100, 13), 0);
    assert_int_equal(shared_ngrams(a, 100, b, 100, 10), 3);
    assert_int_equal(shared_ngrams(a, 5, b, 100, 10), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llamacpp_counts), cmocka_unit_test(gptq_counts), cmocka_unit_test(sliding_recipe),
        cmocka_unit_test(refusals),        cmocka_unit_test(weighted_mean), cmocka_unit_test(ngrams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
