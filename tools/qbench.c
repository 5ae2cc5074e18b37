/* qbench: how fast a model answers, and how much memory it takes. */
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "eval/bench.h"
#include "eval/device.h"
#include "views/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 512 /* rows of one forward pass */

static int64_t prompt_tokens = 512, gen = 64, warmup = 2, trials = 5;
static const char *prompt_text;
static struct int_list depths = {1, {0}};
static bool kernels;

static struct opt opts[] = {
    {"prompt-tokens", 0, OPT_INT, &prompt_tokens, "N",
     "prompt of N pseudo-random token ids, drawn from --seed", NULL, 1, 1 << 24},
    {"prompt", 0, OPT_STR, &prompt_text, "TEXT",
     "prompt of this text instead; the record then has generated{token_ids,text}", NULL, 0, 0},
    {"gen", 0, OPT_INT, &gen, "N", "tokens generated in a trial, greedily; end-of-text does not stop them", NULL, 1, 1 << 24},
    {"depth", 0, OPT_INTS, &depths, "D,…", "tokens already in the KV cache before the prompt: one run each", NULL, 0, 1 << 24},
    {"warmup", 0, OPT_INT, &warmup, "N", "passes that are not counted, before the trials of each depth", NULL, 0, 10000},
    {"trials", 0, OPT_INT, &trials, "N", "passes that are counted", NULL, 1, 10000},
    {"kernels", 0, OPT_FLAG, &kernels, NULL, "one more pass at the first depth, with time, bytes and operations of every\nkernel", NULL, 0, 0},
    {0},
};

static struct tool tool = {
    .name = "qbench",
    .summary = "time to first token, decode speed and memory of a model",
    .usage = "MODEL [options]",
    .details =
        "A trial is one pass: D tokens already in the cache, then the prompt, then N tokens. TTFT runs from the prompt's\n"
        "going in to the first id's being known; decode_tps = (N-1) / (t_N - t_1). Cache filler and --prompt-tokens are\n"
        "pseudo-random ids (SplitMix64 of --seed), so no tokenizer is needed without --prompt.\n"
        "\n"
        "results: runs[{depth, ttft_ms, prefill_tps, decode_tps, token_ms}], each {n,min,p50,p90,p99,mean,sd,samples}, the\n"
        "first run's also at the top level (decode fields null with --gen 1); memory{…} in bytes; bandwidth{read_bytes_per_s\n"
        "(read_from: weights, the model's own, before and after each trial at the first depth, or, if these are under 64 MiB\n"
        "or not in one piece, a buffer; of a GPU its copies, both directions counted), samples, decode_bytes_per_token\n"
        "(weights and cache), decode_fraction (of the samples around a trial)}; with --kernels: kernels[{phase, op, format, calls, ms, bytes, ops,\n"
        "bytes_per_s, ops_per_s, bandwidth_fraction, peak_fraction, peak}], phases[{phase, wall_ms, kernels_ms}] and\n"
        "peak{f32, bf16, int8}: most operations a second of this process, a multiply-add being two (docs/schema).\n"
        "\n"
        "  qbench out/m/int4-g64/model | jq .results.decode_tps.p50\n"
        "  qbench MODEL --depth 0,1024,4096 | jq -c '.results.runs[] | [.depth, .ttft_ms.p50, .decode_tps.p50]'\n",
    .results_version = 4,
    .compute_dflt = "auto",
    .opts = opts,
};

static void on_pass(void *ctx, int64_t done) { progress_at(ctx, done); }

static void check_room(const char *path, const struct config *c, int64_t n_prompt)
{
    for (int i = 0; i < depths.n; i++) {
        int64_t all = depths.v[i] + n_prompt + gen;
        if (all > c->max_position_embeddings)
            die("%s: depth %lld + prompt %lld + gen %lld tokens exceed the model's context (at most %lld were expected)",
                path, (long long)depths.v[i], (long long)n_prompt, (long long)gen,
                (long long)c->max_position_embeddings);
    }
}

/* The prompt's ids, and its tokenizer if it is a text. */
static int32_t *make_prompt(const char *path, const struct config *c, struct tokenizer **tok, int64_t *n)
{
    struct err e;
    int32_t *ids;
    size_t k;
    if (!prompt_text) {
        check_room(path, c, prompt_tokens);
        ids = mem_new((size_t)prompt_tokens, sizeof *ids);
        bench_random_tokens(ids, *n = prompt_tokens, c->vocab_size, (uint64_t)tool.common.seed);
        return ids;
    }
    json_t *utf8 = json_string(prompt_text);
    if (!utf8) die("--prompt: not UTF-8");
    json_decref(utf8);
    if (!(*tok = tokenizer_of_model(path, &e))) die("%s", e.msg);
    if (tokenizer_encode(*tok, prompt_text, strlen(prompt_text), true, &ids, &k, &e)) die("%s: --prompt: %s", path, e.msg);
    if (!k) die("--prompt: the text has no tokens (at least one was expected)");
    for (size_t i = 0; i < k; i++)
        if (ids[i] < 0 || ids[i] >= c->vocab_size)
            die("%s: the tokenizer gives id %d (below %lld was expected)", path, ids[i], (long long)c->vocab_size);
    check_room(path, c, (int64_t)k);
    *n = (int64_t)k;
    return ids;
}

static json_t *memory_json(const struct model *m, const struct kv_cache *kv, const struct scratch *s, int64_t peak)
{
    struct device d = {0};
    json_t *o = device_memory_json(m->be, &m->cfg, s->max_tok, m->weights_bytes, (int64_t)kv->bytes, (int64_t)s->bytes);
    if (m->be->ops->describe) m->be->ops->describe(m->be, &d);
    json_put(o, "peak_rss_bytes", json_integer(peak));
    json_put(o, "device_peak_bytes", d.peak_bytes ? json_integer(d.peak_bytes) : json_null());
    return o;
}

/* ---- the run ---- */

static void put_generated(json_t *results, const struct tokenizer *tok, const int32_t *ids)
{
    size_t n;
    json_t *g = json_object(), *a = json_array();
    for (int64_t i = 0; i < gen; i++) json_array_append_new(a, json_integer(ids[i]));
    char *text = tokenizer_decode(tok, ids, (size_t)gen, true, &n);
    json_put(g, "token_ids", a);
    json_put(g, "text", json_stringn(text, n));
    json_put(results, "generated", g);
    free(text);
}

int main(int argc, char **argv)
{
    int n_args;
    struct err e;
    struct record r;
    char **args = args_parse(&tool, argc, argv, &n_args);
    if (n_args != 1) die_usage("one MODEL was expected");
    if (prompt_text && args_given(&prompt_tokens)) die_usage("--prompt and --prompt-tokens exclude each other");
    const char *path = args[0];

    struct checkpoint c;
    struct backend be;
    struct model m;
    if (checkpoint_open(&c, path, &e)) die("%s", e.msg);
    struct tokenizer *tok = NULL;
    struct bench_opts o = {.n_gen = gen, .warmup = (int)warmup, .trials = (int)trials};
    int32_t *prompt = make_prompt(path, &c.config, &tok, &o.n_prompt);
    int64_t deepest = 0;
    for (int i = 0; i < depths.n; i++)
        if (depths.v[i] > deepest) deepest = depths.v[i];
    int32_t *filler = mem_new((size_t)deepest, sizeof *filler);
    bench_random_tokens(filler, deepest, c.config.vocab_size, (uint64_t)tool.common.seed + 1);
    o.prompt = prompt;
    o.filler = filler;

    if (backend_open(&be, tool.common.device, tool.common.compute, !c.quant, &e)) die("%s", e.msg);
    record_begin(&r, &tool, argc, argv);
    device_note(&r, &be);
    record_param(&r, "prompt_tokens", json_integer(o.n_prompt));
    record_param(&r, "compute", json_string(compute_name(be.compute)));
    if (record_input_model(&r, "model", path, &e)) die("%s", e.msg);
    msg_stage("loading %s", path);
    double t0 = clock_s();
    if (model_load(&m, &be, &c, &e)) die("%s", e.msg);
    json_put(r.timing, "load_s", json_real(clock_s() - t0));

    struct kv_cache kv;
    struct scratch s;
    int64_t batch = o.n_prompt > deepest ? o.n_prompt : deepest;
    if (batch > BATCH) batch = BATCH;
    if (kv_alloc(&kv, &m, deepest + o.n_prompt + gen, &e) || scratch_alloc(&s, &m, batch, &e)) die("%s: %s", path, e.msg);

    struct progress p;
    int64_t done = 0, filled = 0;
    msg_stage("%lld passes of %lld + %lld tokens, compute %s, %s", (long long)(depths.n * (warmup + trials)),
              (long long)o.n_prompt, (long long)gen, compute_name(be.compute), be.ops->name);
    progress_begin(&p, "passes", "passes", depths.n * (warmup + trials));
    o.on_pass = on_pass;
    o.ctx = &p;
    json_t *runs = json_array();
    struct bench_run first = {0}, run;
    for (int i = 0; i < depths.n; i++) {
        o.bandwidth = i == 0;
        if (bench_depth(&m, &kv, &s, &o, depths.v[i], &filled, &done, &run, &e)) die("%s: %s", path, e.msg);
        json_array_append_new(runs, bench_run_json(&run));
        if (i == 0) first = run;
        else bench_run_free(&run);
    }
    progress_end(&p);
    int64_t peak = mem_peak_rss();
    json_t *memory = memory_json(&m, &kv, &s, peak); /* before more is taken for measuring bandwidth */
    double bytes = bench_decode_bytes(&m, &kv, depths.v[0], o.n_prompt, gen);
    struct bench_bandwidth bw = bench_bandwidth(&m, &first, bytes);

    json_put(r.results, "compute", json_string(compute_name(be.compute)));
    json_put(r.results, "prompt_tokens", json_integer(o.n_prompt));
    json_put(r.results, "gen", json_integer(gen));
    json_put(r.results, "runs", runs);
    const char *keys[] = {"ttft_ms", "prefill_tps", "decode_tps", "token_ms"};
    for (size_t i = 0; i < 4; i++)
        json_object_set(r.results, keys[i], json_object_get(json_array_get(runs, 0), keys[i]));
    json_put(r.results, "memory", memory);
    json_t *b = json_object();
    json_put_headline(b, "read_bytes_per_s", bw.read_bytes_per_s, &r.not_finite);
    json_put(b, "read_from", json_string(bw.from));
    json_t *samples = json_array();
    for (int64_t i = 0; i < first.n_bandwidth; i++) json_array_append_new(samples, json_num(first.bandwidth[i]));
    json_put(b, "samples", samples);
    json_put(b, "decode_bytes_per_token", json_integer((json_int_t)bytes));
    json_put(b, "decode_fraction", isnan(bw.decode_fraction) ? json_null() : json_num(bw.decode_fraction));
    json_put(r.results, "bandwidth", b);
    if (tok) put_generated(r.results, tok, first.generated);
    if (kernels) bench_kernels(&m, &kv, &s, &o, depths.v[0], bw.read_bytes_per_s, r.results);

    bench_run_free(&first);
    free(prompt);
    free(filler);
    kv_free(&kv, &m);
    scratch_free(&s, &m);
    model_free(&m);
    backend_close(&be);
    tokenizer_free(tok);
    checkpoint_close(&c);
    return record_finish(&r);
}
