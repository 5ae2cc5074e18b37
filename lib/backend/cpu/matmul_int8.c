/* y ≈ x·Wᵀ with x quantized to int8 per token and ACT_GROUP columns and W in panels (panels.h). Every sum runs over the
 * activation groups of a row in order, so results depend neither on threads nor on n_tok. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
    FEW_TOKENS = 8,  /* up to here codes are used as they stream in; from there on they are unpacked once */
    FEW_AT_ONCE = 4,
    TOKEN_SLAB = 264 /* tokens of an item at most: the finer, the better threads share; unpacking is repeated for each */
};

struct mm8 {
    struct cpu_ctx *c;
    const struct matmul *jobs;
    int n_jobs;
    struct acts x;
    const float *in; /* (n_tok, n_in) */
    int64_t n_in, parts, slabs, slab;
};

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct mm8 *m = ctx;
    for (int64_t t = begin; t < end; t++)
        m->c->k8->quantize(m->in + t * m->n_in, m->n_in, m->x.q + t * m->x.n_act * ACT_GROUP, m->x.scale + t * m->x.n_act,
                           m->x.neg + t * m->x.n_act);
}

/* A tile of results (n_tok, width) to rows r0 … of the output, with the bias. */
static void store(const struct matmul *job, const float *y, int64_t width, int64_t r0, int64_t t0, int64_t n_tok)
{
    int64_t n_out = job->w->n_out, n = n_out - r0 < width ? n_out - r0 : width;
    for (int64_t t = 0; t < n_tok; t++) {
        float *to = job->y + (t0 + t) * n_out + r0;
        memcpy(to, y + t * width, (size_t)n * sizeof *to);
        for (int64_t i = 0; job->bias && i < n; i++) to[i] += job->bias[r0 + i];
    }
}

static const struct panels *panels_of(const struct matmul *job) { return &((const struct cpu_weight *)job->w->data)->panels; }

/* Few tokens: item i is slice i of every job. */
static void slices(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct mm8 *m = ctx;
    for (int64_t i = begin; i < end; i++)
        for (int j = 0; j < m->n_jobs; j++) {
            const struct panels *w = panels_of(&m->jobs[j]);
            int64_t last = w->n_panels * (i + 1) / m->parts;
            for (int64_t p = w->n_panels * i / m->parts; p < last; p++) {
                _Alignas(64) float y[FEW_AT_ONCE * PANEL_ROWS];
                for (int64_t t = 0; t < m->x.n_tok; t += FEW_AT_ONCE) {
                    int nt = m->x.n_tok - t < FEW_AT_ONCE ? (int)(m->x.n_tok - t) : FEW_AT_ONCE;
                    m->c->k8->few(w, p, &m->x, t, nt, y);
                    store(&m->jobs[j], y, PANEL_ROWS, p * PANEL_ROWS, t, nt);
                }
            }
        }
}

/* Many tokens: an item is a block of panels of one job and a slab of tokens. */
static void blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm8 *m = ctx;
    const struct int8_kernels *k = m->c->k8;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item / m->slabs, t0 = item % m->slabs * m->slab, t1 = t0 + m->slab;
        int j = 0;
        for (;; j++) {
            int64_t here = (panels_of(&m->jobs[j])->n_panels + k->block - 1) / k->block;
            if (i < here) break;
            i -= here;
        }
        const struct panels *w = panels_of(&m->jobs[j]);
        size_t codes = (size_t)w->n_act * 8 * (size_t)k->block * 64, scales = (size_t)(w->n_groups * k->block * PANEL_ROWS);
        int64_t width = k->block * PANEL_ROWS;
        uint8_t *u = buf_get(&m->c->buf[thread], codes + (scales + 8 * (size_t)width) * sizeof(float));
        float *s = (float *)(void *)(u + codes), *y = s + scales;
        if (t1 > m->x.n_tok) t1 = m->x.n_tok;
        k->unpack(w, i * k->block, u, s);
        for (int64_t t = t0; t < t1; t += k->tokens) {
            int n = t1 - t < k->tokens ? (int)(t1 - t) : k->tokens;
            k->many(w, u, s, &m->x, t, n, y);
            store(&m->jobs[j], y, width, i * width, t, n);
        }
    }
}

void cpu_matmul_int8(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    struct mm8 m = {.c = cpu_begin(be), .jobs = jobs, .n_jobs = n, .in = x, .n_in = jobs[0].w->n_in};
    m.x.n_tok = n_tok;
    m.x.n_act = (m.n_in + ACT_GROUP - 1) / ACT_GROUP;
    size_t groups = (size_t)((n_tok + m.c->k8->tokens) * m.x.n_act); /* `many` reads behind the last token */
    char *p = buf_get(&m.c->shared, groups * (ACT_GROUP + sizeof(float) + sizeof(int32_t)));
    m.x.q = (int8_t *)p;
    m.x.scale = (float *)(void *)(p + groups * ACT_GROUP);
    m.x.neg = (int32_t *)(void *)(m.x.scale + groups);
    size_t first = (size_t)(n_tok * m.x.n_act), more = groups - first;
    memset(m.x.q + first * ACT_GROUP, 0, more * ACT_GROUP);
    memset(m.x.scale + first, 0, more * sizeof *m.x.scale);
    memset(m.x.neg + first, 0, more * sizeof *m.x.neg);
    par_if(n_tok * m.n_in, n_tok, 1, quantize_rows, &m);

    int64_t rows = 0, items = 0;
    for (int j = 0; j < n; j++) {
        rows += jobs[j].w->n_out;
        items += (panels_of(&jobs[j])->n_panels + m.c->k8->block - 1) / m.c->k8->block;
    }
    if (n_tok <= FEW_TOKENS) {
        m.parts = par_threads();
        par_if(rows * m.n_in / 4, m.parts, 1, slices, &m);
    } else {
        m.slabs = (n_tok + TOKEN_SLAB - 1) / TOKEN_SLAB;
        m.slab = (n_tok + m.slabs - 1) / m.slabs;
        m.slab = (m.slab + m.c->k8->tokens - 1) / m.c->k8->tokens * m.c->k8->tokens;
        par_for_dynamic(items * m.slabs, 1, blocks, &m);
    }
}
