#include "output/speed.h"

#include "base/file.h"
#include "base/mem.h"
#include "output/chart.h"
#include "output/plot.h"
#include "output/rows.h"
#include "output/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PANEL_H 230
#define HEAD_H 100

/* ---- reading ---- */

static struct speed_value value_at(const json_t *run, const char *key, const char **bad)
{
    const json_t *v = json_object_get(run, key), *samples = json_object_get(v, "samples");
    struct speed_value x = {num_at(v, "p50", bad), INFINITY, -INFINITY};
    for (size_t i = 0; i < json_array_size(samples); i++) {
        double s = json_number_value(json_array_get(samples, i));
        x.lo = fmin(x.lo, s), x.hi = fmax(x.hi, s);
    }
    if (!(x.lo <= x.hi)) x.lo = x.hi = x.mid;
    return x;
}

static const char *name_of(struct speed *s, const json_t *rec, const char *path)
{
    const char *where = str_at(record_input(rec, "model"), "path");
    char *name = row_name(where ? where : path);
    for (size_t i = 0; i < s->n_names; i++)
        if (!strcmp(s->names[i], name)) {
            free(name);
            return s->names[i];
        }
    s->names = mem_grow(s->names, s->n_names + 1, sizeof *s->names);
    return s->names[s->n_names++] = name;
}

static const struct speed_row *find(const struct speed *s, const char *name, int64_t prompt, int64_t depth)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->r[i].name, name) && s->r[i].prompt == prompt && s->r[i].depth == depth) return &s->r[i];
    return NULL;
}

static int add_run(struct speed *s, const json_t *rec, const char *name, const char *path, size_t k, struct err *e)
{
    const json_t *run = json_array_get(json_at(rec, "results.runs"), k);
    const char *bad = NULL, *compute = str_at(rec, "results.compute");
    double prompt = num_at(rec, "results.prompt_tokens", &bad), depth = num_at(run, "depth", &bad);
    struct speed_row r = {.name = name, .compute = compute ? compute : "?", .path = path,
                          .ttft_ms = value_at(run, "ttft_ms", &bad), .prefill_tps = value_at(run, "prefill_tps", &bad),
                          .decode_tps = value_at(run, "decode_tps", &bad), .faster_ttft = NAN, .faster_decode = NAN,
                          .fraction = k ? NAN : num_at(rec, "results.bandwidth.decode_fraction", &bad)};
    if (bad) return err_set(e, "%s: %s is not a number", path, bad);
    if (!(prompt >= 1 && prompt < 1e9) || !(depth >= 0 && depth < 1e9) || !(r.ttft_ms.mid > 0) || !(r.prefill_tps.mid > 0) ||
        !(r.decode_tps.mid > 0))
        return err_set(e, "%s: run %zu has no prompt_tokens, depth, ttft_ms, prefill_tps or decode_tps", path, k + 1);
    r.prompt = (int64_t)prompt, r.depth = (int64_t)depth;
    const struct speed_row *twice = find(s, name, r.prompt, r.depth);
    if (twice) return err_set(e, "%s and %s: two runs of %s with %lld prompt tokens at depth %lld", twice->path, path, name,
                              (long long)r.prompt, (long long)r.depth);
    s->r = mem_grow(s->r, s->n + 1, sizeof *s->r);
    s->r[s->n++] = r;
    return 0;
}

static int in_order(const void *a, const void *b)
{
    const struct speed_row *x = a, *y = b;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    return (x->depth > y->depth) - (x->depth < y->depth);
}

/* By model as given, then by prompt and depth. */
static void sort(struct speed *s)
{
    struct speed_row *r = mem_array(s->n, sizeof *r);
    size_t n = 0;
    for (size_t k = 0; k < s->n_names; k++) {
        size_t first = n;
        for (size_t i = 0; i < s->n; i++)
            if (s->r[i].name == s->names[k]) r[n++] = s->r[i];
        qsort(r + first, n - first, sizeof *r, in_order);
    }
    free(s->r);
    s->r = r;
}

int speed_read(struct speed *s, json_t *const *recs, char *const *paths, size_t n, struct err *e)
{
    *s = (struct speed){0};
    for (size_t i = 0; i < n; i++) {
        size_t runs = json_array_size(json_at(recs[i], "results.runs"));
        const char *name = name_of(s, recs[i], paths[i]);
        if (!runs) return err_set(e, "%s: no results.runs", paths[i]);
        for (size_t k = 0; k < runs; k++)
            if (add_run(s, recs[i], name, paths[i], k, e)) return -1;
    }
    sort(s);
    for (size_t i = 0; i < s->n; i++) {
        struct speed_row *r = &s->r[i];
        const struct speed_row *first = find(s, s->names[0], r->prompt, r->depth);
        if (!first || first == r) continue;
        r->faster_ttft = first->ttft_ms.mid / r->ttft_ms.mid;
        r->faster_decode = r->decode_tps.mid / first->decode_tps.mid;
    }
    return 0;
}

void speed_free(struct speed *s)
{
    for (size_t i = 0; i < s->n_names; i++) free(s->names[i]);
    free(s->names);
    free(s->r);
    *s = (struct speed){0};
}

/* ---- picture ---- */

/* Prompts and depths, each once, in order. */
static size_t conditions(const struct speed *s, struct speed_row *c)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t k = 0;
        while (k < n && (c[k].prompt != s->r[i].prompt || c[k].depth != s->r[i].depth)) k++;
        if (k == n) c[n++] = s->r[i];
    }
    qsort(c, n, sizeof *c, in_order);
    return n;
}

static struct speed_value shown(const struct speed_row *r, bool decode) { return decode ? r->decode_tps : r->ttft_ms; }

/* A bar for each model in every condition, the value above it, the range of the trials as a line. */
static void add_panel(struct chart *c, const struct speed *s, const struct speed_row *cond, size_t n_cond, bool decode)
{
    double top = HEAD_H + PANEL_H * decode, width = 0.8 / (double)s->n_names, most = 0;
    for (size_t i = 0; i < s->n; i++) most = fmax(most, shown(&s->r[i], decode).hi);
    chart_add(c, "set tmargin at screen %.5f\nset bmargin at screen %.5f\nset yrange [0:%.6g]\nset label 90 '%s' at graph 0, graph 1.09 "
                 "left front font ',14'\n%s\n",
              1 - top / c->height, 1 - (top + PANEL_H - 76) / c->height, most * 1.2,
              decode ? "Decoding after the first token, tokens a second: more is better"
                     : "Prefill: time to the first token, milliseconds: less is better",
              decode ? "unset key" : "set key at screen 0.98, screen 0.955 right top horizontal font ',13' samplen 1.5");
    for (size_t k = 0; k < s->n_names; k++) {
        chart_add(c, "$b%d_%zu << EOD\n", decode, k);
        for (size_t i = 0; i < n_cond; i++) {
            const struct speed_row *r = find(s, s->names[k], cond[i].prompt, cond[i].depth);
            if (!r) continue;
            struct speed_value v = shown(r, decode);
            chart_add(c, "%.6g %.6g %.6g %.6g %s\n", (double)i + ((double)k - 0.5 * (double)(s->n_names - 1)) * width, v.mid, v.lo,
                      v.hi, fmt_sig(v.mid, 3));
        }
        chart_add(c, "EOD\n");
    }
    chart_add(c, "plot ");
    for (size_t k = 0; k < s->n_names; k++) {
        chart_add(c, "%s$b%d_%zu using 1:2:(%.4f) with boxes fs solid noborder lc rgb '%s' title ", k ? ", " : "", decode, k,
                  width * 0.92, chart_colors[k % 8]);
        chart_quoted(c, s->names[k]);
    }
    for (size_t k = 0; k < s->n_names; k++)
        chart_add(c, ", $b%d_%zu using 1:3:(0):($4-$3) with vectors nohead lw 2 lc rgb '#222222' notitle, '' using 1:4:5 with labels offset "
                     "0,0.7 font ',12' notitle", decode, k);
    chart_add(c, "\nunset label\n");
}

static int draw(const struct speed *s, const char *dir, json_t *files, struct err *e)
{
    struct speed_row *cond = mem_array(s->n, sizeof *cond);
    size_t n = conditions(s, cond);
    struct chart c;
    chart_begin(&c, HEAD_H + 2 * PANEL_H - 10, "Prefill and decode apart",
                "medians; lines: all trials; below: prompt tokens, and tokens already there", "", "");
    chart_add(&c, "set multiplot\nset lmargin at screen 0.07\nset rmargin at screen 0.98\nunset grid\nset grid ytics lc rgb '#e4e4e4' lt 1\n"
                  "set xrange [-0.6:%.2f]\nset xtics scale 0 (", (double)n - 0.4);
    for (size_t i = 0; i < n; i++) {
        chart_add(&c, "%s\"%lld tokens", i ? ", " : "", (long long)cond[i].prompt);
        if (cond[i].depth) chart_add(&c, "\\nafter %lld", (long long)cond[i].depth);
        chart_add(&c, "\" %zu", i);
    }
    chart_add(&c, ")\n");
    for (int decode = 0; decode < 2; decode++) add_panel(&c, s, cond, n, decode);
    chart_add(&c, "unset multiplot\n");
    free(cond);
    return chart_draw(&c, dir, "speed", files, e);
}

/* ---- words ---- */

static void range_of(const struct speed *s, const char *name, bool decode, double *lo, double *hi)
{
    *lo = INFINITY, *hi = -INFINITY;
    for (size_t i = 0; i < s->n; i++) {
        double v = decode ? s->r[i].faster_decode : s->r[i].faster_ttft;
        if (strcmp(s->r[i].name, name) || !isfinite(v)) continue;
        *lo = fmin(*lo, v), *hi = fmax(*hi, v);
    }
}

static void add_range(FILE *f, double lo, double hi)
{
    char *a = mem_strdup(fmt_sig(lo, 2));
    const char *b = fmt_sig(hi, 2);
    fprintf(f, strcmp(a, b) ? "%s to %s" : "%s", a, b);
    free(a);
}

static void reading(const struct speed *s, FILE *f)
{
    char *base = md_escape(s->names[0]);
    for (size_t k = 1; k < s->n_names; k++) {
        double lo, hi;
        range_of(s, s->names[k], false, &lo, &hi);
        if (!(lo <= hi)) continue;
        char *name = md_escape(s->names[k]);
        fprintf(f, "- **%s** reads a prompt ", name);
        free(name);
        add_range(f, lo, hi);
        range_of(s, s->names[k], true, &lo, &hi);
        fputs(" times as fast as ", f);
        fprintf(f, "%s and decodes ", base);
        add_range(f, lo, hi);
        fputs(" times as fast.\n", f);
    }
    for (size_t i = 0; i < s->n; i++)
        if (isfinite(s->r[i].fraction) && (i == 0 || strcmp(s->r[i].name, s->r[i - 1].name))) {
            char *name = md_escape(s->r[i].name);
            fprintf(f, "- %s, decoding with %lld tokens before: %s %% of the read bandwidth measured in the same run.\n", name,
                    (long long)(s->r[i].depth + s->r[i].prompt), fmt_num(100 * s->r[i].fraction, 0));
            free(name);
        }
    free(base);
    fputs("- Prefill multiplies whole prompts and is bound by arithmetic; decoding reads all weights for every token and is bound by "
          "memory: bytes saved show there. What is already there lengthens attention alone, the same in every format.\n", f);
}

static void rows_table(const struct speed *s, FILE *f)
{
    struct table t;
    char *base = md_escape(s->names[0]), *ttft = mem_printf("TTFT, times %s", base), *decode = mem_printf("decode, times %s", base);
    table_begin(&t, "format|compute|>prompt tokens|>tokens already there|>TTFT ms|>prefill t/s|>decode t/s|>|>");
    table_head(&t, 7, ttft);
    table_head(&t, 8, decode);
    free(base);
    free(ttft);
    free(decode);
    for (size_t i = 0; i < s->n; i++) {
        const struct speed_row *r = &s->r[i];
        char *name = md_escape(r->name), *compute = md_escape(r->compute);
        table_cell(&t, "%s", name);
        table_cell(&t, "%s", compute);
        free(name);
        free(compute);
        table_cell(&t, "%lld", (long long)r->prompt);
        table_cell(&t, "%lld", (long long)r->depth);
        table_cell(&t, "%s", fmt_num(r->ttft_ms.mid, 1));
        table_cell(&t, "%s", fmt_num(r->prefill_tps.mid, 1));
        table_cell(&t, "%s", fmt_num(r->decode_tps.mid, 1));
        table_cell(&t, "%s", fmt_num(1 / r->faster_ttft, 2));
        table_cell(&t, "%s", fmt_num(r->faster_decode, 2));
    }
    table_markdown(&t, f);
    table_free(&t);
}

int speed_report(const struct speed *s, const char *dir, json_t *files, struct err *e)
{
    struct file_out o;
    if (path_make_dirs(dir, e) || draw(s, dir, files, e)) return -1;
    char *path = path_join(dir, "speed.md");
    int rc = file_out_open(&o, path, e);
    if (rc == 0) {
        fputs("# Speed: prefill and decode apart\n\n![prefill and decode](<speed.svg>)\n\n", o.f);
        reading(s, o.f);
        fputs("\n", o.f);
        rows_table(s, o.f);
        fputs("\nMedians of the trials. TTFT: prompt in to first token known; decode: the tokens after it.\n", o.f);
        for (size_t i = 0; i < s->n; i++)
            if (!strcmp(s->r[i].compute, "int8")) {
                fputs("Compute int8: formats that have no integer form, floats among them, are computed in f32.\n", o.f);
                break;
            }
        rc = file_out_close(&o, e);
    }
    if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
    free(path);
    return rc;
}

json_t *speed_json(const struct speed *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n; i++) {
        const struct speed_row *r = &s->r[i];
        json_array_append_new(list, json_pack("{s:s,s:I,s:I,s:s,s:o,s:o,s:o,s:o,s:o}", "name", r->name, "prompt_tokens",
                                              (json_int_t)r->prompt, "depth", (json_int_t)r->depth, "compute", r->compute, "ttft_ms",
                                              json_num(r->ttft_ms.mid), "prefill_tps", json_num(r->prefill_tps.mid), "decode_tps",
                                              json_num(r->decode_tps.mid), "faster_ttft", json_num(r->faster_ttft), "faster_decode",
                                              json_num(r->faster_decode)));
    }
    return list;
}
