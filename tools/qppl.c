/* qppl: perplexity by a named protocol, alone or against a reference model. */
#include "base/file.h"
#include "base/hash.h"
#include "base/host.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "eval/comparison.h"
#include "eval/device.h"
#include "eval/ppl.h"
#include "eval/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RESULTS_VERSION 2

static struct {
    const char *text, *text_form, *protocol, *nll, *ref, *ref_compute, *ref_cache, *leak, *also;
    int64_t ctx, stride, chars, max_windows, also_windows, ref_logits;
} o = {.text_form = "file", .protocol = "llamacpp", .ref_compute = "f32", .also_windows = 8};

static struct opt opts[] = {
    {"text", 0, OPT_STR, &o.text, "FILE", "text to measure on (required)", NULL, 0, 0},
    {"text-form", 0, OPT_CHOICE, &o.text_form, TEXT_FORM_NAMES,
     "file: as it is; hf-rows: a file of lines joined as the\nHugging Face rows of wikitext are", TEXT_FORM_NAMES, 0, 0},
    {"protocol", 'p', OPT_CHOICE, &o.protocol, "NAME", "which windows are run and scored", PROTOCOL_NAMES, 0, 0},
    {"ctx", 'c', OPT_INT, &o.ctx, "N", "tokens a window; 0 is the protocol's own (llamacpp 512, gptq\n2048, sliding "
     "min(model's context, 4096))", NULL, 0, 1 << 24},
    {"stride", 0, OPT_INT, &o.stride, "N", "tokens between sliding windows; 0 is 512", NULL, 0, 1 << 24},
    {"chars", 0, OPT_INT, &o.chars, "N", "use only the first N characters; 0 is all (seed: 2000)", NULL, 0, 1e15},
    {"max-windows", 0, OPT_INT, &o.max_windows, "N", "use only the first N windows; 0 is all", NULL, 0, 1e15},
    {"nll", 0, OPT_STR, &o.nll, "FILE", "write the NLL of every scored token, f32 little endian", NULL, 0, 0},
    {"ref", 'r', OPT_STR, &o.ref, "MODEL", "compare with this model: KL divergence, top-1 agreement, paired\n"
     "difference of NLL", NULL, 0, 0},
    {"ref-compute", 0, OPT_CHOICE, &o.ref_compute, "KIND", "what the reference computes in",
     COMPUTE_NAMES, 0, 0},
    {"ref-cache", 0, OPT_STR, &o.ref_cache, "FILE", "keep the reference's final hidden states in this file and use them\n"
     "when they fit: same results, without running the reference again", NULL, 0, 0},
    {"ref-logits", 0, OPT_INT, &o.ref_logits, "MIB", "keep the reference's logits too, in FILE" LOGITS_SUFFIX ", if they take no more\n"
     "than this (4 bytes a scored token and word of the vocabulary)", NULL, 0, 1 << 24},
    {"also", 0, OPT_CHOICE, &o.also, "KIND", "compute the model's first windows in this too: its KL divergence from --compute",
     COMPUTE_NAMES, 0, 0},
    {"also-windows", 0, OPT_INT, &o.also_windows, "N", "windows for --also; 0 is all", NULL, 0, 1e15},
    {"leak", 0, OPT_STR, &o.leak, "FILE", "refuse a text that shares runs of 32 tokens with FILE", NULL, 0, 0},
    {0},
};

static const char details[] =
    "Protocols:\n"
    "  llamacpp    as llama-perplexity: windows of ctx tokens, the second half of each is scored\n"
    "  hf-sliding  overlapping windows, each window's mean weighted by its new tokens\n"
    "  seed        hf-sliding on the first 2000 characters\n"
    "  gptq        windows of 2048 without overlap, all predictions scored\n"
    "\nResults: protocol, n_tokens, n_windows, n_scored, nll, nll_se, ppl, ppl_se, bits_per_byte (nll/ln 2 times tokens a\n"
    "byte of the text), compute; with --ref also kld{mean,se,median,p90,p99,p999,max} in nats, top1_agreement, top1_se,\n"
    "delta_p_rms, delta_nll{mean,se} (this model minus the reference, paired); with\n"
    "--also KIND: also{compute, n_windows, n_scored, kld ... delta_nll} (KIND against --compute on the same weights).\n"
    "Text must be UTF-8; every invalid sequence is read as U+FFFD.\n"
    "\nExamples:\n"
    "  qppl model --text wiki.test.raw | jq .results.ppl\n"
    "  qppl model-int4 --text wiki.test.raw --ref model | jq .results.kld.mean\n";

static struct tool tool = {.name = "qppl", .summary = "perplexity of a model by a named protocol",
                           .usage = "MODEL --text FILE [options]", .details = details,
                           .results_version = RESULTS_VERSION, .compute_dflt = "f32", .opts = opts};

/* One model on its own backend. */
struct loaded {
    struct checkpoint c;
    struct backend be;
    struct model m;
};

static const struct model *load(struct loaded *l, const char *path, const char *compute)
{
    struct err e;
    if (checkpoint_open(&l->c, path, &e) || backend_open(&l->be, tool.common.device, compute, !l->c.quant, &e) ||
        model_load(&l->m, &l->be, &l->c, &e))
        die("%s", e.msg);
    return &l->m;
}

static void unload(struct loaded *l)
{
    model_free(&l->m);
    backend_close(&l->be);
    checkpoint_close(&l->c);
}

static void check_leak(const struct tokenizer *tok, const struct eval_text *t, int64_t vocab)
{
    struct err e;
    struct eval_text other;
    if (eval_text_load(&other, tok, o.leak, TEXT_FILE, PROTO_GPTQ, 0, vocab, &e)) die("%s", e.msg);
    int64_t n = shared_ngrams(t->ids, t->n_ids, other.ids, other.n_ids, LEAK_NGRAM);
    if (n)
        die("%s: shares %lld runs of %d tokens with %s (texts without a common one were expected)", o.text, (long long)n,
            LEAK_NGRAM, o.leak);
    eval_text_free(&other);
}

/* The reference (input 2) has the bytes of the model (input 0) and computes as it does: one run serves both. */
static bool is_itself(const struct record *r, const struct backend *be)
{
    return !strcmp(record_input_digest(r, 0), record_input_digest(r, 2)) && !strcmp(o.ref_compute, compute_name(be->compute));
}

/* Digest of all the reference's states depend on. */
static void states_key(char key[65], const struct record *r, const struct eval_text *t, const struct windows *ws,
                       const char *compute)
{
    char tokens[65];
    sha256_hex(t->ids, (size_t)t->n_ids * sizeof *t->ids, tokens);
    char *s = mem_printf("%d %s %s %s %s %s %s ctx %lld stride %lld windows %lld bos %d", RESULTS_VERSION,
                         record_input_digest(r, 2), tokens, o.protocol, compute, tool.common.device,
                         isa_name(isa_best()),
                         (long long)ws->ctx, (long long)ws->stride, (long long)ws->n, ws->replace_bos);
    sha256_hex(s, strlen(s), key);
    free(s);
}

static void put_results(struct record *r, const struct ppl_result *p, const struct eval_text *t,
                        const struct windows *ws, const struct backend *be)
{
    double mean, se;
    windows_mean(ws, p->nll, &mean, &se);
    json_t *v = r->results;
    json_put(v, "protocol", json_string(o.protocol));
    json_put(v, "ctx", json_integer(ws->ctx));
    json_put(v, "stride", ws->stride ? json_integer(ws->stride) : json_null());
    json_put(v, "n_chars", json_integer(t->n_chars));
    json_put(v, "n_tokens", json_integer(t->n_ids));
    json_put(v, "n_windows", json_integer(ws->n));
    json_put(v, "n_scored", json_integer(p->n));
    json_put_headline(v, "nll", mean, &r->not_finite);
    json_put(v, "nll_se", json_num(se));
    json_put_headline(v, "ppl", exp(mean), &r->not_finite);
    json_put(v, "ppl_se", json_num(exp(mean) * se));
    json_put(v, "bits_per_byte", json_num(mean / log(2) * (double)t->n_ids / (double)t->n_bytes));
    json_put(v, "compute", json_string(compute_name(be->compute)));
}

static void write_nll(struct record *r, const struct ppl_result *p)
{
    struct err e;
    float *f = mem_array((size_t)p->n, sizeof *f);
    for (int64_t i = 0; i < p->n; i++) f[i] = (float)p->nll[i];
    char hex[65];
    sha256_hex(f, (size_t)p->n * sizeof *f, hex);
    if (file_write(o.nll, f, (size_t)p->n * sizeof *f, &e)) die("%s", e.msg);
    free(f);
    json_put(r->root, "outputs", json_pack("[{s:s,s:s,s:I,s:s}]", "role", "nll", "path", o.nll, "bytes",
                                           (json_int_t)(p->n * 4), "sha256", hex));
}

int main(int argc, char **argv)
{
    int n;
    char **operands = args_parse(&tool, argc, argv, &n);
    if (n != 1) die_usage("one MODEL was expected, %d given", n);
    if (!o.text) die_usage("--text FILE is needed");
    if (o.ref_cache && !o.ref) die_usage("--ref-cache needs --ref");
    if (o.ref_logits && !o.ref_cache) die_usage("--ref-logits needs --ref-cache");
    struct err e;
    struct record r;
    record_begin(&r, &tool, argc, argv);
    struct tokenizer *tok = tokenizer_of_model(operands[0], &e);
    if (!tok) die("%s", e.msg);
    struct loaded model = {0}, ref = {0};
    load(&model, operands[0], tool.common.compute);
    device_note(&r, &model.be);
    record_param(&r, "compute", json_string(compute_name(model.be.compute)));
    const struct config *cfg = &model.c.config;
    struct eval_text text;
    enum protocol p = protocol_of(o.protocol);
    if (eval_text_load(&text, tok, o.text, text_form_of(o.text_form), p, o.chars, cfg->vocab_size, &e)) die("%s", e.msg);
    if (o.leak) check_leak(tok, &text, cfg->vocab_size);
    struct windows ws;
    if (windows_make(&ws, p, text.n_ids, o.ctx, o.stride, o.max_windows, cfg->max_position_embeddings,
                     tokenizer_adds_bos(tok), &e))
        die("%s: %s", o.text, e.msg);
    if (record_input_model(&r, "model", operands[0], &e) || record_input_file(&r, "text", o.text, &e)) die("%s", e.msg);
    struct ref_states states = {0};
    char key[65];
    const struct model *to = NULL; /* what it is compared with */
    if (o.ref) {
        if (record_input_model(&r, "ref", o.ref, &e)) die("%s", e.msg);
        if (is_itself(&r, &model.be)) to = &model.m;
        else to = load(&ref, o.ref, o.ref_compute);
        if (to->cfg.vocab_size != cfg->vocab_size)
            die("%s: vocabulary of %lld (that of %s, %lld, was expected)", o.ref, (long long)to->cfg.vocab_size, operands[0],
                (long long)cfg->vocab_size);
        states_key(key, &r, &text, &ws, compute_name(to->be->compute));
        if (to == &ref.m && o.ref_cache &&
            ref_states_open(&states, o.ref_cache, key, ws.n_scored, to->cfg.hidden_size, cfg->vocab_size, &e))
            die("%s", e.msg);
    }
    msg_stage("%s: %s, %lld tokens, %lld windows, %lld scored%s", operands[0], o.protocol, (long long)text.n_ids,
              (long long)ws.n, (long long)ws.n_scored, o.ref ? states.rows ? ", reference kept" : ", with reference" : "");
    struct ppl_job job = {.model = &model.m, .ref = to, .states = &states, .save_states = o.ref_cache,
                          .save_logits = ws.n_scored <= (o.ref_logits << 20) / 4 / cfg->vocab_size, .states_key = key,
                          .tokens = text.ids, .windows = &ws, .bos = (int32_t)tokenizer_bos(tok)};
    struct windows first = windows_first(&ws, o.also_windows);
    if (o.also) job.n_keep = first.n_scored;
    if (o.also) job.keep = mem_array((size_t)job.n_keep * (size_t)cfg->hidden_size, sizeof *job.keep);
    struct ppl_result res;
    if (ppl_run(&job, &res, &e)) die("%s", e.msg);
    put_results(&r, &res, &text, &ws, &model.be);
    if (o.ref && !comparison_put(r.results, &res) && !r.not_finite) r.not_finite = "kld";
    if (o.also) {
        json_t *v = comparison_of_compute(&job, &model.c, tool.common.device, o.also, &first, job.keep, &e);
        if (!v) die("%s: %s", operands[0], e.msg);
        json_put(r.results, "also", v);
        free(job.keep);
    }
    if (o.nll && !r.not_finite) write_nll(&r, &res);
    json_put(r.timing, "peak_rss_bytes", json_integer(mem_peak_rss()));
    json_put(r.timing, "weights_bytes", json_integer(model.m.weights_bytes));
    json_put(r.timing, "kv_bytes", json_integer(res.kv_bytes));
    ppl_result_free(&res);
    ref_states_close(&states);
    unload(&model);
    if (to == &ref.m) unload(&ref);
    windows_free(&ws);
    eval_text_free(&text);
    tokenizer_free(tok);
    return record_finish(&r);
}
