#include "base/stats.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

double rng_normal(struct rng *r)
{
    double u = 1.0 - rng_uniform(r), v = rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

static struct mean_se mean_of(const double *a, const double *b, int64_t n)
{
    struct mean_se r = {0, 0, 0, n};
    if (n < 1) return r;
    double s = 0, ss = 0;
    for (int64_t i = 0; i < n; i++) s += a[i] - (b ? b[i] : 0);
    r.mean = s / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = a[i] - (b ? b[i] : 0) - r.mean;
        ss += d * d;
    }
    if (n > 1) {
        r.sd = sqrt(ss / (double)(n - 1));
        r.se = r.sd / sqrt((double)n);
    }
    return r;
}

struct mean_se stats_mean(const double *x, int64_t n) { return mean_of(x, NULL, n); }
struct mean_se stats_paired(const double *a, const double *b, int64_t n) { return mean_of(a, b, n); }

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *x, int64_t n) { qsort(x, (size_t)n, sizeof *x, by_value); }

double stats_quantile_sorted(const double *x, int64_t n, double q)
{
    double h = (double)(n - 1) * q;
    int64_t i = (int64_t)floor(h);
    if (i >= n - 1) return x[n - 1];
    return x[i] + (h - (double)i) * (x[i + 1] - x[i]);
}

struct ranked {
    double v;
    int64_t i;
};

static int by_ranked(const void *a, const void *b) { return by_value(&((const struct ranked *)a)->v, &((const struct ranked *)b)->v); }

static double *ranks(const double *x, int64_t n)
{
    struct ranked *s = mem_new((size_t)n, sizeof *s);
    double *r = mem_new((size_t)n, sizeof *r);
    for (int64_t i = 0; i < n; i++) s[i] = (struct ranked){x[i], i};
    qsort(s, (size_t)n, sizeof *s, by_ranked);
    for (int64_t i = 0; i < n;) {
        int64_t j = i;
        while (j < n && s[j].v == s[i].v) j++;
        for (int64_t k = i; k < j; k++) r[s[k].i] = 0.5 * (double)(i + j - 1);
        i = j;
    }
    free(s);
    return r;
}

double stats_spearman(const double *a, const double *b, int64_t n)
{
    if (n < 2) return NAN;
    double *ra = ranks(a, n), *rb = ranks(b, n), m = 0.5 * (double)(n - 1), sab = 0, saa = 0, sbb = 0;
    for (int64_t i = 0; i < n; i++) {
        sab += (ra[i] - m) * (rb[i] - m);
        saa += (ra[i] - m) * (ra[i] - m);
        sbb += (rb[i] - m) * (rb[i] - m);
    }
    free(ra);
    free(rb);
    return saa > 0 && sbb > 0 ? sab / sqrt(saa * sbb) : NAN;
}
