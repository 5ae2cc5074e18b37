#include "base/file.h"
#include "base/mem.h"
#include "output/chart.h"
#include "output/plot.h"
#include "output/sens.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_POINTS 2000

void sens_grid(struct sens_grid *g, const struct sens_rec *r)
{
    *g = (struct sens_grid){0};
    for (size_t i = 0; i < r->n; i++) {
        if (r->u[i].layer < 0 || !*r->u[i].op) continue;
        size_t k = 0;
        while (k < g->n_ops && strcmp(g->ops[k], r->u[i].op)) k++;
        if (k == g->n_ops && k < sizeof g->ops / sizeof *g->ops) g->ops[g->n_ops++] = r->u[i].op;
        if (r->u[i].layer >= g->n_layers && r->u[i].layer < 10000) g->n_layers = r->u[i].layer + 1;
    }
    size_t size = g->n_ops * (size_t)g->n_layers;
    g->v = mem_new(size, sizeof *g->v);
    for (size_t i = 0; i < size; i++) g->v[i] = NAN;
    for (size_t i = 0; i < r->n; i++)
        for (size_t k = 0; k < g->n_ops; k++)
            if (!strcmp(g->ops[k], r->u[i].op) && r->u[i].layer >= 0 && r->u[i].layer < g->n_layers)
                g->v[k * (size_t)g->n_layers + (size_t)r->u[i].layer] = sens_damage(r, i);
}

static double positive(const struct sens_grid *g, double *most)
{
    double least = INFINITY;
    *most = 0;
    for (size_t i = 0; i < g->n_ops * (size_t)g->n_layers; i++)
        if (g->v[i] > 0) {
            least = fmin(least, g->v[i]);
            *most = fmax(*most, g->v[i]);
        }
    return least;
}

static int draw_layers(const struct sens_rec *r, const struct sens_grid *g, const char *subtitle, const char *dir, json_t *files,
                       struct err *e)
{
    struct chart c;
    chart_begin(&c, PLOT_H, "Damage of each linear over the layers", subtitle, "layer", sens_damage_name(r));
    chart_add(&c, "set key outside right top font ',13'\nset logscale y\nset format y '%%.0e'\nset xrange [-0.5:%.1f]\n",
              (double)g->n_layers - 0.5);
    for (size_t k = 0; k < g->n_ops; k++) {
        chart_add(&c, "$d%zu << EOD\n", k);
        for (int64_t i = 0; i < g->n_layers; i++) {
            double v = g->v[k * (size_t)g->n_layers + (size_t)i];
            if (v > 0) chart_add(&c, "%lld %.6g\n", (long long)i, v);
            else chart_add(&c, "%lld NaN\n", (long long)i);
        }
        chart_add(&c, "EOD\n");
    }
    chart_add(&c, "plot ");
    for (size_t k = 0; k < g->n_ops; k++) {
        chart_add(&c, "%s$d%zu using 1:2 with linespoints lw 1.6 ps 0.7 pt %d lc rgb '%s' title ", k ? ", " : "", k,
                  chart_shapes[k % 8], chart_colors[k % 8]);
        chart_quoted(&c, g->ops[k]);
    }
    chart_add(&c, "\n");
    return chart_draw(&c, dir, "layers", files, e);
}

static int draw_heat(const struct sens_rec *r, const struct sens_grid *g, const char *subtitle, const char *dir, json_t *files,
                     struct err *e)
{
    struct chart c;
    double most, least = positive(g, &most);
    chart_begin(&c, 170 + 36 * (int)g->n_ops, "Where it hurts", subtitle, "layer", "");
    /* cividis: reads the same with any colour vision */
    chart_add(&c, "unset key\nunset grid\nset palette defined (0 '#00204d', 0.25 '#414d6b', 0.5 '#7c7b78', 0.75 '#bcaf6f', 1 "
                  "'#ffea46')\nset logscale cb\nset format cb '%%.0e'\nset cbrange [%.6g:%.6g]\nset cblabel ",
              least, most > least ? most : least * 2);
    chart_quoted(&c, sens_damage_name(r));
    chart_add(&c, "\nset xrange [-0.5:%.1f]\nset yrange [%.1f:-0.5]\nset ytics (", (double)g->n_layers - 0.5,
              (double)g->n_ops - 0.5);
    for (size_t k = 0; k < g->n_ops; k++) {
        chart_add(&c, k ? ", " : "");
        chart_quoted(&c, g->ops[k]);
        chart_add(&c, " %zu", k);
    }
    chart_add(&c, ")\n$d << EOD\n");
    for (size_t k = 0; k < g->n_ops; k++)
        for (int64_t i = 0; i < g->n_layers; i++) {
            double v = g->v[k * (size_t)g->n_layers + (size_t)i];
            if (isfinite(v)) chart_add(&c, "%lld %zu %.6g\n", (long long)i, k, v > 0 ? v : least);
        }
    chart_add(&c, "EOD\nplot $d using 1:2:(0.5):(0.5):3 with boxxyerror fs solid noborder lc palette\n");
    return chart_draw(&c, dir, "heat", files, e);
}

/* Points of one linear's CSV, every `step`-th. Returns how many were added; −1 on error; 0 where there is no file. */
static int64_t add_samples(struct chart *c, const char *samples, const char *name, size_t step, double *lo, double *hi,
                           struct err *e)
{
    static const char head[] = "reference,quantized\n";
    char *file = mem_printf("%s.csv", name), *path = path_join(samples, file), *text = NULL;
    size_t n;
    int64_t added = 0;
    free(file);
    if (!name_is_plain(name) || !path_exists(path)) goto end;
    if (file_read(path, (size_t)16 << 20, &text, &n, e)) {
        added = -1;
        goto end;
    }
    if (strncmp(text, head, strlen(head))) {
        added = err_set(e, "%s: not a file of qsens --samples (reference,quantized was expected)", path);
        goto end;
    }
    size_t line = 0;
    for (char *s = text + strlen(head); *s; line++) {
        char *after, *next;
        double x = strtod(s, &after), y = *after == ',' ? strtod(after + 1, &next) : NAN;
        if (*after != ',' || *next != '\n' || strspn(s, "0123456789+-.e,") != (size_t)(next - s) || !isfinite(x) || !isfinite(y)) {
            added = err_set(e, "%s: line %zu is not two numbers", path, line + 2);
            goto end;
        }
        s = next + 1;
        if (line % step) continue;
        chart_add(c, "%.6g %.6g\n", x, y);
        *lo = fmin(*lo, fmin(x, y));
        *hi = fmax(*hi, fmax(x, y));
        added++;
    }
end:
    free(path);
    free(text);
    return added;
}

static int draw_scatter(const struct sens_rec *r, const struct sens_grid *g, size_t op, const char *samples, const char *dir,
                        json_t *files, struct err *e)
{
    struct chart c;
    char *title = mem_printf("%s: outputs with %s against the original's", g->ops[op], r->format);
    double lo = INFINITY, hi = -INFINITY;
    int64_t n = 0;
    size_t step = g->n_layers > 0 ? (size_t)g->n_layers : 1; /* qsens writes at most 2,000 points a linear */
    chart_begin(&c, PLOT_H, title, "same inputs; a share of the points from every layer; line: equal", "original", r->format);
    free(title);
    chart_add(&c, "unset key\n$d << EOD\n");
    for (size_t i = 0; i < r->n; i++) {
        if (strcmp(r->u[i].op, g->ops[op])) continue;
        int64_t k = add_samples(&c, samples, r->u[i].name, step, &lo, &hi, e);
        if (k < 0) {
            free(c.s);
            return -1;
        }
        n += k;
    }
    if (n == 0) {
        free(c.s);
        return 0;
    }
    chart_add(&c, "EOD\nset size ratio 1\nset xrange [%.6g:%.6g]\nset yrange [%.6g:%.6g]\n"
                  "plot x with lines lc rgb '#999999' lw 1, $d using 1:2 with points pt 7 ps 0.3 lc rgb '#0072b2'\n",
              lo, hi > lo ? hi : lo + 1, lo, hi > lo ? hi : lo + 1);
    char *name = mem_printf("scatter-%s", g->ops[op]);
    int rc = name_is_plain(name) ? chart_draw(&c, dir, name, files, e) : err_set(e, "%s: an odd name of an operation", g->ops[op]);
    free(name);
    return rc;
}

int sens_plots(const struct sens_rec *r, const struct sens_grid *g, const char *samples, const char *dir, json_t *files,
               struct err *e)
{
    double most;
    if (g->n_ops == 0 || g->n_layers == 0) return 0; /* per layer or per operation: tables say it all */
    positive(g, &most);
    char *sub = mem_printf("%s, mode %s%s", r->format, r->mode,
                           strcmp(r->mode, "local") ? "; what is not above zero is left out or in the darkest colour" : "");
    int rc = most > 0 && (draw_layers(r, g, sub, dir, files, e) || draw_heat(r, g, sub, dir, files, e)) ? -1 : 0;
    free(sub);
    size_t before = json_array_size(files);
    for (size_t k = 0; rc == 0 && samples && k < g->n_ops; k++) rc = draw_scatter(r, g, k, samples, dir, files, e);
    if (rc == 0 && samples && json_array_size(files) == before)
        rc = err_set(e, "%s: no samples of these linears (a folder made by qsens --samples was expected)", samples);
    return rc;
}
