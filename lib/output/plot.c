#include "output/plot.h"

#include "base/file.h"
#include "base/mem.h"
#include "output/chart.h"
#include "output/table.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Axes' area in pixels of the picture. */
enum { LEFT = 74, RIGHT = PLOT_W - 24, TOP = 66, BOTTOM = PLOT_H - 60, FONT = 14, CHAR_W = 8 };

/* Okabe and Ito's palette (jfly.uni-koeln.de/color): told apart with any colour vision; shapes for print. */
static const struct style {
    const char *prefix, *color;
    int shape; /* gnuplot pointtype */
} styles[] = {
    {"mix-portable", "#56b4e9", 9}, {"mix", "#e69f00", 5},
    {"f16", "#000000", 7},  {"bf16", "#000000", 7}, {"f32", "#000000", 7}, {"int8", "#009e73", 5},
    {"nf4", "#d55e00", 9},  {"fp4", "#d55e00", 11}, {"int4-row", "#cc79a7", 13}, {"int4-strided", "#cc79a7", 15},
    {"int4-", "#0072b2", 7}, {"", "#555555", 5},
};
static const char *const class_colors[] = {"#0072b2", "#e69f00", "#009e73", "#cc79a7"};

static const struct style *style_of(const char *format)
{
    for (size_t i = 0;; i++)
        if (!strncmp(format ? format : "", styles[i].prefix, strlen(styles[i].prefix))) return &styles[i];
}

/* ---- script text ---- */

static void add_label(struct chart *t, double x, double y, const char *align, const char *color, int size, const char *s)
{
    chart_add(t, "set label ");
    chart_quoted(t, s);
    chart_add(t, " at screen %.5f, screen %.5f %s front font ',%d' textcolor rgb '%s'\n", x, y, align, size, color);
}

static void add_head(struct chart *t, const char *title, const char *subtitle, int height)
{
    chart_add(t, "set encoding utf8\nunset key\nset border 3 lc rgb '#444444'\nset tics nomirror out scale 0.6 font ',13'\n"
                 "set grid ytics lc rgb '#dddddd' lt 1\n");
    add_label(t, 16.0 / PLOT_W, 1 - 24.0 / height, "left", "#000000", FONT + 3, title);
    add_label(t, 16.0 / PLOT_W, 1 - 46.0 / height, "left", "#444444", FONT - 1, subtitle);
}

/* ---- axes ---- */

struct axis {
    double lo, hi;
    bool log;
};

static double frac(struct axis a, double v)
{
    return a.log ? log(v / a.lo) / log(a.hi / a.lo) : (v - a.lo) / (a.hi - a.lo);
}

static struct axis axis_linear(double lo, double hi, double pad, bool from_zero)
{
    double span = hi > lo ? hi - lo : fmax(fabs(hi), 1e-12);
    return (struct axis){from_zero ? 0 : lo - pad * span, hi + pad * span, false};
}

static struct axis axis_log(double lo, double hi)
{
    double pad = pow(hi / lo, 0.08);
    return (struct axis){lo / pad, hi * pad, true};
}

static void add_ticks(struct chart *t, char name, struct axis a)
{
    chart_add(t, "set %ctics (", name);
    const char *comma = "";
    if (a.log) {
        static const double steps[] = {1, 1.5, 2, 3, 5, 7};
        bool dense = a.hi / a.lo < 20;
        for (double d = pow(10, floor(log10(a.lo))); d <= a.hi; d *= 10)
            for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
                double v = d * steps[k];
                bool keep = a.hi / a.lo > 300 ? steps[k] == 1 || steps[k] == 3 : dense || (k != 1 && k != 5);
                if (v < a.lo || v > a.hi || !keep) continue;
                chart_add(t, "%s'%s' %.12g", comma, fmt_sig(v, v >= 1 ? 1 + (int)log10(v) + (v < 10) : 2), v);
                comma = ", ";
            }
    } else {
        double raw = (a.hi - a.lo) / 7, p = pow(10, floor(log10(raw))), m = raw / p;
        double step = p * (m > 5 ? 10 : m > 2 ? 5 : m > 1 ? 2 : 1);
        int dec = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
        for (double i = ceil(a.lo / step - 1e-9); i * step <= a.hi + 1e-9 * step; i++) {
            chart_add(t, "%s'%s' %.12g", comma, fmt_num(i * step, dec > 12 ? 12 : dec), i * step);
            comma = ", ";
        }
    }
    chart_add(t, ")\nset %crange [%.12g:%.12g]\n", name, a.lo, a.hi);
    if (a.log) chart_add(t, "set logscale %c\n", name);
}

static void add_axes_area(struct chart *t, int height, double left)
{
    chart_add(t, "set lmargin at screen %.5f\nset rmargin at screen %.5f\nset tmargin at screen %.5f\n"
                 "set bmargin at screen %.5f\n",
        left / PLOT_W, (double)RIGHT / PLOT_W, 1 - (double)TOP / height, (double)(PLOT_H - BOTTOM) / height);
}

/* ---- scatter ---- */

static bool drawable(const struct plot_point *p) { return isfinite(p->x) && isfinite(p->y); }
static double low(const struct plot_point *p) { return isfinite(p->lo) ? p->lo : p->y; }
static double high(const struct plot_point *p) { return isfinite(p->hi) ? p->hi : p->y; }

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One collapsed format must not squeeze all others into a line: what is above four times the median is drawn at the
 * upper edge, with its value in the label. */
static double y_cap(const struct plot_scatter *s)
{
    double *y = mem_new(s->n, sizeof *y), cap = INFINITY;
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        if (drawable(&s->p[i])) y[n++] = s->p[i].y;
    qsort(y, n, sizeof *y, by_value);
    if (n > 2 && y[n / 2] > 0) cap = 4 * y[n / 2];
    free(y);
    return cap;
}

static bool scatter_axes(const struct plot_scatter *s, double cap, struct axis *x, struct axis *y)
{
    double x0 = INFINITY, x1 = -INFINITY, y0 = fmin(INFINITY, fmin(s->line.y0, s->line.y1)),
           y1 = fmax(-INFINITY, fmax(s->line.y0, s->line.y1)); /* a NaN falls out */
    for (size_t i = 0; i < s->n; i++) {
        const struct plot_point *p = &s->p[i];
        if (!drawable(p)) continue;
        x0 = fmin(x0, p->x);
        x1 = fmax(x1, p->x);
        if (p->y > cap) continue;
        y0 = fmin(y0, low(p));
        y1 = fmax(y1, high(p));
    }
    if (!(x0 <= x1)) return false;
    *x = axis_linear(x0, x1, 0.12, false);
    if (x->lo < 0 && x0 >= 0) x->lo = 0;
    *y = !s->y_from_zero && !s->y_linear && y0 > 0 && y1 / y0 > 3 ? axis_log(y0, y1) : axis_linear(y0, y1, 0.1, s->y_from_zero);
    return true;
}

char *plot_scatter_script(const struct plot_scatter *s, int *height)
{
    struct axis ax, ay;
    double cap = y_cap(s);
    if (!scatter_axes(s, cap, &ax, &ay)) return NULL;
    *height = PLOT_H;
    struct chart t = {0};
    add_head(&t, s->title, s->subtitle, PLOT_H);
    add_axes_area(&t, PLOT_H, LEFT);
    add_ticks(&t, 'x', ax);
    add_ticks(&t, 'y', ay);
    add_label(&t, (LEFT + RIGHT) / 2.0 / PLOT_W, 14.0 / PLOT_H, "center", "#000000", FONT, s->xlabel);
    add_label(&t, 18.0 / PLOT_W, 1 - (TOP + BOTTOM) / 2.0 / PLOT_H, "center rotate by 90", "#000000", FONT, s->ylabel);
    struct plot_line line = s->line; /* then in pixels */
    if (isfinite(line.y0)) {
        line.x0 = LEFT + frac(ax, fmax(line.x0, ax.lo)) * (RIGHT - LEFT);
        line.x1 = LEFT + frac(ax, fmin(line.x1, ax.hi)) * (RIGHT - LEFT);
        line.y0 = BOTTOM - frac(ay, line.y0) * (BOTTOM - TOP);
        line.y1 = BOTTOM - frac(ay, line.y1) * (BOTTOM - TOP);
        chart_add(&t, "set arrow from screen %.5f, screen %.5f to screen %.5f, screen %.5f nohead back dt 2 lw 1.6 lc rgb '#777777'\n",
            line.x0 / PLOT_W, 1 - line.y0 / PLOT_H, line.x1 / PLOT_W, 1 - line.y1 / PLOT_H);
    }
    struct plot_label *l = mem_new(s->n, sizeof *l);
    struct plot_point *who = mem_new(s->n, sizeof *who);
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (!drawable(&s->p[i])) continue;
        struct plot_point *p = &who[n];
        *p = s->p[i];
        bool off = p->y > cap;
        p->label = off ? mem_printf("%s: %s (off the scale)", p->label, fmt_sig(p->y, 4)) : mem_strdup(p->label);
        if (off) p->y = p->lo = p->hi = ay.hi;
        p->lo = fmax(low(p), ay.lo);
        p->hi = fmin(high(p), ay.hi);
        l[n].x = LEFT + frac(ax, p->x) * (RIGHT - LEFT);
        l[n].y = BOTTOM - frac(ay, p->y) * (BOTTOM - TOP);
        l[n].bar_top = BOTTOM - frac(ay, p->hi) * (BOTTOM - TOP);
        l[n].bar_bottom = BOTTOM - frac(ay, p->lo) * (BOTTOM - TOP);
        l[n].w = 4 + (CHAR_W - 0.6) * (double)strlen(p->label);
        l[n++].h = FONT + 2;
    }
    plot_place_labels(l, n, LEFT + 4, TOP - 4, RIGHT + 20, BOTTOM - 3, line);
    for (size_t i = 0; i < n; i++) {
        if (l[i].leader)
            chart_add(&t, "set arrow from screen %.5f, screen %.5f to screen %.5f, screen %.5f nohead back lw 0.8 lc rgb "
                          "'#999999'\n",
                l[i].x / PLOT_W, 1 - l[i].y / PLOT_H, l[i].ax / PLOT_W, 1 - l[i].ay / PLOT_H);
        /* aligned on the side where the anchor is, so that another font's widths do no harm */
        bool left = l[i].ax < l[i].lx + 1, right = l[i].ax > l[i].lx + l[i].w - 1;
        double x = left ? l[i].lx + 2 : right ? l[i].lx + l[i].w - 2 : l[i].lx + l[i].w / 2;
        add_label(&t, x / PLOT_W, 1 - (l[i].ly + l[i].h / 2) / PLOT_H, left ? "left" : right ? "right" : "center",
                  style_of(who[i].format)->color, FONT, who[i].label);
    }
    chart_add(&t, "plot");
    for (size_t i = 0; i < n; i++) {
        const struct style *st = style_of(who[i].format);
        chart_add(&t, "%s '-' using 1:2:3:4 with yerrorbars lc rgb '%s' lw 1.4 pt %d ps 1.1 notitle", i ? "," : "", st->color,
            st->shape);
    }
    chart_add(&t, "\n");
    for (size_t i = 0; i < n; i++)
        chart_add(&t, "%.12g %.12g %.12g %.12g\ne\n", who[i].x, who[i].y, who[i].lo, who[i].hi);
    for (size_t i = 0; i < n; i++) free((char *)(uintptr_t)who[i].label);
    free(l);
    free(who);
    return t.s;
}

/* ---- stacked bars ---- */

static double bar_sum(const struct plot_bars *b, size_t i)
{
    double sum = 0;
    for (size_t c = 0; c < b->n_classes; c++) sum += b->b[i].v[c];
    return sum;
}

static void add_bar(struct chart *t, const struct plot_bars *b, size_t i, struct axis ax, double left, int height)
{
    double at = 0, y = TOP + 8 + 28.0 * (double)i + 14;
    for (size_t c = 0; c < b->n_classes; c++) {
        double v = b->b[i].v[c], x0 = left + frac(ax, at) * (RIGHT - left), x1 = left + frac(ax, at + v) * (RIGHT - left);
        chart_add(t, "set object rectangle from screen %.5f, screen %.5f to screen %.5f, screen %.5f fs solid noborder fc rgb "
                     "'%s'\n",
            x0 / PLOT_W, 1 - (y + 9) / height, x1 / PLOT_W, 1 - (y - 9) / height, class_colors[c]);
        const char *text = fmt_sig(v, 3);
        if (x1 - x0 > CHAR_W * (double)strlen(text) + 6)
            add_label(t, (x0 + x1) / 2 / PLOT_W, 1 - y / height, "center", c == 1 ? "#000000" : "#ffffff", FONT - 2,
                      text);
        at += v;
    }
    add_label(t, (left + frac(ax, at) * (RIGHT - left) + 6) / PLOT_W, 1 - y / height, "left", "#000000", FONT - 1,
              fmt_sig(at, 3));
    add_label(t, (left - 8) / PLOT_W, 1 - y / height, "right", "#000000", FONT - 1, b->b[i].label);
}

char *plot_bars_script(const struct plot_bars *b, int *height)
{
    double most = 0;
    size_t longest = 0;
    for (size_t i = 0; i < b->n; i++) {
        if (!isfinite(bar_sum(b, i))) return NULL;
        most = fmax(most, bar_sum(b, i));
        if (strlen(b->b[i].label) > longest) longest = strlen(b->b[i].label);
    }
    if (!(most > 0)) return NULL;
    *height = TOP + 16 + 28 * (int)b->n + (PLOT_H - BOTTOM);
    double left = fmin(24 + (CHAR_W - 0.6) * (double)longest, PLOT_W / 2.0);
    struct axis ax = {0, most * 1.09, false};
    struct chart t = {0};
    add_head(&t, b->title, b->subtitle, *height);
    add_axes_area(&t, *height, left);
    chart_add(&t, "set border 1\nunset ytics\nunset grid\nset yrange [0:1]\n");
    add_label(&t, (left + RIGHT) / 2.0 / PLOT_W, 14.0 / *height, "center", "#000000", FONT, b->xlabel);
    add_ticks(&t, 'x', ax);
    double x = RIGHT;
    for (size_t c = b->n_classes; c-- > 0;) { /* the legend, from the right, on the subtitle's line */
        x -= 14 + (CHAR_W - 0.6) * (double)strlen(b->classes[c]);
        chart_add(&t, "set object rectangle from screen %.5f, screen %.5f to screen %.5f, screen %.5f fs solid noborder fc rgb "
                      "'%s'\n",
            (x - 16) / PLOT_W, 1 - 51.0 / *height, (x - 4) / PLOT_W, 1 - 39.0 / *height, class_colors[c]);
        add_label(&t, x / PLOT_W, 1 - 45.0 / *height, "left", "#000000", FONT - 1, b->classes[c]);
        x -= 16;
    }
    for (size_t i = 0; i < b->n; i++) add_bar(&t, b, i, ax, left, *height);
    chart_add(&t, "plot NaN notitle\n");
    return t.s;
}

/* ---- gnuplot ---- */

static int first_line(FILE *f, char *buf, size_t n)
{
    rewind(f);
    while (fgets(buf, (int)n, f)) {
        buf[strcspn(buf, "\n")] = 0;
        if (strspn(buf, " \t^") < strlen(buf)) return 1;
    }
    return 0;
}

static int run_gnuplot(FILE *script, FILE *out, FILE *messages, struct err *e)
{
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fileno(script), 0);
    posix_spawn_file_actions_adddup2(&fa, fileno(out), 1);
    posix_spawn_file_actions_adddup2(&fa, fileno(messages), 2);
    char *argv[] = {"gnuplot", "-", NULL};
    pid_t pid;
    int rc = posix_spawnp(&pid, "gnuplot", &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (rc) return err_set(e, "cannot run gnuplot (%s); Debian has it in gnuplot-nox", strerror(rc));
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return err_sys(e, "waiting for gnuplot");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) return err_set(e, "cannot run gnuplot; Debian has it in gnuplot-nox");
    if (status) {
        char line[256];
        return err_set(e, "gnuplot failed: %s", first_line(messages, line, sizeof line) ? line : "no message");
    }
    return 0;
}

int plot_draw(const char *script, int height, const char *path, struct err *e)
{
    size_t n = strlen(path);
    bool png = n > 4 && !strcmp(path + n - 4, ".png");
    FILE *in = tmpfile(), *messages = tmpfile();
    struct file_out o;
    int rc = -1;
    if (!in || !messages) {
        err_sys(e, "cannot make a temporary file");
        goto end;
    }
    fprintf(in, png ? "set terminal pngcairo size %d,%d font 'sans,%d' fontscale 0.8 background rgb '#ffffff' noenhanced\n"
                    : "set terminal svg size %d,%d font 'Arial,%d' background rgb '#ffffff' noenhanced\n",
            PLOT_W, height, FONT);
    fputs(script, in);
    if (fflush(in) || fseek(in, 0, SEEK_SET)) {
        err_sys(e, "cannot write a temporary file");
        goto end;
    }
    if (file_out_open(&o, path, e)) goto end;
    if (run_gnuplot(in, o.f, messages, e)) {
        file_out_abort(&o);
        goto end;
    }
    struct err at;
    if (fseek(o.f, 0, SEEK_END) || ftell(o.f) <= 0) {
        err_set(e, "%s: gnuplot drew nothing", path);
        file_out_abort(&o);
        goto end;
    }
    rc = file_out_close(&o, &at);
    if (rc) err_set(e, "%s", at.msg);
end:
    if (in) fclose(in);
    if (messages) fclose(messages);
    return rc;
}
