/* The sweep against the plain way: whole forward passes of a model with the weights swapped, and sums in long double
 * over dequantized weights. */
#include "base/file.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/par.h"
#include "base/stats.h"
#include "eval/bench.h"
#include "eval/sens_partial.h"
#include "golden.h"
#include "quantize/container.h"
#include "tiny.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define near(a, b, tol) assert_true(isfinite(a) && !(fabs((double)(a) - (double)(b)) > (tol)))
#define T 24
#define V 256
#define L 2

struct fixture {
    struct checkpoint c;
    struct backend be;
    struct model m;
    int32_t tokens[T];
};

static void must(int rc, const struct err *e)
{
    if (rc) fail_msg("%s", e->msg);
}

static void open_tiny(struct fixture *f, const char *kind, const char *name, const char *nan)
{
    struct tiny t;
    struct err e;
    assert_int_equal(tiny_kind(&t, kind), 0);
    t.nan = nan;
    must(tiny_write(&t, test_tmp(name), &e), &e);
    must(checkpoint_open(&f->c, test_tmp(name), &e), &e);
    must(backend_open(&f->be, "cpu-ref", "f32", false, &e), &e);
    must(model_load(&f->m, &f->be, &f->c, &e), &e);
    bench_random_tokens(f->tokens, T, V, 5);
}

static void close_tiny(struct fixture *f)
{
    model_free(&f->m);
    backend_close(&f->be);
    checkpoint_close(&f->c);
}

/* ---- the plain way ---- */

struct quantized {
    struct qbuffer b[L][N_OPS];
    struct weight w[L][N_OPS];
};

static void quantize_all(struct fixture *f, const char *format, struct quantized *q)
{
    struct err e;
    char name[LINEAR_NAME_MAX];
    for (int64_t l = 0; l < L; l++)
        for (int op = 0; op < N_OPS; op++) {
            struct qweight src;
            int64_t n_out, n_in;
            config_op_shape(&f->m.cfg, (enum op)op, &n_out, &n_in);
            must(qweight_open(&src, &f->c, linear_name(name, l, (enum op)op), n_out, n_in, &e), &e);
            struct quant_job job = {name, &src, format_find(format), DT_BF16};
            must(method_quantize(method_find("rtn"), &job, &q->b[l][op], NULL, &e), &e);
            must(f->be.ops->load_weight(&f->be, &q->w[l][op], &q->b[l][op].w, &e), &e);
        }
}

static void free_quantized(struct fixture *f, struct quantized *q)
{
    for (int l = 0; l < L; l++)
        for (int op = 0; op < N_OPS; op++) {
            f->be.ops->free_weight(&f->be, &q->w[l][op]);
            qbuffer_free(&q->b[l][op]);
        }
}

/* Log-probabilities (T, V) of the whole text with the linears of `which` quantized. */
static double *log_probs(struct fixture *f, const struct quantized *q, bool which[L][N_OPS])
{
    struct err e;
    struct kv_cache kv;
    struct scratch s;
    struct weight kept[L][N_OPS];
    float *logits = mem_array(T * V, sizeof *logits);
    double *lp = mem_array(T * V, sizeof *lp);
    for (int l = 0; l < L; l++)
        for (int op = 0; op < N_OPS; op++) {
            kept[l][op] = f->m.layers[l].w[op];
            if (which && which[l][op]) f->m.layers[l].w[op] = q->w[l][op];
        }
    must(kv_alloc(&kv, &f->m, T, &e), &e);
    must(scratch_alloc(&s, &f->m, T, &e), &e);
    model_forward(&f->m, f->tokens, &(struct span){&kv, 0, T}, 1, &s, NULL);
    model_logits(&f->m, s.x, T, logits);
    scratch_free(&s, &f->m);
    kv_free(&kv, &f->m);
    for (int l = 0; l < L; l++)
        for (int op = 0; op < N_OPS; op++) f->m.layers[l].w[op] = kept[l][op];
    for (int t = 0; t < T; t++) {
        double max = -INFINITY, z = 0;
        for (int i = 0; i < V; i++) max = fmax(max, (double)logits[t * V + i]);
        for (int i = 0; i < V; i++) z += exp((double)logits[t * V + i] - max);
        for (int i = 0; i < V; i++) lp[t * V + i] = (double)logits[t * V + i] - max - log(z);
    }
    free(logits);
    return lp;
}

static void divergence_of(const struct fixture *f, const double *ref, const double *lp, double *kld, double *delta)
{
    *kld = *delta = 0;
    for (int t = 0; t + 1 < T; t++) {
        for (int i = 0; i < V; i++) *kld += exp(ref[t * V + i]) * (ref[t * V + i] - lp[t * V + i]) / (T - 1);
        *delta += (ref[t * V + f->tokens[t + 1]] - lp[t * V + f->tokens[t + 1]]) / (T - 1);
    }
}

static bool in_unit(const struct sens_entry *en, int64_t l, int op)
{
    return (en->layer < 0 || en->layer == l) && (en->op < 0 || en->op == op);
}

static void run(struct fixture *f, const struct sens_opts *o, struct sens_result *r)
{
    struct err e;
    sens_result_init(r, &f->m.cfg, o->per);
    must(sens_run(&f->m, &f->c, f->tokens, T, o, r, &e), &e);
}

/* ---- outputs of the model ---- */

static void check_outputs(const char *kind, const char *format)
{
    struct fixture f;
    struct quantized q;
    open_tiny(&f, kind, kind, NULL);
    quantize_all(&f, format, &q);
    double *ref = log_probs(&f, NULL, NULL), nll = 0;
    for (int t = 0; t + 1 < T; t++) nll -= ref[t * V + f.tokens[t + 1]] / (T - 1);
    for (int mode = SENS_LOCAL; mode <= SENS_RESTORE; mode++)
        for (int per = SENS_TENSOR; per <= SENS_OP; per++) {
            struct sens_result r;
            struct sens_opts o = {.mode = (enum sens_mode)mode, .per = (enum sens_per)per, .fmt = format_find(format),
                                  .method = method_find("rtn"), .model_dtype = DT_BF16};
            run(&f, &o, &r);
            bool which[L][N_OPS];
            double kld, delta, *lp;
            near(r.baseline_nll, nll, 1e-5);
            for (int l = 0; l < L; l++)
                for (int op = 0; op < N_OPS; op++) which[l][op] = true;
            lp = log_probs(&f, &q, which);
            divergence_of(&f, ref, lp, &kld, &delta);
            free(lp);
            assert_true(kld > 1e-6);
            near(r.all_kld, kld, 1e-6 + 1e-3 * kld);
            near(r.all_delta_nll, delta, 1e-5);
            for (int64_t i = 0; mode != SENS_LOCAL && i < r.n; i++) {
                const struct sens_entry *en = &r.entries[i];
                for (int l = 0; l < L; l++)
                    for (int op = 0; op < N_OPS; op++) which[l][op] = in_unit(en, l, op) == (mode == SENS_ISOLATED);
                lp = log_probs(&f, &q, which);
                divergence_of(&f, ref, lp, &kld, &delta);
                free(lp);
                near(en->kld, kld, 1e-7 + 1e-3 * kld);
                near(en->delta_nll, delta, 1e-5);
                assert_true(en->done);
            }
            sens_result_free(&r);
        }
    free(ref);
    free_quantized(&f, &q);
    close_tiny(&f);
}

static void test_outputs_llama(void **state)
{
    (void)state;
    check_outputs("llama-tied", "int4-row");
}
static void test_outputs_qwen3(void **state)
{
    (void)state;
    check_outputs("qwen3", "nf4");
}

/* ---- outputs of the linears ---- */

struct capture {
    float *x[L][N_OPS], *y[L][N_OPS]; /* (T, n_in), (T, n_out) */
    const struct model *m;
};

static void capture(void *ctx, int64_t l, enum op op, const float *x, const float *y, int64_t n_tok)
{
    struct capture *c = ctx;
    const struct weight *w = &c->m->layers[l].w[op];
    c->x[l][op] = mem_array((size_t)(n_tok * w->n_in), sizeof(float));
    c->y[l][op] = mem_array((size_t)(n_tok * w->n_out), sizeof(float));
    memcpy(c->x[l][op], x, (size_t)(n_tok * w->n_in) * sizeof(float));
    memcpy(c->y[l][op], y, (size_t)(n_tok * w->n_out) * sizeof(float));
}

static void test_local(void **state)
{
    (void)state;
    struct fixture f;
    struct quantized q;
    struct err e;
    open_tiny(&f, "qwen2-untied", "local", NULL); /* with biases */
    quantize_all(&f, "int4-g32", &q);
    struct capture c = {.m = &f.m};
    struct kv_cache kv;
    struct scratch s;
    must(kv_alloc(&kv, &f.m, T, &e), &e);
    must(scratch_alloc(&s, &f.m, T, &e), &e);
    model_forward(&f.m, f.tokens, &(struct span){&kv, 0, T}, 1, &s, &(struct linear_hook){capture, &c});
    scratch_free(&s, &f.m);
    kv_free(&kv, &f.m);

    struct sens_result r, per_layer;
    struct sens_opts o = {.mode = SENS_LOCAL, .per = SENS_TENSOR, .fmt = format_find("int4-g32"),
                          .method = method_find("rtn"), .model_dtype = DT_BF16};
    run(&f, &o, &r);
    o.per = SENS_LAYER;
    run(&f, &o, &per_layer);
    for (int l = 0; l < L; l++) {
        long double layer_err2 = 0, layer_ref2 = 0;
        for (int op = 0; op < N_OPS; op++) {
            const struct weight *w = &f.m.layers[l].w[op];
            const struct sens_entry *en = &r.entries[l * N_OPS + op];
            const float *bias = f.m.layers[l].bias[op];
            float *wq = mem_array((size_t)(w->n_out * w->n_in), sizeof *wq);
            long double err2 = 0, a2 = 0, b2 = 0, ab = 0;
            qweight_rows_f32(&q.b[l][op].w, 0, w->n_out, wq);
            for (int t = 0; t < T; t++)
                for (int64_t i = 0; i < w->n_out; i++) {
                    long double b = bias ? (long double)bias[i] : 0, a = (long double)c.y[l][op][t * w->n_out + i];
                    for (int64_t k = 0; k < w->n_in; k++)
                        b += (long double)wq[i * w->n_in + k] * (long double)c.x[l][op][t * w->n_in + k];
                    err2 += (a - b) * (a - b), a2 += a * a, b2 += b * b, ab += a * b;
                }
            double nmse = (double)(err2 / a2);
            assert_true(nmse > 1e-5 && nmse < 0.1);
            near(sens_mse(&en->local), (double)(err2 / (T * w->n_out)), 1e-4 * (double)(err2 / (T * w->n_out)));
            near(sens_nmse(&en->local), nmse, 1e-4 * nmse);
            near(sens_cosine(&en->local), (double)(ab / sqrtl(a2 * b2)), 1e-7);
            near(sens_sqnr_db(&en->local), -10 * log10(nmse), 1e-3);
            assert_int_equal(en->bytes_before, w->n_out * w->n_in * 2);
            assert_int_equal(en->bytes_after, container_bytes(o.fmt, w->n_out, w->n_in, o.model_dtype));
            layer_err2 += err2, layer_ref2 += a2;
            free(wq);
            free(c.x[l][op]);
            free(c.y[l][op]);
        }
        near(sens_nmse(&per_layer.entries[l].local), (double)(layer_err2 / layer_ref2),
             1e-4 * (double)(layer_err2 / layer_ref2));
    }
    sens_result_free(&r);
    sens_result_free(&per_layer);
    free_quantized(&f, &q);
    close_tiny(&f);
}

/* The seed's measure: in layer 0, q, k and v have had no error before them, so it equals ours; further on it does not. */
static void test_seed_preset(void **state)
{
    (void)state;
    struct fixture f;
    struct sens_result r;
    struct sens_opts o = {.mode = SENS_LOCAL, .fmt = format_find("int4-row"), .method = method_find("rtn"),
                          .model_dtype = DT_BF16, .seed_preset = true};
    open_tiny(&f, "llama-tied", "seed", NULL);
    run(&f, &o, &r);
    for (int op = OP_Q; op <= OP_V; op++) near(sens_mse(&r.entries[op].seed), sens_mse(&r.entries[op].local), 0);
    for (int64_t i = OP_O; i < r.n; i++) {
        assert_int_equal(r.entries[i].seed.n, r.entries[i].local.n);
        assert_true(sens_mse(&r.entries[i].seed) > 1.05 * sens_mse(&r.entries[i].local));
    }
    sens_result_free(&r);
    close_tiny(&f);
}

/* A format that loses nothing: bf16 weights as bf16. */
static void test_no_damage(void **state)
{
    (void)state;
    struct fixture f;
    struct sens_result r;
    struct sens_opts o = {.mode = SENS_ISOLATED, .fmt = format_find("bf16"), .method = method_find("rtn"),
                          .model_dtype = DT_BF16};
    open_tiny(&f, "llama-tied", "lossless", NULL);
    run(&f, &o, &r);
    near(r.all_kld, 0, 0);
    near(r.all_delta_nll, 0, 0);
    for (int64_t i = 0; i < r.n; i++) {
        near(r.entries[i].kld, 0, 0);
        near(sens_nmse(&r.entries[i].local), 0, 0);
        near(sens_cosine(&r.entries[i].local), 1, 1e-12);
        json_t *v = sens_entry_json(&r.entries[i], &o);
        assert_true(json_is_null(json_object_get(v, "sqnr_db")));
        json_decref(v);
    }
    sens_result_free(&r);
    close_tiny(&f);
}

static const struct backend_ops *counted;
static int most_spans;
static void count_spans(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                        int64_t layer, int64_t n_heads)
{
    if (n_spans > most_spans) most_spans = n_spans;
    counted->attention(be, out, q, spans, n_spans, layer, n_heads);
}

static void a_device(struct backend *be, struct device *d)
{
    (void)be;
    memset(d, 0, sizeof *d);
}

/* Units run through the later layers together, but on a device, where the kernel depends on the number of rows. */
static void test_stacks(void **state)
{
    (void)state;
    struct sens_result r[2];
    struct sens_opts o = {.mode = SENS_ISOLATED, .per = SENS_TENSOR, .fmt = format_find("int4-g64"),
                          .method = method_find("rtn"), .model_dtype = DT_BF16};
    for (int on_device = 0; on_device < 2; on_device++) {
        struct fixture f;
        open_tiny(&f, "llama-tied", "stacks", NULL);
        counted = f.be.ops;
        struct backend_ops ops = *counted;
        ops.attention = count_spans;
        if (on_device) ops.describe = a_device;
        f.be.ops = &ops;
        most_spans = 0;
        run(&f, &o, &r[on_device]);
        if (on_device) assert_int_equal(most_spans, 1);
        else assert_true(most_spans > 1);
        close_tiny(&f);
    }
    assert_memory_equal(r[0].entries, r[1].entries, (size_t)r[0].n * sizeof *r[0].entries);
    sens_result_free(&r[0]);
    sens_result_free(&r[1]);
}

static void test_threads(void **state)
{
    (void)state;
    struct fixture f;
    struct sens_result one, three;
    struct sens_opts o = {.mode = SENS_RESTORE, .per = SENS_TENSOR, .fmt = format_find("int4-g64"),
                          .method = method_find("rtn"), .model_dtype = DT_BF16, .seed_preset = true};
    open_tiny(&f, "llama-untied-rope3", "threads", NULL);
    par_set_threads(1);
    run(&f, &o, &one);
    par_set_threads(3);
    run(&f, &o, &three);
    par_set_threads(0);
    assert_memory_equal(one.entries, three.entries, (size_t)one.n * sizeof *one.entries);
    assert_memory_equal(&one.all_kld, &three.all_kld, sizeof(double));
    assert_memory_equal(&one.all_delta_nll, &three.all_delta_nll, sizeof(double));
    sens_result_free(&one);
    sens_result_free(&three);
    close_tiny(&f);
}

static void test_nan(void **state)
{
    (void)state;
    struct fixture f;
    struct sens_result r;
    struct err e = {0};
    struct sens_opts o = {.fmt = format_find("int4-g64"), .method = method_find("rtn"), .model_dtype = DT_BF16};
    open_tiny(&f, "llama-tied", "nan", "model.layers.1.mlp.up_proj.weight");
    sens_result_init(&r, &f.m.cfg, o.per);
    assert_int_equal(sens_run(&f.m, &f.c, f.tokens, T, &o, &r, &e), -1);
    assert_non_null(strstr(e.msg, "not finite"));
    sens_result_free(&r);
    close_tiny(&f);
}

/* ---- samples ---- */

static void test_samples(void **state)
{
    (void)state;
    struct sens_samples a, b, few;
    float *ref = mem_array(30000, sizeof *ref), *quant = mem_array(30000, sizeof *quant);
    for (int i = 0; i < 30000; i++) ref[i] = (float)i, quant[i] = (float)-i;
    sens_samples_init(&a, "model.layers.0.mlp.up_proj", 30000, 1);
    sens_samples_init(&b, "model.layers.0.mlp.up_proj", 30000, 2);
    sens_samples_init(&few, "x", 7, 1);
    assert_int_equal(a.n, SENS_SAMPLES);
    assert_int_equal(few.n, 7);
    assert_true(memcmp(a.index, b.index, SENS_SAMPLES * sizeof *a.index));
    for (int64_t k = 1; k < a.n; k++) assert_true(a.index[k] > a.index[k - 1]);
    for (int at = 0; at < 30000; at += 7000) sens_samples_add(&a, ref + at, quant + at, at + 7000 < 30000 ? 7000 : 30000 - at);
    assert_int_equal(a.at, a.n);
    for (int64_t k = 0; k < a.n; k++) {
        near(a.pairs[k][0], (double)a.index[k], 0);
        near(a.pairs[k][1], -(double)a.index[k], 0);
    }
    sens_samples_add(&few, ref, quant, 7);
    for (int64_t k = 0; k < 7; k++) assert_int_equal(few.index[k], k);
    struct err e;
    must(path_make_dirs(test_tmp("samples"), &e), &e);
    must(sens_samples_write(&few, test_tmp("samples"), "x", &e), &e);
    char *text;
    size_t n;
    must(file_read(test_tmp("samples/x.csv"), 4096, &text, &n, &e), &e);
    assert_string_equal(text, "reference,quantized\n0,0\n1,-1\n2,-2\n3,-3\n4,-4\n5,-5\n6,-6\n");
    free(text);
    free(ref);
    free(quant);
    sens_samples_free(&a);
    sens_samples_free(&b);
    sens_samples_free(&few);
}

/* ---- the partial file ---- */

struct stopper {
    struct sens_partial p;
    int left; /* units until it stops */
};

static int add_or_stop(void *ctx, const struct sens_entry *en, struct err *e)
{
    struct stopper *s = ctx;
    if (s->left-- == 0) return err_set(e, "stopped");
    return sens_partial_add(&s->p, en, e);
}

static json_t *print_of(int key) { return json_pack("{s:i,s:s}", "results_version", key, "format", "int4-g64"); }

static void test_partial(void **state)
{
    (void)state;
    struct fixture f;
    struct err e;
    struct sens_result whole, part, again;
    struct stopper s = {.left = 5};
    struct sens_opts o = {.mode = SENS_ISOLATED, .fmt = format_find("int4-g64"), .method = method_find("rtn"),
                          .model_dtype = DT_BF16, .seed_preset = true};
    const char *path = test_tmp("partial.jsonl");
    open_tiny(&f, "llama-tied", "partial", NULL);
    run(&f, &o, &whole);
    sens_result_init(&part, &f.m.cfg, o.per);
    must(sens_partial_open(&s.p, path, print_of(1), &part, &e), &e);
    assert_false(path_exists(path)); /* nothing before the first unit */
    o.on_done = add_or_stop;
    o.ctx = &s;
    assert_int_equal(sens_run(&f.m, &f.c, f.tokens, T, &o, &part, &e), -1);
    must(sens_partial_close(&s.p, &e), &e);
    FILE *torn = fopen(path, "a");
    fputs("{\"name\":\"model.lay", torn);
    fclose(torn);

    sens_result_init(&again, &f.m.cfg, o.per);
    assert_int_equal(sens_partial_open(&s.p, path, print_of(2), &again, &e), -1);
    assert_non_null(strstr(e.msg, "its results_version is 1 (2 was expected)"));
    must(sens_partial_close(&s.p, &e), &e);
    must(sens_partial_open(&s.p, path, print_of(1), &again, &e), &e);
    assert_int_equal(s.p.n_found, 5);
    s.left = 100;
    must(sens_run(&f.m, &f.c, f.tokens, T, &o, &again, &e), &e);
    must(sens_partial_close(&s.p, &e), &e);
    assert_int_equal(s.left, 100 - (L * N_OPS - 5)); /* the others only */
    assert_memory_equal(again.entries, whole.entries, (size_t)whole.n * sizeof *whole.entries);
    assert_memory_equal(&again.all_kld, &whole.all_kld, sizeof(double));

    struct sens_result full;
    sens_result_init(&full, &f.m.cfg, o.per);
    must(sens_partial_open(&s.p, path, print_of(1), &full, &e), &e);
    assert_int_equal(s.p.n_found, L * N_OPS);
    must(sens_partial_close(&s.p, &e), &e);
    assert_memory_equal(full.entries, whole.entries, (size_t)whole.n * sizeof *whole.entries);

    const char *bad[] = {"hello\n", "{\"schema\":\"qlab.qsens/1\"}\n", "hello", "[]\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *text;
        size_t n;
        test_write(path, bad[i], strlen(bad[i]));
        assert_int_equal(sens_partial_open(&s.p, path, print_of(1), &full, &e), -1);
        must(sens_partial_close(&s.p, &e), &e);
        must(file_read(path, 4096, &text, &n, &e), &e);
        assert_string_equal(text, bad[i]); /* not ours, not touched */
        free(text);
    }
    sens_result_free(&whole);
    sens_result_free(&part);
    sens_result_free(&again);
    sens_result_free(&full);
    close_tiny(&f);
}

int main(void)
{
    msg_init("test_sensitivity");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs_llama), cmocka_unit_test(test_outputs_qwen3), cmocka_unit_test(test_local),
        cmocka_unit_test(test_seed_preset),   cmocka_unit_test(test_no_damage),     cmocka_unit_test(test_threads),
        cmocka_unit_test(test_nan),           cmocka_unit_test(test_samples),       cmocka_unit_test(test_partial),
        cmocka_unit_test(test_stacks),
    };
    return cmocka_run_group_tests_name("sensitivity", tests, NULL, NULL);
}
