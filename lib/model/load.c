#include "model/model.h"

#include "base/mem.h"
#include "base/par.h"
#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

/* A tensor expanded in memory: GGUF blocks and permuted rows, which no backend reads in place. */
struct owned {
    struct owned *next;
    struct tensor t;
    struct qweight w;
    void *buf;
};

struct expand {
    const struct qweight *src;
    enum dtype to;
    uint8_t *dst;
};

static void expand_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct expand *x = ctx;
    int64_t n = x->src->n_in;
    float *row = mem_array((size_t)n, sizeof *row);
    for (int64_t r = begin; r < end; r++) {
        qweight_rows_f32(x->src, r, 1, row);
        dtype_from_f32(x->to, row, x->dst + (size_t)r * dtype_bytes(x->to, n), n);
    }
    free(row);
}

/* Same values as `qload FILE.gguf -o DIR` would write: blocks become f16, permuted float rows keep their type. */
static const struct qweight *expanded(struct model *m, const struct qweight *src)
{
    enum dtype from = src->fmt.dtype, to = dtype_is_block(from) ? DT_F16 : from;
    struct owned *o = mem_new(1, sizeof *o);
    size_t bytes = dtype_bytes(to, src->n_out * src->n_in);
    o->buf = mem_array(bytes, 1);
    par_for(src->n_out, 16, expand_rows, &(struct expand){src, to, o->buf});
    o->t = *src->src;
    o->t.dtype = to;
    o->t.data = o->buf;
    o->t.n_bytes = bytes;
    o->t.permuted_heads = 0;
    o->w = *src;
    o->w.fmt = *format_find(to == DT_F16 ? "f16" : to == DT_BF16 ? "bf16" : "f32");
    o->w.out_dtype = to;
    o->w.src = &o->t;
    o->w.codes = o->buf;
    o->w.in_memory = true;
    o->w.bytes = (int64_t)bytes;
    o->next = m->owned;
    m->owned = o;
    qweight_drop(src);
    return &o->w;
}

/* The tensor expanded last. */
static void free_last(struct model *m)
{
    struct owned *o = m->owned;
    m->owned = o->next;
    free(o->buf);
    free(o);
}

static void free_owned(struct model *m)
{
    while (m->owned) free_last(m);
}

/* The backend keeps pointers into the source (mapped weights), never to the struct qweight itself. */
static int load_linear(struct model *m, struct weight *out, const struct checkpoint *c, const char *name, int64_t n_out,
                       int64_t n_in, bool looked_up, struct err *e)
{
    struct qweight w;
    if (qweight_open(&w, c, name, n_out, n_in, e)) return -1;
    const struct qweight *src = &w;
    if (w.fmt.kind == CODE_FLOAT && (dtype_is_block(w.fmt.dtype) || w.src->permuted_heads)) src = expanded(m, &w);
    if (m->be->ops->load_weight(m->be, out, src, e)) return err_prefix(e, "%s", name);
    m->weights_bytes += (int64_t)out->resident_bytes;
    m->read_bytes += (int64_t)out->read_bytes;
    if (src == &w || !out->copied) return 0;
    /* The host reads rows of the source, a device those of its copy. */
    if (looked_up && out->memory) m->weights_bytes += src->bytes;
    else free_last(m);
    return 0;
}

/* A norm weight or a bias as f32 on the device; *out stays NULL if it is optional and absent. */
static int load_vector(struct model *m, float **out, const struct checkpoint *c, const char *name, int64_t n,
                       int64_t permuted_heads, struct err *e)
{
    const struct tensor *t = checkpoint_need(c, name, 1, &n, e);
    if (!t) return -1;
    float *host = mem_array((size_t)n, sizeof *host), *dev = NULL;
    if (permuted_heads) { /* a bias of q or k from GGUF: elements move as the weight's rows do */
        struct tensor rows = *t;
        rows.n_dims = 2;
        rows.shape[1] = 1;
        tensor_rows_f32(&rows, 0, n, host);
    } else {
        tensor_rows_f32(t, 0, 1, host);
    }
    dev = m->be->ops->alloc(m->be, (size_t)n * sizeof *dev, e);
    if (dev) m->be->ops->upload(m->be, dev, host, (size_t)n * sizeof *dev);
    free(host);
    if (!dev) return err_prefix(e, "%s", name);
    *out = dev;
    m->weights_bytes += n * (int64_t)sizeof *dev;
    m->read_bytes += n * (int64_t)sizeof *dev;
    return 0;
}

static int load_layer(struct model *m, int64_t i, const struct checkpoint *c, struct err *e)
{
    struct layer *l = &m->layers[i];
    const struct config *cfg = &m->cfg;
    char name[LINEAR_NAME_MAX], full[LINEAR_NAME_MAX + 16];
    for (int op = 0; op < N_OPS; op++) {
        int64_t n_out, n_in;
        config_op_shape(cfg, (enum op)op, &n_out, &n_in);
        linear_name(name, i, (enum op)op);
        if (load_linear(m, &l->w[op], c, name, n_out, n_in, false, e)) return -1;
        if (!config_op_bias(cfg, (enum op)op)) continue;
        snprintf(full, sizeof full, "%s.bias", name);
        const struct tensor *t = checkpoint_find(c, full);
        if (load_vector(m, &l->bias[op], c, full, n_out, t ? t->permuted_heads : 0, e)) return -1;
    }
    struct {
        const char *part;
        float **to;
        int64_t n;
        bool wanted;
    } norms[] = {{"input_layernorm", &l->attn_norm, cfg->hidden_size, true},
                 {"post_attention_layernorm", &l->mlp_norm, cfg->hidden_size, true},
                 {"self_attn.q_norm", &l->q_norm, cfg->head_dim, cfg->qk_norm},
                 {"self_attn.k_norm", &l->k_norm, cfg->head_dim, cfg->qk_norm}};
    for (size_t k = 0; k < sizeof norms / sizeof *norms; k++) {
        if (!norms[k].wanted) continue;
        snprintf(full, sizeof full, "model.layers.%lld.%s.weight", (long long)i, norms[k].part);
        if (load_vector(m, norms[k].to, c, full, norms[k].n, 0, e)) return -1;
    }
    return 0;
}

/* Before anything is copied to a device: whether the weights will fit. */
static int check_room(struct backend *be, const struct checkpoint *c, struct err *e)
{
    struct memory_plan p;
    struct device d;
    if (!be->ops->describe) return 0;
    if (memory_plan(&p, c, be, 1, 1, e)) return -1;
    be->ops->describe(be, &d);
    if (p.weights_bytes <= d.free_bytes) return 0;
    double mib = 1 << 20, n = (double)plan_n_params(&c->config, c->tied);
    return err_set(e, "%s: out of memory: weights take %.1f MiB, %.1f MiB are free (%.1f MiB are missing; %.1f bits a "
                      "parameter would fit)", d.name, (double)p.weights_bytes / mib, (double)d.free_bytes / mib,
                   (double)(p.weights_bytes - d.free_bytes) / mib, 8 * (double)d.free_bytes / n);
}

/* What was copied may come back in the pages that a neighbour's first touch brings along. */
static void drop_layer(const struct layer *l, int64_t i, const struct checkpoint *c)
{
    char prefix[LINEAR_NAME_MAX];
    int n = snprintf(prefix, sizeof prefix, "model.layers.%lld.", (long long)i);
    for (int op = 0; op < N_OPS; op++)
        if (l->w[op].mapped) return;
    for (size_t k = 0; k < c->n_tensors; k++)
        if (!strncmp(c->tensors[k].name, prefix, (size_t)n)) checkpoint_drop(&c->tensors[k]);
}

int model_load(struct model *m, struct backend *be, const struct checkpoint *c, struct err *e)
{
    memset(m, 0, sizeof *m);
    m->be = be;
    if (check_room(be, c, e)) return err_prefix(e, "%s", c->path);
    m->cfg = c->config;
    m->tied = c->tied;
    const struct config *cfg = &m->cfg;
    m->layers = mem_new((size_t)cfg->n_layers, sizeof *m->layers);
    m->inv_freq = mem_array((size_t)cfg->head_dim / 2, sizeof *m->inv_freq);
    rope_inv_freq(&cfg->rope, cfg->head_dim, m->inv_freq);
    int64_t V = cfg->vocab_size, D = cfg->hidden_size;
    if (load_linear(m, &m->embed, c, "model.embed_tokens", V, D, true, e)) goto fail;
    /* Decoding reads one row of the table, all of it only where it is the head as well. */
    m->read_bytes -= (int64_t)m->embed.read_bytes;
    if (m->tied) {
        m->head = m->embed;
        m->read_bytes += (int64_t)m->head.read_bytes;
    } else if (load_linear(m, &m->head, c, "lm_head", V, D, false, e)) {
        goto fail;
    }
    m->read_bytes += (int64_t)m->embed.read_bytes / V;
    /* Where the host looks rows up and nothing else reads the table: a tied head that was copied no more does. */
    bool rows_only = m->tied ? m->embed.copied && m->embed.memory : m->embed.mapped;
    m->give_back = rows_only && !qweight_open(&m->table, c, "model.embed_tokens", V, D, e);
    for (int64_t i = 0; i < cfg->n_layers; i++) {
        if (load_layer(m, i, c, e)) goto fail;
        drop_layer(&m->layers[i], i, c);
    }
    if (load_vector(m, &m->final_norm, c, "model.norm.weight", D, 0, e)) goto fail;
    return 0;
fail:
    model_free(m);
    return err_prefix(e, "%s", c->path);
}

void model_free(struct model *m)
{
    if (!m->be) return;
    const struct backend_ops *ops = m->be->ops;
    for (int64_t i = 0; m->layers && i < m->cfg.n_layers; i++) {
        struct layer *l = &m->layers[i];
        for (int op = 0; op < N_OPS; op++) {
            if (l->w[op].data) ops->free_weight(m->be, &l->w[op]);
            if (l->bias[op]) ops->free(m->be, l->bias[op]);
        }
        float *norms[] = {l->attn_norm, l->mlp_norm, l->q_norm, l->k_norm};
        for (size_t k = 0; k < sizeof norms / sizeof *norms; k++)
            if (norms[k]) ops->free(m->be, norms[k]);
    }
    if (m->head.data && !m->tied) ops->free_weight(m->be, &m->head);
    if (m->embed.data) ops->free_weight(m->be, &m->embed);
    if (m->final_norm) ops->free(m->be, m->final_norm);
    free(m->layers);
    free(m->inv_freq);
    free_owned(m);
    memset(m, 0, sizeof *m);
}
