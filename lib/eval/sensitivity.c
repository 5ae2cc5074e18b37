#include "eval/sensitivity.h"

#include "base/file.h"
#include "base/mem.h"
#include "quantize/container.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 512                       /* rows of one layer's run */
#define MAX_SLICE 128                   /* rows of logits at a time: so many, or what fits the budget */
#define LOGITS_BUDGET ((int64_t)32 << 20)
#define STACK_BUDGET ((int64_t)48 << 20) /* bytes of activations, and of caches, where units run together */
#define KEEP_LOGITS ((int64_t)96 << 20) /* bytes of reference logits kept; the rest is computed again when needed */
#define ALL_OPS ((1u << N_OPS) - 1)

/* A quantized weight; empty while n_out is 0. */
struct slot {
    struct qbuffer buf;
    struct weight w;
};

struct sweep {
    struct model *m;
    struct backend *be;
    const struct checkpoint *c;
    const struct sens_opts *o;
    struct sens_result *r;
    const int32_t *tokens;
    int64_t T, D, V, L, slice; /* slice: rows of logits at a time */
    /* of one layer at a time: whoever runs a layer writes all its rows before reading them. One for each of n_stack
     * units that run together; [0] for all else */
    struct kv_cache kv[N_OPS];
    int64_t n_stack;
    struct scratch s;
    float *x;                   /* (n_stack · T, D), device: states on their way */
    float *clean, *quant;       /* (T, D), host: states entering the current layer */
    float *first, *last;        /* (T, D), host: clean states before layer 0 and after the last */
    float *logits, *ref_part;   /* (slice, V), device */
    float *ref_logits;          /* (n_ref, V), device: rows 0 … n_ref−1 of the reference */
    int64_t n_ref;
    struct slot *slots;         /* (L, N_OPS) */
    struct weight saved[N_OPS]; /* of the layer whose weights are swapped */
    /* local comparison */
    float *yq;            /* (CHUNK, widest), device */
    float *host_y, *host_q;
    float *clean_out;     /* seed preset: outputs of the layer's linears, one after another, host */
    int64_t out_at[N_OPS + 1], chunk_at; /* where each begins; row of the chunk now running */
    struct sens_metrics local[N_OPS], seed[N_OPS];
    struct sens_samples samples[N_OPS];
    int64_t done, total, head_cost;
};

/* ---- entries ---- */

void sens_result_init(struct sens_result *r, const struct config *c, enum sens_per per)
{
    memset(r, 0, sizeof *r);
    r->n = per == SENS_TENSOR ? c->n_layers * N_OPS : per == SENS_LAYER ? c->n_layers : N_OPS;
    r->entries = mem_new((size_t)r->n, sizeof *r->entries);
    for (int64_t i = 0; i < r->n; i++) {
        struct sens_entry *en = &r->entries[i];
        en->layer = per == SENS_TENSOR ? i / N_OPS : per == SENS_LAYER ? i : -1;
        en->op = per == SENS_TENSOR ? (int)(i % N_OPS) : per == SENS_LAYER ? -1 : (int)i;
        if (per == SENS_TENSOR) {
            linear_name(en->name, en->layer, (enum op)en->op);
            config_op_shape(c, (enum op)en->op, &en->n_out, &en->n_in);
        } else if (per == SENS_LAYER) {
            snprintf(en->name, sizeof en->name, "model.layers.%lld", (long long)i);
        } else {
            snprintf(en->name, sizeof en->name, "%s", op_name((enum op)en->op));
        }
    }
}

void sens_result_free(struct sens_result *r)
{
    free(r->entries);
    memset(r, 0, sizeof *r);
}

static struct sens_entry *entry_of(const struct sweep *w, int64_t layer, int op)
{
    enum sens_per per = w->o->per;
    return &w->r->entries[per == SENS_TENSOR ? layer * N_OPS + op : per == SENS_LAYER ? layer : op];
}

/* Ops of layer l that belong to the unit. */
static unsigned unit_ops(const struct sens_entry *en, int64_t l)
{
    if (en->layer >= 0 && en->layer != l) return 0;
    return en->op >= 0 ? 1u << en->op : ALL_OPS;
}

static void advance(struct sweep *w, int64_t cost)
{
    w->done += cost;
    if (w->o->on_progress) w->o->on_progress(w->o->ctx, w->done, w->total);
}

/* ---- quantized weights ---- */

static struct slot *slot_of(struct sweep *w, int64_t layer, int op) { return &w->slots[layer * N_OPS + op]; }

static int open_source(struct sweep *w, struct qweight *src, int64_t layer, int op, struct err *e)
{
    int64_t n_out, n_in;
    char name[LINEAR_NAME_MAX];
    config_op_shape(&w->m->cfg, (enum op)op, &n_out, &n_in);
    return qweight_open(src, w->c, linear_name(name, layer, (enum op)op), n_out, n_in, e);
}

static int need_slot(struct sweep *w, int64_t layer, int op, struct err *e)
{
    struct slot *s = slot_of(w, layer, op);
    struct qweight src;
    char name[LINEAR_NAME_MAX];
    if (s->w.n_out) return 0;
    linear_name(name, layer, (enum op)op);
    if (open_source(w, &src, layer, op, e)) return -1;
    struct quant_job job = {name, &src, w->o->fmt, w->o->model_dtype};
    if (method_quantize(w->o->method, &job, &s->buf, NULL, e)) return -1;
    if (w->be->ops->load_weight(w->be, &s->w, &s->buf.w, e)) {
        qbuffer_free(&s->buf);
        memset(s, 0, sizeof *s);
        return err_prefix(e, "%s", name);
    }
    return 0;
}

static void drop_slot(struct sweep *w, int64_t layer, int op)
{
    struct slot *s = slot_of(w, layer, op);
    if (!s->w.n_out) return;
    w->be->ops->free_weight(w->be, &s->w);
    qbuffer_free(&s->buf);
    memset(s, 0, sizeof *s);
}

/* Give back the pages of a layer's original weights. */
static int drop_originals(struct sweep *w, int64_t layer, struct err *e)
{
    for (int op = 0; op < N_OPS; op++) {
        struct qweight src;
        if (open_source(w, &src, layer, op, e)) return -1;
        qweight_drop(&src);
    }
    return 0;
}

static int swap_in(struct sweep *w, int64_t layer, unsigned ops, struct err *e)
{
    for (int op = 0; op < N_OPS; op++)
        if (ops >> op & 1 && need_slot(w, layer, op, e)) return -1;
    for (int op = 0; op < N_OPS; op++) {
        struct weight *at = &w->m->layers[layer].w[op];
        w->saved[op] = *at;
        if (ops >> op & 1) *at = slot_of(w, layer, op)->w;
    }
    return 0;
}

static void swap_out(struct sweep *w, int64_t layer)
{
    for (int op = 0; op < N_OPS; op++) w->m->layers[layer].w[op] = w->saved[op];
}

/* ---- running ---- */

/* States of unit `u` of a stack through one layer. */
static void run_layer_of(struct sweep *w, int64_t u, int64_t layer, const struct linear_hook *hook)
{
    struct kv_cache *kv = &w->kv[u];
    float *x = w->x + u * w->T * w->D;
    for (int64_t at = 0; at < w->T; at += CHUNK) {
        int64_t n = w->T - at < CHUNK ? w->T - at : CHUNK;
        w->chunk_at = at;
        kv->n = at;
        model_layer(w->m, layer, x + at * w->D, &(struct span){kv, 0, n}, 1, &w->s, hook);
    }
    kv->n = 0;
}

/* Those of n units from u on at once. */
static void run_layer_stacked(struct sweep *w, int64_t u, int64_t n, int64_t layer)
{
    struct span spans[N_OPS];
    if (n == 1) {
        run_layer_of(w, u, layer, NULL);
        return;
    }
    for (int64_t i = 0; i < n; i++) spans[i] = (struct span){&w->kv[u + i], i * w->T, w->T};
    model_layer(w->m, layer, w->x + u * w->T * w->D, spans, (int)n, &w->s, NULL);
}

/* States in w->x through one layer. */
static void run_layer(struct sweep *w, int64_t layer, const struct linear_hook *hook) { run_layer_of(w, 0, layer, hook); }

static void load_states_of(struct sweep *w, int64_t u, const float *host)
{
    w->be->ops->upload(w->be, w->x + u * w->T * w->D, host, (size_t)(w->T * w->D) * sizeof *host);
}

static void load_states(struct sweep *w, const float *host) { load_states_of(w, 0, host); }

static void store_states(struct sweep *w, float *host)
{
    w->be->ops->download(w->be, host, w->x, (size_t)(w->T * w->D) * sizeof *host);
}

/* logits (n, V) of states (n, D) on the device, through the final norm. */
static void logits_of(struct sweep *w, const float *states, int64_t n, float *logits)
{
    w->be->ops->rmsnorm(w->be, w->s.h, states, w->m->final_norm, n, w->D, w->m->cfg.rms_norm_eps);
    model_logits(w->m, w->s.h, n, logits);
}

/* Rows r0 … of the reference's logits: kept, or computed from the kept last states. */
static const float *reference(struct sweep *w, int64_t r0, int64_t n)
{
    if (r0 + n <= w->n_ref) return w->ref_logits + r0 * w->V;
    w->be->ops->upload(w->be, w->s.x, w->last + r0 * w->D, (size_t)(n * w->D) * sizeof(float));
    logits_of(w, w->s.x, n, w->ref_part);
    return w->ref_part;
}

/* States of unit u in w->x, after all layers, against the reference. */
static int compare_output(struct sweep *w, int64_t u, double *kld, double *delta_nll, const char *what, struct err *e)
{
    double sum = 0, nll = 0;
    struct divergence d[MAX_SLICE];
    for (int64_t r0 = 0; r0 < w->T - 1; r0 += w->slice) {
        int64_t n = w->T - 1 - r0 < w->slice ? w->T - 1 - r0 : w->slice;
        const float *ref = reference(w, r0, n);
        logits_of(w, w->x + (u * w->T + r0) * w->D, n, w->logits);
        w->be->ops->diverge(w->be, d, ref, w->logits, w->tokens + r0 + 1, n, w->V);
        for (int64_t i = 0; i < n; i++) {
            sum += d[i].kld;
            nll += d[i].nll_model - d[i].nll_ref;
        }
    }
    *kld = sum / (double)w->r->n_scored;
    *delta_nll = nll / (double)w->r->n_scored;
    advance(w, w->head_cost);
    if (isfinite(*kld) && isfinite(*delta_nll)) return 0;
    return err_set(e, "%s: the quantized model's logits are not finite", what);
}

/* The clean model: embedding, all layers, logits; keeps first and last states and what fits of the logits. */
static int run_reference(struct sweep *w, struct err *e)
{
    for (int64_t at = 0; at < w->T; at += CHUNK)
        w->be->ops->embed(w->be, w->x + at * w->D, &w->m->embed, w->tokens + at, w->T - at < CHUNK ? w->T - at : CHUNK);
    store_states(w, w->first);
    for (int64_t l = 0; l < w->L; l++) {
        run_layer(w, l, NULL);
        advance(w, 1);
    }
    store_states(w, w->last);
    double nll = 0;
    struct score sc[MAX_SLICE];
    for (int64_t r0 = 0; r0 < w->T - 1; r0 += w->slice) {
        int64_t n = w->T - 1 - r0 < w->slice ? w->T - 1 - r0 : w->slice;
        float *to = r0 + n <= w->n_ref ? w->ref_logits + r0 * w->V : w->logits;
        logits_of(w, w->x + r0 * w->D, n, to);
        w->be->ops->score(w->be, sc, to, w->tokens + r0 + 1, n, w->V);
        for (int64_t i = 0; i < n; i++) nll += sc[i].lse - (double)sc[i].target;
    }
    w->r->baseline_nll = nll / (double)w->r->n_scored;
    advance(w, w->head_cost);
    return isfinite(w->r->baseline_nll) ? 0 : err_set(e, "the model's logits are not finite before anything is quantized");
}

/* ---- outputs of linears ---- */

/* On the clean pass: the same input through the quantized weight. */
static void on_clean(void *ctx, int64_t layer, enum op op, const float *x, const float *y, int64_t n_tok)
{
    struct sweep *w = ctx;
    int64_t n_out = w->m->layers[layer].w[op].n_out;
    size_t bytes = (size_t)(n_tok * n_out) * sizeof(float);
    const struct slot *s = slot_of(w, layer, op);
    if (!entry_of(w, layer, op)->done || w->samples[op].index) {
        w->be->ops->matmul(w->be, &(struct matmul){w->yq, &s->w, w->m->layers[layer].bias[op]}, 1, x, n_tok);
        w->be->ops->download(w->be, w->host_y, y, bytes);
        w->be->ops->download(w->be, w->host_q, w->yq, bytes);
        sens_metrics_add(&w->local[op], w->host_y, w->host_q, n_tok, n_out);
        if (w->samples[op].index) sens_samples_add(&w->samples[op], w->host_y, w->host_q, n_tok * n_out);
    }
    if (w->clean_out)
        w->be->ops->download(w->be, w->clean_out + w->T * w->out_at[op] + w->chunk_at * n_out, y, bytes);
}

/* On the quantized pass, seed preset: its outputs against the clean pass's, error accumulated over the layers before. */
static void on_quantized(void *ctx, int64_t layer, enum op op, const float *x, const float *y, int64_t n_tok)
{
    (void)x;
    struct sweep *w = ctx;
    int64_t n_out = w->m->layers[layer].w[op].n_out;
    w->be->ops->download(w->be, w->host_q, y, (size_t)(n_tok * n_out) * sizeof(float));
    sens_metrics_add(&w->seed[op], w->clean_out + w->T * w->out_at[op] + w->chunk_at * n_out, w->host_q, n_tok, n_out);
}

static void begin_samples(struct sweep *w, int64_t layer)
{
    char name[LINEAR_NAME_MAX];
    for (int op = 0; op < N_OPS; op++) {
        linear_name(name, layer, (enum op)op);
        char *path = sens_samples_path(w->o->samples_dir, name);
        bool have = entry_of(w, layer, op)->done && path_exists(path); /* a resumed run */
        free(path);
        if (!have)
            sens_samples_init(&w->samples[op], name, w->T * w->m->layers[layer].w[op].n_out, w->o->seed);
    }
}

static int end_samples(struct sweep *w, int64_t layer, struct err *e)
{
    int rc = 0;
    char name[LINEAR_NAME_MAX];
    for (int op = 0; op < N_OPS; op++) {
        if (!w->samples[op].index) continue;
        if (rc == 0) rc = sens_samples_write(&w->samples[op], w->o->samples_dir, linear_name(name, layer, (enum op)op), e);
        sens_samples_free(&w->samples[op]);
    }
    return rc;
}

/* Adds a layer's comparison to the entries it belongs to. */
static int note_layer(struct sweep *w, int64_t layer, struct err *e)
{
    for (int op = 0; op < N_OPS; op++) {
        char name[LINEAR_NAME_MAX];
        struct qweight src;
        struct sens_entry *en = entry_of(w, layer, op);
        if (en->done) continue;
        if (!sens_metrics_finite(&w->local[op]) || !sens_metrics_finite(&w->seed[op]))
            return err_set(e, "%s: an output is not finite", linear_name(name, layer, (enum op)op));
        if (open_source(w, &src, layer, op, e)) return -1;
        sens_metrics_merge(&en->local, &w->local[op]);
        sens_metrics_merge(&en->seed, &w->seed[op]);
        en->bytes_before += src.bytes;
        en->bytes_after += container_bytes(w->o->fmt, src.n_out, src.n_in, w->o->model_dtype);
    }
    return 0;
}

/* Both streams through a layer: clean with the comparison of outputs, quantized. Leaves the next layer's states in
 * *next_clean and *next_quant. */
static int sweep_layer(struct sweep *w, int64_t layer, float *next_clean, float *next_quant, struct err *e)
{
    memset(w->local, 0, sizeof w->local);
    memset(w->seed, 0, sizeof w->seed);
    for (int op = 0; op < N_OPS; op++)
        if (need_slot(w, layer, op, e)) return -1;
    if (w->o->samples_dir) begin_samples(w, layer);
    load_states(w, w->clean);
    run_layer(w, layer, &(struct linear_hook){on_clean, w});
    store_states(w, next_clean);
    if (w->o->samples_dir && end_samples(w, layer, e)) return -1;
    load_states(w, w->quant);
    if (swap_in(w, layer, ALL_OPS, e)) return -1;
    run_layer(w, layer, w->clean_out ? &(struct linear_hook){on_quantized, w} : NULL);
    swap_out(w, layer);
    store_states(w, next_quant);
    advance(w, 3);
    return note_layer(w, layer, e);
}

/* ---- units at the model's output ---- */

static int64_t unit_cost(const struct sweep *w, const struct sens_entry *en)
{
    return w->o->mode == SENS_LOCAL ? 0 : w->L - (en->layer > 0 ? en->layer : 0) + w->head_cost;
}

/* n units from u on, of which the layer quantizes (or leaves) the same linears as of en. */
static int through_layer(struct sweep *w, const struct sens_entry *en, int64_t u, int64_t n, int64_t l, struct err *e)
{
    unsigned ops = unit_ops(en, l);
    if (swap_in(w, l, w->o->mode == SENS_RESTORE ? ALL_OPS & ~ops : ops, e)) return -1;
    run_layer_stacked(w, u, n, l);
    swap_out(w, l);
    return 0;
}

static int note_done(struct sweep *w, struct sens_entry *en, struct err *e)
{
    en->done = true;
    return w->o->on_done ? w->o->on_done(w->o->ctx, en, e) : 0;
}

/* n units, at most n_stack, from the states entering their first layer: they differ in that one, if there are several. */
static int run_stack(struct sweep *w, struct sens_entry **en, int64_t n, const float *clean, const float *quant, struct err *e)
{
    bool restore = w->o->mode == SENS_RESTORE;
    int64_t first = en[0]->layer > 0 ? en[0]->layer : 0;
    for (int64_t u = 0; u < n; u++) load_states_of(w, u, restore ? quant : clean);
    for (int64_t l = first; l < w->L; l++) {
        int64_t together = l == first ? 1 : n;
        for (int64_t u = 0; u < n; u += together)
            if (through_layer(w, en[u], u, together, l, e)) return -1;
        for (int op = 0; op < N_OPS; op++)
            if (!restore && w->o->per == SENS_OP) drop_slot(w, l, op);
        advance(w, n);
    }
    for (int64_t u = 0; u < n; u++)
        if (compare_output(w, u, &en[u]->kld, &en[u]->delta_nll, en[u]->name, e) || note_done(w, en[u], e)) return -1;
    return 0;
}

/* Those of n units (that start with the same layer) which are not done. */
static int run_units(struct sweep *w, struct sens_entry *units, int64_t n, const float *clean, const float *quant, struct err *e)
{
    struct sens_entry *todo[N_OPS];
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++) {
        if (units[i].done) continue;
        if (w->o->mode == SENS_LOCAL) {
            if (note_done(w, &units[i], e)) return -1;
            continue;
        }
        todo[k++] = &units[i];
        if (k < w->n_stack) continue;
        if (run_stack(w, todo, k, clean, quant, e)) return -1;
        k = 0;
    }
    return k ? run_stack(w, todo, k, clean, quant, e) : 0;
}

static void swap_ptr(float **a, float **b)
{
    float *t = *a;
    *a = *b;
    *b = t;
}

static int sweep(struct sweep *w, struct err *e)
{
    size_t bytes = (size_t)(w->T * w->D) * sizeof(float);
    bool restore = w->o->mode == SENS_RESTORE;
    if (run_reference(w, e)) return -1;
    if (restore) /* later layers run quantized from the start: quantize them all, and let the originals' pages go */
        for (int64_t l = 0; l < w->L; l++) {
            for (int op = 0; op < N_OPS; op++)
                if (need_slot(w, l, op, e)) return -1;
            if (drop_originals(w, l, e)) return -1;
        }
    memcpy(w->clean, w->first, bytes);
    memcpy(w->quant, w->first, bytes);
    float *next_clean = mem_array(bytes, 1), *next_quant = mem_array(bytes, 1);
    int rc = 0;
    for (int64_t l = 0; l < w->L && rc == 0; l++) {
        rc = sweep_layer(w, l, next_clean, next_quant, e);
        if (rc == 0 && w->o->per != SENS_OP)
            rc = run_units(w, entry_of(w, l, 0), w->o->per == SENS_TENSOR ? N_OPS : 1, w->clean, w->quant, e);
        for (int op = 0; op < N_OPS && !restore; op++) drop_slot(w, l, op);
        if (rc == 0 && restore) rc = drop_originals(w, l, e);
        swap_ptr(&w->clean, &next_clean);
        swap_ptr(&w->quant, &next_quant);
    }
    free(next_clean);
    free(next_quant);
    if (rc) return -1;
    load_states(w, w->quant);
    if (compare_output(w, 0, &w->r->all_kld, &w->r->all_delta_nll, "all linears quantized", e)) return -1;
    for (int op = 0; op < N_OPS && w->o->per == SENS_OP; op++)
        if (run_units(w, entry_of(w, 0, op), 1, w->first, w->first, e)) return -1;
    return 0;
}

/* ---- setting up ---- */

static float *device_array(struct sweep *w, int64_t rows, int64_t n, struct err *e)
{
    return w->be->ops->alloc(w->be, (size_t)(rows * n) * sizeof(float), e);
}

/* How many units of a layer run together: all, or what fits the budget. One on a device: where rows are many it multiplies
 * by other kernels, even in another arithmetic, and the reference has the rows of one unit. */
static int64_t stack_height(const struct sweep *w)
{
    if (w->be->ops->describe) return 1;
    const struct config *c = &w->m->cfg;
    int64_t row = 4 * (3 * c->hidden_size + 2 * (c->n_heads + c->n_kv_heads) * c->head_dim + 2 * c->intermediate_size);
    int64_t n = STACK_BUDGET / (row * w->T), n_kv = STACK_BUDGET / kv_bytes(w->m, w->T);
    if (n > n_kv) n = n_kv;
    return n < 1 || w->o->mode == SENS_LOCAL ? 1 : n > N_OPS ? N_OPS : n;
}

static int set_up(struct sweep *w, struct err *e)
{
    int64_t widest = 0, logit_bytes = w->V * (int64_t)sizeof(float), chunk = w->T < CHUNK ? w->T : CHUNK, layer_size = 0;
    for (int op = 0; op < N_OPS; op++) {
        int64_t n_out, n_in;
        config_op_shape(&w->m->cfg, (enum op)op, &n_out, &n_in);
        w->out_at[op + 1] = w->out_at[op] + n_out;
        layer_size += n_out * n_in;
        if (n_out > widest) widest = n_out;
    }
    w->head_cost = (w->V * w->D + layer_size / 2) / layer_size;
    int64_t most = LOGITS_BUDGET / logit_bytes < MAX_SLICE ? LOGITS_BUDGET / logit_bytes : MAX_SLICE;
    if (most < 8) most = 8;
    int64_t slices = (w->T - 1 + most - 1) / most; /* even ones */
    w->slice = (w->T - 1 + slices - 1) / slices;
    w->n_ref = KEEP_LOGITS / logit_bytes < w->T ? KEEP_LOGITS / logit_bytes / w->slice * w->slice : w->T;
    size_t bytes = (size_t)(w->T * w->D) * sizeof(float);
    w->clean = mem_array(bytes, 1);
    w->quant = mem_array(bytes, 1);
    w->first = mem_array(bytes, 1);
    w->last = mem_array(bytes, 1);
    w->host_y = mem_array((size_t)(chunk * widest), sizeof(float));
    w->host_q = mem_array((size_t)(chunk * widest), sizeof(float));
    if (w->o->seed_preset) w->clean_out = mem_array((size_t)(w->T * w->out_at[N_OPS]), sizeof(float));
    w->slots = mem_new((size_t)(w->L * N_OPS), sizeof *w->slots);
    int64_t sweep_cost = 4 * w->L + 2 * w->head_cost;
    w->total = sweep_cost;
    for (int64_t i = 0; i < w->r->n; i++) w->total += w->r->entries[i].done ? 0 : unit_cost(w, &w->r->entries[i]);
    w->n_stack = w->o->per == SENS_TENSOR && w->T <= CHUNK ? stack_height(w) : 1;
    for (int64_t u = 0; u < w->n_stack; u++)
        if (kv_alloc(&w->kv[u], w->m, w->T, e)) return -1;
    /* a slice of states is normed in the scratch as well */
    int64_t rows = w->n_stack > 1 ? w->n_stack * w->T : chunk;
    if (scratch_alloc(&w->s, w->m, rows > w->slice ? rows : w->slice, e)) return -1;
    if (!(w->x = device_array(w, w->n_stack * w->T, w->D, e)) || !(w->logits = device_array(w, w->slice, w->V, e)) ||
        !(w->ref_part = device_array(w, w->slice, w->V, e)) || !(w->yq = device_array(w, chunk, widest, e)) ||
        !(w->ref_logits = device_array(w, w->n_ref, w->V, e)))
        return -1;
    return 0;
}

static void tear_down(struct sweep *w)
{
    for (int64_t l = 0; l < w->L && w->slots; l++)
        for (int op = 0; op < N_OPS; op++) drop_slot(w, l, op);
    for (int op = 0; op < N_OPS; op++) sens_samples_free(&w->samples[op]);
    float *device[] = {w->x, w->logits, w->ref_part, w->yq, w->ref_logits};
    float *host[] = {w->clean, w->quant, w->first, w->last, w->host_y, w->host_q, w->clean_out};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i]) w->be->ops->free(w->be, device[i]);
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    free(w->slots);
    scratch_free(&w->s, w->m);
    for (int u = 0; u < N_OPS; u++) kv_free(&w->kv[u], w->m);
}

int sens_model_dtype(const struct checkpoint *c, enum dtype *t, struct err *e)
{
    int64_t n_out, n_in;
    char name[LINEAR_NAME_MAX];
    struct qweight w;
    config_op_shape(&c->config, OP_Q, &n_out, &n_in);
    if (qweight_open(&w, c, linear_name(name, 0, OP_Q), n_out, n_in, e)) return -1;
    *t = w.out_dtype == DT_BF16 ? DT_BF16 : DT_F16;
    return 0;
}

int sens_run(struct model *m, const struct checkpoint *c, const int32_t *tokens, int64_t n_tokens,
             const struct sens_opts *o, struct sens_result *r, struct err *e)
{
    assert(n_tokens >= 2);
    struct sweep w = {.m = m, .be = m->be, .c = c, .o = o, .r = r, .tokens = tokens, .T = n_tokens,
                      .D = m->cfg.hidden_size, .V = m->cfg.vocab_size, .L = m->cfg.n_layers};
    r->n_tokens = n_tokens;
    r->n_scored = n_tokens - 1;
    int rc = set_up(&w, e);
    if (rc == 0) rc = sweep(&w, e);
    tear_down(&w);
    return rc;
}
