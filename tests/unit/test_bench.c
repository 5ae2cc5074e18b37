/* Statistics of known samples (numpy's values), the timed backend's counts, and passes at a depth. */
#include "base/mem.h"
#include "base/msg.h"
#include "eval/bandwidth.h"
#include "eval/bench.h"
#include "eval/kernel_timer.h"
#include "golden.h"
#include "tiny.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define near(a, b, tol) assert_true(isfinite(a) && !(fabs((double)(a) - (double)(b)) > (tol)))

/* ---- statistics ---- */

static void test_summary(void **state)
{
    (void)state;
    /* numpy: x = [3,1,4,1,5,9,2,6]; np.quantile(x, [.5,.9,.99]); x.mean(); x.std(ddof=1) */
    double x[] = {3, 1, 4, 1, 5, 9, 2, 6};
    struct bench_summary s;
    bench_summarize(x, 8, &s);
    assert_int_equal(s.n, 8);
    near(s.min, 1, 0);
    near(s.p50, 3.5, 1e-12);
    near(s.p90, 6.9, 1e-12);
    near(s.p99, 8.79, 1e-12);
    near(s.mean, 3.875, 1e-12);
    near(s.sd, 2.748376143938713, 1e-12);
    near(x[0], 3, 0); /* order kept */
    bench_summarize(x, 1, &s);
    near(s.p99, 3, 0);
    near(s.sd, 0, 0);
    json_t *v = bench_summary_json(x, 8);
    assert_int_equal(json_array_size(json_object_get(v, "samples")), 8);
    near(json_real_value(json_array_get(json_object_get(v, "samples"), 5)), 9, 0);
    json_decref(v);
    v = bench_summary_json(x, 0);
    assert_true(json_is_null(v));
    json_decref(v);
}

static void test_random_tokens(void **state)
{
    (void)state;
    int32_t a[1000], b[1000], c[1000];
    int64_t seen[10] = {0};
    bench_random_tokens(a, 1000, 10, 7);
    bench_random_tokens(b, 1000, 10, 7);
    bench_random_tokens(c, 1000, 10, 8);
    assert_memory_equal(a, b, sizeof a);
    assert_true(memcmp(a, c, sizeof a));
    for (int i = 0; i < 1000; i++) {
        assert_in_range(a[i], 0, 9);
        seen[a[i]]++;
    }
    for (int i = 0; i < 10; i++) assert_in_range(seen[i], 50, 150);
}

static void test_bandwidth(void **state)
{
    (void)state;
    double v = bandwidth_read_anonymous((size_t)8 << 20, 0.01);
    assert_true(v > 1e7 && v < 1e13);
    char few[32] = {0};
    near(bandwidth_read(&(struct region){few, sizeof few}, 1, 0.01), 0, 0); /* not one cache line */
    int64_t before = mem_peak_rss();
    bandwidth_read_anonymous((size_t)8 << 20, 0.01);
    assert_true(mem_peak_rss() - before < (int64_t)8 << 20); /* given back each time */
}

/* ---- a tiny model ---- */

struct fixture {
    struct checkpoint c;
    struct backend be;
    struct model m;
    struct kv_cache kv;
    struct scratch s;
};

static void must(int rc, const struct err *e)
{
    if (rc) fail_msg("%s", e->msg);
}

static void open_tiny(struct fixture *f, const char *kind, const char *name)
{
    struct tiny t;
    struct err e;
    assert_int_equal(tiny_kind(&t, kind), 0);
    must(tiny_write(&t, test_tmp(name), &e), &e);
    must(checkpoint_open(&f->c, test_tmp(name), &e), &e);
    must(backend_open(&f->be, "cpu-ref", "f32", false, &e), &e);
    must(model_load(&f->m, &f->be, &f->c, &e), &e);
    must(kv_alloc(&f->kv, &f->m, 64, &e), &e);
    must(scratch_alloc(&f->s, &f->m, 16, &e), &e);
}

static void close_tiny(struct fixture *f)
{
    kv_free(&f->kv, &f->m);
    scratch_free(&f->s, &f->m);
    model_free(&f->m);
    backend_close(&f->be);
    checkpoint_close(&f->c);
}

static const struct kernel_row *row(const struct kernel_timer *t, const char *phase, const char *op)
{
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->rows[i].phase, phase) && !strcmp(t->rows[i].op, op)) return &t->rows[i];
    fail_msg("no row %s %s", phase, op);
    return NULL;
}

static void to_decode(void *ctx, int64_t i)
{
    if (i == 0) kernel_timer_phase(ctx, "decode");
}

/* hidden 64, ff 160, 2 layers, 4 heads of 16, 2 KV heads, vocabulary 256, bf16, tied */
static void test_kernel_counts(void **state)
{
    (void)state;
    struct fixture f;
    struct kernel_timer kt;
    int32_t prompt[12], plain[4], timed[4];
    open_tiny(&f, "llama-tied", "counts");
    bench_random_tokens(prompt, 12, 256, 1);
    model_generate(&f.m, &f.kv, &f.s, prompt, 12, plain, 4, NULL, NULL);
    f.kv.n = 0;
    kernel_timer_open(&kt, &f.be);
    kernel_timer_phase(&kt, "prefill");
    f.m.be = &kt.be;
    model_generate(&f.m, &f.kv, &f.s, prompt, 12, timed, 4, to_decode, &kt);
    f.m.be = &f.be;
    assert_memory_equal(plain, timed, sizeof plain);

    double per_layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 160 * 3, head = 64 * 256;
    const struct kernel_row *r = row(&kt, "prefill", "matmul");
    assert_int_equal(r->calls, 2 * 4 + 1);
    assert_string_equal(r->format, "bf16");
    near(r->ops, 2 * (12 * 2 * per_layer + head), 0);
    /* weights once, activations in and out: qkv 64 → 128, o 64 → 64, gate and up 64 → 320, down 160 → 64 */
    near(r->bytes, 2 * (2 * per_layer + head) + 4 * (2 * 12 * (64 + 128 + 64 + 64 + 64 + 320 + 160 + 64) + 64 + 256), 0);
    r = row(&kt, "decode", "matmul");
    assert_int_equal(r->calls, 3 * (2 * 4 + 1));
    near(r->ops, 3 * 2 * (2 * per_layer + head), 0);
    assert_int_equal(row(&kt, "prefill", "rmsnorm")->calls, 5);
    assert_int_equal(row(&kt, "prefill", "rope")->calls, 4);
    assert_int_equal(row(&kt, "prefill", "add")->calls, 4);
    assert_int_equal(row(&kt, "prefill", "swiglu")->calls, 2);
    assert_int_equal(row(&kt, "prefill", "embed")->calls, 1);
    assert_int_equal(row(&kt, "prefill", "score")->calls, 1);
    assert_int_equal(row(&kt, "decode", "score")->calls, 3);
    near(row(&kt, "prefill", "embed")->bytes, 12 * (2 * 64 + 4 * 64), 0);
    r = row(&kt, "prefill", "attention");
    assert_int_equal(r->calls, 2);
    near(r->ops, 2 * (12 * 13 / 2) * (4 * 64 + 3 * 4), 0);
    /* decode steps see 13, 14 and 15 tokens: K and V of 2 heads of 16 in f32 */
    near(row(&kt, "decode", "attention")->bytes, 2 * (2 * (13 + 14 + 15) * 32 * 4 + 3 * 8 * 64), 0);
    near(row(&kt, "prefill", "kv_append")->bytes, 2 * 2 * 12 * 32 * 8, 0);

    /* held against ceilings of one byte and one operation a second, a fraction is the rate itself */
    struct peaks peaks = {.f32 = {"x", 1}, .int8 = {"y", 1}};
    json_t *a = kernel_timer_json(&kt, &(struct roofs){1, &peaks});
    assert_int_equal(json_array_size(a), kt.n);
    double before = INFINITY;
    for (size_t i = 0; i < kt.n; i++) {
        double ms = json_number_value(json_object_get(json_array_get(a, i), "ms"));
        assert_true(ms > 0 && ms <= before);
        before = ms;
        json_t *o = json_array_get(a, i);
        double ops = json_number_value(json_object_get(o, "ops")), bytes = json_number_value(json_object_get(o, "bytes"));
        near(json_number_value(json_object_get(o, "bandwidth_fraction")), bytes / ms * 1e3, 1e-9 * bytes / ms * 1e3);
        if (ops > 0) near(json_number_value(json_object_get(o, "peak_fraction")), ops / ms * 1e3, 1e-9 * ops / ms * 1e3);
        assert_true(ops > 0 ? !strcmp(json_string_value(json_object_get(o, "peak")), "f32")
                            : json_is_null(json_object_get(o, "peak")));
    }
    json_decref(a);
    kernel_timer_close(&kt);
    close_tiny(&f);
}

/* A trial at depth D sees exactly the filler's first D tokens before the prompt, whatever ran before. */
static void test_depth(void **state)
{
    (void)state;
    struct fixture f;
    struct err e;
    int32_t filler[40], prompt[5], want[3], all[45];
    open_tiny(&f, "qwen2-untied", "depth");
    bench_random_tokens(filler, 40, 256, 2);
    bench_random_tokens(prompt, 5, 256, 3);
    struct bench_opts o = {.prompt = prompt, .n_prompt = 5, .n_gen = 3, .filler = filler, .warmup = 1, .trials = 2};
    int64_t depths[] = {0, 33, 20, 40}, filled = 0, passes = 0;
    for (int i = 0; i < 4; i++) {
        struct bench_run run;
        int64_t d = depths[i];
        must(bench_depth(&f.m, &f.kv, &f.s, &o, d, &filled, &passes, &run, &e), &e);
        assert_int_equal(passes, 3 * (i + 1));
        assert_int_equal(run.n_trials, 2);
        assert_int_equal(run.n_token_ms, 4);
        struct kv_cache kv;
        memcpy(all, filler, (size_t)d * sizeof *all);
        memcpy(all + d, prompt, sizeof prompt);
        must(kv_alloc(&kv, &f.m, 64, &e), &e);
        model_generate(&f.m, &kv, &f.s, all, d + 5, want, 3, NULL, NULL);
        kv_free(&kv, &f.m);
        assert_memory_equal(run.generated, want, sizeof want);
        for (int t = 0; t < 2; t++) {
            near(run.prefill_tps[t], 5e3 / run.ttft_ms[t], 1e-6 * run.prefill_tps[t]);
            near(run.decode_tps[t], 2e3 / (run.token_ms[2 * t] + run.token_ms[2 * t + 1]), 1e-6 * run.decode_tps[t]);
        }
        bench_run_free(&run);
    }
    o.n_gen = 1; /* time to first token alone */
    struct bench_run run;
    must(bench_depth(&f.m, &f.kv, &f.s, &o, 0, &filled, &passes, &run, &e), &e);
    json_t *v = bench_run_json(&run);
    assert_true(json_is_null(json_object_get(v, "decode_tps")) && json_is_null(json_object_get(v, "token_ms")));
    assert_true(json_is_object(json_object_get(v, "ttft_ms")));
    json_decref(v);
    bench_run_free(&run);
    /* weights once a token; K and V of 2 layers, 2 heads of 16, in f32, for 10 + 5 + 1.5 tokens on average */
    near(bench_decode_bytes(&f.m, &f.kv, 10, 5, 3), (double)f.m.read_bytes + 16.5 * 2 * 2 * 32 * 4, 1e-6);
    close_tiny(&f);
}

/* A backend that changes its mind is found out. */
static void (*real_score)(struct backend *, struct score *, const float *, const int32_t *, int64_t, int64_t);
static int n_scored;
static void fickle_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets,
                         int64_t n_tok, int64_t n_vocab)
{
    real_score(be, out, logits, targets, n_tok, n_vocab);
    if (++n_scored == 5) out[0].argmax ^= 1;
}

static void test_fickle_backend(void **state)
{
    (void)state;
    struct fixture f;
    struct err e = {0};
    int32_t prompt[5];
    open_tiny(&f, "llama-tied", "fickle");
    bench_random_tokens(prompt, 5, 256, 3);
    struct backend_ops ops = *f.be.ops;
    const struct backend_ops *kept = f.be.ops;
    real_score = ops.score;
    ops.score = fickle_score;
    f.be.ops = &ops;
    struct bench_opts o = {.prompt = prompt, .n_prompt = 5, .n_gen = 3, .filler = prompt, .trials = 2};
    struct bench_run run;
    int64_t filled = 0, passes = 0;
    assert_int_equal(bench_depth(&f.m, &f.kv, &f.s, &o, 0, &filled, &passes, &run, &e), -1);
    assert_non_null(strstr(e.msg, "different tokens"));
    f.be.ops = kept;
    close_tiny(&f);
}

int main(void)
{
    msg_init("test_bench");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_summary),       cmocka_unit_test(test_random_tokens), cmocka_unit_test(test_bandwidth),
        cmocka_unit_test(test_kernel_counts), cmocka_unit_test(test_depth),         cmocka_unit_test(test_fickle_backend),
    };
    return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
