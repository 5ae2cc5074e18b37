/* y ≈ x·Wᵀ with x quantized to int8 per token and ACT_GROUP columns and W in panels (panels.h). Every sum runs over the
 * activation groups of a row in order, so results depend neither on threads nor on n_tok. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
    FEW_TOKENS = 8,  /* up to here codes are used as they stream in; from there on they are unpacked once */
    FEW_AT_ONCE = 4,
    FEW_BYTES = 8192,  /* of codes: less is not worth waking threads */
    GRAIN_BYTES = 16384, /* what a thread takes at once */
    TOKEN_SLAB = 264 /* tokens of an item at most: the finer, the better threads share; unpacking is repeated for each */
};

struct mm8 {
    const struct mm *mm;
    struct acts x;
    int64_t slabs, slab;
};

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm8 *m = ctx;
    const struct mm *mm = m->mm;
    float *row = mm->norm ? buf_get(&mm->c->buf[thread], (size_t)mm->n_in * sizeof *row) : NULL;
    for (int64_t t = begin; t < end; t++) {
        const float *x = mm->x + t * mm->n_in;
        if (row) mm->c->k->rmsnorm(row, x, mm->norm, mm->n_in, mm->eps);
        mm->c->k8->quantize(row ? row : x, mm->n_in, m->x.q + t * m->x.n_act * ACT_GROUP, m->x.scale + t * m->x.n_act,
                            m->x.neg + t * m->x.n_act);
    }
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

/* Panels p … end−1 of one job, all tokens, straight from the codes. */
static void stream(const struct mm8 *m, const struct matmul *job, int64_t p, int64_t end)
{
    for (; p < end; p++) {
        _Alignas(64) float y[FEW_AT_ONCE * PANEL_ROWS];
        for (int64_t t = 0; t < m->x.n_tok; t += FEW_AT_ONCE) {
            int nt = m->x.n_tok - t < FEW_AT_ONCE ? (int)(m->x.n_tok - t) : FEW_AT_ONCE;
            m->mm->c->k8->few(panels_of(job), p, &m->x, t, nt, y);
            store(job, y, PANEL_ROWS, p * PANEL_ROWS, t, nt);
        }
    }
}

/* Few tokens: items are the panels of one job after the other; of both at once where what follows wants both. */
static void panels(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm8 *m = ctx;
    const struct mm *mm = m->mm;
    for (int j = 0; begin < end; j++) {
        int64_t n = panels_of(&mm->jobs[j])->n_panels, last = end < n ? end : n, n_out = mm->jobs[j].w->n_out;
        if (begin < last) {
            stream(m, &mm->jobs[j], begin, last);
            if (mm->then == THEN_SWIGLU) stream(m, &mm->jobs[1], begin, last);
            mm_then(mm, begin * PANEL_ROWS, last * PANEL_ROWS < n_out ? last * PANEL_ROWS : n_out, 0, mm->n_tok,
                    thread);
            begin = last;
        }
        begin -= n;
        end -= n;
    }
}

/* Block b of one job for tokens t0 … t1−1. */
static void block(const struct mm8 *m, const struct matmul *job, int64_t b, int64_t t0, int64_t t1, int thread)
{
    struct cpu_ctx *c = m->mm->c;
    const struct int8_kernels *k = c->k8;
    const struct panels *w = panels_of(job);
    size_t codes = (size_t)w->n_act * 8 * (size_t)k->block * 64, scales = (size_t)(w->n_groups * k->block * PANEL_ROWS);
    int64_t width = k->block * PANEL_ROWS;
    uint8_t *u = buf_get(&c->buf[thread], codes + (scales + 8 * (size_t)width) * sizeof(float));
    float *s = (float *)(void *)(u + codes), *y = s + scales;
    k->unpack(w, b * k->block, u, s);
    for (int64_t t = t0; t < t1; t += k->tokens) {
        int n = t1 - t < k->tokens ? (int)(t1 - t) : k->tokens;
        k->many(w, u, s, &m->x, t, n, y);
        store(job, y, width, b * width, t, n);
    }
}

static int64_t blocks_of(const struct mm8 *m, int j)
{
    int64_t n = m->mm->c->k8->block;
    return (panels_of(&m->mm->jobs[j])->n_panels + n - 1) / n;
}

/* Many tokens: an item is a block of panels of one job, or of both where what follows wants both, and a slab of tokens. */
static void blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm8 *m = ctx;
    const struct mm *mm = m->mm;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item / m->slabs, t0 = item % m->slabs * m->slab;
        int64_t t1 = t0 + m->slab < m->x.n_tok ? t0 + m->slab : m->x.n_tok;
        int j = 0;
        for (; i >= blocks_of(m, j); j++) i -= blocks_of(m, j);
        block(m, &mm->jobs[j], i, t0, t1, thread);
        if (mm->then == THEN_SWIGLU) block(m, &mm->jobs[1], i, t0, t1, thread);
        int64_t width = mm->c->k8->block * PANEL_ROWS, n_out = mm->jobs[0].w->n_out;
        mm_then(mm, i * width, (i + 1) * width < n_out ? (i + 1) * width : n_out, t0, t1, thread);
    }
}

void mm_int8(const struct mm *mm)
{
    struct mm8 m = {.mm = mm};
    const struct int8_kernels *k = mm->c->k8;
    int64_t n_tok = mm->n_tok;
    m.x.n_tok = n_tok;
    m.x.n_act = (mm->n_in + ACT_GROUP - 1) / ACT_GROUP;
    size_t groups = (size_t)((n_tok + k->tokens) * m.x.n_act); /* `many` reads behind the last token */
    char *p = buf_get(&mm->c->shared, groups * (ACT_GROUP + sizeof(float) + sizeof(int32_t)));
    m.x.q = (int8_t *)p;
    m.x.scale = (float *)(void *)(p + groups * ACT_GROUP);
    m.x.neg = (int32_t *)(void *)(m.x.scale + groups);
    bool few = n_tok <= FEW_TOKENS;
    if (!few) {
        size_t first = (size_t)(n_tok * m.x.n_act), more = groups - first;
        memset(m.x.q + first * ACT_GROUP, 0, more * ACT_GROUP);
        memset(m.x.scale + first, 0, more * sizeof *m.x.scale);
        memset(m.x.neg + first, 0, more * sizeof *m.x.neg);
    }
    par_if(n_tok * mm->n_in, n_tok, 1, quantize_rows, &m);

    int64_t n_panels = 0, n_blocks = 0, bytes = 0;
    for (int j = 0; j < mm->n_jobs; j++) {
        const struct panels *w = panels_of(&mm->jobs[j]);
        bytes += w->n_panels * (int64_t)w->panel_bytes;
        if (j > 0 && mm->then == THEN_SWIGLU) continue;
        n_panels += w->n_panels;
        n_blocks += blocks_of(&m, j);
    }
    if (few && bytes < FEW_BYTES) {
        panels(&m, 0, n_panels, 0);
    } else if (few) {
        par_for_dynamic(n_panels, GRAIN_BYTES * n_panels / bytes + 1, panels, &m);
    } else {
        m.slabs = (n_tok + TOKEN_SLAB - 1) / TOKEN_SLAB;
        m.slab = (n_tok + m.slabs - 1) / m.slabs;
        m.slab = (m.slab + k->tokens - 1) / k->tokens * k->tokens;
        par_for_dynamic(n_blocks * m.slabs, 1, blocks, &m);
    }
}
