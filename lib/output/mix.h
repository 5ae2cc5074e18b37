/* `qreport mix`: do mixed recipes beat the straight line between uniform formats? */
#ifndef QLAB_OUTPUT_MIX_H
#define QLAB_OUTPUT_MIX_H

#include "base/err.h"
#include "base/json.h"
#include "output/rows.h"
#include "output/sens_rec.h"

#include <stdbool.h>

/* One quantized folder: what qquant and qppl said about it, and the recipe's plan. Numbers are NaN where unknown. */
struct mix_row {
    char *name;        /* owned */
    const char *digest;
    const json_t *quant, *ppl, *plan; /* borrowed; plan: of the recipe file, NULL if it has none or was not given */
    const char *quant_path, *ppl_path;
    bool uniform, random;
    bool transformers, vllm; /* opens there without further options */
    double budget_bpw, bpw, predicted;
    struct pm delta, kld;
    double chord, neighbours, below;   /* Δ nll on the line int4-g64 … int8-row; on the line between the nearest uniform formats */
    const struct mix_row *left, *right; /* of neighbours */
    struct pm margin;                  /* chord − Δ nll and its standard error */
    bool paired;                       /* the error is of the paired tokens, else an upper bound */
    double *nll;                       /* owned; NULL without --nll */
    int64_t n_nll;
};

struct mix {
    struct mix_row *r;
    size_t n;
    struct sens_rec *sens;
    size_t n_sens;
    struct mix_row reference;      /* f16 itself: 16 bits, no damage; the last neighbour on the right */
    const struct mix_row *lo, *hi; /* the chord's ends, NULL if not there */
    double rho_local_isolated, rho_local_restore, rho_isolated_restore, rho_predicted, rho_predicted_kld;
    size_t n_predicted;            /* mixes that rho_predicted is over */
    bool over_random;              /* those are the random ones */
    json_t **docs;                 /* owned: all files given */
    char (*sha)[65];
    size_t n_docs;
};

/* Read records of qquant, qppl (with --ref) and qsens and recipe files, in any order, join them and work out chords and
 * correlations. */
int mix_read(struct mix *m, char **paths, size_t n, struct err *e);
void mix_free(struct mix *m);
/* "accepted": below the chord by more than 1.96 standard errors; "rejected": not; NULL: there is no chord to compare with. */
const char *mix_verdict(const struct mix_row *r);
/* Into results: budgets, uniform, random, spearman. */
void mix_results(const struct mix *m, json_t *results);
/* DIR/report.md and plots; paths are appended to files. */
int mix_report(const struct mix *m, const char *dir, json_t *files, struct err *e);

#endif
