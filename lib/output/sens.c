#include "output/sens.h"

#include "base/file.h"
#include "base/mem.h"
#include "output/rows.h"
#include "output/sens_weights.h"
#include "output/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct sens_rec *sens_main(const struct sens_rec *r, size_t n)
{
    const struct sens_rec *m = sens_find(r, n, "isolated", NULL);
    if (!m) m = sens_find(r, n, "restore", NULL);
    return m ? m : r;
}

struct ranked {
    double damage;
    size_t i;
};

static int by_damage(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    return x->damage > y->damage ? -1 : x->damage < y->damage ? 1 : (x->i > y->i) - (x->i < y->i);
}

static struct ranked *rank(const struct sens_rec *r, double *total)
{
    struct ranked *k = mem_new(r->n, sizeof *k);
    *total = 0;
    for (size_t i = 0; i < r->n; i++) {
        k[i] = (struct ranked){sens_damage(r, i), i};
        *total += fmax(k[i].damage, 0);
    }
    qsort(k, r->n, sizeof *k, by_damage);
    return k;
}

static void unit_table(const struct sens_rec *r, const struct ranked *k, size_t n, double total, FILE *f)
{
    struct table t;
    char *heads = mem_printf("linear|>%s|>share %%|>KLD|>Δ nll|>NMSE|>SQNR dB|>cosine|>bytes", sens_damage_name(r));
    table_begin(&t, heads);
    free(heads);
    for (size_t i = 0; i < n; i++) {
        const struct sens_unit *u = &r->u[k[i].i];
        char *name = md_escape(u->name);
        table_cell(&t, "%s", name);
        free(name);
        table_cell(&t, "%.3g", k[i].damage);
        table_cell(&t, "%s", total > 0 ? fmt_num(100 * fmax(k[i].damage, 0) / total, 1) : "–");
        table_cell(&t, isfinite(u->kld) ? "%.3g" : "–", u->kld);
        table_cell(&t, isfinite(u->delta_nll) ? "%+.2g" : "–", u->delta_nll);
        table_cell(&t, isfinite(u->nmse) ? "%.3g" : "–", u->nmse);
        table_cell(&t, "%s", fmt_num(u->sqnr_db, 1));
        table_cell(&t, "%s", fmt_num(u->cosine, 5));
        table_cell(&t, "%s", fmt_num(u->bytes_after, 0));
    }
    table_markdown(&t, f);
    table_free(&t);
}

/* Sum, mean and worst of a row (an operation) or a column (a layer) of the grid. */
struct sum {
    double sum, worst;
    int64_t n, at;
};
static struct sum sum_of(const struct sens_grid *g, size_t from, size_t step, int64_t n)
{
    struct sum s = {0, -INFINITY, 0, 0};
    for (int64_t i = 0; i < n; i++) {
        double v = g->v[from + step * (size_t)i];
        if (!isfinite(v)) continue;
        s.sum += fmax(v, 0);
        s.n++;
        if (v > s.worst) s.worst = v, s.at = i;
    }
    return s;
}

static size_t worst_op(const struct sens_grid *g)
{
    size_t best = 0;
    for (size_t k = 1; k < g->n_ops; k++)
        if (sum_of(g, k * (size_t)g->n_layers, 1, g->n_layers).sum > sum_of(g, best * (size_t)g->n_layers, 1, g->n_layers).sum)
            best = k;
    return best;
}

static void summaries(const struct sens_grid *g, double total, FILE *f)
{
    struct table t;
    fputs("\n## By operation\n\n", f);
    table_begin(&t, "operation|>sum|>share %|>mean|>worst|>in layer");
    for (size_t k = 0; k < g->n_ops; k++) {
        struct sum s = sum_of(g, k * (size_t)g->n_layers, 1, g->n_layers);
        char *name = md_escape(g->ops[k]);
        table_cell(&t, "%s", name);
        free(name);
        table_cell(&t, "%.3g", s.sum);
        table_cell(&t, "%s", total > 0 ? fmt_num(100 * s.sum / total, 1) : "–");
        table_cell(&t, "%.3g", s.n ? s.sum / (double)s.n : 0);
        table_cell(&t, "%.3g", s.worst);
        table_cell(&t, "%lld", (long long)s.at);
    }
    table_markdown(&t, f);
    table_free(&t);
    fputs("\n## By layer\n\n", f);
    table_begin(&t, ">layer|>sum|>share %|>worst|operation");
    for (int64_t i = 0; i < g->n_layers; i++) {
        struct sum s = sum_of(g, (size_t)i, (size_t)g->n_layers, (int64_t)g->n_ops);
        char *name = md_escape(g->ops[s.at]);
        table_cell(&t, "%lld", (long long)i);
        table_cell(&t, "%.3g", s.sum);
        table_cell(&t, "%s", total > 0 ? fmt_num(100 * s.sum / total, 1) : "–");
        table_cell(&t, "%.3g", s.worst);
        table_cell(&t, "%s", name);
        free(name);
    }
    table_markdown(&t, f);
    table_free(&t);
}

static void measured(const struct sens_rec *r, size_t n, FILE *f)
{
    fputs("## What was measured\n\n", f);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = record_input(r[i].json, "text"), *model = record_input(r[i].json, "model");
        char *t = md_escape(text && str_at(text, "path") ? path_last(str_at(text, "path")) : "a text");
        char *name = row_name(str_at(model, "path") ? str_at(model, "path") : "a model"), *m = md_escape(name);
        fprintf(f, "- **%s**, mode %s: model `%s` (sha256 %.8s…), text `%s` (sha256 %.8s…), %s tokens, computed in %s.", r[i].format,
                r[i].mode, m, r[i].model, t, r[i].text ? r[i].text : "?", fmt_num(r[i].n_tokens, 0),
                str_at(r[i].json, "results.compute") ? str_at(r[i].json, "results.compute") : "?");
        if (isfinite(r[i].all_kld))
            fprintf(f, " All linears quantized: KLD %.3g, Δ nll %+.3g.", r[i].all_kld, r[i].all_delta_nll);
        fputs("\n", f);
        free(t);
        free(m);
        free(name);
    }
}

/* How many of the worst make up this share of the damage. */
static size_t how_many(const struct ranked *k, size_t n, double want)
{
    double sum = 0;
    size_t i = 0;
    while (i < n && sum < want) sum += fmax(k[i++].damage, 0);
    return i;
}

static void reading(const struct sens_rec *r, size_t n, const struct sens_rec *m, const struct sens_grid *g,
                    const struct ranked *k, double total, FILE *f)
{
    fputs("\n## What to read from it\n\n", f);
    char *worst = md_escape(r->n ? m->u[k[0].i].name : "");
    if (total > 0) {
        size_t half = how_many(k, m->n, total / 2);
        fprintf(f, "- **%zu of %zu** make up half of the damage; the worst one, %s, alone %s %% of it.\n", half, m->n, worst,
                fmt_num(100 * k[0].damage / total, 1));
        fputs(half * 4 < m->n ? "- Damage is concentrated: giving the few at the top more bits is worth it.\n"
                              : "- Damage is spread out: no small set of linears will repair this format.\n", f);
    } else {
        fputs("- Nothing was damaged.\n", f);
    }
    free(worst);
    if (g->n_ops && g->n_layers && total > 0) {
        size_t op = worst_op(g);
        struct sum s = sum_of(g, op * (size_t)g->n_layers, 1, g->n_layers);
        char *name = md_escape(g->ops[op]);
        fprintf(f, "- The operation that suffers most is **%s**: %s %% of the damage, worst in layer %lld.\n", name,
                fmt_num(100 * s.sum / total, 0), (long long)s.at);
        free(name);
    }
    if (!strcmp(m->mode, "isolated") && isfinite(m->all_kld) && total > 0)
        fprintf(f, "- Alone they add up to %.3g; all together they cost %.3g. %s\n", total, m->all_kld,
                fabs(total / m->all_kld - 1) < 0.25 ? "Damages add up, so a plan made of them can be trusted."
                                                    : "Damages do not simply add up: a plan made of them is a guess to be measured.");
    static const char *const modes[3] = {"local", "isolated", "restore"};
    bool any = false;
    for (int a = 0; a < 3; a++)
        for (int b = a + 1; b < 3; b++) {
            double v = sens_rho(sens_find(r, n, modes[a], m->format), sens_find(r, n, modes[b], m->format));
            if (!isfinite(v)) continue;
            fprintf(f, "- Spearman ρ of %s and %s: **%s**.\n", modes[a], modes[b], fmt_num(v, 2));
            any = true;
        }
    if (any) fputs("  ρ of 1 means that the cheap measure ranks the linears as the dear one does; near 0 it says nothing about it.\n", f);
    fputs("- local: a linear's own output on the original's inputs (cheap). isolated: the model's output with that linear alone "
          "quantized. restore: what comes back when all are quantized and that one is restored. A Δ nll over so few tokens is "
          "noise for a single linear; KLD is not.\n", f);
}

static void pictures(const json_t *files, size_t from, size_t to, FILE *f)
{
    for (size_t i = from; i < to; i++) {
        const char *name = path_last(json_string_value(json_array_get(files, i)));
        if (!strncmp(name, "scatter", 7) && (i == 0 || strncmp(path_last(json_string_value(json_array_get(files, i - 1))), "scatter", 7)))
            fputs("\n## Outputs, operation by operation\n", f);
        fprintf(f, "\n![%s](<%s>)\n",
                !strcmp(name, "layers.svg") ? "damage over layers" : !strcmp(name, "heat.svg") ? "layer by operation" : name, name);
    }
}

/* The histograms of the worst linears. */
static int weights_of(struct sens_hists *h, const struct sens_rec *m, const struct ranked *k, const char *model, const char *dir,
                      json_t *files, struct err *e)
{
    size_t *at = mem_array(m->n, sizeof *at);
    for (size_t i = 0; i < m->n; i++) at[i] = k[i].i;
    int rc = sens_hists(h, m, at, m->n, model, e);
    free(at);
    return rc ? rc : sens_hists_draw(h, dir, files, e);
}

int sens_report(const struct sens_rec *r, size_t n, const char *samples, const char *model, const char *dir, json_t *results,
                json_t *files, struct err *e)
{
    const struct sens_rec *m = sens_main(r, n);
    struct file_out o;
    struct sens_grid g;
    for (size_t i = 1; i < n; i++) {
        if (strcmp(r[i].model, r[0].model)) return err_set(e, "%s and %s are of different models", r[0].path, r[i].path);
        for (size_t k = 0; k < i; k++)
            if (!strcmp(r[i].mode, r[k].mode) && !strcmp(r[i].format, r[k].format))
                return err_set(e, "%s and %s: two records of %s, mode %s", r[k].path, r[i].path, r[i].format, r[i].mode);
    }
    if (path_make_dirs(dir, e)) return -1;
    sens_grid(&g, m);
    size_t before = json_array_size(files);
    double total;
    struct ranked *k = rank(m, &total);
    char *path = path_join(dir, "lbl_analysis.md");
    struct sens_hists hists = {0};
    int rc = sens_plots(m, &g, samples, dir, files, e);
    size_t plots = json_array_size(files);
    if (rc == 0 && model) rc = weights_of(&hists, m, k, model, dir, files, e);
    if (rc == 0) rc = file_out_open(&o, path, e);
    if (rc == 0) {
        fprintf(o.f, "# Layer by layer: where %s hurts\n\n", m->format);
        measured(r, n, o.f);
        reading(r, n, m, &g, k, total, o.f);
        fputs("\n## The worst ten\n\n", o.f);
        unit_table(m, k, m->n < 10 ? m->n : 10, total, o.f);
        pictures(files, before, plots, o.f);
        if (hists.n) {
            fprintf(o.f, "\n## The weights of the worst %s\n\n![weights of the worst linears](<weights.svg>)\n\n",
                    hists.n == 3 ? "three" : hists.n == 2 ? "two" : "one");
            sens_hists_text(&hists, o.f);
        }
        if (g.n_ops && g.n_layers) summaries(&g, total, o.f);
        fputs("\n## All, worst first\n\n", o.f);
        unit_table(m, k, m->n, total, o.f);
        rc = file_out_close(&o, e);
    }
    if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
    if (rc == 0 && model) json_put(results, "weights", sens_hists_json(&hists));
    sens_hists_free(&hists);
    free(path);
    free(k);
    free(g.v);
    return rc;
}

void sens_results(const struct sens_rec *r, size_t n, json_t *results)
{
    const struct sens_rec *m = sens_main(r, n);
    double total;
    struct ranked *k = rank(m, &total);
    json_t *worst = json_array();
    for (size_t i = 0; i < m->n && i < 10; i++)
        json_array_append_new(worst, json_pack("{s:s,s:o}", "name", m->u[k[i].i].name, "damage", json_num(k[i].damage)));
    free(k);
    const struct sens_rec *l = sens_find(r, n, "local", m->format), *s = sens_find(r, n, "isolated", m->format),
                          *b = sens_find(r, n, "restore", m->format);
    json_put(results, "format", json_string(m->format));
    json_put(results, "mode", json_string(m->mode));
    json_put(results, "worst", worst);
    json_put(results, "spearman", json_pack("{s:o,s:o,s:o,s:n}", "local_isolated", json_num(sens_rho(l, s)), "local_restore",
                                            json_num(sens_rho(l, b)), "isolated_restore", json_num(sens_rho(s, b)),
                                            "predicted_measured"));
}
