#include "output/roofline.h"

#include "base/mem.h"
#include "output/chart.h"
#include "output/plot.h"
#include "output/rows.h"
#include "output/table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HEIGHT = 560, LEFT = 96, RIGHT = PLOT_W - 34, TOP = CHART_TOP, BOTTOM = HEIGHT - CHART_BOTTOM };
#define LEAST_SHARE 0.01 /* of its phase's time: below that an op is not worth a point */

static const char *const phases[] = {"decode", "prefill"};
static const char *const peaks[] = {"int8", "bf16", "f32"};
#define N_PEAKS 3

struct point {
    double x, y, share; /* operations a byte, GOP/s, part of the phase's time */
    size_t phase;
    char *label;
};

struct roofline {
    struct point *p;
    size_t n;
    double bandwidth, peak[N_PEAKS]; /* GB/s; GOP/s, 0: no point is held against it */
    const char *instruction[N_PEAKS];
    double x0, x1, y0, y1; /* axes */
};

static double number(const json_t *o, const char *path)
{
    const char *bad = NULL;
    return num_at(o, path, &bad);
}

static double phase_ms(const json_t *kernels, const char *phase)
{
    size_t i;
    const json_t *k;
    double sum = 0;
    json_array_foreach(kernels, i, k)
        if (str_at(k, "phase") && !strcmp(str_at(k, "phase"), phase)) sum += number(k, "ms");
    return sum;
}

/* A peak that a point is held against is a roof. */
static void use_peak(struct roofline *r, const json_t *bench, const char *name)
{
    for (size_t i = 0; name && i < N_PEAKS; i++) {
        if (strcmp(name, peaks[i])) continue;
        char *rate = mem_printf("results.peak.%s.ops_per_s", name), *what = mem_printf("results.peak.%s.instruction", name);
        double v = number(bench, rate) / 1e9;
        r->peak[i] = v > 0 ? v : 0;
        r->instruction[i] = str_at(bench, what);
        free(rate);
        free(what);
    }
}

static void add_points(struct roofline *r, const json_t *bench)
{
    const json_t *kernels = json_at(bench, "results.kernels"), *k;
    size_t i;
    json_array_foreach(kernels, i, k) {
        const char *phase = str_at(k, "phase"), *op = str_at(k, "op"), *format = str_at(k, "format");
        double ops = number(k, "ops"), bytes = number(k, "bytes"), ms = number(k, "ms");
        if (!phase || !op || !(ops > 0) || !(bytes > 0) || !(ms > 0)) continue;
        for (size_t p = 0; p < sizeof phases / sizeof *phases; p++) {
            double share = ms / phase_ms(kernels, phases[p]);
            if (strcmp(phase, phases[p]) || !(share >= LEAST_SHARE)) continue;
            char *label = mem_printf("%s%s%s, %s %%", op, format ? " " : "", format ? format : "", fmt_num(100 * share, 0));
            r->p = mem_grow(r->p, r->n + 1, sizeof *r->p);
            r->p[r->n++] = (struct point){ops / bytes, ops / ms / 1e6, share, p, label};
            use_peak(r, bench, str_at(k, "peak"));
        }
    }
}

static bool axes(struct roofline *r)
{
    double top = 0;
    for (size_t i = 0; i < N_PEAKS; i++) top = fmax(top, r->peak[i]);
    if (!r->n || !(top > 0) || !(r->bandwidth > 0)) return false;
    double ridge = top / r->bandwidth; /* where memory stops being the limit */
    r->x0 = ridge, r->x1 = ridge, r->y0 = top, r->y1 = top;
    for (size_t i = 0; i < r->n; i++) {
        r->x0 = fmin(r->x0, r->p[i].x);
        r->x1 = fmax(r->x1, r->p[i].x);
        r->y0 = fmin(r->y0, r->p[i].y);
        r->y1 = fmax(r->y1, r->p[i].y);
    }
    r->x0 /= 2, r->x1 *= 3, r->y0 /= 2, r->y1 *= 2;
    return true;
}

static double px(const struct roofline *r, double x) { return LEFT + log(x / r->x0) / log(r->x1 / r->x0) * (RIGHT - LEFT); }
static double py(const struct roofline *r, double y) { return BOTTOM - log(y / r->y0) / log(r->y1 / r->y0) * (BOTTOM - TOP); }

/* What stands above the right end of roof i; new string. */
static char *roof_text(const struct roofline *r, size_t i)
{
    return mem_printf("%s: %s GOP/s", r->instruction[i] ? r->instruction[i] : peaks[i], fmt_sig(r->peak[i], 3));
}

static void add_roofs(struct chart *c, const struct roofline *r)
{
    for (size_t i = 0; i < N_PEAKS; i++) {
        if (!r->peak[i]) continue;
        chart_add(c, "set label ");
        char *text = roof_text(r, i);
        chart_quoted(c, text);
        chart_add(c, " at first %.6g, first %.6g right offset 0,0.55 font ',13' textcolor rgb '#444444'\n", r->x1, r->peak[i]);
        free(text);
    }
    /* along the slope, near its upper end, which decoding seldom reaches */
    double lo = fmax(r->x0, r->y0 / r->bandwidth), top = 0;
    for (size_t i = 0; i < N_PEAKS; i++) top = fmax(top, r->peak[i]);
    double hi = top / r->bandwidth, at = exp(log(lo) + 0.78 * log(hi / lo));
    double angle = atan2((BOTTOM - TOP) / log(r->y1 / r->y0), (RIGHT - LEFT) / log(r->x1 / r->x0)) * 180 / 3.14159265358979;
    chart_add(c, "set label 'read bandwidth: %s GB/s' at first %.6g, first %.6g center rotate by %.1f offset 0,0.9 font "
                 "',13' textcolor rgb '#444444'\n", fmt_sig(r->bandwidth, 3), at, at * r->bandwidth, angle);
}

static double roof(const struct roofline *r, double x, double peak) { return fmin(x * r->bandwidth, peak); }

/* Labels where they hide no point, no roof and no roof's text: these are rows of points with labels of nothing. */
static void add_labels(struct chart *c, const struct roofline *r)
{
    enum { STEP = 14, MOST = 2 * N_PEAKS * (PLOT_W / STEP), TEXT_UP = 12 };
    struct plot_label *l = mem_new(r->n + MOST, sizeof *l);
    size_t n = r->n;
    for (size_t i = 0; i < r->n; i++) {
        double x = px(r, r->p[i].x), y = py(r, r->p[i].y);
        l[i] = (struct plot_label){.x = x, .y = y, .bar_top = y, .bar_bottom = y,
                                   .w = 4 + 7.0 * (double)strlen(r->p[i].label), .h = 15};
    }
    for (size_t k = 0; k < N_PEAKS; k++) {
        char *text = roof_text(r, k);
        double begin = RIGHT - 7.0 * (double)strlen(text);
        free(text);
        for (int x = LEFT; r->peak[k] && x < RIGHT; x += STEP) {
            double v = r->x0 * pow(r->x1 / r->x0, (double)(x - LEFT) / (RIGHT - LEFT)), y = py(r, roof(r, v, r->peak[k]));
            l[n++] = (struct plot_label){.x = x, .y = y, .bar_top = y, .bar_bottom = y};
            if (x > begin) l[n++] = (struct plot_label){.x = x, .y = y - TEXT_UP, .bar_top = y - TEXT_UP, .bar_bottom = y - TEXT_UP};
        }
    }
    plot_place_labels(l, n, LEFT + 4, TOP, RIGHT, BOTTOM - 3, PLOT_NO_LINE);
    for (size_t i = 0; i < r->n; i++) {
        if (l[i].leader)
            chart_add(c, "set arrow from screen %.5f, screen %.5f to screen %.5f, screen %.5f nohead back lw 0.8 lc rgb "
                         "'#999999'\n",
                      l[i].x / PLOT_W, 1 - l[i].y / HEIGHT, l[i].ax / PLOT_W, 1 - l[i].ay / HEIGHT);
        bool left = l[i].ax < l[i].lx + 1, right = l[i].ax > l[i].lx + l[i].w - 1;
        double x = left ? l[i].lx + 2 : right ? l[i].lx + l[i].w - 2 : l[i].lx + l[i].w / 2;
        chart_add(c, "set label ");
        chart_quoted(c, r->p[i].label);
        chart_add(c, " at screen %.5f, screen %.5f %s front font ',13' textcolor rgb '%s'\n", x / PLOT_W,
                  1 - (l[i].ly + l[i].h / 2) / HEIGHT, left ? "left" : right ? "right" : "center",
                  chart_colors[r->p[i].phase]);
    }
    free(l);
}

static void add_plot(struct chart *c, const struct roofline *r)
{
    size_t n_phases = sizeof phases / sizeof *phases;
    for (size_t p = 0; p < n_phases; p++) {
        chart_add(c, "$p%zu << EOD\n", p);
        for (size_t i = 0; i < r->n; i++)
            if (r->p[i].phase == p) chart_add(c, "%.6g %.6g\n", r->p[i].x, r->p[i].y);
        chart_add(c, "NaN NaN\nEOD\n");
    }
    chart_add(c, "roof(x, peak) = x * %.6g < peak ? x * %.6g : peak\nplot", r->bandwidth, r->bandwidth);
    for (size_t i = 0; i < N_PEAKS; i++)
        if (r->peak[i]) chart_add(c, " roof(x, %.6g) notitle lc rgb '#444444' lw 1.6,", r->peak[i]);
    for (size_t p = 0; p < n_phases; p++)
        chart_add(c, "%s $p%zu using 1:2 with points pt %d ps 1.1 lc rgb '%s' title '%s'", p ? "," : "", p, chart_shapes[p],
                  chart_colors[p], phases[p]);
    chart_add(c, "\n");
}

char *roofline_script(const json_t *bench, const char *name, int *height)
{
    struct roofline r = {.bandwidth = number(bench, "results.bandwidth.read_bytes_per_s") / 1e9};
    struct chart c = {0};
    add_points(&r, bench);
    if (axes(&r)) {
        const char *cpu = str_at(bench, "host.cpu"), *compute = str_at(bench, "results.compute");
        char *title = mem_printf("Kernels of %s under the roofs of this machine", name);
        char *sub = mem_printf("%s, %s threads, computed in %s; %%: of the phase's time, from 1 %% on", cpu ? cpu : "",
                               fmt_num(number(bench, "params.threads"), 0), compute ? compute : "");
        chart_begin(&c, HEIGHT, title, sub, "operations a byte that must be moved", "GOP/s (a multiply-add is two)");
        chart_add(&c, "set lmargin at screen %.5f\nset rmargin at screen %.5f\nset key at screen %.5f, screen %.5f right "
                      "top horizontal font ',13'\nset logscale xy\nset xrange [%.6g:%.6g]\nset yrange [%.6g:%.6g]\n",
                  (double)LEFT / PLOT_W, (double)RIGHT / PLOT_W, (double)RIGHT / PLOT_W, 1 - 34.0 / HEIGHT, r.x0, r.x1,
                  r.y0, r.y1);
        add_roofs(&c, &r);
        add_labels(&c, &r);
        add_plot(&c, &r);
        free(title);
        free(sub);
    }
    for (size_t i = 0; i < r.n; i++) free(r.p[i].label);
    free(r.p);
    *height = HEIGHT;
    return c.s;
}
