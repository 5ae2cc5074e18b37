/* y ≈ x·Wᵀ with x quantized to int8 per token and ACT_GROUP columns and W in panels (panels.h). Every sum runs over the
 * activation groups of a row in order, so results depend neither on threads nor on n_tok.
 *
 * In two passes (int8x2) a token has two quantized rows, one after the other: x ≈ s1·q1 + s2·q2, where the second row
 * quantizes what the first left, x − s1·q1. The kernels multiply both like rows of two tokens, and the results are added:
 * an error of max|x|/64516 at most instead of max|x|/254, for twice the products. Weights by a table (code books) then
 * take a second table too, for what the integers of the first leave of the book's values; recoded weights a second set of
 * panels. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
    FEW_TOKENS = 8,  /* rows of x: up to here codes are used as they stream in; from there on they are unpacked once */
    FEW_AT_ONCE = 4,
    FEW_BYTES = 8192,  /* of codes: less is not worth waking threads */
    GRAIN_BYTES = 16384, /* what a thread takes at once */
    TOKEN_SLAB = 264 /* rows of x of an item at most: the finer, the better threads share; unpacking is repeated for each */
};

struct mm8 {
    const struct mm *mm;
    struct acts x;
    int64_t passes;      /* rows of x a token */
    int64_t slabs, slab; /* rows of x an item, a multiple of the kernels' */
};

static const struct panels *panels_of(const struct matmul *job) { return &((const struct cpu_weight *)job->w->data)->panels; }

/* What quantizing x left: x − s·q, exact but for one rounding. left may be x. */
static void rest(const float *x, int64_t n, const int8_t *q, const float *scale, float *left)
{
    for (int64_t k0 = 0; k0 < n; k0 += ACT_GROUP, scale++) {
        int64_t end = k0 + ACT_GROUP < n ? k0 + ACT_GROUP : n;
        for (int64_t k = k0; k < end; k++) left[k] = (float)(x[k] - (double)*scale * q[k]);
    }
}

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm8 *m = ctx;
    const struct mm *mm = m->mm;
    bool own = mm->norm || m->passes > 1;
    float *row = own ? buf_get(&mm->c->buf[thread], (size_t)mm->n_in * sizeof *row) : NULL;
    for (int64_t t = begin; t < end; t++) {
        const float *x = mm->x + t * mm->n_in;
        if (mm->norm) {
            mm->c->k->rmsnorm(row, x, mm->norm, mm->n_in, mm->eps);
            x = row;
        }
        for (int64_t i = 0; i < m->passes; i++) {
            int64_t at = (t * m->passes + i) * m->x.n_act;
            mm->c->k8->quantize(x, mm->n_in, m->x.q + at * ACT_GROUP, m->x.scale + at, m->x.neg + at);
            if (i + 1 == m->passes) break;
            rest(x, mm->n_in, m->x.q + at * ACT_GROUP, m->x.scale + at, row);
            x = row;
        }
    }
}

/* A tile of results (n_rows of x, width) to rows r0 … of the output: the passes' sum, with the bias; by the weights' rest
 * (second) it is added to what is there. */
static void store(const struct mm8 *m, const struct matmul *job, const float *y, int64_t width, int64_t r0, int64_t x0,
                  int64_t n_rows, bool second)
{
    int64_t n_out = job->w->n_out, n = n_out - r0 < width ? n_out - r0 : width;
    float f = panels_of(job)->rest_factor;
    for (int64_t t = x0 / m->passes; t < (x0 + n_rows) / m->passes; t++, y += m->passes * width) {
        float *to = job->y + t * n_out + r0;
        if (second) {
            for (int64_t i = 0; i < n; i++) to[i] += f * (y[i] + y[width + i]);
            continue;
        }
        memcpy(to, y, (size_t)n * sizeof *to);
        for (int64_t i = 0; m->passes > 1 && i < n; i++) to[i] += y[width + i];
        for (int64_t i = 0; job->bias && i < n; i++) to[i] += job->bias[r0 + i];
    }
}

static bool two_products(const struct mm8 *m, const struct panels *w) { return m->passes > 1 && panels_have_rest(w); }

/* Panel p of one job, all tokens, straight from the codes. */
static void stream_panel(const struct mm8 *m, const struct matmul *job, const struct panels *w, int64_t p, bool second)
{
    _Alignas(64) float y[FEW_AT_ONCE * PANEL_ROWS];
    for (int64_t t = 0; t < m->x.n_tok; t += FEW_AT_ONCE) {
        int nt = m->x.n_tok - t < FEW_AT_ONCE ? (int)(m->x.n_tok - t) : FEW_AT_ONCE;
        m->mm->c->k8->few(w, p, &m->x, t, nt, y);
        store(m, job, y, PANEL_ROWS, p * PANEL_ROWS, t, nt, second);
    }
}

static void stream(const struct mm8 *m, const struct matmul *job, int64_t p, int64_t end)
{
    const struct panels *w = panels_of(job), rest = panels_rest(w);
    for (; p < end; p++) {
        stream_panel(m, job, w, p, false);
        if (two_products(m, w)) stream_panel(m, job, &rest, p, true);
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

/* Block b of one job for rows t0 … t1−1 of x. */
static void block(const struct mm8 *m, const struct matmul *job, int64_t b, int64_t t0, int64_t t1, int thread)
{
    struct cpu_ctx *c = m->mm->c;
    const struct int8_kernels *k = c->k8;
    const struct panels *w = panels_of(job);
    size_t codes = (size_t)w->n_act * 8 * (size_t)k->block * 64, scales = (size_t)(w->n_groups * k->block * PANEL_ROWS);
    int64_t width = k->block * PANEL_ROWS;
    uint8_t *u = buf_get(&c->buf[thread], codes + (scales + (size_t)(k->tokens * width)) * sizeof(float));
    float *s = (float *)(void *)(u + codes), *y = s + scales;
    const struct panels rest = panels_rest(w);
    for (int second = 0, products = 1 + two_products(m, w); second < products; second++) {
        if (second) w = &rest;
        k->unpack(w, b * k->block, u, s);
        for (int64_t t = t0; t < t1; t += k->tokens) {
            int n = t1 - t < k->tokens ? (int)(t1 - t) : k->tokens;
            k->many(w, u, s, &m->x, t, n, y);
            store(m, job, y, width, b * width, t, n, second);
        }
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
        mm_then(mm, i * width, (i + 1) * width < n_out ? (i + 1) * width : n_out, t0 / m->passes, t1 / m->passes, thread);
    }
}

void mm_int8(const struct mm *mm)
{
    struct mm8 m = {.mm = mm, .passes = mm->c->passes};
    const struct int8_kernels *k = mm->c->k8;
    int64_t n_rows = mm->n_tok * m.passes;
    m.x.n_tok = n_rows;
    m.x.n_act = (mm->n_in + ACT_GROUP - 1) / ACT_GROUP;
    size_t groups = (size_t)((n_rows + k->tokens) * m.x.n_act); /* `many` reads behind the last row */
    char *p = buf_get(&mm->c->shared, groups * (ACT_GROUP + sizeof(float) + sizeof(int32_t)));
    m.x.q = (int8_t *)p;
    m.x.scale = (float *)(void *)(p + groups * ACT_GROUP);
    m.x.neg = (int32_t *)(void *)(m.x.scale + groups);
    bool few = n_rows <= FEW_TOKENS;
    if (!few) {
        size_t first = (size_t)(n_rows * m.x.n_act), more = groups - first;
        memset(m.x.q + first * ACT_GROUP, 0, more * ACT_GROUP);
        memset(m.x.scale + first, 0, more * sizeof *m.x.scale);
        memset(m.x.neg + first, 0, more * sizeof *m.x.neg);
    }
    par_if(n_rows * mm->n_in, mm->n_tok, 1, quantize_rows, &m);

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
        m.slabs = (n_rows + TOKEN_SLAB - 1) / TOKEN_SLAB;
        m.slab = (n_rows + m.slabs - 1) / m.slabs;
        m.slab = (m.slab + k->tokens - 1) / k->tokens * k->tokens;
        par_for_dynamic(n_blocks * m.slabs, 1, blocks, &m);
    }
}
