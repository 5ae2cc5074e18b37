/* y = x·Wᵀ in f32. Rows of W come in tiles that fit the second-level cache as floats; a tile's columns come in blocks
 * for which DOT_TOKENS rows of x fit the first-level cache; registers hold dot_rows × DOT_TOKENS sums. The blocks
 * depend on n_in alone, and a sum is formed in the same order wherever its row and token fall: results depend neither
 * on the number of threads nor on n_tok. Sizes suit 32 KiB + 1 MiB caches (Zen 4) and are no worry elsewhere. */
#include "backend/cpu/cpu.h"

#include <assert.h>
#include <string.h>

enum {
    BLOCK_COLUMNS = 1536,   /* 4 rows of x: 24 KiB */
    TILE_FLOATS = 96 * 1536 /* 576 KiB */
};

/* Even blocks, multiples of 64 so that every block starts at a byte, a word and a table of a group of 16. */
static int64_t block_columns(int64_t n_in)
{
    int64_t blocks = (n_in + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    return ((n_in + blocks - 1) / blocks + 63) / 64 * 64;
}

struct mm {
    struct cpu_ctx *c;
    const struct matmul *jobs;
    int n_jobs;
    const float *x;
    int64_t n_tok;
    int64_t tile;  /* rows of a tile (many tokens) */
    int64_t parts; /* slices of every job (few tokens) */
};

/* Rows r0 … r1−1 of one job, all tokens. buf holds them as floats unless the kernels read them where they lie. */
static void rows(const struct mm *mm, const struct matmul *job, int64_t r0, int64_t r1, float *buf)
{
    const struct kernels *k = mm->c->k;
    const struct cpu_weight *w = job->w->data;
    int64_t n_in = w->q.n_in, n_out = w->q.n_out, bk = block_columns(n_in), n = r1 - r0;
    bool direct = !buf;
    size_t size = direct && w->elem != ELEM_F32 ? 2 : 4;
    int64_t ld = w->path == PATH_REFERENCE ? n_in : bk;
    if (w->path == PATH_REFERENCE) qweight_rows_f32(&w->q, r0, n, buf);

    for (int64_t k0 = 0; k0 < n_in; k0 += bk) {
        int64_t len = n_in - k0 < bk ? n_in - k0 : bk;
        if (w->path != PATH_REFERENCE && !direct)
            for (int64_t i = 0; i < n; i++) k->dequant(&w->q, r0 + i, k0, len, buf + i * ld);
        int64_t col = w->path == PATH_REFERENCE ? k0 : 0;
        for (int64_t t0 = 0; t0 < mm->n_tok; t0 += DOT_TOKENS) {
            int nt = mm->n_tok - t0 < DOT_TOKENS ? (int)(mm->n_tok - t0) : DOT_TOKENS;
            const float *x[DOT_TOKENS];
            for (int t = 0; t < nt; t++) x[t] = mm->x + (t0 + t) * n_in + k0;
            for (int64_t i0 = 0; i0 < n; i0 += k->dot_rows) {
                const void *wr[8];
                float y[8 * DOT_TOKENS];
                int nr = n - i0 < k->dot_rows ? (int)(n - i0) : k->dot_rows;
                for (int i = 0; i < k->dot_rows; i++) { /* an incomplete tile repeats its last row */
                    int64_t r = i0 + (i < nr ? i : nr - 1);
                    wr[i] = direct ? (const uint8_t *)weight_row(w, r0 + r) + (size_t)k0 * size
                                   : (const void *)(buf + r * ld + col);
                }
                if (direct && mm->n_tok <= DOT_TOKENS)
                    k->dot_stream[w->elem](wr, x, len, nt, y);
                else
                    k->dot(wr, x, len, nt, y);
                for (int i = 0; i < nr; i++)
                    for (int t = 0; t < nt; t++) {
                        float *to = job->y + (t0 + t) * n_out + r0 + i0 + i;
                        float v = y[i * DOT_TOKENS + t];
                        if (k0 > 0) v = *to + v;
                        if (k0 + len == n_in && job->bias) v += job->bias[r0 + i0 + i];
                        *to = v;
                    }
            }
        }
    }
}

static bool reads_directly(const struct mm *mm, const struct cpu_weight *w)
{
    return w->path == PATH_DIRECT && (w->elem == ELEM_F32 || mm->n_tok <= DOT_TOKENS);
}

static float *row_buf(const struct mm *mm, const struct cpu_weight *w, int64_t n_rows, int thread)
{
    if (reads_directly(mm, w)) return NULL;
    int64_t ld = w->path == PATH_REFERENCE ? w->q.n_in : block_columns(w->q.n_in);
    return buf_get(&mm->c->buf[thread], (size_t)(n_rows * ld) * sizeof(float));
}

/* Few tokens: item i is slice i of every job, so that a thread reads one contiguous run of each weight. */
static void slices(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm *mm = ctx;
    int64_t step = mm->c->k->dot_rows;
    for (int64_t i = begin; i < end; i++)
        for (int j = 0; j < mm->n_jobs; j++) {
            const struct cpu_weight *w = mm->jobs[j].w->data;
            int64_t groups = (w->q.n_out + step - 1) / step;
            int64_t r = groups * i / mm->parts * step, last = groups * (i + 1) / mm->parts * step;
            if (last > w->q.n_out) last = w->q.n_out;
            float *buf = row_buf(mm, w, step, thread);
            for (; r < last; r += step) rows(mm, &mm->jobs[j], r, r + step < last ? r + step : last, buf);
        }
}

/* Many tokens: an item is one tile of one job. */
static void tiles(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct mm *mm = ctx;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item;
        int j = 0;
        for (;; j++) {
            int64_t here = (mm->jobs[j].w->n_out + mm->tile - 1) / mm->tile;
            if (i < here) break;
            i -= here;
        }
        const struct cpu_weight *w = mm->jobs[j].w->data;
        int64_t r0 = i * mm->tile, r1 = r0 + mm->tile < w->q.n_out ? r0 + mm->tile : w->q.n_out;
        rows(mm, &mm->jobs[j], r0, r1, row_buf(mm, w, r1 - r0, thread));
    }
}

static void matmul_f32(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    struct mm mm = {.c = cpu_begin(be), .jobs = jobs, .n_jobs = n, .x = x, .n_tok = n_tok};
    int64_t n_in = jobs[0].w->n_in, n_rows = 0, step = mm.c->k->dot_rows;
    for (int j = 0; j < n; j++) {
        assert(jobs[j].w->n_in == n_in);
        n_rows += jobs[j].w->n_out;
    }
    if (n_tok <= DOT_TOKENS) {
        mm.parts = par_threads();
        if (n_rows * n_in < 32768)
            slices(&mm, 0, mm.parts, 0);
        else
            par_for(mm.parts, 1, slices, &mm);
        return;
    }
    /* as large as the cache holds, but at least four tiles a thread */
    mm.tile = TILE_FLOATS / block_columns(n_in);
    if (mm.tile > n_rows / (4 * par_threads())) mm.tile = n_rows / (4 * par_threads());
    mm.tile = mm.tile < step ? step : mm.tile / step * step;
    int64_t items = 0;
    for (int j = 0; j < n; j++) items += (jobs[j].w->n_out + mm.tile - 1) / mm.tile;
    par_for_dynamic(items, 1, tiles, &mm);
}

void cpu_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    enum { MANY_JOBS = 8 };
    for (; n > MANY_JOBS; n -= MANY_JOBS, jobs += MANY_JOBS) cpu_matmul(be, jobs, MANY_JOBS, x, n_tok);
    if (n_tok <= 0 || n <= 0) return;
    struct matmul f[MANY_JOBS], i8[MANY_JOBS]; /* a layer may mix formats */
    int n_f = 0, n_i8 = 0;
    for (int j = 0; j < n; j++) {
        const struct cpu_weight *w = jobs[j].w->data;
        *(w->path == PATH_PANELS ? &i8[n_i8++] : &f[n_f++]) = jobs[j];
    }
    if (n_f) matmul_f32(be, f, n_f, x, n_tok);
    if (n_i8) cpu_matmul_int8(be, i8, n_i8, x, n_tok);
}
