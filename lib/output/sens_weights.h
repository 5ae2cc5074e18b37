/* Weights of the worst linears as the format sees them: a histogram over the axis of its code points. */
#ifndef QLAB_OUTPUT_SENS_WEIGHTS_H
#define QLAB_OUTPUT_SENS_WEIGHTS_H

#include "output/sens_rec.h"

#define SENS_HISTS 3

/* One linear, quantized as the record says. */
struct sens_hist {
    const struct sens_unit *unit;
    double *weights, *error; /* (n_bins): share of the weights and of the squared error in %; owned */
    double largest;          /* max |w| / RMS of w */
    double zero;             /* share of the weights that become zero, % */
    double entropy;          /* of the codes, in bits */
    double sqnr_db;          /* of the weights */
};

struct sens_hists {
    struct sens_hist h[SENS_HISTS];
    size_t n;
    const char *format;
    int bits;           /* of a code */
    double lo, hi;      /* the axis */
    int n_bins, n_points;
    double points[16];  /* code points; none where there are more */
    bool book;          /* the axis is w / absmax, else w / scale + zero point */
};

/* The units at `at` (n of them, the first SENS_HISTS linears among them) of the original model in the folder or file
 * `model`. None in a float format and in records of other units. Free with sens_hists_free. */
int sens_hists(struct sens_hists *s, const struct sens_rec *r, const size_t *at, size_t n, const char *model, struct err *e);
void sens_hists_free(struct sens_hists *s);
/* DIR/weights.svg, its path appended to files; nothing if there are none. */
int sens_hists_draw(const struct sens_hists *s, const char *dir, json_t *files, struct err *e);
/* [{"name", "largest_over_rms", "zero_share", "entropy_bits", "sqnr_db"}]; caller owns. */
json_t *sens_hists_json(const struct sens_hists *s);
/* A section of the report. */
void sens_hists_text(const struct sens_hists *s, FILE *f);

#endif
