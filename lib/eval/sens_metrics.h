/* Outputs of a linear compared: mean squared error and its kin, and samples for scatter plots. */
#ifndef QLAB_EVAL_SENS_METRICS_H
#define QLAB_EVAL_SENS_METRICS_H

#include "base/err.h"
#include "base/json.h"

/* Sums over pairs (reference a, quantized b), in double, added in a fixed order. */
struct sens_metrics {
    int64_t n;
    double err2, ref2, quant2, dot; /* Σ(a−b)², Σa², Σb², Σab */
};
/* Adds n_rows × n values. Threads over rows, the sums do not depend on their number. */
void sens_metrics_add(struct sens_metrics *s, const float *ref, const float *quant, int64_t n_rows, int64_t n);
void sens_metrics_merge(struct sens_metrics *s, const struct sens_metrics *other);
/* Of n == 0 and where a divisor is 0 (all-zero outputs): NaN. sqnr_db of no error: infinite. */
double sens_mse(const struct sens_metrics *s);     /* Σ(a−b)² / n */
double sens_nmse(const struct sens_metrics *s);    /* Σ(a−b)² / Σa²; 0 where both are 0 */
double sens_cosine(const struct sens_metrics *s);  /* Σab / √(Σa²·Σb²) */
double sens_sqnr_db(const struct sens_metrics *s); /* −10·log10(nmse) */
bool sens_metrics_finite(const struct sens_metrics *s);

/* Up to SENS_SAMPLES pairs spread over a linear's outputs: output number k·N/2000 … (k+1)·N/2000 gives one, at a place
 * drawn from the seed and the linear's name. */
#define SENS_SAMPLES 2000
struct sens_samples {
    int64_t n, at, next; /* pairs wanted and taken; outputs seen */
    int64_t *index;      /* ascending */
    float (*pairs)[2];
};
void sens_samples_init(struct sens_samples *s, const char *name, int64_t n_outputs, uint64_t seed);
void sens_samples_add(struct sens_samples *s, const float *ref, const float *quant, int64_t n);
/* DIR/NAME.csv: "reference,quantized" and a line a pair. */
int sens_samples_write(const struct sens_samples *s, const char *dir, const char *name, struct err *e);
char *sens_samples_path(const char *dir, const char *name); /* to be freed */
void sens_samples_free(struct sens_samples *s);

#endif
