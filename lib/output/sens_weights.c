#include "output/sens_weights.h"

#include "base/mem.h"
#include "eval/sensitivity.h"
#include "output/chart.h"
#include "output/plot.h"
#include "output/rows.h"
#include "output/table.h"
#include "quantize/recipe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PANEL_H 190
#define HEAD_H 92
#define FOOT_H 64

/* ---- counting ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The axis: 4-bit codes with a margin of one level and eight bins a level, 8-bit ones with a bin a level. */
static void set_axis(struct sens_hists *s, const struct format *f)
{
    s->bits = f->bits;
    s->book = f->kind == CODE_BOOK;
    if (s->book) {
        s->lo = -1.0625, s->hi = 1.0625, s->n_bins = 136, s->n_points = 16;
        for (int k = 0; k < 16; k++) s->points[k] = (double)f->book[k];
        qsort(s->points, 16, sizeof *s->points, by_value);
        return;
    }
    int first = f->kind == CODE_STRIDED ? 0 : -(1 << (f->bits - 1)), levels = 1 << f->bits;
    double margin = f->bits == 4 ? 1 : 0.5;
    s->lo = first - margin, s->hi = first + levels - 1 + margin;
    s->n_bins = f->bits == 4 ? 8 * (levels + 1) : levels;
    s->n_points = levels <= 16 ? levels : 0;
    for (int k = 0; k < s->n_points; k++) s->points[k] = first + k;
}

static int level_of(const struct sens_hists *s, double v)
{
    if (!s->book) return (int)fmax(0, fmin((1 << s->bits) - 1, nearbyint(v - s->lo - (s->bits == 4 ? 1 : 0.5))));
    int best = 0;
    for (int k = 1; k < 16; k++)
        if (fabs(s->points[k] - v) < fabs(s->points[best] - v)) best = k;
    return best;
}

static int bin_of(const struct sens_hists *s, double v)
{
    return (int)fmax(0, fmin(s->n_bins - 1, floor((v - s->lo) / (s->hi - s->lo) * s->n_bins)));
}

/* One row at a time: x as the method reads it, y what came of it. */
static void count(const struct sens_hists *s, struct sens_hist *h, const struct qweight *src, const struct qweight *q,
                  enum dtype model_dtype)
{
    int64_t n = src->n_in, codes[256] = {0}, zeros = 0;
    float *x = mem_array((size_t)n * 4, sizeof *x), *y = x + n, *at = y + n, *code = at + n;
    uint16_t *half = mem_array((size_t)n, sizeof *half);
    double total = (double)src->n_out * (double)n, xx = 0, dd = 0, most = 0;
    for (int64_t r = 0; r < src->n_out; r++) {
        qweight_rows_f32(src, r, 1, x);
        dtype_from_f32(model_dtype, x, half, n);
        dtype_traits(model_dtype)->to_f32(half, x, n);
        qweight_rows_f32(q, r, 1, y);
        qweight_rows_scaled(q, r, 1, x, at);
        qweight_rows_scaled(q, r, 1, y, code);
        for (int64_t k = 0; k < n; k++) {
            double v = x[k], d = v - (double)y[k];
            int b = bin_of(s, at[k]);
            h->weights[b] += 100 / total;
            h->error[b] += d * d;
            codes[level_of(s, code[k])]++;
            zeros += y[k] == 0;
            xx += v * v, dd += d * d;
            most = fmax(most, fabs(v));
        }
    }
    for (int b = 0; b < s->n_bins; b++) h->error[b] *= dd > 0 ? 100 / dd : 0;
    for (int k = 0; k < 256; k++)
        if (codes[k]) h->entropy -= (double)codes[k] / total * log2((double)codes[k] / total);
    h->largest = xx > 0 ? most / sqrt(xx / total) : NAN;
    h->zero = 100 * (double)zeros / total;
    h->sqnr_db = dd > 0 ? 10 * log10(xx / dd) : NAN;
    free(half);
    free(x);
}

static int one(struct sens_hists *s, const struct sens_unit *u, const struct checkpoint *c, const struct format *f,
               const struct method *m, struct err *e)
{
    struct qweight src;
    struct qbuffer buf;
    enum dtype dtype;
    int64_t n_out, n_in;
    char name[LINEAR_NAME_MAX];
    int op = 0;
    while (op < N_OPS && strcmp(op_name((enum op)op), u->op)) op++;
    if (op == N_OPS || u->layer >= c->config.n_layers || strcmp(linear_name(name, u->layer, (enum op)op), u->name))
        return err_set(e, "%s: no linear %s", c->path, u->name);
    config_op_shape(&c->config, (enum op)op, &n_out, &n_in);
    if (sens_model_dtype(c, &dtype, e) || qweight_open(&src, c, name, n_out, n_in, e)) return -1;
    struct quant_job job = {name, &src, f, dtype};
    if (method_quantize(m, &job, &buf, NULL, e)) return -1;
    struct sens_hist *h = &s->h[s->n++];
    *h = (struct sens_hist){.unit = u, .weights = mem_new((size_t)s->n_bins, sizeof *h->weights),
                            .error = mem_new((size_t)s->n_bins, sizeof *h->error)};
    count(s, h, &src, &buf.w, dtype);
    qbuffer_free(&buf);
    return 0;
}

int sens_hists(struct sens_hists *s, const struct sens_rec *r, const size_t *at, size_t n, const char *model, struct err *e)
{
    const struct format *f;
    const struct method *m;
    struct checkpoint c;
    *s = (struct sens_hists){.format = r->format};
    if (recipe_linear(r->format, NULL, &f, &m, e)) return err_prefix(e, "%s", r->path);
    if (f->kind == CODE_FLOAT) return 0;
    if (checkpoint_open(&c, model, e)) return -1;
    set_axis(s, f);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n && s->n < SENS_HISTS; i++)
        if (r->u[at[i]].layer >= 0 && *r->u[at[i]].op) rc = one(s, &r->u[at[i]], &c, f, m, e);
    checkpoint_close(&c);
    if (rc) sens_hists_free(s);
    return rc;
}

void sens_hists_free(struct sens_hists *s)
{
    for (size_t i = 0; i < s->n; i++) {
        free(s->h[i].weights);
        free(s->h[i].error);
    }
    s->n = 0;
}

/* ---- picture ---- */

static void add_panel(struct chart *c, const struct sens_hists *s, size_t i, int height)
{
    const struct sens_hist *h = &s->h[i];
    double width = (s->hi - s->lo) / s->n_bins, top = HEAD_H + PANEL_H * (double)i;
    bool last = i + 1 == s->n;
    chart_add(c, "$h%zu << EOD\n", i);
    for (int b = 0; b < s->n_bins; b++)
        chart_add(c, "%.6g %.6g %.6g\n", s->lo + width * (b + 0.5), h->weights[b], h->error[b]);
    chart_add(c, "EOD\nset tmargin at screen %.5f\nset bmargin at screen %.5f\nset label 90 ", 1 - top / height,
              1 - (top + PANEL_H - 34) / height);
    chart_quoted(c, h->unit->name);
    chart_add(c, " at graph 0, graph 1.07 left front font ',14'\n%s\n%s\nplot ", last ? "set format x" : "set format x ''",
              i ? "unset key" : "set key at screen 0.98, screen 0.93 right top horizontal font ',13' samplen 2");
    chart_add(c, "$h%zu using 1:2 with boxes fs solid noborder lc rgb '#a6cee3' title 'weights'", i);
    if (s->n_points) chart_add(c, ", NaN with lines lw 1 dt 3 lc rgb '#000000' title 'code points'");
    chart_add(c, ", $h%zu using 1:3 with histeps lw 1.6 lc rgb '#d55e00' title 'squared error'\nunset label\n", i);
}

int sens_hists_draw(const struct sens_hists *s, const char *dir, json_t *files, struct err *e)
{
    if (s->n == 0) return 0;
    struct chart c;
    int height = HEAD_H + PANEL_H * (int)s->n - 34 + FOOT_H;
    double most = 0;
    for (size_t i = 0; i < s->n; i++)
        for (int b = 0; b < s->n_bins; b++) most = fmax(most, fmax(s->h[i].weights[b], s->h[i].error[b]));
    char *title = mem_printf("The worst linears' weights as %s sees them", s->format);
    chart_begin(&c, height, title, s->n_points ? "% of the weights, and of their squared error, a bin"
                                               : "% of the weights, and of their squared error, a level; the levels are too close to draw", "", "");
    free(title);
    chart_add(&c, "set multiplot\nset lmargin at screen 0.075\nset rmargin at screen 0.98\nset boxwidth 1 relative\n"
                  "set xrange [%.6g:%.6g]\nset yrange [0:%.6g]\nset label 91 '%s' at screen 0.53, screen %.5f center font ',14'\n",
              s->lo, s->hi, most * 1.05, s->book ? "weight / largest of its block" : "weight / scale + zero point: what is rounded to a code",
              20.0 / height);
    chart_add(&c, "set xtics %s\nunset grid\nset grid ytics lc rgb '#e4e4e4' lt 1\n", s->book ? "0.25" : s->bits == 4 ? "1" : "32");
    for (int k = 0; k < s->n_points; k++)
        chart_add(&c, "set arrow from first %.9g, graph 0 to first %.9g, graph 1 nohead front lw 1 dt 3 lc rgb '#000000'\n",
                  s->points[k], s->points[k]);
    for (size_t i = 0; i < s->n; i++) add_panel(&c, s, i, height);
    chart_add(&c, "unset multiplot\n");
    return chart_draw(&c, dir, "weights", files, e);
}

/* ---- words ---- */

void sens_hists_text(const struct sens_hists *s, FILE *f)
{
    struct table t;
    char *heads = mem_printf("linear|>largest / RMS|>become zero, %%|>bits used of %d|>SQNR of weights, dB|>SQNR of outputs, dB", s->bits);
    table_begin(&t, heads);
    free(heads);
    for (size_t i = 0; i < s->n; i++) {
        const struct sens_hist *h = &s->h[i];
        char *name = md_escape(h->unit->name);
        table_cell(&t, "%s", name);
        free(name);
        table_cell(&t, "%s", fmt_num(h->largest, 1));
        table_cell(&t, "%s", fmt_num(h->zero, 1));
        table_cell(&t, "%s", fmt_num(h->entropy, 2));
        table_cell(&t, "%s", fmt_num(h->sqnr_db, 1));
        table_cell(&t, "%s", fmt_num(h->unit->sqnr_db, 1));
    }
    table_markdown(&t, f);
    table_free(&t);
    fputs("\n", f);
    for (size_t i = 0; i < s->n; i++) {
        const struct sens_hist *h = &s->h[i];
        double more = h->unit->sqnr_db - h->sqnr_db;
        if (!isfinite(more)) continue;
        char *name = md_escape(h->unit->name);
        fprintf(f, "- %s: ", name);
        if (more > 2)
            fprintf(f, "its outputs are %s dB cleaner than its weights, so the text's inputs favour weights that were rounded well; "
                       "what hurts is how much the model depends on this linear.\n", fmt_num(more, 1));
        else if (more < -2)
            fprintf(f, "its outputs are %s dB noisier than its weights: the inputs that matter meet the weights that were rounded "
                       "worst. Scales chosen with the inputs in view would help it.\n", fmt_num(-more, 1));
        else
            fputs("its outputs are about as noisy as its weights: finer codes for it help as much as they cost.\n", f);
        free(name);
    }
    fputs("- Blue is where the weights are, orange where the squared error comes from", f);
    if (s->n_points)
        fputs(": always from between two code points, and most from where the gap is wide for the number of weights in it", f);
    fputs(". Linears whose pictures look alike are rounded alike: then it is not the weights that make one of them worse.\n"
          "- *Largest / RMS*: how far the largest weight sticks out (a normal distribution of this size has 5 or 6). *Bits used*: the "
          "entropy of the codes; what is missing to the full width are codes that outliers have paid for.\n", f);
}

json_t *sens_hists_json(const struct sens_hists *s)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->n; i++) {
        const struct sens_hist *h = &s->h[i];
        json_array_append_new(list, json_pack("{s:s,s:o,s:o,s:o,s:o}", "name", h->unit->name, "largest_over_rms", json_num(h->largest),
                                              "zero_share", json_num(h->zero / 100), "entropy_bits", json_num(h->entropy), "sqnr_db",
                                              json_num(h->sqnr_db)));
    }
    return list;
}
