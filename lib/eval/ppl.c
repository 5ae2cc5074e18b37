#include "eval/ppl.h"

#include "base/mem.h"
#include "base/msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Budgets that keep a run within weights + KV + 200 MB: activations of one forward, and one slice of logits (two of
 * each with a reference). MAX_SLICE bounds the score arrays on the stack. */
#define SCRATCH_BUDGET ((int64_t)40 << 20)
#define LOGITS_BUDGET ((int64_t)24 << 20)
#define MAX_BATCH 8
#define MAX_SLICE 256

/* ---- a reference's states and logits on disk ---- */

static const char magic[8] = {'q', 'l', 'a', 'b', 'r', 'e', 'f', '1'};
struct ref_head {
    char magic[8];
    char key[64];
    int64_t n_scored, width; /* of a row: hidden, or vocab */
    char pad[40];            /* to 128 bytes: rows stay 64-byte aligned */
};
_Static_assert(sizeof(struct ref_head) == 128, "header of reference states");

static int rows_open(const float **rows, struct file_map *map, const char *path, const char key[65], int64_t n_scored,
                     int64_t width, struct err *e)
{
    if (!path_exists(path)) return 0;
    if (file_map_open(map, path, e)) return -1;
    const struct ref_head *h = (const void *)map->data;
    size_t bytes = sizeof(float) * (size_t)n_scored * (size_t)width;
    if (map->size != sizeof *h + bytes || memcmp(h->magic, magic, 8) || memcmp(h->key, key, 64) ||
        h->n_scored != n_scored || h->width != width)
        file_map_close(map);
    else
        *rows = (const float *)(const void *)(map->data + sizeof *h);
    return 0;
}

int ref_states_open(struct ref_states *r, const char *path, const char key[65], int64_t n_scored, int64_t hidden,
                    int64_t vocab, struct err *e)
{
    memset(r, 0, sizeof *r);
    if (rows_open(&r->rows, &r->map, path, key, n_scored, hidden, e)) return -1;
    if (!r->rows) return 0;
    char *beside = mem_printf("%s%s", path, LOGITS_SUFFIX);
    int rc = rows_open(&r->logits, &r->logits_map, beside, key, n_scored, vocab, e);
    free(beside);
    if (rc) ref_states_close(r);
    return rc;
}

void ref_states_close(struct ref_states *r)
{
    file_map_close(&r->map);
    file_map_close(&r->logits_map);
    r->rows = r->logits = NULL;
}

/* Rows of floats on their way from a device to a file. */
struct saver {
    struct file_out out;
    bool open;
    int64_t width;
    float *host; /* (slice, width) */
};

static int saver_open(struct saver *s, const char *path, const char *key, int64_t n_scored, int64_t width, int64_t slice,
                      struct err *e)
{
    if (file_out_open(&s->out, path, e)) return -1;
    s->open = true;
    s->width = width;
    s->host = mem_array((size_t)slice * (size_t)width, sizeof *s->host);
    struct ref_head h = {.n_scored = n_scored, .width = width};
    memcpy(h.magic, magic, 8);
    memcpy(h.key, key, 64);
    return file_out_write(&s->out, &h, sizeof h, e);
}

static int save_rows(struct saver *s, struct backend *be, const float *rows, int64_t n, struct err *e)
{
    if (!s->open) return 0;
    size_t bytes = (size_t)(n * s->width) * sizeof(float);
    be->ops->download(be, s->host, rows, bytes);
    return file_out_write(&s->out, s->host, bytes, e);
}

static int saver_close(struct saver *s, bool complete, struct err *e)
{
    int rc = 0;
    free(s->host);
    if (s->open && complete) rc = file_out_close(&s->out, e);
    else if (s->open) file_out_abort(&s->out);
    *s = (struct saver){0};
    return rc;
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
    struct saver states, logits; /* ref's, being saved */
    int64_t rows, slice; /* rows a forward, rows a slice of logits */
    int n_batch;         /* windows a forward */
    int32_t *tokens;     /* (rows) */
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

/* Kept logits save later runs time and are no result: where they cannot be written (they are large) the run goes on. */
static void no_logits(struct run *x, const struct err *why)
{
    struct err e;
    msg_warn("the reference's logits are not kept: %s", why->msg);
    saver_close(&x->logits, false, &e);
}

static void save_logits(struct run *x, const float *logits, int64_t n)
{
    struct err e;
    if (save_rows(&x->logits, x->job->ref->be, logits, n, &e)) no_logits(x, &e);
}

static int compare_slice(struct run *x, int64_t row, int64_t n, const int32_t *targets, struct err *e)
{
    bool same = x->job->ref == x->job->model;
    struct side *ref = same ? &x->model : &x->ref;
    struct backend *be = ref->m->be;
    struct ppl_result *r = x->r;
    int64_t D = ref->m->cfg.hidden_size, V = ref->m->cfg.vocab_size, at = x->done;
    const float *hidden = ref->rows ? ref->rows : ref->s.x + row * D;
    if (ref->rows && x->job->states->logits) {
        const float *from = x->job->states->logits + at * V;
        be->ops->upload(be, ref->logits, from, (size_t)(n * V) * sizeof(float));
        file_map_drop(from, (size_t)(n * V) * sizeof(float));
    } else {
        if (ref->rows) be->ops->upload(be, ref->rows, x->job->states->rows + at * D, (size_t)(n * D) * sizeof(float));
        if (!same) model_logits(ref->m, hidden, n, ref->logits);
    }
    if (save_rows(&x->states, be, hidden, n, e)) return -1;
    save_logits(x, ref->logits, n);
    struct backend *other = x->model.m->be; /* whose queue be knows nothing of */
    other->ops->sync(other);
    struct divergence d[MAX_SLICE];
    be->ops->diverge(be, d, ref->logits, x->model.logits, targets, n, V);
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

/* Of each span the first skip[] rows are not scored. */
static void forward(struct run *x, struct side *s, struct span *spans, const int64_t *skip, int n)
{
    if (!s->s.x) return; /* no reference, or its states are stored */
    for (int i = 0; i < n; i++) spans[i].kv = &s->kv[i];
    model_forward_last(s->m, x->tokens, spans, skip, n, &s->s);
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
        int64_t skip = clamp(w->first - pos, 0, k);
        put_tokens(x, x->tokens, w, pos, k);
        forward(x, &x->model, &span, &skip, 1);
        forward(x, &x->ref, &span, &skip, 1);
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
    int64_t row = 0, skip[MAX_BATCH];
    for (int i = 0; i < n; i++) {
        skip[i] = clamp(w[i].first, 0, w[i].n);
        put_tokens(x, x->tokens + row, &w[i], 0, w[i].n);
        spans[i] = (struct span){NULL, row, w[i].n};
        row += w[i].n;
    }
    forward(x, &x->model, spans, skip, n);
    forward(x, &x->ref, spans, skip, n);
    for (int i = 0; i < n; i++)
        if (score_rows(x, &w[i], spans[i].row0, 0, w[i].n, e)) return -1;
    return 0;
}

static int start_saving(struct run *x, bool stored, struct err *e)
{
    const struct ppl_job *j = x->job;
    const struct config *c = &j->ref->cfg;
    struct err why;
    char *beside = mem_printf("%s%s", j->save_states, LOGITS_SUFFIX);
    int rc = stored ? 0 : saver_open(&x->states, j->save_states, j->states_key, x->r->n, c->hidden_size, x->slice, e);
    if (rc == 0 && !stored) remove(beside); /* of other states */
    if (rc == 0 && j->save_logits && !(stored && j->states->logits) &&
        saver_open(&x->logits, beside, j->states_key, x->r->n, c->vocab_size, x->slice, &why))
        no_logits(x, &why);
    free(beside);
    return rc;
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
    if (rc == 0 && job->ref && job->save_states) rc = start_saving(&x, stored, e);
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
    struct err why;
    if (saver_close(&x.logits, rc == 0, &why)) no_logits(&x, &why);
    if (saver_close(&x.states, rc == 0, e)) rc = -1;
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
