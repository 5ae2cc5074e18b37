/* Small statistics, in double. */
#ifndef QLAB_BASE_STATS_H
#define QLAB_BASE_STATS_H

#include <stdint.h>

/* Mean and standard error of the mean, two passes, sum of squares over n−1. se is 0 for n < 2. */
struct mean_se {
    double mean, se, sd;
    int64_t n;
};
struct mean_se stats_mean(const double *x, int64_t n);
/* Of the differences a[i] − b[i]. */
struct mean_se stats_paired(const double *a, const double *b, int64_t n);
/* q-quantile (0…1) of x sorted ascending, linear interpolation (R type 7, numpy's default). n > 0. */
double stats_quantile_sorted(const double *x, int64_t n, double q);
void stats_sort(double *x, int64_t n);
/* Spearman rank correlation with average ranks for ties; NaN for n < 2 or a constant side. */
double stats_spearman(const double *a, const double *b, int64_t n);

#endif
