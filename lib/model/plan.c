#include "model/plan.h"

#include <string.h>

/* The exact path keeps K and V as computed; the fast ones store halves, as servers do. */
enum dtype plan_kv_dtype(enum compute compute) { return compute == COMPUTE_F32 ? DT_F32 : DT_F16; }

int64_t plan_kv_capacity(int64_t n_tok) { return (n_tok + KV_ROUND - 1) / KV_ROUND * KV_ROUND; }

int64_t plan_kv_bytes(const struct config *c, enum compute compute, int64_t capacity)
{
    capacity = plan_kv_capacity(capacity);
    return 2 * c->n_layers * capacity * c->n_kv_heads * c->head_dim * (int64_t)dtype_bytes(plan_kv_dtype(compute), 1);
}

/* x, h; q, attention's output; k, v; gate, up; logits */
int64_t plan_scratch_bytes(const struct config *c, int64_t rows)
{
    int64_t wide = c->hidden_size + c->n_heads * c->head_dim + c->n_kv_heads * c->head_dim + c->intermediate_size;
    return (2 * wide * rows + c->vocab_size) * (int64_t)sizeof(float);
}

int plan_each_weight(const struct checkpoint *c, int (*fn)(void *ctx, const char *name, const struct qweight *w,
                                                           struct err *e),
                     void *ctx, struct err *e)
{
    const struct config *g = &c->config;
    struct qweight w;
    char name[LINEAR_NAME_MAX];
    for (int64_t i = 0; i < g->n_layers; i++)
        for (int op = 0; op < N_OPS; op++) {
            int64_t n_out, n_in;
            config_op_shape(g, (enum op)op, &n_out, &n_in);
            linear_name(name, i, (enum op)op);
            if (qweight_open(&w, c, name, n_out, n_in, e) || fn(ctx, name, &w, e)) return -1;
        }
    const char *const ends[] = {"model.embed_tokens", "lm_head"};
    for (int i = 0; i < (c->tied ? 1 : 2); i++)
        if (qweight_open(&w, c, ends[i], g->vocab_size, g->hidden_size, e) || fn(ctx, ends[i], &w, e)) return -1;
    return 0;
}

/* Norms and biases. */
static int64_t n_vector_params(const struct config *c)
{
    int64_t layer = 2 * c->hidden_size + (c->qk_norm ? 2 * c->head_dim : 0);
    for (int op = 0; op < N_OPS; op++) {
        int64_t n_out, n_in;
        config_op_shape(c, (enum op)op, &n_out, &n_in);
        if (config_op_bias(c, (enum op)op)) layer += n_out;
    }
    return c->n_layers * layer + c->hidden_size;
}

int64_t plan_n_params(const struct config *c, bool tied)
{
    int64_t layer = 0;
    for (int op = 0; op < N_OPS; op++) {
        int64_t n_out, n_in;
        config_op_shape(c, (enum op)op, &n_out, &n_in);
        layer += n_out * n_in;
    }
    return c->n_layers * layer + (tied ? 1 : 2) * c->vocab_size * c->hidden_size + n_vector_params(c);
}

struct sum {
    struct backend *be;
    int64_t bytes;
};

/* As model_load hands it to the backend: GGUF blocks as f16, which stay beside a copy where rows are looked up. */
static int add_weight(void *ctx, const char *name, const struct qweight *w, struct err *e)
{
    (void)e;
    struct sum *s = ctx;
    struct qweight f16 = *w;
    if (w->fmt.kind == CODE_FLOAT && dtype_is_block(w->fmt.dtype)) {
        f16.fmt = *format_find("f16");
        f16.out_dtype = DT_F16;
        f16.in_memory = !strcmp(name, "model.embed_tokens");
        f16.bytes = (int64_t)dtype_bytes(DT_F16, w->n_out * w->n_in);
    }
    s->bytes += s->be->ops->weight_bytes ? (int64_t)s->be->ops->weight_bytes(s->be, &f16) : f16.bytes;
    return 0;
}

int memory_plan(struct memory_plan *p, const struct checkpoint *c, struct backend *be, int64_t ctx, int64_t batch,
                struct err *e)
{
    *p = (struct memory_plan){0};
    struct sum s = {be, 0};
    if (plan_each_weight(c, add_weight, &s, e)) return -1;
    p->weights_bytes = s.bytes + n_vector_params(&c->config) * (int64_t)sizeof(float);
    p->kv_bytes = plan_kv_bytes(&c->config, be->compute, ctx);
    p->scratch_bytes = plan_scratch_bytes(&c->config, batch);
    return 0;
}
