#include "eval/ppl.h"

#include "base/mem.h"
#include "base/msg.h"

#include <stdlib.h>
#include <string.h>

/* Budgets that keep a run within weights + KV + 200 MB: activations of one forward, and one slice of logits (two of
 * each with a reference). MAX_SLICE bounds the score arrays on the stack. */
#define SCRATCH_BUDGET ((int64_t)40 << 20)
#define LOGITS_BUDGET ((int64_t)24 << 20)
#define MAX_BATCH 8
#define MAX_SLICE 256

/* ---- a reference's states on disk ---- */

static const char magic[8] = {'q', 'l', 'a', 'b', 'r', 'e', 'f', '1'};
struct ref_head {
    char magic[8];
    char key[64];
    int64_t n_scored, hidden;
    char pad[40]; /* to 128 bytes: rows stay 64-byte aligned */
};
_Static_assert(sizeof(struct ref_head) == 128, "header of reference states");

int ref_states_open(struct ref_states *r, const char *path, const char key[65], int64_t n_scored, int64_t hidden,
                    struct err *e)
{
    memset(r, 0, sizeof *r);
    if (!path_exists(path)) return 0;
    if (file_map_open(&r->map, path, e)) return -1;
    const struct ref_head *h = (const void *)r->map.data;
    size_t rows = sizeof(float) * (size_t)n_scored * (size_t)hidden;
    if (r->map.size != sizeof *h + rows || memcmp(h->magic, magic, 8) || memcmp(h->key, key, 64) ||
        h->n_scored != n_scored || h->hidden != hidden) {
        ref_states_close(r);
        return 0;
    }
    r->rows = (const float *)(const void *)(r->map.data + sizeof *h);
    return 0;
}

void ref_states_close(struct ref_states *r)
{
    file_map_close(&r->map);
    r->rows = NULL;
}

/* ---- one model's buffers ---- */

struct side {
    const struct model *m;
    struct scratch s;
    struct kv_cache kv[MAX_BATCH];
    int n_kv;
    float *logits; /* (slice, vocab) on the device */
    float *rows;   /* (slice, hidden) on the device, where states are stored and scratch is not needed */
};

static int side_open(struct side *s, const struct model *m, int64_t rows, int n_kv, int64_t capacity, int64_t slice,
                     bool stored, struct err *e)
{
    s->m = m;
    size_t D = (size_t)m->cfg.hidden_size, V = (size_t)m->cfg.vocab_size;
    if (!stored) {
        if (scratch_alloc(&s->s, m, rows, e)) return -1;
        for (; s->n_kv < n_kv; s->n_kv++)
            if (kv_alloc(&s->kv[s->n_kv], m, capacity, e)) return -1;
    } else {
        s->rows = m->be->ops->alloc(m->be, (size_t)slice * D * sizeof(float), e);
        if (!s->rows) return -1;
    }
    s->logits = m->be->ops->alloc(m->be, (size_t)slice * V * sizeof(float), e);
    return s->logits ? 0 : -1;
}

static void side_close(struct side *s)
{
    if (!s->m) return;
    struct backend *be = s->m->be;
    if (s->logits) be->ops->free(be, s->logits);
    if (s->rows) be->ops->free(be, s->rows);
    for (int i = 0; i < s->n_kv; i++) kv_free(&s->kv[i], s->m);
    scratch_free(&s->s, s->m);
}

/* ---- the run ---- */

struct run {
    const struct ppl_job *job;
    struct ppl_result *r;
    struct side model, ref; /* ref: not opened where the reference is the model itself */
    struct file_out out; /* states being saved */
    bool saving;
    int64_t rows, slice; /* rows a forward, rows a slice of logits */
    int n_batch;         /* windows a forward */
    int32_t *tokens;     /* (rows) */
    float *host;         /* (slice, hidden): states on their way to the file */
    int64_t done;        /* scored rows so far */
    struct progress bar;
};

static int64_t clamp(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

static int64_t row_bytes(const struct model *m)
{
    const struct config *c = &m->cfg;
    return 4 * (2 * c->hidden_size + 2 * (c->n_heads + c->n_kv_heads) * c->head_dim + 2 * c->intermediate_size);
}

static void plan(struct run *x)
{
    const struct windows *ws = x->job->windows;
    x->rows = clamp(SCRATCH_BUDGET / row_bytes(x->job->model), 16, 2048);
    x->slice = clamp(LOGITS_BUDGET / (x->job->model->cfg.vocab_size * 4), 8, MAX_SLICE);
    x->n_batch = (int)clamp(x->rows / ws->longest, 1, ws->n < MAX_BATCH ? ws->n : MAX_BATCH);
    x->rows = clamp(x->rows, 1, x->n_batch * ws->longest);
}

static int save_rows(struct run *x, const float *hidden, int64_t n, struct err *e)
{
    struct backend *be = x->job->ref->be;
    size_t bytes = (size_t)n * (size_t)x->job->ref->cfg.hidden_size * sizeof(float);
    be->ops->download(be, x->host, hidden, bytes);
    return file_out_write(&x->out, x->host, bytes, e);
}

static int compare_slice(struct run *x, int64_t row, int64_t n, const int32_t *targets, struct err *e)
{
    bool same = x->job->ref == x->job->model;
    struct side *ref = same ? &x->model : &x->ref;
    struct backend *be = ref->m->be;
    struct ppl_result *r = x->r;
    int64_t D = ref->m->cfg.hidden_size, at = x->done;
    const float *hidden = ref->rows ? ref->rows : ref->s.x + row * D;
    if (ref->rows) be->ops->upload(be, ref->rows, x->job->states->rows + at * D, (size_t)(n * D) * sizeof(float));
    if (x->saving && save_rows(x, hidden, n, e)) return -1;
    if (!same) model_logits(ref->m, hidden, n, ref->logits);
    struct backend *other = x->model.m->be; /* whose queue be knows nothing of */
    other->ops->sync(other);
    struct divergence d[MAX_SLICE];
    be->ops->diverge(be, d, ref->logits, x->model.logits, targets, n, ref->m->cfg.vocab_size);
    for (int64_t i = 0; i < n; i++) {
        r->nll[at + i] = d[i].nll_model;
        r->nll_ref[at + i] = d[i].nll_ref;
        r->kld[at + i] = d[i].kld;
        r->delta_p[at + i] = d[i].p_model - d[i].p_ref;
        r->n_top1 += d[i].argmax_ref == d[i].argmax_model;
    }
    return 0;
}

/* Score n ≤ slice rows whose hidden states start at `row` of the scratches, against targets (host). */
static int score_slice(struct run *x, int64_t row, int64_t n, const int32_t *targets, struct err *e)
{
    const struct model *m = x->model.m;
    int64_t D = m->cfg.hidden_size, keep = clamp(x->job->n_keep - x->done, 0, n);
    model_logits(m, x->model.s.x + row * D, n, x->model.logits);
    if (keep)
        m->be->ops->download(m->be, x->job->keep + x->done * D, x->model.s.x + row * D, (size_t)(keep * D) * sizeof(float));
    if (x->job->ref) {
        if (compare_slice(x, row, n, targets, e)) return -1;
    } else {
        struct score sc[MAX_SLICE];
        m->be->ops->score(m->be, sc, x->model.logits, targets, n, m->cfg.vocab_size);
        for (int64_t i = 0; i < n; i++) x->r->nll[x->done + i] = sc[i].lse - (double)sc[i].target;
    }
    x->done += n;
    progress_at(&x->bar, x->done);
    return 0;
}

/* Rows row0 … row0+n−1 hold positions pos … of window w: score those that count. */
static int score_rows(struct run *x, const struct window *w, int64_t row0, int64_t pos, int64_t n, struct err *e)
{
    int64_t a = w->first > pos ? w->first : pos, b = w->n - 1 < pos + n ? w->n - 1 : pos + n;
    for (; a < b; a += x->slice) {
        int64_t k = b - a < x->slice ? b - a : x->slice;
        if (score_slice(x, row0 + a - pos, k, x->job->tokens + w->start + a + 1, e)) return -1;
    }
    return 0;
}

static void put_tokens(struct run *x, int32_t *to, const struct window *w, int64_t pos, int64_t n)
{
    memcpy(to, x->job->tokens + w->start + pos, (size_t)n * sizeof *to);
    if (pos == 0 && x->job->windows->replace_bos) to[0] = x->job->bos;
}

static void forward(struct run *x, struct side *s, struct span *spans, int n)
{
    if (!s->s.x) return; /* no reference, or its states are stored */
    for (int i = 0; i < n; i++) spans[i].kv = &s->kv[i];
    model_forward(s->m, x->tokens, spans, n, &s->s, NULL);
}

static void restart(struct side *s)
{
    for (int i = 0; i < s->n_kv; i++) s->kv[i].n = 0;
}

/* One window longer than the scratch, in pieces through its cache. */
static int run_long(struct run *x, const struct window *w, struct err *e)
{
    for (int64_t pos = 0; pos < w->n; pos += x->rows) {
        int64_t k = w->n - pos < x->rows ? w->n - pos : x->rows;
        struct span span = {NULL, 0, k};
        put_tokens(x, x->tokens, w, pos, k);
        forward(x, &x->model, &span, 1);
        forward(x, &x->ref, &span, 1);
        if (score_rows(x, w, 0, pos, k, e)) return -1;
    }
    return 0;
}

static int run_batch(struct run *x, const struct window *w, int n, struct err *e)
{
    restart(&x->model);
    restart(&x->ref);
    if (w->n > x->rows) return run_long(x, w, e);
    struct span spans[MAX_BATCH];
    int64_t row = 0;
    for (int i = 0; i < n; i++) {
        put_tokens(x, x->tokens + row, &w[i], 0, w[i].n);
        spans[i] = (struct span){NULL, row, w[i].n};
        row += w[i].n;
    }
    forward(x, &x->model, spans, n);
    forward(x, &x->ref, spans, n);
    for (int i = 0; i < n; i++)
        if (score_rows(x, &w[i], spans[i].row0, 0, w[i].n, e)) return -1;
    return 0;
}

static int start_saving(struct run *x, struct err *e)
{
    if (file_out_open(&x->out, x->job->save_states, e)) return -1;
    x->saving = true;
    struct ref_head h = {.n_scored = x->r->n, .hidden = x->job->ref->cfg.hidden_size};
    memcpy(h.magic, magic, 8);
    memcpy(h.key, x->job->states_key, 64);
    x->host = mem_array((size_t)x->slice * (size_t)h.hidden, sizeof *x->host);
    return file_out_write(&x->out, &h, sizeof h, e);
}

int ppl_run(const struct ppl_job *job, struct ppl_result *r, struct err *e)
{
    memset(r, 0, sizeof *r);
    struct run x = {.job = job, .r = r};
    const struct windows *ws = job->windows;
    bool stored = job->ref && job->states && job->states->rows, apart = job->ref && job->ref != job->model;
    plan(&x);
    r->n = ws->n_scored;
    double **arrays[] = {&r->nll, &r->nll_ref, &r->kld, &r->delta_p};
    for (int i = 0; i < (job->ref ? 4 : 1); i++) *arrays[i] = mem_array((size_t)r->n, sizeof(double));
    x.tokens = mem_array((size_t)x.rows, sizeof *x.tokens);
    int rc = side_open(&x.model, job->model, x.rows, x.n_batch, ws->longest, x.slice, false, e);
    if (rc == 0 && apart) rc = side_open(&x.ref, job->ref, x.rows, x.n_batch, ws->longest, x.slice, stored, e);
    if (rc == 0 && job->ref && !stored && job->save_states) rc = start_saving(&x, e);
    progress_begin(&x.bar, "perplexity", "tokens", r->n);
    for (int64_t i = 0; rc == 0 && i < ws->n; i += x.n_batch)
        rc = run_batch(&x, &ws->w[i], (int)(ws->n - i < x.n_batch ? ws->n - i : x.n_batch), e);
    progress_end(&x.bar);
    r->scratch_bytes = (int64_t)(x.model.s.bytes + x.ref.s.bytes);
    for (int i = 0; i < x.model.n_kv; i++) r->kv_bytes += (int64_t)x.model.kv[i].bytes;
    for (int i = 0; i < x.ref.n_kv; i++) r->kv_bytes += (int64_t)x.ref.kv[i].bytes;
    side_close(&x.model);
    side_close(&x.ref);
    free(x.tokens);
    free(x.host);
    if (x.saving) {
        if (rc == 0) rc = file_out_close(&x.out, e);
        else file_out_abort(&x.out);
    }
    if (rc) ppl_result_free(r);
    return rc;
}

void ppl_result_free(struct ppl_result *r)
{
    free(r->nll);
    free(r->nll_ref);
    free(r->kld);
    free(r->delta_p);
    memset(r, 0, sizeof *r);
}
