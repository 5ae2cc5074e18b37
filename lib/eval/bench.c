#include "eval/bench.h"

#include "base/mem.h"
#include "base/msg.h"
#include "base/rng.h"
#include "base/stats.h"
#include "eval/bandwidth.h"
#include "eval/device.h"
#include "eval/kernel_timer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void bench_summarize(const double *x, int64_t n, struct bench_summary *s)
{
    assert(n > 0);
    double *sorted = mem_array((size_t)n, sizeof *sorted);
    memcpy(sorted, x, (size_t)n * sizeof *sorted);
    stats_sort(sorted, n);
    struct mean_se m = stats_mean(x, n);
    *s = (struct bench_summary){.n = n,
                                .min = sorted[0],
                                .p50 = stats_quantile_sorted(sorted, n, 0.50),
                                .p90 = stats_quantile_sorted(sorted, n, 0.90),
                                .p99 = stats_quantile_sorted(sorted, n, 0.99),
                                .mean = m.mean,
                                .sd = m.sd};
    free(sorted);
}

json_t *bench_summary_json(const double *x, int64_t n)
{
    if (n == 0) return json_null();
    struct bench_summary s;
    bench_summarize(x, n, &s);
    json_t *o = json_object(), *a = json_array();
    json_put(o, "n", json_integer(s.n));
    json_put(o, "min", json_num(s.min));
    json_put(o, "p50", json_num(s.p50));
    json_put(o, "p90", json_num(s.p90));
    json_put(o, "p99", json_num(s.p99));
    json_put(o, "mean", json_num(s.mean));
    json_put(o, "sd", json_num(s.sd));
    for (int64_t i = 0; i < n; i++) json_array_append_new(a, json_num(x[i]));
    json_put(o, "samples", a);
    return o;
}

void bench_random_tokens(int32_t *out, int64_t n, int64_t vocab, uint64_t seed)
{
    struct rng r = {seed};
    for (int64_t i = 0; i < n; i++) out[i] = (int32_t)rng_below(&r, vocab);
}

/* ---- read bandwidth ---- */

#define BUFFER ((size_t)128 << 20)
#define ENOUGH ((size_t)64 << 20)

struct regions {
    struct region *r;
    size_t n, bytes;
};

static void add_region(struct regions *to, const struct weight *w)
{
    if (!w->memory) return;
    to->r = mem_grow(to->r, to->n + 1, sizeof *to->r);
    to->r[to->n++] = (struct region){w->memory, w->memory_bytes};
    to->bytes += w->memory_bytes;
}

/* What decoding reads of the weights, where it is enough to measure by; else nothing. */
static struct regions weights_of(const struct model *m)
{
    struct regions all = {0};
    add_region(&all, &m->head);
    for (int64_t l = 0; l < m->cfg.n_layers; l++)
        for (int op = 0; op < N_OPS; op++) add_region(&all, &m->layers[l].w[op]);
    if (all.bytes < ENOUGH) all.n = 0;
    return all;
}

static double median(double *x, int64_t n)
{
    stats_sort(x, n);
    return stats_quantile_sorted(x, n, 0.5);
}

/* ---- one depth ---- */

/* A pass, over and over. */
struct passes {
    const struct model *m;
    struct kv_cache *kv;
    struct scratch *s;
    const struct bench_opts *o;
    int64_t depth;
    double t0, *at; /* when it began, when id i was known */
    int32_t *ids;
    void (*between)(void *arg); /* called when the first id is known; NULL: nothing */
    void *arg;
};

static void on_token(void *ctx, int64_t i)
{
    struct passes *p = ctx;
    p->at[i] = clock_s();
    if (i == 0 && p->between) p->between(p->arg);
}

static void one_pass(void *ctx)
{
    struct passes *p = ctx;
    p->kv->n = p->depth;
    p->t0 = clock_s();
    model_generate(p->m, p->kv, p->s, p->o->prompt, p->o->n_prompt, p->ids, p->o->n_gen, on_token, p);
}

static void metered_pass(void *ctx, void (*between)(void *arg), void *arg)
{
    struct passes *p = ctx;
    p->between = between;
    p->arg = arg;
    one_pass(p);
    p->between = NULL;
}

static void fill(const struct model *m, struct kv_cache *kv, struct scratch *s, const int32_t *tokens, int64_t from,
                 int64_t to)
{
    kv->n = from;
    while (kv->n < to) {
        int64_t n = to - kv->n < s->max_tok ? to - kv->n : s->max_tok;
        model_forward(m, tokens + kv->n, &(struct span){kv, 0, n}, 1, s, NULL);
    }
    m->be->ops->sync(m->be);
}

/* The logits of the last token, which greedy decoding itself need not have kept: no token follows from NaN. */
static int check_finite(const struct passes *p, struct err *e)
{
    const struct model *m = p->m;
    struct score sc;
    int64_t row = p->o->n_gen > 1 ? 0 : (p->o->n_prompt - 1) % p->s->max_tok;
    model_logits(m, p->s->x + row * m->cfg.hidden_size, 1, p->s->logits);
    m->be->ops->score(m->be, &sc, p->s->logits, &p->ids[p->o->n_gen - 1], 1, m->cfg.vocab_size);
    return isfinite(sc.lse) ? 0 : err_set(e, "the model's logits are not finite (no token follows from them)");
}

static void note_trial(struct bench_run *run, const struct passes *p, int64_t t)
{
    int64_t n = p->o->n_gen;
    double t0 = p->t0, *at = p->at;
    run->ttft_ms[t] = (at[0] - t0) * 1e3;
    run->prefill_tps[t] = (double)p->o->n_prompt / (at[0] - t0);
    if (n < 2) return;
    run->decode_tps[t] = (double)(n - 1) / (at[n - 1] - at[0]);
    for (int64_t i = 1; i < n; i++) run->token_ms[t * (n - 1) + i - 1] = (at[i] - at[i - 1]) * 1e3;
}

static void sample_bandwidth(struct bench_run *run, const struct regions *weights)
{
    if (weights->n) run->bandwidth[run->n_bandwidth++] = bandwidth_read(weights->r, weights->n, 0.05);
}

static json_t *device_of(struct passes *p, int64_t settled, const struct sensors *before)
{
    struct backend *be = p->m->be;
    struct sensors after;
    struct device_energy e;
    json_t *o = json_object(), *j = json_null();
    be->ops->sense(be, &after);
    json_put(o, "settle_passes", json_integer(settled));
    json_put(o, "before", device_sensors_json(before));
    json_put(o, "after", device_sensors_json(&after));
    if (device_energy(be, &e, 1, metered_pass, p)) {
        double passes = (double)e.passes, steps = (double)(p->o->n_gen - 1);
        j = json_object();
        json_put(j, "passes", json_integer(e.passes));
        json_put(j, "prefill_j_per_token", json_num(e.prefill_j / passes / (double)p->o->n_prompt));
        json_put(j, "decode_j_per_token", steps > 0 ? json_num(e.decode_j / passes / steps) : json_null());
    }
    json_put(o, "energy", j);
    return o;
}

int bench_depth(const struct model *m, struct kv_cache *kv, struct scratch *s, const struct bench_opts *o, int64_t depth,
                int64_t *filled, int64_t *passes_done, struct bench_run *run, struct err *e)
{
    int64_t n = o->n_gen, steps = n - 1, trials = o->trials;
    assert(n >= 1 && o->n_prompt >= 1 && trials >= 1);
    assert(depth + o->n_prompt + n - 1 <= kv->capacity);
    memset(run, 0, sizeof *run);
    run->depth = depth;
    run->n_trials = trials;
    run->n_decode = steps ? trials : 0;
    run->n_token_ms = steps * trials;
    run->ttft_ms = mem_new((size_t)trials, sizeof(double));
    run->prefill_tps = mem_new((size_t)trials, sizeof(double));
    run->decode_tps = mem_new((size_t)trials, sizeof(double));
    run->token_ms = mem_new((size_t)(steps * trials), sizeof(double));
    run->generated = mem_new((size_t)n, sizeof(int32_t));
    if (depth > *filled) fill(m, kv, s, o->filler, *filled, depth);

    struct backend *be = m->be;
    struct passes p = {.m = m, .kv = kv, .s = s, .o = o, .depth = depth};
    p.at = mem_new((size_t)n, sizeof *p.at);
    p.ids = mem_new((size_t)n, sizeof *p.ids);
    struct sensors before = {0};
    struct regions weights = {0};
    if (o->bandwidth) weights = weights_of(m);
    if (weights.n) run->bandwidth = mem_new((size_t)trials + 1, sizeof(double));
    int64_t settled = 0;
    int rc = 0;
    for (int64_t pass = 0; pass < o->warmup + trials && rc == 0; pass++) {
        if (pass == o->warmup && be->ops->sense) {
            settled = device_settle(be, one_pass, &p);
            be->ops->sense(be, &before);
        }
        if (pass == o->warmup && pass > 0) sample_bandwidth(run, &weights); /* a cold first trial stays cold */
        one_pass(&p);
        if (pass == 0) memcpy(run->generated, p.ids, (size_t)n * sizeof *p.ids);
        else if (memcmp(run->generated, p.ids, (size_t)n * sizeof *p.ids))
            rc = err_set(e, "backend %s: two passes gave different tokens (a deterministic one was expected)", be->ops->name);
        if (pass == 0 && rc == 0) rc = check_finite(&p, e);
        if (pass >= o->warmup) {
            note_trial(run, &p, pass - o->warmup);
            sample_bandwidth(run, &weights);
        }
        ++*passes_done;
        if (o->on_pass) o->on_pass(o->ctx, *passes_done);
    }
    if (!rc && be->ops->sense) run->device = device_of(&p, settled, &before);
    *filled = depth; /* whatever was above is overwritten */
    free(weights.r);
    free(p.at);
    free(p.ids);
    if (rc) bench_run_free(run);
    return rc;
}

void bench_run_free(struct bench_run *run)
{
    free(run->ttft_ms);
    free(run->prefill_tps);
    free(run->decode_tps);
    free(run->token_ms);
    free(run->bandwidth);
    free(run->generated);
    json_decref(run->device);
    memset(run, 0, sizeof *run);
}

json_t *bench_run_json(const struct bench_run *run)
{
    json_t *o = json_object();
    json_put(o, "depth", json_integer(run->depth));
    json_put(o, "ttft_ms", bench_summary_json(run->ttft_ms, run->n_trials));
    json_put(o, "prefill_tps", bench_summary_json(run->prefill_tps, run->n_trials));
    json_put(o, "decode_tps", bench_summary_json(run->decode_tps, run->n_decode));
    json_put(o, "token_ms", bench_summary_json(run->token_ms, run->n_token_ms));
    json_put(o, "device", run->device ? json_incref(run->device) : json_null());
    return o;
}

double bench_decode_bytes(const struct model *m, const struct kv_cache *kv, int64_t depth, int64_t n_prompt,
                          int64_t n_gen)
{
    /* The step that makes id i+1 attends to depth + n_prompt + i tokens, i = 1 … N−1. */
    double context = (double)(depth + n_prompt) + (double)n_gen / 2;
    return (double)m->read_bytes + context * (double)kv->bytes / (double)kv->capacity;
}

struct bench_bandwidth bench_bandwidth(const struct model *m, const struct bench_run *run, double decode_bytes)
{
    struct bench_bandwidth b = {.decode_fraction = NAN, .from = "weights"};
    double *x = mem_new((size_t)(run->n_bandwidth + run->n_trials), sizeof *x);
    int64_t n = run->n_bandwidth;
    if (n) {
        memcpy(x, run->bandwidth, (size_t)n * sizeof *x);
        b.read_bytes_per_s = median(x, n);
    } else if (m->be->ops->copy_bandwidth) {
        b.from = "copy";
        b.read_bytes_per_s = m->be->ops->copy_bandwidth(m->be);
    } else {
        b.from = "buffer";
        b.read_bytes_per_s = bandwidth_read_anonymous(BUFFER, 0.5);
    }
    int64_t first = n - run->n_trials; /* of the samples after trials */
    for (int64_t t = 0; t < run->n_decode; t++) {
        const double *s = run->bandwidth;
        double around = !n ? b.read_bytes_per_s : t + first > 0 ? (s[t + first - 1] + s[t + first]) / 2 : s[0];
        x[t] = decode_bytes * run->decode_tps[t] / around;
    }
    if (run->n_decode && b.read_bytes_per_s > 0) b.decode_fraction = median(x, run->n_decode);
    free(x);
    return b;
}

/* ---- kernels ---- */

struct phases {
    struct kernel_timer kt;
    double began;
    json_t *list;
};

/* Ends the phase under way and begins another; NULL: none. */
static void next_phase(struct phases *p, const char *name)
{
    double now = clock_s(), sum = 0;
    for (size_t i = 0; i < p->kt.n; i++)
        if (!strcmp(p->kt.rows[i].phase, p->kt.phase)) sum += p->kt.rows[i].seconds;
    if (sum > 0) {
        json_t *o = json_object();
        json_put(o, "phase", json_string(p->kt.phase));
        json_put(o, "wall_ms", json_num((now - p->began) * 1e3));
        json_put(o, "kernels_ms", json_num(sum * 1e3));
        json_array_append_new(p->list, o);
    }
    if (name) kernel_timer_phase(&p->kt, name);
    p->began = clock_s();
}

static void first_token(void *ctx, int64_t i)
{
    if (i == 0) next_phase(ctx, "decode");
}

void bench_kernels(struct model *m, struct kv_cache *kv, struct scratch *s, const struct bench_opts *o, int64_t depth,
                   double read_bytes_per_s, json_t *results)
{
    struct phases p = {.list = json_array()};
    struct backend *inner = m->be;
    int32_t *ids = mem_new((size_t)o->n_gen, sizeof *ids);
    kernel_timer_open(&p.kt, inner);
    m->be = &p.kt.be;
    next_phase(&p, "fill");
    fill(m, kv, s, o->filler, 0, depth);
    next_phase(&p, "prefill");
    model_generate(m, kv, s, o->prompt, o->n_prompt, ids, o->n_gen, first_token, &p);
    next_phase(&p, NULL);
    m->be = inner;
    bool host = !inner->ops->describe; /* a device apart has other peaks than this processor's */
    struct peaks peaks = host ? peaks_measure(0.1) : (struct peaks){0};
    json_put(results, "kernels", kernel_timer_json(&p.kt, &(struct roofs){read_bytes_per_s, host ? &peaks : NULL}));
    json_put(results, "phases", p.list);
    json_put(results, "peak", host ? peaks_json(&peaks) : json_null());
    kernel_timer_close(&p.kt);
    free(ids);
}
