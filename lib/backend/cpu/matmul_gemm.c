/* y = x·Wᵀ in f32 for many tokens, where the kernels have a gemm: x is packed once for all jobs; an item is GEMM_ROWS rows
 * of one job (of both where what follows wants both) and a run of tokens, for which the rows are packed into the
 * second-level cache, a block of columns at a time. Blocks are those of matmul.c and sums have the same order: the same
 * bits as the dot products there. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
    FEW = 48,        /* with fewer tokens packing does not pay */
    RUN_TOKENS = 192 /* runs of tokens are not cut below this */
};

struct gemm {
    const struct mm *mm;
    const float *x; /* packed: (groups of GEMM_TOKENS, blocks, …) */
    int64_t bk, group_floats, n_groups;
    int64_t tiles, runs; /* items: (tile of some job, run of groups) */
};

/* Floats that a block of n columns packed for GEMM_TOKENS tokens takes. */
static int64_t packed_floats(int64_t n) { return 16 * GEMM_TOKENS * (((n + 15) / 16 + 15) / 16 * 16); }

static int64_t block_at(const struct gemm *g, int64_t k0) { return k0 / g->bk * packed_floats(g->bk); }

static int64_t block_len(const struct gemm *g, int64_t k0) { return g->mm->n_in - k0 < g->bk ? g->mm->n_in - k0 : g->bk; }

struct pack {
    const struct gemm *g;
    float *to;
};

static void pack_groups(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    const struct gemm *g = p->g;
    const struct mm *mm = g->mm;
    for (int64_t i = begin; i < end; i++) {
        int64_t t0 = i * GEMM_TOKENS, left = mm->n_tok - t0;
        for (int64_t k0 = 0; k0 < mm->n_in; k0 += g->bk)
            mm->c->k->gemm_pack_x(p->to + i * g->group_floats + block_at(g, k0), mm->x + t0 * mm->n_in + k0, mm->n_in,
                                  left < GEMM_TOKENS ? (int)left : GEMM_TOKENS, block_len(g, k0));
    }
}

/* Columns k0 … k0+len−1 of rows r0 … r1−1, packed into `to`; buf: 16 rows of floats. */
static void pack_rows(const struct mm *mm, const struct cpu_weight *w, int64_t r0, int64_t r1, int64_t k0, int64_t len,
                      float *to, float *buf)
{
    for (int64_t r = r0; r < r0 + GEMM_ROWS; r += 16) {
        int64_t n = r1 - r < 0 ? 0 : r1 - r < 16 ? r1 - r : 16;
        const float *from = buf;
        int64_t ld = len;
        if (n > 0 && w->path == PATH_REFERENCE) {
            qweight_rows_f32(&w->q, r, n, buf);
            from = buf + k0;
            ld = mm->n_in;
        }
        for (int64_t i = 0; i < n && w->path != PATH_REFERENCE; i++) mm->c->k->dequant(&w->q, r + i, k0, len, buf + i * ld);
        mm->c->k->gemm_pack_w(to + (r - r0), from, ld, (int)n, len);
    }
}

static void store(const struct kernels *k, float *to, const float *sums, const float *bias, int64_t n, bool first)
{
    if (first)
        memcpy(to, sums, (size_t)n * sizeof *to);
    else
        k->add(to, sums, n);
    if (bias) k->add(to, bias, n);
}

/* Rows r0 … r1−1 of one job for groups g0 … g1−1 of tokens. */
static void tile(const struct gemm *g, const struct matmul *job, int64_t r0, int64_t r1, int64_t g0, int64_t g1, int thread)
{
    const struct mm *mm = g->mm;
    const struct cpu_weight *w = job->w->data;
    int64_t n_in = mm->n_in, n_out = w->q.n_out, panel = GEMM_ROWS * ((g->bk + 15) / 16 * 16);
    int64_t ld = w->path == PATH_REFERENCE ? n_in : g->bk;
    float *packed = buf_get(&mm->c->buf[thread], (size_t)(panel + 16 * ld) * sizeof *packed);
    _Alignas(64) float y[GEMM_TOKENS * GEMM_ROWS];
    for (int64_t k0 = 0; k0 < n_in; k0 += g->bk) {
        int64_t len = block_len(g, k0);
        const float *bias = k0 + len == n_in && job->bias ? job->bias + r0 : NULL;
        pack_rows(mm, w, r0, r1, k0, len, packed, packed + panel);
        for (int64_t i = g0; i < g1; i++) {
            int64_t t0 = i * GEMM_TOKENS, n_tok = mm->n_tok - t0 < GEMM_TOKENS ? mm->n_tok - t0 : GEMM_TOKENS;
            for (int64_t t = 0; t < n_tok; t++) /* where the sums go, on the way while they are made */
                for (int64_t r = r0; r < r1; r += 16) __builtin_prefetch(job->y + (t0 + t) * n_out + r, 1);
            mm->c->k->gemm(packed, g->x + i * g->group_floats + block_at(g, k0), len, y);
            for (int64_t t = 0; t < n_tok; t++)
                store(mm->c->k, job->y + (t0 + t) * n_out + r0, y + t * GEMM_ROWS, bias, r1 - r0, k0 == 0);
        }
    }
}

static int64_t tiles_of(const struct matmul *job) { return (job->w->n_out + GEMM_ROWS - 1) / GEMM_ROWS; }

static void items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm *g = ctx;
    const struct mm *mm = g->mm;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item / g->runs, run = item % g->runs;
        int64_t g0 = g->n_groups * run / g->runs, g1 = g->n_groups * (run + 1) / g->runs;
        int64_t t1 = g1 * GEMM_TOKENS < mm->n_tok ? g1 * GEMM_TOKENS : mm->n_tok;
        int j = 0;
        while (i >= tiles_of(&mm->jobs[j])) i -= tiles_of(&mm->jobs[j++]);
        int64_t r0 = i * GEMM_ROWS, n_out = mm->jobs[j].w->n_out, r1 = r0 + GEMM_ROWS < n_out ? r0 + GEMM_ROWS : n_out;
        tile(g, &mm->jobs[j], r0, r1, g0, g1, thread);
        if (mm->then == THEN_SWIGLU) tile(g, &mm->jobs[1], r0, r1, g0, g1, thread);
        mm_then(mm, r0, r1, g0 * GEMM_TOKENS, t1, thread);
    }
}

bool mm_gemm(const struct mm *mm, int64_t bk)
{
    if (!mm->c->k->gemm || mm->n_tok < FEW) return false;
    struct gemm g = {.mm = mm, .bk = bk, .n_groups = (mm->n_tok + GEMM_TOKENS - 1) / GEMM_TOKENS};
    int64_t last = (mm->n_in - 1) / bk * bk;
    g.group_floats = block_at(&g, last) + packed_floats(mm->n_in - last);
    float *x = buf_get(&mm->c->packed, (size_t)(g.n_groups * g.group_floats) * sizeof *x);
    par_if(mm->n_tok * mm->n_in, g.n_groups, 1, pack_groups, &(struct pack){&g, x});
    g.x = x;
    for (int j = 0; j < (mm->then == THEN_SWIGLU ? 1 : mm->n_jobs); j++) g.tiles += tiles_of(&mm->jobs[j]);
    /* enough items that the last one of a thread matters little */
    for (g.runs = 1; g.tiles * g.runs < 24 * par_threads() && mm->n_tok / (g.runs + 1) >= RUN_TOKENS;) g.runs++;
    par_for_dynamic(g.tiles * g.runs, 1, items, &g);
    return true;
}
