/* Tables of text cells, written as Markdown or as CSV (libcsv), and numbers as people read them. */
#ifndef QLAB_OUTPUT_TABLE_H
#define QLAB_OUTPUT_TABLE_H

#include "base/err.h"

#include <stddef.h>
#include <stdio.h>

struct table {
    size_t n_cols, n_rows;
    char **head;  /* [n_cols], owned */
    char *left;   /* [n_cols]: 1 = left-aligned, else right */
    char **cells; /* [n_rows · n_cols], owned */
    size_t at;    /* cells given so far in the row being made */
};

/* heads: "name|>GiB|…" separated by '|'; a leading '>' right-aligns the column. */
void table_begin(struct table *t, const char *heads);
/* Another head for column col: for text from outside, in which '|' may stand. */
void table_head(struct table *t, size_t col, const char *text);
/* The next cell, printf style; rows follow one another. */
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_free(struct table *t);

/* GitHub Markdown, columns padded. Cells stand as they are: what comes from outside goes through md_escape. */
void table_markdown(const struct table *t, FILE *f);
/* RFC 4180 with "\n" line ends; only cells that need it are quoted. */
int table_csv(const struct table *t, FILE *f);
/* One CSV record of n cells. */
int csv_row(FILE *f, char *const *cells, size_t n);
/* As a plain text table for a terminal. */
void table_text(const struct table *t, FILE *f);

/* Text that may hold anything as text of one Markdown line: markup escaped, control characters and newlines shown as
 * spaces and "⏎". New string. */
char *md_escape(const char *s);

/* Numbers into a ring of buffers, for use within one statement; "–" where not finite. */
const char *fmt_num(double v, int decimals);
const char *fmt_sig(double v, int digits);             /* significant digits, never an exponent */
const char *fmt_gib(double bytes);                     /* three significant digits of GiB */
/* "23.59 ± 0.56": as many decimals as show two digits of se, at most five; sign = 1 writes a leading "+". */
const char *fmt_pm(double v, double se, int sign);

#endif
