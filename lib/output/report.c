#include "output/report.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/version.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- looking into the records ---- */

static const json_t *record_of(const struct row *r, char which)
{
    return which == 'p' ? r->ppl : which == 'b' ? r->bench : which == 'q' ? r->quant : which == 'l' ? r->load : r->say;
}

const json_t *first_of(const struct rows *rs, char which)
{
    for (size_t i = 0; i < rs->n; i++)
        if (record_of(&rs->r[i], which)) return record_of(&rs->r[i], which);
    return NULL;
}

static char *as_text(const json_t *v)
{
    if (json_is_string(v)) return mem_strdup(json_string_value(v));
    if (json_is_number(v)) return mem_printf("%.12g", json_number_value(v));
    return NULL;
}

char *values_of(const struct rows *rs, char which, const char *path)
{
    json_t *seen = json_object();
    char *all = mem_strdup("");
    for (size_t i = 0; i < rs->n; i++) {
        char *s = as_text(json_at(record_of(&rs->r[i], which), path));
        if (s && !json_object_get(seen, s)) {
            char *more = mem_printf("%s%s%s", all, *all ? ", " : "", s);
            free(all);
            all = more;
            json_put(seen, s, json_true());
        }
        free(s);
    }
    json_decref(seen);
    return all;
}

/* Name of the model that the paired differences are against, the one given as --ref: its row's, or its folder's. New
 * string, NULL if there is none. */
static char *reference_name(const struct rows *rs)
{
    for (size_t i = 0; i < rs->n; i++)
        if (rs->r[i].is_ref) return mem_strdup(rs->r[i].name);
    for (size_t i = 0; i < rs->n; i++) {
        const char *path = str_at(record_input(rs->r[i].ppl, "ref"), "path");
        if (path) return row_name(path);
    }
    return NULL;
}

/* ---- the table ---- */

void report_table(const struct rows *rs, struct table *t)
{
    table_begin(t, "format|>GiB on disk|>GiB in memory|>bits/weight read|>TTFT ms|>prefill t/s|>decode t/s|>PPL|"
                   ">Δ ln PPL|verdict|>KLD|>same top-1 %|>KLD of int8 compute");
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        const char *v = verdict(r);
        char *name = md_escape(r->name);
        table_cell(t, "%s", name);
        free(name);
        table_cell(t, "%s", fmt_gib(r->disk_bytes));
        table_cell(t, "%s", fmt_gib(r->memory_bytes));
        table_cell(t, "%s", fmt_num(r->bpw_read, 2));
        table_cell(t, "%s", fmt_num(r->ttft_ms, r->ttft_ms < 100 ? 1 : 0));
        table_cell(t, "%s", fmt_num(r->prefill_tps, 1));
        table_cell(t, "%s", fmt_num(r->decode_tps, 1));
        table_cell(t, "%s", fmt_pm(r->ppl_pm.v, r->ppl_pm.se, 0));
        struct pm none = {NAN, NAN}, d = r->is_ref ? none : r->delta, kld = r->is_ref ? none : r->kld;
        struct pm top1 = r->is_ref ? none : r->top1;
        table_cell(t, "%s", fmt_pm(d.v, d.se, 1));
        table_cell(t, "%s", v ? v : "–");
        table_cell(t, "%s", fmt_pm(kld.v, kld.se, 0));
        table_cell(t, "%s", fmt_pm(100 * top1.v, 100 * top1.se, 0));
        table_cell(t, "%s", fmt_pm(r->int8_kld.v, r->int8_kld.se, 0));
    }
}

/* ---- Markdown ---- */

/* The original experiment's rows, as published. */
static void published(FILE *f)
{
    static const char *const rows[][5] = {
        {"Gen 2 FP16", "5.81", "28.2", "9.00", "–"},
        {"Gen 2 NF4", "2.01", "13.0", "9.98", "+11 % over FP16: what bitsandbytes' FP4 default gives, not NF4 (about +4 %)"},
        {"Gen 2 naive INT4", "2.06", "6.5", "6645", "one scale and zero point a row"},
        {"Gen 2 block INT4", "2.58", "6.6", "9.20",
         "not blocks of 128: column j shares a scale with j ± 128, …; 5.52 bits a weight, not 4.25 (here: int4-strided128)"},
        {"Gen 1 FP16", "6.08", "–", "9.18", "–"},
        {"Gen 1 NF4", "2.27", "–", "10.25", "–"},
        {"Gen 1 mixed", "2.40", "–", "10.25", "FP16 layers picked by hand; more bytes, nothing gained"},
    };
    fputs("\n## Shown beside: the original experiment's published rows\n\n"
          "Another model (Gen 2 Qwen2.5-3B-Instruct, Gen 1 Llama-3.2-3B-Instruct), another machine (RTX 3060 Ti), another "
          "program and another text length: **not comparable with the table above**, and wrong in the ways named.\n\n",
          f);
    struct table t;
    table_begin(&t, "published row|>\"GB\"|>t/s|>PPL|what is wrong with it");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t k = 0; k < 5; k++) table_cell(&t, "%s", rows[i][k]);
    table_markdown(&t, f);
    table_free(&t);
    fputs("\n- Perplexity was taken on the first 2,000 characters (479 and 510 tokens): about ± 1.0 on every row, and no "
          "paired comparison.\n"
          "- Prefill and decode were timed in two separate calls, and the first token was counted as decoded.\n"
          "- \"GB\" are GiB of peak torch allocations, not the weights' size.\n",
          f);
}

static void notes(const struct rows *rs, FILE *f)
{
    const json_t *p = first_of(rs, 'p'), *b = first_of(rs, 'b');
    const char *bad = NULL;
    char *plain = reference_name(rs), *ref = plain ? md_escape(plain) : NULL;
    fputs("\n## What the numbers mean\n\n", f);
    fputs("- **GiB on disk**: the folder's `*.safetensors` files. **GiB in memory**: weights as loaded for the speed "
          "measurement. 1 GiB = 2^30 bytes.\n"
          "- **bits/weight read**: bytes that decoding one token reads (linears, head, norms) over the weights it reads, as "
          "the folder stores them; metadata (scales, zero points) included. Compute in int8 reads int4-strided128 as the 8 "
          "bits a weight that it makes of it when it loads: GiB in memory.\n",
          f);
    if (p) {
        const json_t *text = record_input(p, "text");
        char *name = md_escape(text && str_at(text, "path") ? path_last(str_at(text, "path")) : "a text");
        char *proto = values_of(rs, 'p', "results.protocol"), *comp = values_of(rs, 'p', "results.compute");
        char *dev = values_of(rs, 'p', "params.device"), *ctx = values_of(rs, 'p', "results.ctx");
        fprintf(f, "- **PPL** ± standard error: protocol `%s`%s%s, computed in %s on %s; text `%s` (sha256 %.8s…), %s of its %s "
                   "tokens scored. The ± is of the text, common to all rows: compare rows by Δ only.\n",
                proto, *ctx ? ", context " : "", ctx, comp, dev, name, str_at(text, "sha256"),
                fmt_num(num_at(p, "results.n_scored", &bad), 0), fmt_num(num_at(p, "results.n_tokens", &bad), 0));
        free(name);
        free(proto);
        free(comp);
        free(dev);
        free(ctx);
    }
    if (ref)
        fprintf(f, "- **Δ ln PPL** ± paired standard error: mean over the same tokens of NLL(format) − NLL(%s). Verdict at "
                   "95 %%: worse or better where |Δ| > 1.96 standard errors, else cannot-tell. Tokens count as "
                   "independent here; `qreport diff` gives a block bootstrap.\n"
                   "- **KLD**: mean over the scored tokens of KL(%s ‖ format), in nats. **same top-1**: share of tokens "
                   "where both name the same likeliest token.\n",
                ref, ref);
    char *also = values_of(rs, 'p', "results.also.n_windows");
    if (*also)
        fprintf(f, "- **KLD of int8 compute**: what the fast compute costs on the same weights: mean KL(as PPL is computed ‖ int8) "
                   "over the first %s windows, in nats. It comes on top of the format's own damage.\n",
                also);
    free(also);
    if (b) {
        char *comp = values_of(rs, 'b', "params.compute"), *dev = values_of(rs, 'b', "params.device");
        char *cpu = values_of(rs, 'b', "host.cpu"), *gpu = values_of(rs, 'b', "host.gpu");
        char *thr = values_of(rs, 'b', "params.threads");
        fprintf(f, "- **TTFT, prefill, decode**: medians of %s trials (warm-ups: %s); one pass a trial, %s prompt tokens in, "
                   "%s tokens out, greedy, end of text ignored; TTFT = prompt in to first token id out, decode = (N−1)/(t_N − "
                   "t_1). Computed in %s on %s (%s%s%s), %s threads.\n",
                fmt_num(num_at(b, "params.trials", &bad), 0), fmt_num(num_at(b, "params.warmup", &bad), 0),
                fmt_num(num_at(b, "params.prompt_tokens", &bad), 0), fmt_num(num_at(b, "params.gen", &bad), 0), comp, dev, cpu,
                *gpu ? "; " : "", gpu, thr);
        free(comp);
        free(dev);
        free(cpu);
        free(gpu);
        free(thr);
    }
    free(plain);
    free(ref);
    fputs("- **int4-row** is naive INT4 (one group a row). **int4-strided128** is the original experiment's interleaved "
          "grouping, kept for comparison; **int4-g128** is what it meant to do.\n",
          f);
}

static void sentences(const struct rows *rs, FILE *f)
{
    const json_t *say = first_of(rs, 's');
    if (!say) return;
    const char *prompt = str_at(say, "params.prompt");
    char *p = md_escape(prompt ? prompt : "");
    fprintf(f, "\n## What each says\n\nGreedy continuation of the same prompt: “%s”\n\n", p);
    free(p);
    struct table t;
    table_begin(&t, "format|generated text");
    for (size_t i = 0; i < rs->n; i++) {
        if (!rs->r[i].generated) continue;
        char *name = md_escape(rs->r[i].name), *text = md_escape(rs->r[i].generated);
        table_cell(&t, "%s", name);
        table_cell(&t, "%s", text);
        free(name);
        free(text);
    }
    table_markdown(&t, f);
    table_free(&t);
}

/* How the report, in the folder of md, reaches a file: relative where it lies below, else absolute. */
static char *link_to(const char *md, const char *file)
{
    char *dir = path_dir(md), real_dir[PATH_MAX], real_file[PATH_MAX];
    char *link = NULL;
    if (realpath(dir, real_dir) && realpath(file, real_file)) {
        size_t n = strlen(real_dir);
        bool below = !strncmp(real_file, real_dir, n) && real_file[n] == '/';
        link = mem_strdup(below ? real_file + n + 1 : real_file);
    }
    free(dir);
    return link ? link : mem_strdup(file);
}

static void pictures(const char *md, const json_t *files, FILE *f)
{
    static const struct {
        const char *name, *alt;
    } plots[] = {{"ppl.svg", "perplexity against size"},
                 {"decode.svg", "decode speed against size"},
                 {"bytes.svg", "bytes by class"}};
    for (size_t k = 0; k < sizeof plots / sizeof *plots; k++)
        for (size_t i = 0; i < json_array_size(files); i++) {
            const char *path = json_string_value(json_array_get(files, i));
            if (!path || strcmp(path_last(path), plots[k].name)) continue;
            char *link = link_to(md, path);
            fprintf(f, "\n![%s](<%s>)\n", plots[k].alt, link);
            free(link);
        }
}

static void title(const struct rows *rs, FILE *f)
{
    const json_t *load = first_of(rs, 'l');
    const char *bad = NULL, *arch = str_at(load, "results.architecture");
    fputs("# Quantization report\n\n", f);
    if (arch)
        fprintf(f, "Model: %s, %s million parameters, %s layers, hidden size %s, vocabulary %s%s.\n\n", arch,
                fmt_num(num_at(load, "results.n_params", &bad) / 1e6, 1), fmt_num(num_at(load, "results.n_layers", &bad), 0),
                fmt_num(num_at(load, "results.hidden_size", &bad), 0), fmt_num(num_at(load, "results.vocab_size", &bad), 0),
                json_is_true(json_at(load, "results.tied_embeddings")) ? ", head tied to the embedding" : "");
}

static void provenance(const struct rows *rs, FILE *f)
{
    fputs("\n## Made by\n\n", f);
    const struct {
        char which;
        const char *tool;
    } kinds[] = {{'l', "qload"}, {'q', "qquant"}, {'p', "qppl"}, {'b', "qbench"}};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        char *v = values_of(rs, kinds[k].which, "version"), *r = values_of(rs, kinds[k].which, "results_version");
        char *g = values_of(rs, kinds[k].which, "git");
        if (*v) fprintf(f, "- %s %s, results version %s (%s)\n", kinds[k].tool, v, r, g);
        free(v);
        free(r);
        free(g);
    }
    fprintf(f, "- qreport %s (%s)\n\n", QLAB_VERSION, version_git());
    struct table t;
    table_begin(&t, "format|model (sha256)");
    for (size_t i = 0; i < rs->n; i++) {
        char *name = md_escape(rs->r[i].name);
        table_cell(&t, "%s", name);
        table_cell(&t, "`%.16s…`", rs->r[i].digest);
        free(name);
    }
    table_markdown(&t, f);
    table_free(&t);
}

static void markdown(const struct rows *rs, const char *md, const json_t *files, FILE *f)
{
    struct table t;
    title(rs, f);
    report_table(rs, &t);
    table_markdown(&t, f);
    table_free(&t);
    pictures(md, files, f);
    notes(rs, f);
    sentences(rs, f);
    published(f);
    provenance(rs, f);
}

/* ---- files ---- */

static int parent_dirs(const char *path, struct err *e)
{
    char *dir = path_dir(path);
    int rc = path_make_dirs(dir, e);
    free(dir);
    return rc;
}

int report_write(const struct rows *rs, const struct report_files *want, json_t *files, struct err *e)
{
    struct file_out o;
    if (want->plot && report_plots(rs, want->plot, want->png, files, e)) return -1;
    if (want->csv) {
        struct table t;
        if (parent_dirs(want->csv, e) || file_out_open(&o, want->csv, e)) return -1;
        metrics_table(rs, &t);
        table_csv(&t, o.f); /* a failed write is seen by file_out_close */
        table_free(&t);
        if (file_out_close(&o, e)) return -1;
        json_array_append_new(files, json_string_nocheck(want->csv));
    }
    if (want->md) {
        if (parent_dirs(want->md, e) || file_out_open(&o, want->md, e)) return -1;
        markdown(rs, want->md, files, o.f);
        if (file_out_close(&o, e)) return -1;
        json_array_append_new(files, json_string_nocheck(want->md));
    }
    return 0;
}
