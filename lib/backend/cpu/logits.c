/* Scores of logits rows. A row is cut into slices of fixed length, which threads share and which are merged in order:
 * results do not depend on the number of threads. All sums are in double (exp off by less than 1e-15 relative). */
#include "backend/cpu/cpu.h"

#include <math.h>

enum { SLICE = 8192 };

struct sums_job {
    const struct kernels *k;
    const float *logits[2]; /* [1] may be NULL */
    int64_t n_vocab, n_slices;
    struct slice_sum *sums[2]; /* (n_tok, n_slices) */
    const double *lse[2];      /* (n_tok) */
    double *kld;               /* (n_tok, n_slices) */
};

static int64_t slice_len(const struct sums_job *j, int64_t s)
{
    return s * SLICE + SLICE < j->n_vocab ? SLICE : j->n_vocab - s * SLICE;
}

/* Items are (token, slice). */
static void sums(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct sums_job *j = ctx;
    for (int64_t i = begin; i < end; i++)
        for (int m = 0; m < 2 && j->logits[m]; m++) {
            int64_t s = i % j->n_slices;
            j->sums[m][i] = j->k->slice_sum(j->logits[m] + i / j->n_slices * j->n_vocab + s * SLICE, slice_len(j, s));
        }
}

static void klds(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct sums_job *j = ctx;
    for (int64_t i = begin; i < end; i++) {
        int64_t t = i / j->n_slices, s = i % j->n_slices, at = t * j->n_vocab + s * SLICE;
        j->kld[i] = j->k->slice_kld(j->logits[0] + at, j->logits[1] + at, slice_len(j, s), j->lse[0][t], j->lse[1][t]);
    }
}

/* −inf everywhere gives −inf. */
static double merge(const struct slice_sum *s, int64_t n_slices, int32_t *argmax)
{
    float max = s[0].max;
    for (int64_t i = 1; i < n_slices; i++) max = s[i].max > max ? s[i].max : max;
    double sum = 0;
    *argmax = -1;
    for (int64_t i = 0; i < n_slices; i++) {
        if (*argmax < 0 && s[i].max == max) *argmax = (int32_t)(i * SLICE + s[i].argmax);
        sum += s[i].max == -INFINITY ? s[i].sum * 0 : s[i].sum * exp((double)s[i].max - max);
    }
    if (*argmax < 0) *argmax = 0;
    return max == -INFINITY && sum == 0 ? -INFINITY : max + log(sum);
}

static struct sums_job begin(struct backend *be, const float *a, const float *b, int64_t n_tok, int64_t n_vocab)
{
    struct cpu_ctx *c = be->ctx;
    struct sums_job j = {.k = c->k, .logits = {a, b}, .n_vocab = n_vocab};
    j.n_slices = (n_vocab + SLICE - 1) / SLICE;
    size_t n = (size_t)(n_tok * j.n_slices);
    char *p = buf_get(&c->shared, n * (2 * sizeof(struct slice_sum) + sizeof(double)) + (size_t)n_tok * 2 * sizeof(double));
    j.kld = (double *)p;
    double *lse = j.kld + n;
    j.lse[0] = lse;
    j.lse[1] = lse + n_tok;
    j.sums[0] = (struct slice_sum *)(lse + 2 * n_tok);
    j.sums[1] = j.sums[0] + n;
    return j;
}

void cpu_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets, int64_t n_tok,
               int64_t n_vocab)
{
    struct sums_job j = begin(be, logits, NULL, n_tok, n_vocab);
    par_if(n_tok * n_vocab, n_tok * j.n_slices, 1, sums, &j);
    for (int64_t t = 0; t < n_tok; t++) {
        out[t].lse = merge(j.sums[0] + t * j.n_slices, j.n_slices, &out[t].argmax);
        out[t].target = logits[t * n_vocab + targets[t]];
    }
}

void cpu_diverge(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                 const int32_t *targets, int64_t n_tok, int64_t n_vocab)
{
    struct sums_job j = begin(be, logits_ref, logits, n_tok, n_vocab);
    par_if(2 * n_tok * n_vocab, n_tok * j.n_slices, 1, sums, &j);
    double *lse[2] = {(double *)j.lse[0], (double *)j.lse[1]};
    for (int64_t t = 0; t < n_tok; t++) {
        lse[0][t] = merge(j.sums[0] + t * j.n_slices, j.n_slices, &out[t].argmax_ref);
        lse[1][t] = merge(j.sums[1] + t * j.n_slices, j.n_slices, &out[t].argmax_model);
    }
    par_if(2 * n_tok * n_vocab, n_tok * j.n_slices, 1, klds, &j);
    for (int64_t t = 0; t < n_tok; t++) {
        struct divergence *o = &out[t];
        o->kld = 0;
        for (int64_t s = 0; s < j.n_slices; s++) o->kld += j.kld[t * j.n_slices + s];
        o->nll_ref = j.lse[0][t] - logits_ref[t * n_vocab + targets[t]];
        o->nll_model = j.lse[1][t] - logits[t * n_vocab + targets[t]];
        o->p_ref = exp(-o->nll_ref);
        o->p_model = exp(-o->nll_model);
    }
}
