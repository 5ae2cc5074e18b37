#include "cuda_cost.h"

#include "backend/cuda/weight.h"
#include "base/msg.h"

static struct cuda_weight planned(const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype)
{
    struct qbuffer b;
    struct cuda_weight p;
    struct err e;
    qbuffer_alloc(&b, f, 1, n_in, dtype); /* its codes are not read: one row is enough */
    b.w.n_out = n_out;
    if (cuda_weight_plan(&p, &b.w, &e)) die("%s: %s", f->name, e.msg);
    qbuffer_free(&b);
    return p;
}

/* Rows that a kernel can normalize for itself. */
static bool norm_fits(const struct cuda_weight *w)
{
    return w->int8_ok ? (w->n_in + 31) / 32 * 40 <= 40 * 1024 : w->kind == CUW_FLOAT && (w->n_in + 7) / 8 * 32 <= 40 * 1024;
}

void cuda_cost(struct cuda_cost *k, const struct config *c, const struct format *linear,
               const struct format *ends, enum dtype dtype, int64_t n_ctx, int n_sm)
{
    struct cuda_weight w[N_OPS], end = planned(ends, c->vocab_size, c->hidden_size, dtype);
    int64_t vectors = 2 * c->hidden_size + (c->qk_norm ? 2 * c->head_dim : 0), layer = 0;
    for (int op = 0; op < N_OPS; op++) {
        int64_t n_out, n_in;
        config_op_shape(c, (enum op)op, &n_out, &n_in);
        w[op] = planned(linear, n_out, n_in, dtype);
        layer += (int64_t)w[op].read_bytes;
        if (config_op_bias(c, (enum op)op)) vectors += n_out;
    }
    /* q, k and v; attention; o; gate, up and SwiGLU; down */
    k->layer_kernels = 5 + 2 * !norm_fits(&w[OP_Q]);
    if (w[OP_O].int8_ok) {
        k->layer_kernels++; /* attention's output is quantized */
        /* gate_up's too, in its own kernel where blocks of 32 rows fill the device */
        if (c->intermediate_size < 32 * (int64_t)n_sm) k->layer_kernels++;
    }
    /* embedding, norm, head with its quantized input, choice */
    k->kernels = c->n_layers * k->layer_kernels + 4 + end.int8_ok;
    k->weight_bytes = c->n_layers * (layer + 4 * vectors) + 4 * c->hidden_size + (int64_t)end.read_bytes +
                      (int64_t)end.read_bytes / c->vocab_size;
    k->kv_bytes = 2 * c->n_layers * n_ctx * c->n_kv_heads * c->head_dim * 2;
}
