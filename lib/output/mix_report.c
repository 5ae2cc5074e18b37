#include "base/file.h"
#include "base/mem.h"
#include "output/chart.h"
#include "output/mix.h"
#include "output/plot.h"
#include "output/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- plots ---- */

/* Δ nll against bits a weight, and the chord. */
static int draw_chord(const struct mix *m, const char *dir, json_t *files, struct err *e)
{
    struct plot_point *p = mem_new(m->n, sizeof *p);
    size_t n = 0;
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (!r->ppl || r->random) continue;
        p[n++] = (struct plot_point){r->name, r->uniform ? r->name : r->transformers ? "mix-portable" : "mix", r->bpw, r->delta.v,
                                     r->delta.v - 1.96 * r->delta.se, r->delta.v + 1.96 * r->delta.se};
    }
    struct plot_scatter s = {.title = "Damage against size: mixes and uniform formats",
                             .subtitle = "bars: 95 % of the paired difference; dashed: the chord from int4-g64 to int8-row",
                             .xlabel = "bits a weight over the decoder's linears", .ylabel = "Δ nll against f16, nats",
                             .y_linear = true, .line = PLOT_NO_LINE, .p = p, .n = n};
    if (m->lo && m->hi) s.line = (struct plot_line){m->lo->bpw, m->lo->delta.v, m->hi->bpw, m->hi->delta.v};
    int height = 0;
    char *script = plot_scatter_script(&s, &height);
    free(p);
    if (!script) return 0;
    char *path = path_join(dir, "mix.svg");
    int rc = plot_draw(script, height, path, e);
    if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
    free(path);
    free(script);
    return rc;
}

static size_t series(struct chart *c, const struct mix *m, int which)
{
    size_t n = 0;
    chart_add(c, "$s%d << EOD\n", which);
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        int is = r->random ? 0 : r->uniform ? 1 : r->transformers ? 3 : 2;
        if (!r->ppl || is != which || !isfinite(r->predicted) || !isfinite(r->kld.v)) continue;
        chart_add(c, "%.9g %.9g %.9g\n", r->predicted, r->kld.v, 1.96 * (isfinite(r->kld.se) ? r->kld.se : 0));
        n++;
    }
    chart_add(c, "EOD\n");
    return n;
}

static int draw_predicted(const struct mix *m, const char *dir, json_t *files, struct err *e)
{
    static const char *const names[] = {"random mixes", "uniform formats", "mixes", "portable mixes"};
    static const int color[] = {7, 0, 4, 5};
    struct chart c;
    size_t n[4], all = 0;
    chart_begin(&c, PLOT_H, "Predicted against measured damage",
                "predicted: sum of each linear's KLD alone on the calibration text; measured: KLD on the held-out text; line: equal",
                "predicted KLD, nats", "measured KLD, nats");
    for (int k = 0; k < 4; k++) all += n[k] = series(&c, m, k);
    if (!all) {
        free(c.s);
        return 0;
    }
    chart_add(&c, "set key top left reverse Left font ',13'\nset xrange [0:*]\nset yrange [0:*]\nset offsets graph 0.05, graph 0.05, graph 0.05, 0\n"
                  "plot x with lines dt 2 lc rgb '#777777' notitle");
    for (int k = 0; k < 4; k++)
        if (n[k])
            chart_add(&c, ", $s%d using 1:2:3 with yerrorbars lc rgb '%s' pt %d ps 1 lw 1.2 title '%s'", k,
                      chart_colors[color[k]], chart_shapes[k], names[k]);
    chart_add(&c, "\n");
    return chart_draw(&c, dir, "predicted", files, e);
}

/* ---- report.md ---- */

static const char *opens_in(const struct mix_row *r)
{
    return r->transformers && r->vllm ? "transformers, vLLM" : r->transformers ? "transformers" : r->vllm ? "vLLM" : "qlab";
}

static const char *percent(double v) { return isfinite(v) ? fmt_num(100 * v, 0) : "–"; }

static void mixes_table(const struct mix *m, FILE *f)
{
    struct table t;
    table_begin(&t, "mix|>budget, bits/weight|>bits/weight|opens in|>predicted KLD|>KLD|>Δ nll|>chord|>below the chord, %|"
                    ">chord − Δ nll|verdict");
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (r->uniform || r->random || !r->ppl) continue;
        char *name = md_escape(r->name);
        table_cell(&t, "%s", name);
        free(name);
        table_cell(&t, "%s", fmt_num(r->budget_bpw, 2));
        table_cell(&t, "%s", fmt_num(r->bpw, 3));
        table_cell(&t, "%s", opens_in(r));
        table_cell(&t, "%s", fmt_num(r->predicted, 4));
        table_cell(&t, "%s", fmt_pm(r->kld.v, r->kld.se, 0));
        table_cell(&t, "%s", fmt_pm(r->delta.v, r->delta.se, 1));
        table_cell(&t, "%s", fmt_num(r->chord, 4));
        table_cell(&t, "%s", percent(r->below));
        table_cell(&t, "%s", fmt_pm(r->margin.v, r->margin.se, 1));
        table_cell(&t, "%s", mix_verdict(r) ? mix_verdict(r) : "no chord");
    }
    table_markdown(&t, f);
    table_free(&t);
}

static void uniform_table(const struct mix *m, FILE *f)
{
    struct table t;
    fputs("\n## Uniform formats\n\n", f);
    table_begin(&t, "format|>bits/weight|opens in|>predicted KLD|>KLD|>Δ nll");
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (!r->uniform || !r->ppl) continue;
        char *name = md_escape(r->name);
        table_cell(&t, "%s", name);
        free(name);
        table_cell(&t, "%s", fmt_num(r->bpw, 3));
        table_cell(&t, "%s", opens_in(r));
        table_cell(&t, "%s", fmt_num(r->predicted, 4));
        table_cell(&t, "%s", fmt_pm(r->kld.v, r->kld.se, 0));
        table_cell(&t, "%s", fmt_pm(r->delta.v, r->delta.se, 1));
    }
    table_markdown(&t, f);
    table_free(&t);
}

/* What a reader should take home, without reading the table. */
static void sentences(const struct mix *m, FILE *f)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (r->uniform || r->random || !r->ppl) continue;
        char *name = md_escape(r->name);
        fprintf(f, "- **%s** (%s bits a weight): ", name, fmt_num(r->bpw, 2));
        free(name);
        if (!mix_verdict(r)) {
            fputs("no uniform formats on both sides to compare with.\n", f);
            continue;
        }
        fprintf(f, "%s. Δ nll %s where the chord has %s: ", mix_verdict(r), fmt_sig(r->delta.v, 3), fmt_sig(r->chord, 3));
        if (r->margin.v <= 0) fputs("not below it.", f);
        else fprintf(f, "%s %% below it, %s standard errors (%s).", percent(r->below), fmt_num(r->margin.v / r->margin.se, 1),
                     r->paired ? "paired over the same tokens" : "an upper bound of the error: records without per-token values");
        if (r->margin.v > 0 && !strcmp(mix_verdict(r), "rejected")) fputs(" That may be chance, so it does not count.", f);
        if (isfinite(r->neighbours))
            fprintf(f, " Between its nearest neighbours %s and %s the line has %s, so the mix is %s that.", r->left->name,
                    r->right->name, fmt_sig(r->neighbours, 3), r->delta.v < r->neighbours ? "below" : "not below");
        fputs("\n", f);
    }
}

static void rho(FILE *f, const char *what, double v)
{
    if (isfinite(v)) fprintf(f, "- %s: ρ = %s\n", what, fmt_num(v, 2));
}

static void correlations(const struct mix *m, FILE *f)
{
    fputs("\n## How well damage is predicted\n\nSpearman rank correlations (1: the same order, 0: none):\n\n", f);
    rho(f, "NMSE of a linear's own output (local, cheap) and KLD of the model with it alone quantized (isolated)",
        m->rho_local_isolated);
    rho(f, "local and what restoring it gains (restore)", m->rho_local_restore);
    rho(f, "isolated and restore", m->rho_isolated_restore);
    char *over = mem_printf("over %zu %smixes", m->n_predicted, m->over_random ? "random " : "uniform formats and ");
    char *a = mem_printf("predicted damage and measured Δ nll, %s", over);
    char *b = mem_printf("predicted damage and measured KLD, %s", over);
    rho(f, a, m->rho_predicted);
    rho(f, b, m->rho_predicted_kld);
    free(over);
    free(a);
    free(b);
}

static void notes(const struct mix *m, FILE *f)
{
    const json_t *p = NULL;
    const char *bad = NULL;
    for (size_t i = 0; i < m->n && !p; i++)
        if (!m->r[i].random) p = m->r[i].ppl;
    fputs("\n## What the numbers mean\n\n", f);
    const json_t *text = record_input(p, "text");
    char *name = md_escape(text && str_at(text, "path") ? path_last(str_at(text, "path")) : "a text");
    fprintf(f, "- **Δ nll** ± paired standard error: mean over %s tokens of `%s` (protocol `%s`, computed in %s) of NLL(row) − "
               "NLL(f16).%s\n",
            fmt_num(num_at(p, "results.n_scored", &bad), 0), name, str_at(p, "results.protocol"), str_at(p, "results.compute"),
            str_at(p, "params.leak") ? " The text shares no 32 tokens in a row with the calibration text." : "");
    free(name);
    fputs("- **predicted KLD**: the sum over linears of the KLD that qsens measured with that one alone quantized, on the "
          "calibration text, which the evaluation never saw. KLD in nats.\n"
          "- **chord**: the straight line in (bits a weight, Δ nll) from int4-g64 to int8-row, at the mix's size: what mixing "
          "these two at random would give. Outside of it, the line between the nearest uniform formats.\n"
          "- **verdict**: accepted where Δ nll is below the chord by more than 1.96 standard errors of the difference, else "
          "rejected: the mix does not earn its complexity.\n"
          "- **opens in**: programs that open the folder as it is; vLLM is named where its kernels' shapes are met (columns "
          "divisible by 128, rows by 64), which small models often do not.\n"
          "- **bits/weight**: over the decoder's linears, metadata included.\n",
          f);
}

int mix_report(const struct mix *m, const char *dir, json_t *files, struct err *e)
{
    struct file_out o;
    if (path_make_dirs(dir, e)) return -1;
    size_t before = json_array_size(files);
    if (draw_chord(m, dir, files, e) || draw_predicted(m, dir, files, e)) return -1;
    char *path = path_join(dir, "report.md");
    int rc = file_out_open(&o, path, e);
    if (rc == 0) {
        fputs("# Do mixed recipes earn their bytes?\n\n", o.f);
        mixes_table(m, o.f);
        fputs("\n", o.f);
        sentences(m, o.f);
        for (size_t i = before; i < json_array_size(files); i++) {
            const char *name = path_last(json_string_value(json_array_get(files, i)));
            fprintf(o.f, "\n![%s](<%s>)\n", !strcmp(name, "mix.svg") ? "damage against size" : "predicted against measured damage",
                    name);
        }
        uniform_table(m, o.f);
        correlations(m, o.f);
        notes(m, o.f);
        rc = file_out_close(&o, e);
    }
    if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
    free(path);
    return rc;
}
