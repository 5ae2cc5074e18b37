/* `qreport table`: the Markdown report, its plots, the CSV and metrics.csv, all from joined rows. */
#ifndef QLAB_OUTPUT_REPORT_H
#define QLAB_OUTPUT_REPORT_H

#include "output/rows.h"
#include "output/table.h"

/* The table people read: sizes, speed, quality; one row a configuration. */
void report_table(const struct rows *rs, struct table *t);

struct report_files {
    const char *md, *csv, *plot; /* paths; NULL: not wanted. plot is a folder */
    bool png;                    /* plots as PNG too */
};
/* Write what is wanted; the path of each file written is appended to `files` (a JSON array). Each file appears whole
 * or not at all. */
int report_write(const struct rows *rs, const struct report_files *want, json_t *files, struct err *e);
/* The plots alone: DIR/{ppl,decode,bytes}.svg with the gnuplot script beside each, and roofline-NAME.svg of every
 * configuration whose qbench record has kernels; a plot with no data is left out. */
int report_plots(const struct rows *rs, const char *dir, bool png, json_t *files, struct err *e);

/* Flat columns, one row a configuration, raw numbers: what --csv and metrics.csv hold. */
void metrics_table(const struct rows *rs, struct table *t);
/* Append the rows to a CSV file under a lock. A new or empty file gets the header; another header, or a last row that
 * is cut off, is an error. All rows or none are appended. */
int metrics_append(const struct rows *rs, const char *path, struct err *e);
/* $METRICS, or metrics.csv in the nearest folder upwards that holds a .git, or here. New string. */
char *metrics_path(void);

/* The different values of a string member over the records of one kind, in order of appearance, joined by ", ".
 * which: 'p' qppl, 'b' qbench, 'q' qquant, 'l' qload, 's' qbench with text. New string, "" if none. */
char *values_of(const struct rows *rs, char which, const char *path);
/* The first record of a kind; NULL if none. */
const json_t *first_of(const struct rows *rs, char which);

#endif
