/* `qreport sens`: where quantization hurts, as a page to look at. */
#ifndef QLAB_OUTPUT_SENS_H
#define QLAB_OUTPUT_SENS_H

#include "base/err.h"
#include "base/json.h"
#include "output/sens_rec.h"

/* DIR/lbl_analysis.md, layers.svg, heat.svg; with samples (a folder made by qsens --samples, NULL: none) scatter-OP.svg; with
 * model (the original, NULL: not at hand) weights.svg, and results.weights. Paths are appended to files. The records must be
 * of one model. */
int sens_report(const struct sens_rec *r, size_t n, const char *samples, const char *model, const char *dir, json_t *results,
                json_t *files, struct err *e);
/* Into results: format, mode, worst (ten), spearman. */
void sens_results(const struct sens_rec *r, size_t n, json_t *results);
/* The record a report is mainly about: isolated before restore before local. */
const struct sens_rec *sens_main(const struct sens_rec *r, size_t n);

/* Layers and operations of a record as a grid of damages. */
struct sens_grid {
    const char *ops[16];
    size_t n_ops;
    int64_t n_layers;
    double *v; /* (n_ops, n_layers), NaN where there is none; owned */
};
void sens_grid(struct sens_grid *g, const struct sens_rec *r);
/* Plots of one record; those that have nothing to show are left out. */
int sens_plots(const struct sens_rec *r, const struct sens_grid *g, const char *samples, const char *dir, json_t *files,
               struct err *e);

#endif
