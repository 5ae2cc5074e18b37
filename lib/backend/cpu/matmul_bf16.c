/* y ≈ x·Wᵀ with both in bf16 (bf16.h). A sum runs over a row from end to end in every kernel, so results depend neither on
 * threads nor on n_tok. */
#include "backend/cpu/cpu.h"

#include "base/half.h"

#include <string.h>

enum {
    FEW_TOKENS = 8,      /* up to here panels are read as a stream, one by one; from there on two stay in the cache */
    FEW_BYTES = 8192,    /* of weights: less is not worth waking threads */
    GRAIN_BYTES = 32768, /* what a thread takes at once */
    TOKEN_SLAB = 264     /* tokens of an item at most */
};

struct mm16 {
    const struct mm *mm;
    uint16_t *x; /* (n_tok and the kernels' tile of zeros, ld) */
    int64_t ld;
    int64_t step;        /* panels an item */
    int64_t slabs, slab; /* tokens an item */
};

static void round_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm16 *m = ctx;
    const struct mm *mm = m->mm;
    float *row = mm->norm ? buf_get(&mm->c->buf[thread], (size_t)mm->n_in * sizeof *row) : NULL;
    for (int64_t t = begin; t < end; t++) {
        const float *x = mm->x + t * mm->n_in;
        uint16_t *to = m->x + t * m->ld;
        if (row) mm->c->k->rmsnorm(row, x, mm->norm, mm->n_in, mm->eps);
        if (row) x = row;
        for (int64_t k = 0; k < mm->n_in; k++) to[k] = f32_to_bf16(x[k]);
        if (m->ld > mm->n_in) to[mm->n_in] = 0;
    }
}

static const struct bf16_panels *panels_of(const struct matmul *job) { return &((const struct cpu_weight *)job->w->data)->bf16; }

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

/* Panels p … p+step−1 of one job for tokens t0 … t1−1. */
static void part(const struct mm16 *m, const struct matmul *job, int64_t p, int64_t t0, int64_t t1)
{
    _Alignas(64) float y[BF16_MOST_TOKENS * 2 * BF16_ROWS];
    const struct bf16_kernels *k = m->mm->c->k16;
    const struct bf16_panels *w = panels_of(job);
    const uint8_t *at = w->data + (size_t)p * w->panel_bytes, *next = p + 1 < w->n_panels ? at + w->panel_bytes : at;
    int64_t tokens = m->step == 1 ? BF16_TOKENS : k->tokens;
    for (int64_t t = t0; t < t1; t += tokens) {
        int n = t1 - t < tokens ? (int)(t1 - t) : (int)tokens;
        if (m->step == 1)
            k->one(at, w->n_pairs, m->x + t * m->ld, m->ld, n, y);
        else
            k->two(at, next, w->n_pairs, m->x + t * m->ld, m->ld, n, y);
        store(job, y, m->step * BF16_ROWS, p * BF16_ROWS, t, n);
    }
}

static int64_t steps_of(const struct mm16 *m, int j) { return (panels_of(&m->mm->jobs[j])->n_panels + m->step - 1) / m->step; }

/* An item is a step of panels of one job, or of both where what follows wants both, and a slab of tokens. */
static void items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm16 *m = ctx;
    const struct mm *mm = m->mm;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item / m->slabs, t0 = item % m->slabs * m->slab;
        int64_t t1 = t0 + m->slab < mm->n_tok ? t0 + m->slab : mm->n_tok;
        int j = 0;
        for (; i >= steps_of(m, j); j++) i -= steps_of(m, j);
        part(m, &mm->jobs[j], i * m->step, t0, t1);
        if (mm->then == THEN_SWIGLU) part(m, &mm->jobs[1], i * m->step, t0, t1);
        int64_t width = m->step * BF16_ROWS, n_out = mm->jobs[0].w->n_out;
        mm_then(mm, i * width, (i + 1) * width < n_out ? (i + 1) * width : n_out, t0, t1, thread);
    }
}

void mm_bf16(const struct mm *mm)
{
    struct mm16 m = {.mm = mm, .ld = (mm->n_in + 1) / 2 * 2, .slabs = 1, .slab = mm->n_tok};
    const struct bf16_kernels *k = mm->c->k16;
    bool few = mm->n_tok <= FEW_TOKENS;
    m.step = few ? 1 : 2;
    m.x = buf_get(&mm->c->shared, (size_t)((mm->n_tok + k->tokens) * m.ld) * sizeof *m.x);
    if (!few) memset(m.x + mm->n_tok * m.ld, 0, (size_t)(k->tokens * m.ld) * sizeof *m.x); /* `two` reads behind the last */
    par_if(mm->n_tok * mm->n_in, mm->n_tok, 1, round_rows, &m);

    int64_t n = 0, bytes = 0;
    for (int j = 0; j < mm->n_jobs; j++) {
        const struct bf16_panels *w = panels_of(&mm->jobs[j]);
        bytes += w->n_panels * (int64_t)w->panel_bytes;
        if (j == 0 || mm->then != THEN_SWIGLU) n += steps_of(&m, j);
    }
    if (!few) {
        m.slabs = (mm->n_tok + TOKEN_SLAB - 1) / TOKEN_SLAB;
        m.slab = (mm->n_tok + m.slabs - 1) / m.slabs;
        m.slab = (m.slab + k->tokens - 1) / k->tokens * k->tokens;
    }
    if (few && bytes < FEW_BYTES)
        items(&m, 0, n, 0);
    else
        par_for_dynamic(n * m.slabs, few ? GRAIN_BYTES * n / bytes + 1 : 1, items, &m);
}
