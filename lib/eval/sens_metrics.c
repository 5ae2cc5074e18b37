#include "eval/sens_metrics.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/par.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct add_job {
    const float *ref, *quant;
    int64_t n;
    struct sens_metrics *rows;
};

static void add_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct add_job *j = ctx;
    for (int64_t r = begin; r < end; r++) {
        const float *a = j->ref + r * j->n, *b = j->quant + r * j->n;
        struct sens_metrics s = {.n = j->n};
        for (int64_t i = 0; i < j->n; i++) {
            double x = a[i], y = b[i], d = x - y;
            s.err2 += d * d;
            s.ref2 += x * x;
            s.quant2 += y * y;
            s.dot += x * y;
        }
        j->rows[r] = s;
    }
}

void sens_metrics_add(struct sens_metrics *s, const float *ref, const float *quant, int64_t n_rows, int64_t n)
{
    struct add_job j = {ref, quant, n, mem_new((size_t)n_rows, sizeof *j.rows)};
    par_for(n_rows, 1, add_rows, &j);
    for (int64_t r = 0; r < n_rows; r++) sens_metrics_merge(s, &j.rows[r]);
    free(j.rows);
}

void sens_metrics_merge(struct sens_metrics *s, const struct sens_metrics *other)
{
    s->n += other->n;
    s->err2 += other->err2;
    s->ref2 += other->ref2;
    s->quant2 += other->quant2;
    s->dot += other->dot;
}

double sens_mse(const struct sens_metrics *s) { return s->n ? s->err2 / (double)s->n : NAN; }
double sens_nmse(const struct sens_metrics *s)
{
    if (!s->n) return NAN;
    if (s->ref2 > 0) return s->err2 / s->ref2;
    return s->err2 > 0 ? NAN : s->err2;
}
double sens_cosine(const struct sens_metrics *s)
{
    return s->ref2 > 0 && s->quant2 > 0 ? s->dot / (sqrt(s->ref2) * sqrt(s->quant2)) : NAN;
}
double sens_sqnr_db(const struct sens_metrics *s) { return -10 * log10(sens_nmse(s)); }
bool sens_metrics_finite(const struct sens_metrics *s)
{
    return isfinite(s->err2) && isfinite(s->ref2) && isfinite(s->quant2) && isfinite(s->dot);
}

/* ---- samples ---- */

void sens_samples_init(struct sens_samples *s, const char *name, int64_t n_outputs, uint64_t seed)
{
    struct rng r = {seed ^ (uint64_t)fnv1a(name, strlen(name)) << 16};
    memset(s, 0, sizeof *s);
    s->n = n_outputs < SENS_SAMPLES ? n_outputs : SENS_SAMPLES;
    s->index = mem_new((size_t)s->n, sizeof *s->index);
    s->pairs = mem_new((size_t)s->n, sizeof *s->pairs);
    for (int64_t k = 0; k < s->n; k++) {
        int64_t a = n_outputs * k / s->n, b = n_outputs * (k + 1) / s->n;
        s->index[k] = a + rng_below(&r, b - a);
    }
}

void sens_samples_add(struct sens_samples *s, const float *ref, const float *quant, int64_t n)
{
    for (; s->at < s->n && s->index[s->at] < s->next + n; s->at++) {
        int64_t i = s->index[s->at] - s->next;
        s->pairs[s->at][0] = ref[i];
        s->pairs[s->at][1] = quant[i];
    }
    s->next += n;
}

char *sens_samples_path(const char *dir, const char *name)
{
    char *file = mem_printf("%s.csv", name), *path = path_join(dir, file);
    free(file);
    return path;
}

int sens_samples_write(const struct sens_samples *s, const char *dir, const char *name, struct err *e)
{
    struct file_out f;
    char *path = sens_samples_path(dir, name);
    int rc = file_out_open(&f, path, e);
    free(path);
    if (rc) return -1;
    fputs("reference,quantized\n", f.f); /* file_out_close checks the stream */
    for (int64_t k = 0; k < s->at; k++) fprintf(f.f, "%.9g,%.9g\n", (double)s->pairs[k][0], (double)s->pairs[k][1]);
    return file_out_close(&f, e);
}

void sens_samples_free(struct sens_samples *s)
{
    free(s->index);
    free(s->pairs);
    memset(s, 0, sizeof *s);
}
