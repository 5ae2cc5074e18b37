/* qsens: how much each linear suffers from quantization. */
#include "base/file.h"
#include "base/hash.h"
#include "base/host.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "eval/device.h"
#include "eval/sens_partial.h"
#include "eval/text.h"
#include "quantize/recipe.h"

#include <stdlib.h>
#include <string.h>

#define RESULTS_VERSION 3

static struct {
    const char *format, *method, *text, *text_form, *mode, *per, *preset, *samples, *partial;
    int64_t chars;
} o = {.text_form = "file", .mode = "local", .per = "tensor", .chars = 500};

static struct opt opts[] = {
    {"format", 'f', OPT_STR, &o.format, "FORMAT", "what the linears are quantized into, or FORMAT+METHOD\n(required)", NULL, 0, 0},
    {"method", 0, OPT_STR, &o.method, "rtn|mse", "how codes are chosen (default: as -f says, else rtn)", NULL, 0, 0},
    {"text", 0, OPT_STR, &o.text, "FILE", "text the model reads (required)", NULL, 0, 0},
    {"text-form", 0, OPT_CHOICE, &o.text_form, TEXT_FORM_NAMES,
     "file: as it is; hf-rows: a file of lines joined as the\nHugging Face rows of wikitext are", TEXT_FORM_NAMES, 0, 0},
    {"chars", 0, OPT_INT, &o.chars, "N", "use only the first N characters; 0 is all", NULL, 0, 1e9},
    {"mode", 'm', OPT_CHOICE, &o.mode, "MODE",
     "local: each linear's output on clean inputs; isolated: the\nmodel's output with that unit alone quantized; restore: with\n"
     "everything but that unit quantized",
     "local|isolated|restore", 0, 0},
    {"per", 0, OPT_CHOICE, &o.per, "UNIT", "what is quantized (or restored) at a time", "tensor|op|layer", 0, 0},
    {"preset", 0, OPT_CHOICE, &o.preset, "seed",
     "adds seed_mse, seed_cosine: the original experiment's measure,\noutputs in the wholly quantized model against the "
     "clean one's",
     "seed", 0, 0},
    {"samples", 0, OPT_STR, &o.samples, "DIR", "a CSV for each linear: up to 2000 (reference, quantized) outputs", NULL, 0, 0},
    {"output", 'o', OPT_STR, &o.partial, "FILE.jsonl", "keep finished units here; a stopped run with the same options goes on",
     NULL, 0, 0},
    {0},
};

static const char details[] =
    "results: mode, format, method, per, n_chars, n_tokens, n_scored, baseline{nll}, all{kld,delta_nll} (every decoder linear\n"
    "quantized), tensors[{name, layer, op, shape, mse, nmse, cosine, sqnr_db, kld, delta_nll, bytes_before, bytes_after}].\n"
    "mse ... sqnr_db compare outputs of that linear on the original's inputs; kld = KL(original || quantized) in nats and\n"
    "delta_nll (quantized - original) are means over the tokens of the text, null in local mode. sqnr_db is null when there\n"
    "is no error at all.\n"
    "\n"
    "  qsens MODEL -f nf4 --text data/calibration.txt | jq -r '.results.tensors | sort_by(-.nmse)[:10][].name'\n"
    "  qsens MODEL -f int4-g64 --mode isolated --text data/calibration.txt -o sens.jsonl >sens.json\n";

static struct tool tool = {.name = "qsens", .summary = "how much each linear suffers from quantization",
                           .usage = "MODEL -f FORMAT --text FILE [options]", .details = details,
                           .results_version = RESULTS_VERSION, .compute_dflt = "f32", .opts = opts};

/* What the sweep calls back. */
struct watcher {
    struct sens_partial partial;
    struct progress progress;
};

static int on_done(void *ctx, const struct sens_entry *en, struct err *e)
{
    return o.partial ? sens_partial_add(&((struct watcher *)ctx)->partial, en, e) : 0;
}

static void on_progress(void *ctx, int64_t done, int64_t total)
{
    struct progress *p = &((struct watcher *)ctx)->progress;
    p->total = total;
    progress_at(p, done);
}

/* Everything the numbers of a unit depend on. */
static json_t *fingerprint(const struct record *r, const struct sens_opts *so, const struct eval_text *t, const struct backend *be)
{
    char tokens[65];
    sha256_hex(t->ids, (size_t)t->n_ids * sizeof *t->ids, tokens);
    return json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:I}", "results_version", RESULTS_VERSION, "format",
                     so->fmt->name, "method", so->method->name, "mode", o.mode, "per", o.per, "model", record_input_digest(r, 0), "text",
                     record_input_digest(r, 1), "tokens", tokens, "preset", o.preset ? o.preset : "none", "compute", compute_name(be->compute),
                     "backend", be->ops->name, "isa", isa_name(isa_best()), "samples_seed",
                     (json_int_t)(o.samples ? tool.common.seed : 0));
}

static void put_results(struct record *r, const struct sens_result *s, const struct sens_opts *so,
                        const struct eval_text *t, const struct backend *be)
{
    json_t *v = r->results, *baseline = json_object(), *all = json_object(), *tensors = json_array();
    json_put_headline(baseline, "nll", s->baseline_nll, &r->not_finite);
    json_put_headline(all, "kld", s->all_kld, &r->not_finite);
    json_put_headline(all, "delta_nll", s->all_delta_nll, &r->not_finite);
    for (int64_t i = 0; i < s->n; i++) json_array_append_new(tensors, sens_entry_json(&s->entries[i], so));
    json_put(v, "mode", json_string(o.mode));
    json_put(v, "format", json_string(so->fmt->name));
    json_put(v, "method", json_string(so->method->name));
    json_put(v, "per", json_string(o.per));
    json_put(v, "compute", json_string(compute_name(be->compute)));
    json_put(v, "n_chars", json_integer(t->n_chars));
    json_put(v, "n_tokens", json_integer(s->n_tokens));
    json_put(v, "n_scored", json_integer(s->n_scored));
    json_put(v, "baseline", baseline);
    json_put(v, "all", all);
    json_put(v, "tensors", tensors);
}

static void load_text(struct eval_text *t, const char *model, const struct config *c)
{
    struct err e;
    struct tokenizer *tok = tokenizer_of_model(model, &e);
    if (!tok) die("%s", e.msg);
    if (eval_text_load(t, tok, o.text, text_form_of(o.text_form), PROTO_HF_SLIDING, o.chars, c->vocab_size, &e))
        die("%s", e.msg);
    tokenizer_free(tok);
    if (t->n_ids < 2)
        die("%s: too short: %lld tokens (at least 2 were expected)", o.text, (long long)t->n_ids);
    if (t->n_ids > c->max_position_embeddings)
        die("%s: %lld tokens, more than the model's context (at most %lld were expected: --chars)", o.text,
            (long long)t->n_ids, (long long)c->max_position_embeddings);
}

int main(int argc, char **argv)
{
    int n_args;
    struct err e;
    struct record r;
    struct checkpoint c;
    struct backend be;
    struct model m;
    struct eval_text t;
    struct sens_result s;
    struct watcher w = {0};
    char **args = args_parse(&tool, argc, argv, &n_args);
    if (n_args != 1) die_usage("one MODEL was expected");
    if (!o.format) die_usage("-f FORMAT is missing");
    if (!o.text) die_usage("--text FILE is missing");
    const char *path = args[0];
    struct sens_opts so = {
        .mode = !strcmp(o.mode, "local") ? SENS_LOCAL : !strcmp(o.mode, "isolated") ? SENS_ISOLATED : SENS_RESTORE,
        .per = !strcmp(o.per, "tensor") ? SENS_TENSOR : !strcmp(o.per, "layer") ? SENS_LAYER : SENS_OP,
        .seed_preset = o.preset != NULL,
        .samples_dir = o.samples,
        .seed = (uint64_t)tool.common.seed,
        .on_done = on_done,
        .on_progress = on_progress,
        .ctx = &w,
    };
    if (recipe_linear(o.format, o.method, &so.fmt, &so.method, &e)) die_usage("%s", e.msg);
    if (checkpoint_open(&c, path, &e) || backend_open(&be, tool.common.device, tool.common.compute, !c.quant, &e)) die("%s", e.msg);
    if (c.quant) die("%s: is already quantized (the original was expected)", path);
    load_text(&t, path, &c.config);
    record_begin(&r, &tool, argc, argv);
    device_note(&r, &be);
    record_param(&r, "compute", json_string(compute_name(be.compute)));
    record_param(&r, "method", json_string(so.method->name));
    if (record_input_model(&r, "model", path, &e) || record_input_file(&r, "text", o.text, &e)) die("%s", e.msg);
    sens_result_init(&s, &c.config, so.per);
    if (o.partial && sens_partial_open(&w.partial, o.partial, fingerprint(&r, &so, &t, &be), &s, &e)) die("%s", e.msg);
    if (w.partial.n_found)
        msg_stage("%s: %lld of %lld units are done", o.partial, (long long)w.partial.n_found, (long long)s.n);
    if (o.samples && path_make_dirs(o.samples, &e)) die("%s", e.msg);
    msg_stage("loading %s", path);
    if (model_load(&m, &be, &c, &e)) die("%s", e.msg);
    if (sens_model_dtype(&c, &so.model_dtype, &e)) die("%s: %s", path, e.msg);
    msg_stage("%s sensitivity of %lld %ss to %s over %lld tokens", o.mode, (long long)s.n, o.per, o.format,
              (long long)t.n_ids);
    progress_begin(&w.progress, o.mode, "layers", 1);
    if (sens_run(&m, &c, t.ids, t.n_ids, &so, &s, &e)) die("%s: %s", path, e.msg);
    progress_end(&w.progress);
    put_results(&r, &s, &so, &t, &be);
    if (o.partial && sens_partial_close(&w.partial, &e)) die("%s", e.msg);
    sens_result_free(&s);
    eval_text_free(&t);
    model_free(&m);
    backend_close(&be);
    checkpoint_close(&c);
    return record_finish(&r);
}
