/* qquant: quantizes a float checkpoint into a Hugging Face folder. */
#include "backend/backend.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "quantize/export.h"
#include "quantize/folder.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#define RESULTS_VERSION 1

static struct {
    const char *format, *recipe, *out, *method, *embed, *head, *export;
    bool plan;
    int64_t shard_bytes;
} o = {.shard_bytes = 5000000000};

static struct opt opts[] = {
    {"format", 'f', OPT_STR, &o.format, "FORMAT", "what the linears become, or a recipe's name (see below)", NULL, 0, 0},
    {"recipe", 'r', OPT_STR, &o.recipe, "FILE", "recipe: {\"default\": FORMAT, \"rules\": [{\"match\": GLOB, \"format\": FORMAT}, …]}", NULL, 0, 0},
    {"output", 'o', OPT_STR, &o.out, "DIR", "the folder to write (with --export-recipe: a file)", NULL, 0, 0},
    {"method", 0, OPT_STR, &o.method, "rtn|mse", "how codes are chosen: round to nearest, or least squared error\n(default: the recipe's, else rtn)", NULL, 0, 0},
    {"embed", 0, OPT_STR, &o.embed, "FORMAT", "format of the embedding (default: as it is)", NULL, 0, 0},
    {"head", 0, OPT_STR, &o.head, "FORMAT", "format of the head; unties it from the embedding unless --embed is the same", NULL, 0, 0},
    {"plan", 0, OPT_FLAG, &o.plan, NULL, "compute sizes, write nothing", NULL, 0, 0},
    {"export-recipe", 0, OPT_CHOICE, &o.export, "KIND", "write nothing but the recipe as another program takes it", "llama.cpp|gptqmodel|vllm", 0, 0},
    {"max-shard-bytes", 0, OPT_INT, &o.shard_bytes, "N", "tensor data in one file at most", NULL, 1, 9e15},
    {0},
};

static const char details[] =
    "Formats: f32 bf16 f16 int8-row int4-row int4-g32 int4-g64 int4-g128 int4-g256 (also with -sym), int4-strided128,\n"
    "nf4 nf4-dq fp4. A recipe's name is FORMAT[+head=FORMAT][+embed=FORMAT][+mse].\n"
    "Globs match module names: model.layers.0.mlp.up_proj, model.embed_tokens, lm_head; '*' crosses dots.\n"
    "results: tensors[{name,format,method,shape,bytes,bpw,nmse,sqnr_db,cosine,max_abs_err}], bytes_before, bytes_after,\n"
    "bpw, bpw_model, read_bytes_per_token, portable{transformers,vllm,why}.\n"
    "  qquant model/ -f int4-g64-sym -o out/ | jq .results.bpw\n"
    "  qquant model/ -r mix.json --export-recipe llama.cpp -o types.txt\n"
    "  llama-quantize --tensor-type-file types.txt f16.gguf mix.gguf Q8_0\n";

static struct tool tool = {.name = "qquant", .summary = "quantizes a checkpoint into a Hugging Face folder",
                           .usage = "MODEL (-f FORMAT | -r RECIPE.json) -o DIR [options]", .details = details,
                           .results_version = RESULTS_VERSION, .compute_dflt = "f32", .opts = opts};

static void get_recipe(struct recipe *r, const struct config *cfg)
{
    struct err e;
    const char *method = NULL, *embed = NULL, *head = NULL;
    const struct format *f;
    const struct method *m;
    if ((o.method && recipe_method(o.method, &m, &e)) || (o.embed && recipe_format(o.embed, &f, &e)) ||
        (o.head && recipe_format(o.head, &f, &e)))
        die_usage("%s", e.msg);
    json_t *v = o.recipe ? json_read(o.recipe, (size_t)64 << 20, &e)
                         : recipe_from_name(o.format, &method, &embed, &head, &e);
    if (!v && o.format) die_usage("%s", e.msg);
    if (!v) die("%s", e.msg);
    if (o.method) method = o.method;
    if (o.embed) embed = o.embed;
    if (o.head) head = o.head;
    if (recipe_resolve(r, v, method, embed, head, cfg, &e)) die("%s%s%s", o.recipe ? o.recipe : "", o.recipe ? ": " : "", e.msg);
    json_decref(v);
}

struct bar {
    struct progress p;
};

static void on_bytes(void *ctx, int64_t done, int64_t total)
{
    struct bar *b = ctx;
    b->p.total = total;
    progress_at(&b->p, done);
}

static void write_folder(struct folder *f)
{
    struct err e;
    struct bar bar;
    char why[512];
    json_t *portable = folder_portable(f);
    if (strcmp(json_string_value(json_object_get(portable, "transformers")), "yes"))
        msg_warn("%s: not for every program: %s", o.out, json_string_value(json_object_get(portable, "why")));
    json_decref(portable);
    for (char **u = f->src->unused; *u; u++) msg_warn("%s: tensor %s is not used by the model and left out", f->src->path, *u);
    msg_stage("writing %s (%.3f GiB)", o.out, (double)f->bytes / 1073741824);
    progress_begin(&bar.p, "quantizing", "B", checkpoint_bytes(f->src));
    int rc = folder_write(f, o.out, on_bytes, &bar, why, &e);
    progress_end(&bar.p);
    if (rc) die("%s", e.msg);
    if (*why) msg_warn("%s: no tokenizer.json: %s", o.out, why);
}

int main(int argc, char **argv)
{
    int n;
    struct err e;
    struct record rec;
    struct checkpoint c;
    struct recipe r;
    struct folder f;
    /* The codes of one tensor take the memory of an earlier one, instead of new pages that have to be cleared. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    char **model = args_parse(&tool, argc, argv, &n);
    if (n != 1) die_usage("one MODEL was expected");
    if (!o.format == !o.recipe) die_usage("one of -f FORMAT and -r RECIPE.json was expected");
    if (!o.out && !o.plan && !o.export) die_usage("-o DIR was expected");
    if (backend_check(tool.common.device, &e)) die("%s", e.msg);
    record_begin(&rec, &tool, argc, argv);
    if (o.out && !o.plan && path_is_within(*model, o.out))
        die("%s: is where the model is read from (another folder was expected)", o.out);
    if (checkpoint_open(&c, *model, &e)) die("%s", e.msg);
    get_recipe(&r, &c.config);
    if (folder_plan(&f, &c, &r, o.shard_bytes, &e)) die("%s", e.msg);
    if (record_input_model(&rec, "model", *model, &e)) die("%s", e.msg);
    if (o.recipe && record_input_file(&rec, "recipe", o.recipe, &e)) die("%s", e.msg);
    record_param(&rec, "method", json_string(r.entries[0].method ? r.entries[0].method->name : o.method ? o.method : "rtn"));

    json_t *output = NULL, *exported = NULL;
    if (o.export) {
        char *text = recipe_export(o.export, &r, c.tied, f.model_dtype, &e);
        if (!text || (o.out && !o.plan && file_write(o.out, text, strlen(text), &e))) die("%s", e.msg);
        exported = json_pack("{s:s,s:s}", "for", o.export, "text", text);
        free(text);
    } else if (!o.plan) {
        write_folder(&f);
        output = record_describe_model(o.out, &e);
        if (!output) die("%s", e.msg);
    }
    json_t *results = folder_results(&f);
    json_object_update(rec.results, results);
    json_decref(results);
    if (exported) json_put(rec.results, "export", exported);
    if (output) json_put(rec.root, "output", output);
    folder_free(&f);
    recipe_free(&r);
    checkpoint_close(&c);
    return record_finish(&rec);
}
