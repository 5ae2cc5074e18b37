/* Charts that need more than plot.h's labelled points: gnuplot text with its data in it, put together piece by piece. */
#ifndef QLAB_OUTPUT_CHART_H
#define QLAB_OUTPUT_CHART_H

#include "base/err.h"
#include "base/json.h"

#include <stddef.h>

/* Okabe and Ito's colours, told apart with any colour vision, for up to eight series; shapes go with them. */
extern const char *const chart_colors[8];
extern const int chart_shapes[8];

struct chart {
    char *s;
    size_t n;
    int height;
};

enum { CHART_TOP = 78, CHART_BOTTOM = 80 }; /* pixels above and below the axes' area */

/* Title, subtitle (may be empty) and axis labels; gnuplot's own axes. Height in pixels; the width is PLOT_W. */
void chart_begin(struct chart *c, int height, const char *title, const char *subtitle, const char *xlabel,
                 const char *ylabel);
void chart_add(struct chart *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* As a single-quoted gnuplot string, in which only the quote itself is special. */
void chart_quoted(struct chart *c, const char *s);
/* Draw DIR/NAME.svg, append its path to files, free the chart. */
int chart_draw(struct chart *c, const char *dir, const char *name, json_t *files, struct err *e);

#endif
