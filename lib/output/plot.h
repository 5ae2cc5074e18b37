/* Plots by gnuplot: a script with its data in it goes to gnuplot, which writes an SVG (or PNG). White opaque
 * background, Okabe-Ito colours with a shape each, labels at the points, placed here so that they do not collide. */
#ifndef QLAB_OUTPUT_PLOT_H
#define QLAB_OUTPUT_PLOT_H

#include "base/err.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* Pixels of the picture; the axes' area inside it. Wide enough for a README column (850 pixels). */
#define PLOT_W 850
#define PLOT_H 520

struct plot_point {
    const char *label;
    const char *format; /* decides colour and shape; NULL: grey */
    double x, y, lo, hi; /* lo, hi: error bar; NaN: none */
};

/* A dashed line; y0 NaN: none; x0, x1 infinite: from edge to edge. */
struct plot_line {
    double x0, y0, x1, y1;
};
#define PLOT_NO_LINE ((struct plot_line){NAN, NAN, NAN, NAN})
#define PLOT_LEVEL(y) ((struct plot_line){-INFINITY, y, INFINITY, y})

struct plot_scatter {
    const char *title, *subtitle, *xlabel, *ylabel;
    bool y_linear;      /* never a log scale */
    bool y_from_zero;   /* else log scale if max/min > 3, else a linear range around the points */
    struct plot_line line;
    const struct plot_point *p; /* points with x or y not finite are left out */
    size_t n;
};

struct plot_bar {
    const char *label;
    const double *v; /* one value a class, ≥ 0 */
};

struct plot_bars {
    const char *title, *subtitle, *xlabel;
    const char *const *classes;
    size_t n_classes; /* at most 4 */
    const struct plot_bar *b;
    size_t n;
};

/* The gnuplot script as text (free it), without terminal and output. NULL if there is nothing to draw. *height: of the
 * picture in pixels (bars grow with their number). */
char *plot_scatter_script(const struct plot_scatter *s, int *height);
char *plot_bars_script(const struct plot_bars *b, int *height);

/* Run gnuplot on the script and put the picture at `path` ("….svg" or "….png"). */
int plot_draw(const char *script, int height, const char *path, struct err *e);

/* Label placement, in pixels, y downwards. Labels are w × h; obstacles are the points, their error bars and
 * the line (in pixels). On return lx, ly is the label's left top corner, ax, ay where a leader line meets it; leader says
 * whether one is wanted. Deterministic. */
struct plot_label {
    double x, y, bar_top, bar_bottom; /* the point and its bar (bar_top ≤ y ≤ bar_bottom) */
    double w, h;
    double lx, ly, ax, ay;
    bool leader;
};
void plot_place_labels(struct plot_label *l, size_t n, double left, double top, double right, double bottom,
                       struct plot_line line);

#endif
