/* y = x·Wᵀ in f32. Rows of W come in tiles that fit the second-level cache as floats; a tile's columns come in blocks
 * for which DOT_TOKENS rows of x fit the first-level cache; registers hold dot_rows × DOT_TOKENS sums. The blocks
 * depend on n_in alone, and a sum is formed in the same order wherever its row and token fall: results depend neither
 * on the number of threads nor on n_tok. matmul_gemm.c forms the same sums for many tokens. Sizes
 * suit 32 KiB + 1 MiB caches (Zen 4) and are no worry elsewhere. */
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

/* How the work of a struct mm is cut. */
struct cut {
    const struct mm *mm;
    int64_t tile;  /* rows of a tile (many tokens) */
    int64_t parts; /* slices of every job (few tokens) */
};

static bool better(struct top a, struct top than)
{
    return than.at < 0 || a.max > than.max || (a.max == than.max && a.at < than.at);
}

void mm_then(const struct mm *m, int64_t r0, int64_t r1, int64_t t0, int64_t t1, int thread)
{
    int64_t n_out = m->jobs[0].w->n_out;
    if (m->then == THEN_NOTHING || r0 >= r1) return;
    if (m->then == THEN_TOP) {
        struct top t = m->c->k->top(m->jobs[0].y + r0, r1 - r0);
        t.at += (int32_t)r0;
        if (better(t, m->best[thread].top)) m->best[thread].top = t;
        return;
    }
    for (int64_t at = t0 * n_out + r0; t0 < t1; t0++, at += n_out) {
        if (m->then == THEN_ADD)
            m->c->k->add(m->y + at, m->jobs[0].y + at, r1 - r0);
        else
            m->c->k->swiglu(m->y + at, m->jobs[0].y + at, m->jobs[1].y + at, r1 - r0);
    }
}

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
    const struct cut *cut = ctx;
    const struct mm *mm = cut->mm;
    int64_t step = mm->c->k->dot_rows;
    for (int64_t i = begin; i < end; i++)
        for (int j = 0; j < mm->n_jobs; j++) {
            const struct cpu_weight *w = mm->jobs[j].w->data;
            int64_t groups = (w->q.n_out + step - 1) / step;
            int64_t first = groups * i / cut->parts * step, last = groups * (i + 1) / cut->parts * step;
            if (last > w->q.n_out) last = w->q.n_out;
            float *buf = row_buf(mm, w, step, thread);
            for (int64_t r = first; r < last; r += step) rows(mm, &mm->jobs[j], r, r + step < last ? r + step : last, buf);
            if (j == mm->n_jobs - 1) mm_then(mm, first, last, 0, mm->n_tok, thread);
        }
}

/* Many tokens: an item is one tile of one job, or of both where what follows wants both. */
static void tiles(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct cut *cut = ctx;
    const struct mm *mm = cut->mm;
    for (int64_t item = begin; item < end; item++) {
        int64_t i = item;
        int j = 0;
        for (;; j++) {
            int64_t here = (mm->jobs[j].w->n_out + cut->tile - 1) / cut->tile;
            if (i < here) break;
            i -= here;
        }
        const struct cpu_weight *w = mm->jobs[j].w->data;
        int64_t r0 = i * cut->tile, r1 = r0 + cut->tile < w->q.n_out ? r0 + cut->tile : w->q.n_out;
        rows(mm, &mm->jobs[j], r0, r1, row_buf(mm, w, r1 - r0, thread));
        if (mm->then == THEN_SWIGLU) rows(mm, &mm->jobs[1], r0, r1, row_buf(mm, mm->jobs[1].w->data, r1 - r0, thread));
        mm_then(mm, r0, r1, 0, mm->n_tok, thread);
    }
}

struct norm_job {
    const struct mm *mm;
    float *to;
};

static void norm_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct norm_job *j = ctx;
    const struct mm *m = j->mm;
    for (int64_t t = begin; t < end; t++)
        m->c->k->rmsnorm(j->to + t * m->n_in, m->x + t * m->n_in, m->norm, m->n_in, m->eps);
}

/* x with its rows normed, in a buffer of the context */
static const float *normed(const struct mm *m)
{
    if (!m->norm) return m->x;
    float *to = buf_get(&m->c->normed, (size_t)(m->n_tok * m->n_in) * sizeof *to);
    par_if(m->n_tok * m->n_in, m->n_tok, 1, norm_rows, &(struct norm_job){m, to});
    return to;
}

static void mm_f32(const struct mm *of)
{
    struct mm mm = *of;
    struct cut cut = {.mm = &mm};
    mm.x = normed(of);
    int64_t n_rows = 0, items = 0, step = mm.c->k->dot_rows;
    for (int j = 0; j < mm.n_jobs; j++) n_rows += mm.jobs[j].w->n_out;
    if (mm.n_tok <= DOT_TOKENS) {
        cut.parts = par_threads();
        if (n_rows * mm.n_in < 32768)
            slices(&cut, 0, cut.parts, 0);
        else
            par_for(cut.parts, 1, slices, &cut);
        return;
    }
    if (mm_gemm(&mm, block_columns(mm.n_in))) return;
    /* as large as the cache holds, but at least four tiles a thread */
    cut.tile = TILE_FLOATS / block_columns(mm.n_in);
    if (cut.tile > n_rows / (4 * par_threads())) cut.tile = n_rows / (4 * par_threads());
    cut.tile = cut.tile < step ? step : cut.tile / step * step;
    for (int j = 0; j < (mm.then == THEN_SWIGLU ? 1 : mm.n_jobs); j++)
        items += (mm.jobs[j].w->n_out + cut.tile - 1) / cut.tile;
    par_for_dynamic(items, 1, tiles, &cut);
}

static void (*mm_of(const struct matmul *job))(const struct mm *)
{
    enum path path = ((const struct cpu_weight *)job->w->data)->path;
    return path == PATH_PANELS ? mm_int8 : path == PATH_BF16 ? mm_bf16 : mm_f32;
}

static void mm_run(const struct mm *m)
{
    if (m->n_tok <= 0 || m->n_jobs <= 0) return;
    void (*run)(const struct mm *) = mm_of(&m->jobs[0]);
    for (int j = 0; j < m->n_jobs; j++) {
        assert(m->jobs[j].w->n_in == m->n_in);
        if (mm_of(&m->jobs[j]) != run) run = NULL;
    }
    if (run) {
        run(m);
    } else { /* a layer may mix formats */
        struct mm one = *m;
        one.x = normed(m);
        one.norm = NULL;
        one.n_jobs = 1;
        one.then = THEN_NOTHING;
        for (int j = 0; j < m->n_jobs; j++) {
            one.jobs = &m->jobs[j];
            mm_run(&one);
        }
        mm_then(m, 0, m->jobs[0].w->n_out, 0, m->n_tok, 0);
    }
}

void cpu_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    if (n > 0) mm_run(&(struct mm){.c = cpu_begin(be), .jobs = jobs, .n_jobs = n, .x = x, .n_in = jobs[0].w->n_in,
                                   .n_tok = n_tok});
}

void cpu_norm_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, const float *norm, double eps,
                     int64_t n_tok)
{
    mm_run(&(struct mm){.c = cpu_begin(be), .jobs = jobs, .n_jobs = n, .x = x, .n_in = jobs[0].w->n_in, .n_tok = n_tok,
                        .norm = norm, .eps = eps});
}

void cpu_matmul_add(struct backend *be, float *y, const struct weight *w, const float *bias, const float *in, int64_t n_tok)
{
    struct cpu_ctx *c = cpu_begin(be);
    struct matmul job = {buf_get(&c->sums, (size_t)(n_tok * w->n_out) * sizeof(float)), w, bias};
    mm_run(&(struct mm){.c = c, .jobs = &job, .n_jobs = 1, .x = in, .n_in = w->n_in, .n_tok = n_tok, .then = THEN_ADD, .y = y});
}

void cpu_gate_up(struct backend *be, float *y, const struct matmul jobs[2], const float *x, const float *norm, double eps,
                 int64_t n_tok)
{
    assert(jobs[0].w->n_out == jobs[1].w->n_out);
    mm_run(&(struct mm){.c = cpu_begin(be), .jobs = jobs, .n_jobs = 2, .x = x, .n_in = jobs[0].w->n_in, .n_tok = n_tok,
                        .norm = norm, .eps = eps, .then = THEN_SWIGLU, .y = y});
}

int32_t cpu_argmax(struct backend *be, const struct weight *head, const float *hidden, float *logits)
{
    struct cpu_ctx *c = cpu_begin(be);
    struct matmul job = {logits, head, NULL};
    int n = par_threads();
    struct best *best = buf_get(&c->sums, (size_t)n * sizeof *best);
    for (int i = 0; i < n; i++) best[i].top = (struct top){0, -1};
    mm_run(&(struct mm){.c = c, .jobs = &job, .n_jobs = 1, .x = hidden, .n_in = head->n_in, .n_tok = 1, .then = THEN_TOP,
                        .best = best});
    struct top all = {0, -1};
    for (int i = 0; i < n; i++)
        if (best[i].top.at >= 0 && better(best[i].top, all)) all = best[i].top;
    return all.at;
}
