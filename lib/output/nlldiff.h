/* `qreport diff`: two qppl records of one text, compared token by token. */
#ifndef QLAB_OUTPUT_NLLDIFF_H
#define QLAB_OUTPUT_NLLDIFF_H

#include "base/err.h"
#include "base/json.h"

#include <stdint.h>

struct nll_diff {
    int64_t n;              /* tokens */
    double delta, se;       /* mean of B − A (= ln PPL_B − ln PPL_A), paired standard error, tokens as independent */
    int64_t block, n_blocks;
    double lo, hi, boot_se; /* block bootstrap: 2.5 % and 97.5 % quantiles, standard deviation of the resampled means */
    const char *word;       /* about B: "worse", "better", "cannot-tell" (the interval holds 0) */
};

/* a, b: n values each, nats. block: tokens a block (the last may be short); resamples > 0. */
void nll_diff(struct nll_diff *d, const double *a, const double *b, int64_t n, int64_t block, int64_t resamples,
              uint64_t seed);

/* A block length for this record's n tokens: what a window scores where there are 10 windows of one size or more, else
 * 64, or a tenth of the text where it is shorter than that. */
int64_t nll_block(const json_t *rec, int64_t n);

/* Read the values that record `path` points at (params.nll, looked for as it is and beside the record): f32, little
 * endian, as many as results.n_scored says; finite; their mean is the record's; their digest, where the record has one,
 * too. *v to be freed. *file (owned) is where they were. */
int nll_read(const json_t *rec, const char *path, double **v, int64_t *n, char **file, struct err *e);
/* Refuses records that do not measure the same tokens the same way. */
int nll_comparable(const json_t *a, const char *path_a, const json_t *b, const char *path_b, struct err *e);

#endif
