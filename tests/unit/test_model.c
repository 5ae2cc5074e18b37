/* The forward pass against transformers' logits (tests/golden/tiny_*.json), on every CPU backend: whole, in
 * pieces through the KV cache, and in a batch of sequences. */
#include "backend/backend.h"
#include "base/mem.h"
#include "base/par.h"
#include "golden.h"
#include "model/model.h"
#include "tiny.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* f32 sums in another order than torch's; its own distance from an f64 forward is up to 1.2e-5 (golden file). */
#define TOL 4e-5

static const char *const devices[] = {"cpu-ref", "cpu"};

struct under_test {
    struct checkpoint c;
    struct backend be;
    struct model m;
    struct scratch s;
};

static void open_model_in(struct under_test *u, const char *kind, const char *device, const char *compute)
{
    struct tiny t;
    struct err e;
    assert_int_equal(tiny_kind(&t, kind), 0);
    const char *dir = test_tmp(kind);
    if (tiny_write(&t, dir, &e)) fail_msg("%s", e.msg);
    if (checkpoint_open(&u->c, dir, &e)) fail_msg("%s", e.msg);
    if (backend_open(&u->be, device, compute, false, &e)) fail_msg("%s", e.msg);
    if (model_load(&u->m, &u->be, &u->c, &e)) fail_msg("%s", e.msg);
    if (scratch_alloc(&u->s, &u->m, 64, &e)) fail_msg("%s", e.msg);
}

static void open_model(struct under_test *u, const char *kind, const char *device)
{
    open_model_in(u, kind, device, "f32");
}

static void close_model(struct under_test *u)
{
    scratch_free(&u->s, &u->m);
    model_free(&u->m);
    backend_close(&u->be);
    checkpoint_close(&u->c);
}

/* Logits (n, vocab) of tokens run as one span. */
static float *logits_of(struct under_test *u, const int32_t *tokens, int64_t n)
{
    struct kv_cache kv;
    struct err e;
    int64_t V = u->m.cfg.vocab_size;
    assert_int_equal(kv_alloc(&kv, &u->m, n, &e), 0);
    model_forward(&u->m, tokens, &(struct span){&kv, 0, n}, 1, &u->s, NULL);
    assert_int_equal(kv.n, n);
    float *out = mem_array((size_t)(n * V), sizeof *out);
    model_logits(&u->m, u->s.x, n, out);
    kv_free(&kv, &u->m);
    return out;
}

static int32_t *golden_tokens(const json_t *g, int64_t *n)
{
    const json_t *a = golden_get(g, "token_ids");
    *n = (int64_t)json_array_size(a);
    int32_t *t = mem_new((size_t)*n, sizeof *t);
    for (int64_t i = 0; i < *n; i++) t[i] = (int32_t)json_integer_value(json_array_get(a, (size_t)i));
    return t;
}

static void close_to(double got, double want, double tol, const char *what, const char *kind, const char *device)
{
    if (!isfinite(got) || !(fabs(got - want) <= tol))
        fail_msg("%s of %s on %s: %.9g, golden %.9g (tolerance %g)", what, kind, device, got, want, tol);
}

static void one_golden(const char *kind, json_t *want, const int32_t *tokens, int64_t n, const char *device)
{
    struct under_test u = {0};
    open_model(&u, kind, device);
    size_t n_last, n_lp;
    double *last = golden_nums(golden_get(want, "logits_last"), &n_last);
    double *lp = golden_nums(golden_get(want, "target_logprob"), &n_lp), sum = 0;
    int64_t V = u.m.cfg.vocab_size;
    assert_int_equal(n_last, V);
    assert_int_equal(n_lp, n - 1);
    float *y = logits_of(&u, tokens, n);
    for (int64_t i = 0; i < V; i++) close_to(y[(n - 1) * V + i], last[i], TOL, "last logits", kind, device);
    struct score sc[64];
    u.be.ops->score(&u.be, sc, y, tokens + 1, n - 1, V);
    for (int64_t i = 0; i < n - 1; i++) {
        close_to((double)sc[i].target - sc[i].lse, lp[i], TOL, "target log-probability", kind, device);
        sum += sc[i].lse - (double)sc[i].target;
        assert_int_equal(sc[i].argmax, json_integer_value(json_array_get(golden_get(want, "argmax"), (size_t)i)));
    }
    close_to(sum / (double)(n - 1), json_number_value(golden_get(want, "mean_nll")), TOL / 4, "mean NLL", kind, device);
    free(y);
    free(last);
    free(lp);
    close_model(&u);
}

static void against_transformers(void **state)
{
    (void)state;
    const char *files[] = {"tiny_models.json", "tiny_more.json"};
    int n_models = 0;
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        json_t *g = golden_load(files[f]), *want;
        const char *kind;
        int64_t n;
        int32_t *tokens = golden_tokens(g, &n);
        json_object_foreach(golden_get(g, "models"), kind, want)
        {
            n_models++;
            for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) one_golden(kind, want, tokens, n, devices[d]);
        }
        free(tokens);
        json_decref(g);
    }
    assert_int_equal(n_models, 8);
}

/* Pieces of 5, 1 and the rest through the cache, and a batch of three sequences of different lengths, give what each
 * sequence gives alone. */
static void pieces_and_batches(void **state)
{
    (void)state;
    const char *kinds[] = {"llama-headdim32", "qwen2-tied", "qwen3", "mistral"};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
            struct under_test u = {0};
            struct err e;
            open_model(&u, kinds[k], devices[d]);
            int64_t V = u.m.cfg.vocab_size;
            int32_t tokens[48];
            for (int i = 0; i < 48; i++) tokens[i] = (i * 37 + 11) % (int32_t)V;
            float *whole = logits_of(&u, tokens, 24), *part = mem_array((size_t)(24 * V), sizeof *part);
            struct kv_cache kv;
            assert_int_equal(kv_alloc(&kv, &u.m, 24, &e), 0);
            const int64_t cuts[] = {0, 5, 6, 24};
            for (int i = 0; i < 3; i++) {
                int64_t len = cuts[i + 1] - cuts[i];
                model_forward(&u.m, tokens + cuts[i], &(struct span){&kv, 0, len}, 1, &u.s, NULL);
                model_logits(&u.m, u.s.x, len, part + cuts[i] * V);
            }
            for (int64_t i = 0; i < 24 * V; i++) close_to(part[i], whole[i], TOL, "pieces", kinds[k], devices[d]);

            struct kv_cache kvs[3];
            struct span spans[3];
            const int64_t lens[] = {24, 1, 23};
            for (int64_t i = 0, row = 0; i < 3; row += lens[i++]) {
                assert_int_equal(kv_alloc(&kvs[i], &u.m, lens[i], &e), 0);
                spans[i] = (struct span){&kvs[i], row, lens[i]};
            }
            model_forward(&u.m, tokens, spans, 3, &u.s, NULL);
            float *batch = mem_array((size_t)(48 * V), sizeof *batch);
            model_logits(&u.m, u.s.x, 48, batch);
            for (int s = 0; s < 3; s++) {
                float *alone = logits_of(&u, tokens + spans[s].row0, lens[s]);
                for (int64_t i = 0; i < lens[s] * V; i++)
                    close_to(batch[spans[s].row0 * V + i], alone[i], TOL, "batch", kinds[k], devices[d]);
                free(alone);
            }
            /* The last layer without the first rows of spans, all of one: what is left is the same. */
            const int64_t skip[] = {10, 1, 0};
            for (int s = 0; s < 3; s++) kvs[s].n = 0;
            model_forward_last(&u.m, tokens, spans, skip, 3, &u.s);
            float *rest = mem_array((size_t)(48 * V), sizeof *rest);
            model_logits(&u.m, u.s.x, 48, rest);
            for (int s = 0; s < 3; s++) {
                assert_int_equal(kvs[s].n, lens[s]);
                for (int64_t i = (spans[s].row0 + skip[s]) * V; i < (spans[s].row0 + lens[s]) * V; i++)
                    close_to(rest[i], batch[i], TOL, "without first rows", kinds[k], devices[d]);
                kv_free(&kvs[s], &u.m);
            }
            free(rest);
            kv_free(&kv, &u.m);
            free(batch);
            free(part);
            free(whole);
            close_model(&u);
        }
}

static void a_device(struct backend *be, struct device *d)
{
    (void)be;
    memset(d, 0, sizeof *d);
}

/* On a device the last layer is cut for f32 alone: else kernels, and what they round activations to, depend on the
 * number of rows. Where it is not cut, the rows that nobody reads are as in a whole pass. */
static void cuts_on_devices(void **state)
{
    (void)state;
    for (int on_device = 0; on_device < 2; on_device++)
        for (int fast = 0; fast < 2; fast++) {
            struct under_test u = {0};
            struct err e;
            open_model_in(&u, "llama-headdim32", "cpu", fast ? "int8" : "f32");
            struct backend_ops ops = *u.be.ops;
            if (on_device) ops.describe = a_device;
            u.be.ops = &ops;
            const int64_t n = 24, skip = 10, D = u.m.cfg.hidden_size;
            int32_t tokens[24];
            for (int i = 0; i < n; i++) tokens[i] = (i * 37 + 11) % (int32_t)u.m.cfg.vocab_size;
            float *whole = mem_array((size_t)(n * D), sizeof *whole);
            struct kv_cache kv;
            assert_int_equal(kv_alloc(&kv, &u.m, n, &e), 0);
            const struct span span = {&kv, 0, n};
            model_forward(&u.m, tokens, &span, 1, &u.s, NULL);
            memcpy(whole, u.s.x, (size_t)(n * D) * sizeof *whole);
            kv.n = 0;
            model_forward_last(&u.m, tokens, &span, &skip, 1, &u.s);
            bool cut = memcmp(whole, u.s.x, (size_t)(skip * D) * sizeof *whole) != 0;
            assert_int_equal(cut, !(on_device && fast));
            if (!cut) assert_memory_equal(whole, u.s.x, (size_t)(n * D) * sizeof *whole);
            kv_free(&kv, &u.m);
            free(whole);
            close_model(&u);
        }
}

static void greedy(void **state)
{
    (void)state;
    struct under_test u = {0};
    struct err e;
    open_model(&u, "llama-tied", "cpu");
    int64_t V = u.m.cfg.vocab_size;
    int32_t seq[40] = {5, 25, 59}, out[20];
    struct kv_cache kv;
    assert_int_equal(kv_alloc(&kv, &u.m, 22, &e), 0);
    model_generate(&u.m, &kv, &u.s, seq, 3, out, 20, NULL, NULL);
    assert_int_equal(kv.n, 22); /* the last id is not fed back */
    for (int i = 0; i < 20; i++) { /* each id is the argmax after the whole sequence so far */
        float *y = logits_of(&u, seq, 3 + i);
        const float *row = y + (2 + i) * V;
        for (int64_t v = 0; v < V; v++) assert_true(row[v] <= row[out[i]] + (float)TOL);
        seq[3 + i] = out[i];
        free(y);
    }
    kv_free(&kv, &u.m);
    close_model(&u);
}

/* The same bytes out for 1, 2 and 3 threads. */
static void thread_counts(void **state)
{
    (void)state;
    struct under_test u = {0};
    open_model(&u, "qwen2-untied", "cpu");
    int32_t tokens[30];
    for (int i = 0; i < 30; i++) tokens[i] = i * 5 % 256;
    float *first = NULL;
    for (int t = 1; t <= 3; t++) {
        par_set_threads(t);
        float *y = logits_of(&u, tokens, 30);
        if (first) assert_memory_equal(y, first, sizeof *y * 30 * (size_t)u.m.cfg.vocab_size);
        if (first) free(y);
        else first = y;
    }
    free(first);
    par_set_threads(0);
    close_model(&u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_transformers),
        cmocka_unit_test(pieces_and_batches),
        cmocka_unit_test(cuts_on_devices),
        cmocka_unit_test(greedy),
        cmocka_unit_test(thread_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
