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
        int64_t width;
    } parts[] = {{&s->x, D}, {&s->h, D}, {&s->q, Q}, {&s->k, KV}, {&s->v, KV}, {&s->att, Q}, {&s->gate, F}, {&s->up, F}};
    s->max_tok = max_tok;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = (size_t)max_tok * (size_t)parts[i].width * sizeof(float);
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
    float *parts[] = {s->x, s->h, s->q, s->k, s->v, s->att, s->gate, s->up};
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

/* x: (n_tok, hidden) */
static void attention_block(const struct model *m, int64_t i, float *x, const struct span *spans, int n_spans,
                            int64_t n_tok, struct scratch *s, const struct linear_hook *hook)
{
    struct backend *be = m->be;
    const struct backend_ops *ops = be->ops;
    const struct config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    ops->rmsnorm(be, s->h, x, l->attn_norm, n_tok, c->hidden_size, c->rms_norm_eps);
    ops->matmul(be,
                (struct matmul[]){{s->q, &l->w[OP_Q], l->bias[OP_Q]},
                                  {s->k, &l->w[OP_K], l->bias[OP_K]},
                                  {s->v, &l->w[OP_V], l->bias[OP_V]}},
                3, s->h, n_tok);
    told(hook, i, OP_Q, s->h, s->q, n_tok);
    told(hook, i, OP_K, s->h, s->k, n_tok);
    told(hook, i, OP_V, s->h, s->v, n_tok);
    if (l->q_norm) ops->rmsnorm(be, s->q, s->q, l->q_norm, n_tok * c->n_heads, c->head_dim, c->rms_norm_eps);
    if (l->k_norm) ops->rmsnorm(be, s->k, s->k, l->k_norm, n_tok * c->n_kv_heads, c->head_dim, c->rms_norm_eps);
    ops->rope(be, s->q, spans, n_spans, c->n_heads, c->head_dim, m->inv_freq);
    ops->rope(be, s->k, spans, n_spans, c->n_kv_heads, c->head_dim, m->inv_freq);
    ops->kv_append(be, spans, n_spans, i, s->k, s->v);
    ops->attention(be, s->att, s->q, spans, n_spans, i, c->n_heads);
    ops->matmul(be, &(struct matmul){s->h, &l->w[OP_O], l->bias[OP_O]}, 1, s->att, n_tok);
    told(hook, i, OP_O, s->att, s->h, n_tok);
    ops->add(be, x, s->h, n_tok * c->hidden_size);
}

static void mlp_block(const struct model *m, int64_t i, float *x, int64_t n_tok, struct scratch *s,
                      const struct linear_hook *hook)
{
    struct backend *be = m->be;
    const struct backend_ops *ops = be->ops;
    const struct config *c = &m->cfg;
    const struct layer *l = &m->layers[i];
    ops->rmsnorm(be, s->h, x, l->mlp_norm, n_tok, c->hidden_size, c->rms_norm_eps);
    ops->matmul(be,
                (struct matmul[]){{s->gate, &l->w[OP_GATE], l->bias[OP_GATE]}, {s->up, &l->w[OP_UP], l->bias[OP_UP]}}, 2,
                s->h, n_tok);
    told(hook, i, OP_GATE, s->h, s->gate, n_tok);
    told(hook, i, OP_UP, s->h, s->up, n_tok);
    ops->swiglu(be, s->gate, s->gate, s->up, n_tok * c->intermediate_size);
    ops->matmul(be, &(struct matmul){s->h, &l->w[OP_DOWN], l->bias[OP_DOWN]}, 1, s->gate, n_tok);
    told(hook, i, OP_DOWN, s->gate, s->h, n_tok);
    ops->add(be, x, s->h, n_tok * c->hidden_size);
}

void model_layer(const struct model *m, int64_t i, float *x, const struct span *spans, int n_spans, struct scratch *s,
                 const struct linear_hook *hook)
{
    int64_t n_tok = rows_of(spans, n_spans);
    assert(n_tok <= s->max_tok);
    attention_block(m, i, x, spans, n_spans, n_tok, s, hook);
    mlp_block(m, i, x, n_tok, s, hook);
}

void model_forward(const struct model *m, const int32_t *tokens, const struct span *spans, int n_spans,
                   struct scratch *s, const struct linear_hook *hook)
{
    const struct config *c = &m->cfg;
    int64_t n_tok = rows_of(spans, n_spans);
    assert(n_tok > 0 && n_tok <= s->max_tok);
    for (int i = 0; i < n_spans; i++) assert(spans[i].kv->n + spans[i].n_new <= spans[i].kv->capacity);
    m->be->ops->embed(m->be, s->x, &m->embed, tokens, n_tok);
    for (int64_t i = 0; i < c->n_layers; i++) model_layer(m, i, s->x, spans, n_spans, s, hook);
    m->be->ops->rmsnorm(m->be, s->x, s->x, m->final_norm, n_tok, c->hidden_size, c->rms_norm_eps);
    for (int i = 0; i < n_spans; i++) spans[i].kv->n += spans[i].n_new;
}

void model_logits(const struct model *m, const float *hidden, int64_t n_tok, float *logits)
{
    m->be->ops->matmul(m->be, &(struct matmul){logits, &m->head, NULL}, 1, hidden, n_tok);
}

void model_generate(const struct model *m, struct kv_cache *kv, struct scratch *s, const int32_t *prompt,
                    int64_t n_prompt, int32_t *out, int64_t n_gen, void (*on_token)(void *ctx, int64_t i), void *ctx)
{
    const struct config *c = &m->cfg;
    struct err e;
    float *logits = m->be->ops->alloc(m->be, (size_t)c->vocab_size * sizeof *logits, &e);
    assert(logits && n_prompt > 0);
    int64_t last = 0; /* row of the newest token in s->x */
    for (int64_t at = 0; at < n_prompt; at += last + 1) {
        int64_t n = n_prompt - at < s->max_tok ? n_prompt - at : s->max_tok;
        model_forward(m, prompt + at, &(struct span){kv, 0, n}, 1, s, NULL);
        last = n - 1;
    }
    for (int64_t i = 0; i < n_gen; i++) {
        struct score sc;
        int32_t none = 0;
        model_logits(m, s->x + last * c->hidden_size, 1, logits);
        m->be->ops->score(m->be, &sc, logits, &none, 1, c->vocab_size);
        out[i] = sc.argmax;
        if (on_token) on_token(ctx, i);
        if (i + 1 == n_gen) break;
        model_forward(m, &out[i], &(struct span){kv, 0, 1}, 1, s, NULL);
        last = 0;
    }
    m->be->ops->free(m->be, logits);
}
