#include "model/model.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int scratch_alloc(struct scratch *s, const struct model *m, int64_t max_tok, struct err *e)
{
    memset(s, 0, sizeof *s);
    const struct config *c = &m->cfg;
    int64_t D = c->hidden_size, Q = c->n_heads * c->head_dim, KV = c->n_kv_heads * c->head_dim, F = c->intermediate_size;
    struct {
        float **to;
        int64_t width, rows;
    } parts[] = {{&s->x, D, max_tok},    {&s->h, D, max_tok},    {&s->q, Q, max_tok},
                 {&s->k, KV, max_tok},   {&s->v, KV, max_tok},   {&s->att, Q, max_tok},
                 {&s->gate, F, max_tok}, {&s->up, F, max_tok},   {&s->logits, c->vocab_size, 1}};
    s->max_tok = max_tok;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = (size_t)parts[i].rows * (size_t)parts[i].width * sizeof(float);
        *parts[i].to = m->be->ops->alloc(m->be, n, e);
        if (!*parts[i].to) {
            scratch_free(s, m);
            return err_prefix(e, "activations of %lld tokens", (long long)max_tok);
        }
        s->bytes += n;
    }
    return 0;
}

void scratch_free(struct scratch *s, const struct model *m)
{
    float *parts[] = {s->x, s->h, s->q, s->k, s->v, s->att, s->gate, s->up, s->logits};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i]) m->be->ops->free(m->be, parts[i]);
    memset(s, 0, sizeof *s);
}

static int64_t rows_of(const struct span *spans, int n_spans)
{
    int64_t n = 0;
    for (int i = 0; i < n_spans; i++) n += spans[i].n_new;
    return n;
}

static void told(const struct linear_hook *h, int64_t layer, enum op op, const float *x, const float *y, int64_t n_tok)
{
    if (h && h->fn) h->fn(h->ctx, layer, op, x, y, n_tok);
}

/* What lies between the parts of a fused op is not there to be looked at. */
static bool watched(const struct linear_hook *h) { return h && h->fn; }

static void norm_matmul(const struct model *m, const struct matmul *jobs, int n, const float *x, const float *norm,
                        float *h, int64_t n_tok, bool fuse)
{
    const struct backend_ops *ops = m->be->ops;
    if (fuse && ops->norm_matmul) {
        ops->norm_matmul(m->be, jobs, n, x, norm, m->cfg.rms_norm_eps, n_tok);
    } else {
        ops->rmsnorm(m->be, h, x, norm, n_tok, m->cfg.hidden_size, m->cfg.rms_norm_eps);
        ops->matmul(m->be, jobs, n, h, n_tok);
    }
}

/* x (n_tok, hidden) += in · Wᵀ + bias; h: scratch like x */
static void matmul_add(const struct model *m, int64_t i, enum op op, float *x, const float *in, float *h, int64_t n_tok,
                       const struct linear_hook *hook)
{
    const struct backend_ops *ops = m->be->ops;
    const struct layer *l = &m->layers[i];
    if (!watched(hook) && ops->matmul_add) {
        ops->matmul_add(m->be, x, &l->w[op], l->bias[op], in, n_tok);
        return;
    }
    ops->matmul(m->be, &(struct matmul){h, &l->w[op], l->bias[op]}, 1, in, n_tok);
    told(hook, i, op, in, h, n_tok);
    ops->add(m->be, x, h, n_tok * m->cfg.hidden_size);
}

static void rope_attention(const struct model *m, int64_t i, const struct span *spans, int n_spans, int64_t n_tok,
                           struct scratch *s)
{
    struct backend *be = m->be;
    const struct backend_ops *ops = be->ops;
    const struct config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    if (ops->rope_attention) {
        struct rope_attention a = {s->q, s->k, s->v, l->q_norm, l->k_norm, c->rms_norm_eps, m->inv_freq};
        ops->rope_attention(be, s->att, &a, spans, n_spans, i, c->n_heads);
        return;
    }
    if (l->q_norm) ops->rmsnorm(be, s->q, s->q, l->q_norm, n_tok * c->n_heads, c->head_dim, c->rms_norm_eps);
    if (l->k_norm) ops->rmsnorm(be, s->k, s->k, l->k_norm, n_tok * c->n_kv_heads, c->head_dim, c->rms_norm_eps);
    ops->rope(be, s->q, spans, n_spans, c->n_heads, c->head_dim, m->inv_freq);
    ops->rope(be, s->k, spans, n_spans, c->n_kv_heads, c->head_dim, m->inv_freq);
    ops->kv_append(be, spans, n_spans, i, s->k, s->v);
    ops->attention(be, s->att, s->q, spans, n_spans, i, c->n_heads);
}

/* x: (n_tok, hidden) */
static void attention_block(const struct model *m, int64_t i, float *x, const struct span *spans, int n_spans,
                            int64_t n_tok, struct scratch *s, const struct linear_hook *hook)
{
    const struct layer *l = &m->layers[i];
    const struct matmul qkv[] = {{s->q, &l->w[OP_Q], l->bias[OP_Q]},
                                 {s->k, &l->w[OP_K], l->bias[OP_K]},
                                 {s->v, &l->w[OP_V], l->bias[OP_V]}};
    norm_matmul(m, qkv, 3, x, l->attn_norm, s->h, n_tok, !watched(hook));
    told(hook, i, OP_Q, s->h, s->q, n_tok);
    told(hook, i, OP_K, s->h, s->k, n_tok);
    told(hook, i, OP_V, s->h, s->v, n_tok);
    rope_attention(m, i, spans, n_spans, n_tok, s);
    matmul_add(m, i, OP_O, x, s->att, s->h, n_tok, hook);
}

static void mlp_block(const struct model *m, int64_t i, float *x, int64_t n_tok, struct scratch *s,
                      const struct linear_hook *hook)
{
    const struct backend_ops *ops = m->be->ops;
    const struct layer *l = &m->layers[i];
    const struct matmul jobs[] = {{s->gate, &l->w[OP_GATE], l->bias[OP_GATE]}, {s->up, &l->w[OP_UP], l->bias[OP_UP]}};
    if (!watched(hook) && ops->gate_up) {
        ops->gate_up(m->be, s->gate, jobs, x, l->mlp_norm, m->cfg.rms_norm_eps, n_tok);
    } else {
        norm_matmul(m, jobs, 2, x, l->mlp_norm, s->h, n_tok, !watched(hook));
        told(hook, i, OP_GATE, s->h, s->gate, n_tok);
        told(hook, i, OP_UP, s->h, s->up, n_tok);
        ops->swiglu(m->be, s->gate, s->gate, s->up, n_tok * m->cfg.intermediate_size);
    }
    matmul_add(m, i, OP_DOWN, x, s->gate, s->h, n_tok, hook);
}

void model_layer(const struct model *m, int64_t i, float *x, const struct span *spans, int n_spans, struct scratch *s,
                 const struct linear_hook *hook)
{
    int64_t n_tok = rows_of(spans, n_spans);
    assert(n_tok <= s->max_tok);
    attention_block(m, i, x, spans, n_spans, n_tok, s, hook);
    mlp_block(m, i, x, n_tok, s, hook);
}

/* Layer i for rows of which only the keys and values are wanted, `span` in a batch of its own: x has its rows. */
static void keys_and_values(const struct model *m, int64_t i, const float *x, const struct span *span, struct scratch *s)
{
    const struct backend_ops *ops = m->be->ops;
    const struct config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    const struct matmul kv[] = {{s->k, &l->w[OP_K], l->bias[OP_K]}, {s->v, &l->w[OP_V], l->bias[OP_V]}};
    norm_matmul(m, kv, 2, x, l->attn_norm, s->h, span->n_new, true);
    if (l->k_norm) ops->rmsnorm(m->be, s->k, s->k, l->k_norm, span->n_new * c->n_kv_heads, c->head_dim, c->rms_norm_eps);
    ops->rope(m->be, s->k, span, 1, c->n_kv_heads, c->head_dim, m->inv_freq);
    ops->kv_append(m->be, span, 1, i, s->k, s->v);
}

/* Layer i, one span after the other, each cut in two behind its first skip[] rows. */
static void cut_layer(const struct model *m, int64_t i, const struct span *spans, const int64_t *skip, int n_spans,
                      struct scratch *s)
{
    for (int j = 0; j < n_spans; j++) {
        float *x = s->x + spans[j].row0 * m->cfg.hidden_size;
        struct kv_cache rest = *spans[j].kv; /* the same memory, the first rows in it */
        rest.n += skip[j];
        if (skip[j] > 0) keys_and_values(m, i, x, &(struct span){spans[j].kv, 0, skip[j]}, s);
        if (skip[j] < spans[j].n_new)
            model_layer(m, i, x + skip[j] * m->cfg.hidden_size, &(struct span){&rest, 0, spans[j].n_new - skip[j]}, 1, s, NULL);
    }
}

/* On a device the fast kinds take other kernels for few rows than for many, which round activations otherwise: results
 * would depend on where the layer is cut. */
static bool may_cut(const struct backend *be) { return !be->ops->describe || be->compute == COMPUTE_F32; }

/* skip: as model_forward_last has it, or NULL */
static void run_layers(const struct model *m, const int32_t *tokens, const struct span *spans, const int64_t *skip,
                       int n_spans, struct scratch *s, const struct linear_hook *hook)
{
    const struct config *c = &m->cfg;
    int64_t n_tok = rows_of(spans, n_spans);
    assert(n_tok > 0 && n_tok <= s->max_tok);
    for (int i = 0; i < n_spans; i++) assert(spans[i].kv->n + spans[i].n_new <= spans[i].kv->capacity);
    m->be->ops->embed(m->be, s->x, &m->embed, tokens, n_tok);
    /* A row's page may come as one of 2 MB: of a large table, a hundred tokens would keep most resident. */
    if (m->give_back) qweight_drop(&m->table);
    bool cut = false;
    for (int i = 0; skip && i < n_spans && may_cut(m->be); i++) cut |= skip[i] > 0;
    for (int64_t i = 0; i < c->n_layers - cut; i++) model_layer(m, i, s->x, spans, n_spans, s, hook);
    if (cut) cut_layer(m, c->n_layers - 1, spans, skip, n_spans, s);
    m->be->ops->rmsnorm(m->be, s->x, s->x, m->final_norm, n_tok, c->hidden_size, c->rms_norm_eps);
    for (int i = 0; i < n_spans; i++) spans[i].kv->n += spans[i].n_new;
}

void model_forward(const struct model *m, const int32_t *tokens, const struct span *spans, int n_spans,
                   struct scratch *s, const struct linear_hook *hook)
{
    run_layers(m, tokens, spans, NULL, n_spans, s, hook);
}

void model_forward_last(const struct model *m, const int32_t *tokens, const struct span *spans, const int64_t *skip,
                        int n_spans, struct scratch *s)
{
    run_layers(m, tokens, spans, skip, n_spans, s, NULL);
}

void model_logits(const struct model *m, const float *hidden, int64_t n_tok, float *logits)
{
    m->be->ops->matmul(m->be, &(struct matmul){logits, &m->head, NULL}, 1, hidden, n_tok);
}

/* ---- greedy decoding ---- */

struct greedy {
    const struct model *m;
    struct kv_cache *kv;
    struct scratch *s;
    int32_t token, next;
};

/* The most likely token after row `row` of s->x. */
static int32_t most_likely(const struct model *m, struct scratch *s, int64_t row)
{
    const struct config *c = &m->cfg;
    const struct backend_ops *ops = m->be->ops;
    struct score sc;
    int32_t none = 0;
    if (ops->argmax) return ops->argmax(m->be, &m->head, s->x + row * c->hidden_size, s->logits);
    model_logits(m, s->x + row * c->hidden_size, 1, s->logits);
    ops->score(m->be, &sc, s->logits, &none, 1, c->vocab_size);
    return sc.argmax;
}

static void greedy_body(void *ctx)
{
    struct greedy *g = ctx;
    model_forward(g->m, &g->token, &(struct span){g->kv, 0, 1}, 1, g->s, NULL);
    g->next = most_likely(g->m, g->s, 0);
}

/* Every pointer that greedy_body's calls use: FNV-1a over them. Norms and biases live as long as the weights. */
static uint64_t greedy_key(const struct greedy *g)
{
    const struct model *m = g->m;
    uint64_t h = 0xcbf29ce484222325;
#define MIX(p) h = (h ^ (uint64_t)(uintptr_t)(p)) * 0x100000001b3
    MIX(m->layers);
    MIX(m->embed.data);
    MIX(m->head.data);
    for (int64_t i = 0; i < m->cfg.n_layers; i++)
        for (int op = 0; op < N_OPS; op++) MIX(m->layers[i].w[op].data);
    MIX(g->kv->k);
    MIX(g->kv->v);
    MIX(g->kv->capacity);
    MIX(g->s->x);
    MIX(g->s->logits);
#undef MIX
    return h;
}

void model_generate(const struct model *m, struct kv_cache *kv, struct scratch *s, const int32_t *prompt,
                    int64_t n_prompt, int32_t *out, int64_t n_gen, void (*on_token)(void *ctx, int64_t i), void *ctx)
{
    assert(n_prompt > 0);
    int64_t last = 0; /* row of the newest token in s->x */
    for (int64_t at = 0; at < n_prompt; at += last + 1) {
        int64_t n = n_prompt - at < s->max_tok ? n_prompt - at : s->max_tok;
        model_forward(m, prompt + at, &(struct span){kv, 0, n}, 1, s, NULL);
        last = n - 1;
    }
    struct greedy g = {m, kv, s, 0, 0};
    struct step step = {kv, 0, greedy_body, &g, greedy_key(&g)};
    for (int64_t i = 0; i < n_gen; i++) {
        if (i == 0) {
            out[i] = most_likely(m, s, last);
        } else {
            step.token = g.token = out[i - 1];
            if (m->be->ops->step) {
                out[i] = m->be->ops->step(m->be, &step);
            } else {
                greedy_body(&g);
                out[i] = g.next;
            }
        }
        if (on_token) on_token(ctx, i);
    }
}
