/* qload: checks a checkpoint and says what it is; writes it as the canonical folder. */
#include "base/file.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "eval/device.h"
#include "model/plan.h"
#include "output/describe.h"
#include "views/convert.h"
#include "views/gguf.h"
#include "views/hub.h"
#include "views/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define RESULTS_VERSION 1
#define TEXT_MAX ((size_t)1 << 30)

static struct {
    const char *out, *dtype, *encode;
    bool tensors, plan;
    int64_t ctx, batch, shard;
} o = {.dtype = "keep", .ctx = 4096, .batch = 512, .shard = 5000000000};

static struct opt opts[] = {
    {"output", 'o', OPT_STR, &o.out, "DIR", "write the canonical folder: GGUF blocks expanded to f16, rows in\norder",
     NULL, 0, 0},
    {"dtype", 0, OPT_CHOICE, &o.dtype, "keep|f16|bf16|f32", "element type of the written floats", "keep|f16|bf16|f32",
     0, 0},
    {"max-shard-bytes", 0, OPT_INT, &o.shard, "N", "larger models are written as several files and an index", NULL, 1,
     9e15},
    {"tensors", 0, OPT_FLAG, &o.tensors, NULL, "list every tensor in the record", NULL, 0, 0},
    {"encode", 0, OPT_STR, &o.encode, "FILE", "token ids of a text, with the tokenizer's special tokens", NULL, 0, 0},
    {"plan-memory", 0, OPT_FLAG, &o.plan, NULL, "what running the model takes; nothing is loaded", NULL, 0, 0},
    {"ctx", 'c', OPT_INT, &o.ctx, "N", "tokens in the KV cache, for --plan-memory", NULL, 1, 1 << 30},
    {"batch", 0, OPT_INT, &o.batch, "N", "rows of activations, for --plan-memory", NULL, 1, 1 << 24},
    {0},
};

static const char details[] =
    "MODEL: a Hugging Face folder (float, or quantized by qquant, compressed-tensors or bitsandbytes 4-bit), a .gguf\n"
    "file, or hf:OWNER/NAME[@REVISION], which is downloaded into -o DIR (HF_TOKEN for gated models).\n"
    "\nResults: architecture, n_params, n_layers, hidden_size, intermediate_size, n_heads, n_kv_heads, head_dim,\n"
    "vocab_size, tied_embeddings, max_position_embeddings, rope{type,theta,...}, tokenizer{type,vocab_size,bos,eos,\n"
    "adds_bos}|null, weights_bytes, dtypes{name:bytes}, n_tensors, quantization{method,formats{name:linears}}|null,\n"
    "unused_tensors[]; on request tensors[{name,dtype,shape,bytes}], token_ids[], memory{weights_bytes,kv_bytes,\n"
    "scratch_bytes,context_bytes,predicted_bytes}, written{bytes,n_tensors,n_files,tokenizer,not_finite[],sha256}.\n"
    "\nExamples:\n"
    "  qload model | jq .results.n_params\n"
    "  qload model.gguf -o model-f16\n"
    "  qload model --plan-memory --ctx 8192 | jq .results.memory\n";

static struct tool tool = {.name = "qload", .summary = "check, describe and convert a model",
                           .usage = "MODEL [-o DIR] [options]", .details = details,
                           .results_version = RESULTS_VERSION, .compute_dflt = "auto", .opts = opts};

static void put_memory(struct record *rec, const struct checkpoint *c)
{
    struct backend be;
    json_t *r = rec->results;
    struct memory_plan p;
    struct err e;
    if (backend_open(&be, tool.common.device, tool.common.compute, !c->quant, &e) ||
        memory_plan(&p, c, &be, o.ctx, o.batch, &e))
        die("%s", e.msg);
    json_put(r, "memory",
             device_memory_json(&be, &c->config, o.batch, p.weights_bytes, p.kv_bytes, p.scratch_bytes));
    json_put(r, "compute", json_string(compute_name(be.compute)));
    device_note(rec, &be);
    backend_close(&be);
}

static json_t *id_json(int64_t id) { return id < 0 ? json_null() : json_integer(id); }

/* Whether the model says it has a tokenizer at all; one it has but that cannot be used is worth a warning. */
static bool claims_tokenizer(const struct checkpoint *c)
{
    struct err e;
    char *s = NULL;
    bool yes;
    if (c->is_gguf) {
        yes = gguf_get_str(c->gguf, "tokenizer.ggml.model", false, &s, &e) == 0 && s && strcmp(s, "no_vocab");
    } else {
        s = path_join(c->path, "tokenizer.json");
        yes = path_exists(s);
    }
    free(s);
    return yes;
}

static void put_ids(struct record *r, const struct tokenizer *t)
{
    struct err e;
    char *text;
    size_t n, n_ids;
    int32_t *ids;
    if (file_read(o.encode, TEXT_MAX, &text, &n, &e) || tokenizer_encode(t, text, n, true, &ids, &n_ids, &e) ||
        record_input_file(r, "text", o.encode, &e))
        die("%s", e.msg);
    json_t *a = json_array();
    for (size_t i = 0; i < n_ids; i++) json_array_append_new(a, json_integer(ids[i]));
    json_put(r->results, "token_ids", a);
    free(ids);
    free(text);
}

static void put_tokenizer(struct record *r, const struct checkpoint *c)
{
    struct err e = {""};
    struct tokenizer *t = o.encode || claims_tokenizer(c) ? tokenizer_of_model(c->path, &e) : NULL;
    if (!t && o.encode) die("%s", e.msg);
    if (!t && *e.msg) msg_warn("%s", e.msg);
    json_t *j = json_null();
    if (t)
        j = json_pack("{s:s,s:I,s:o,s:o,s:b}", "type", tokenizer_type(t), "vocab_size",
                      (json_int_t)tokenizer_vocab_size(t), "bos", id_json(tokenizer_bos(t)), "eos",
                      id_json(tokenizer_eos(t)), "adds_bos", tokenizer_adds_bos(t));
    json_put(r->results, "tokenizer", j);
    if (o.encode) put_ids(r, t);
    if (t) tokenizer_free(t);
}

static void on_bytes(void *ctx, int64_t done, int64_t total)
{
    struct progress *p = ctx;
    if (!p->total) progress_begin(p, "writing", "B", total);
    progress_at(p, done);
}

static void write_folder(json_t *r, const struct checkpoint *c)
{
    struct convert_report rep;
    struct progress p = {0};
    struct err e;
    struct convert_opts opt = {.dtype = DT_COUNT, .shard_bytes = o.shard, .on_bytes = on_bytes, .ctx = &p};
    if (!strcmp(o.dtype, "f16")) opt.dtype = DT_F16;
    if (!strcmp(o.dtype, "bf16")) opt.dtype = DT_BF16;
    if (!strcmp(o.dtype, "f32")) opt.dtype = DT_F32;
    msg_stage("writing %s", o.out);
    if (convert_folder(c, o.out, &opt, &rep, &e)) die("%s", e.msg);
    if (p.total) progress_end(&p);
    if (*rep.tokenizer_why) msg_warn("no tokenizer was written: %s", rep.tokenizer_why);
    json_t *bad = json_array(), *d = record_describe_model(o.out, &e);
    if (!d) die("%s", e.msg);
    for (char **b = rep.not_finite; *b; b++) {
        msg_warn("%s: tensor %s has NaN or Inf", c->path, *b);
        json_array_append_new(bad, json_string(*b));
    }
    json_put(r, "written", json_pack("{s:I,s:I,s:I,s:b,s:o,s:O}", "bytes", (json_int_t)rep.bytes, "n_tensors",
                                     (json_int_t)rep.n_tensors, "n_files", (json_int_t)rep.n_files, "tokenizer",
                                     rep.tokenizer, "not_finite", bad, "sha256", json_object_get(d, "sha256")));
    json_decref(d);
    convert_report_free(&rep);
}

/* The folder or file to open. A hub model comes as published into -o DIR, or beside it when it is to be converted. */
static char *fetch(const char *spec, bool keep)
{
    struct err e;
    if (!o.out) die_usage("%s needs -o DIR, where it is downloaded to", spec);
    char *dir = keep ? mem_strdup(o.out) : mem_printf("%s.hub", o.out), *cfg = path_join(dir, "config.json");
    /* the folder appears only when it is complete */
    if ((keep || !path_exists(cfg)) && hub_fetch(spec, dir, &e)) die("%s", e.msg);
    free(cfg);
    return dir;
}

int main(int argc, char **argv)
{
    int n;
    char **arg = args_parse(&tool, argc, argv, &n);
    struct record r;
    struct checkpoint c;
    struct err e;
    if (n != 1) die_usage(n ? "one MODEL was expected" : "MODEL is missing");
    bool keep = !strcmp(o.dtype, "keep"), hub = hub_is_spec(arg[0]);
    if (!o.out && !keep) die_usage("--dtype needs -o DIR");
    if (backend_check(tool.common.device, &e)) die("%s", e.msg);
    record_begin(&r, &tool, argc, argv);
    char *path = hub ? fetch(arg[0], keep) : mem_strdup(arg[0]);
    bool write = o.out && !(hub && keep);
    if (write && path_is_within(path, o.out))
        die("%s: is where the model is read from (another folder was expected)", o.out);
    if (checkpoint_open(&c, path, &e)) die("%s", e.msg);
    for (char **u = c.unused; *u; u++) msg_warn("%s: tensor %s is not used by %s", path, *u, c.config.architecture);
    if (record_input_model(&r, "model", path, &e)) die("%s", e.msg);
    put_tokenizer(&r, &c);
    if (describe_checkpoint(r.results, &c, o.tensors, &e)) die("%s", e.msg);
    if (o.plan) put_memory(&r, &c);
    if (write) write_folder(r.results, &c);
    checkpoint_close(&c);
    if (hub && !keep && path_remove_tree(path, &e)) msg_warn("%s", e.msg);
    free(path);
    return record_finish(&r);
}
