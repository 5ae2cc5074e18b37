#include "output/chart.h"

#include "base/file.h"
#include "base/mem.h"
#include "output/plot.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const chart_colors[8] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#777777"};
const int chart_shapes[8] = {7, 5, 9, 11, 13, 6, 4, 8};

void chart_add(struct chart *c, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    c->s = mem_grow(c->s, c->n + (size_t)n + 1, 1);
    vsnprintf(c->s + c->n, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    c->n += (size_t)n;
}

void chart_quoted(struct chart *c, const char *s)
{
    chart_add(c, "'");
    for (; s && *s; s++) {
        if (*s == '\'') chart_add(c, "''");
        else chart_add(c, "%c", (unsigned char)*s < 32 ? ' ' : *s);
    }
    chart_add(c, "'");
}

void chart_begin(struct chart *c, int height, const char *title, const char *subtitle, const char *xlabel,
                 const char *ylabel)
{
    *c = (struct chart){.height = height};
    chart_add(c, "set encoding utf8\nset border 3 lc rgb '#444444'\nset tics nomirror out scale 0.6 font ',13'\n"
                 "set grid lc rgb '#e4e4e4' lt 1\nset tmargin at screen %.4f\nset bmargin at screen %.4f\nset label ",
              1 - (double)CHART_TOP / height, (double)CHART_BOTTOM / height);
    chart_quoted(c, title);
    chart_add(c, " at screen 0.019, screen %.4f left front font ',17'\nset label ", 1 - 24.0 / height);
    chart_quoted(c, subtitle);
    chart_add(c, " at screen 0.019, screen %.4f left front font ',13' textcolor rgb '#444444'\nset xlabel ", 1 - 46.0 / height);
    chart_quoted(c, xlabel);
    chart_add(c, " font ',14'\nset ylabel ");
    chart_quoted(c, ylabel);
    chart_add(c, " font ',14'\n");
}

int chart_draw(struct chart *c, const char *dir, const char *name, json_t *files, struct err *e)
{
    char *file = mem_printf("%s.svg", name), *path = path_join(dir, file);
    int rc = plot_draw(c->s, c->height, path, e);
    if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
    free(file);
    free(path);
    free(c->s);
    *c = (struct chart){0};
    return rc;
}
