/* The CUDA backend: struct backend_ops over the kernels of this folder, one stream, everything in order on it. Compute
 * ops only launch; what fails is told by the op that launched it or the next that waits, in one line. */
#include "blas.h"
#include "context.h"
#include "elementwise.h"
#include "launch.h"
#include "logits.h"
#include "nvml.h"
#include "step.h"

extern "C" {
#include "backend/backend_impl.h"
#include "base/mem.h"
#include "base/msg.h"
}

#include <cassert>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static struct cuda_ctx *ctx_of(struct backend *be) { return static_cast<struct cuda_ctx *>(be->ctx); }
static const struct cuda_weight *weight_of(const struct weight *w)
{
    return static_cast<const struct cuda_weight *>(w->data);
}

/* Every op that may write what acts_of points to begins with this. */
static struct cuda_ctx *begin(struct backend *be)
{
    struct cuda_ctx *c = ctx_of(be);
    c->acts_of = NULL;
    return c;
}

/* ---- memory, weights */

static void be_close(struct backend *be)
{
    struct cuda_ctx *c = ctx_of(be);
    step_forget(c);
    context_close(c);
}

static void *be_alloc(struct backend *be, size_t bytes, struct err *e) { return context_alloc(ctx_of(be), bytes, e); }
static void be_free(struct backend *be, void *p) { context_free(begin(be), p); }
static void be_upload(struct backend *be, void *dst, const void *src, size_t n)
{
    context_upload(begin(be), dst, src, n);
}
static void be_download(struct backend *be, void *dst, const void *src, size_t n)
{
    context_download(ctx_of(be), dst, src, n);
}
static void be_sync(struct backend *be) { context_sync(ctx_of(be)); }

static int be_load_weight(struct backend *be, struct weight *out, const struct qweight *src, struct err *e)
{
    struct cuda_ctx *c = begin(be);
    struct cuda_weight plan;
    if (cuda_weight_plan(&plan, src, e)) return -1;
    plan.data = static_cast<const uint8_t *>(context_alloc(c, plan.bytes, e));
    if (!plan.data) return -1;
    if (context_put_weight(c, &plan, src, e)) {
        context_free(c, const_cast<uint8_t *>(plan.data));
        return -1;
    }
    qweight_drop(src);
    struct cuda_weight *w = static_cast<struct cuda_weight *>(mem_new(1, sizeof *w));
    *w = plan;
    memset(out, 0, sizeof *out);
    out->n_out = src->n_out;
    out->n_in = src->n_in;
    out->resident_bytes = plan.bytes;
    out->read_bytes = plan.read_bytes;
    out->copied = true; /* src was packed to pinned memory before its copies were queued: nothing points into it */
    out->data = w;
    snprintf(out->format, sizeof out->format, "%s", src->fmt.name ? src->fmt.name : "other");
    return 0;
}

static void be_free_weight(struct backend *be, struct weight *w)
{
    if (w->data) {
        context_free(begin(be), const_cast<uint8_t *>(weight_of(w)->data));
        free(w->data);
    }
    memset(w, 0, sizeof *w);
}

static size_t be_weight_bytes(struct backend *be, const struct qweight *src)
{
    (void)be;
    struct cuda_weight plan;
    return cuda_weight_plan(&plan, src, NULL) ? size_t(src->bytes) : plan.bytes;
}

/* ---- products */

constexpr int max_jobs = 8;

static void run(struct cuda_ctx *c, const struct cuda_matmul *m)
{
    if (cuda_matmul(&c->env, m, c->stream)) die("%s: %s", c->who, blas_reason(c->blas));
    context_check(c);
}

/* m: all but compute and scratch; its x is normalized first if norm is given, in a kernel that quantizes too where the
 * product wants that, unless the product does both itself. */
static void product(struct cuda_ctx *c, struct cuda_matmul *m, const float *norm, double eps)
{
    struct cuda_acts acts;
    m->compute = c->compute;
    m->scratch = workspace_get(c, &c->matmul, matmul_scratch(&c->env, c->compute, m->n_tok, m->n_in), "products");
    if (norm && matmul_fuses_norm(&c->env, m)) {
        m->norm = norm;
        m->eps = float(eps);
    } else if (norm && matmul_uses_acts(&c->env, m)) {
        acts = acts_at(workspace_get(c, &c->acts, acts_bytes(m->n_tok, m->n_in), "activations"), m->n_tok, m->n_in);
        rmsnorm_rows(NULL, &acts, m->x, norm, m->n_tok, m->n_in, float(eps), c->stream);
        m->acts = &acts;
        m->x = NULL;
    } else if (norm) {
        float *h = static_cast<float *>(
            workspace_get(c, &c->normed, size_t(m->n_tok) * size_t(m->n_in) * sizeof(float), "activations"));
        rmsnorm_rows(h, NULL, m->x, norm, m->n_tok, m->n_in, float(eps), c->stream);
        m->x = h;
    }
    run(c, m);
}

static void products(struct cuda_ctx *c, const struct matmul *jobs, int n, const float *x, int64_t n_tok,
                     const float *norm, double eps)
{
    for (int at = 0; at < n; at += max_jobs) {
        struct cuda_job job[max_jobs] = {};
        const int k = n - at < max_jobs ? n - at : max_jobs;
        for (int i = 0; i < k; i++) {
            job[i].y = jobs[at + i].y;
            job[i].w = weight_of(jobs[at + i].w);
            job[i].bias = jobs[at + i].bias;
        }
        struct cuda_matmul m = matmul_of(job, k, x, n_tok, jobs[0].w->n_in);
        product(c, &m, norm, eps);
    }
}

static void be_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    products(begin(be), jobs, n, x, n_tok, NULL, 0);
}

static void be_norm_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, const float *norm,
                           double eps, int64_t n_tok)
{
    products(begin(be), jobs, n, x, n_tok, norm, eps);
}

static void be_matmul_add(struct backend *be, float *y, const struct weight *w, const float *bias, const float *in,
                          int64_t n_tok)
{
    struct cuda_ctx *c = ctx_of(be);
    struct cuda_job job = {};
    job.y = y;
    job.w = weight_of(w);
    job.bias = bias;
    job.add = y;
    struct cuda_matmul m = matmul_of(&job, 1, in, n_tok, w->n_in);
    if (c->acts_of == in) m.acts = &c->made;
    product(c, &m, NULL, 0);
    c->acts_of = NULL;
}

static void be_gate_up(struct backend *be, float *y, const struct matmul jobs[2], const float *x, const float *norm,
                       double eps, int64_t n_tok)
{
    struct cuda_ctx *c = begin(be);
    const struct weight *gate = jobs[0].w;
    struct cuda_job job = {};
    job.y = y;
    job.w = weight_of(gate);
    job.bias = jobs[0].bias;
    job.up = weight_of(jobs[1].w);
    job.up_bias = jobs[1].bias;
    job.up_y = jobs[1].y;
    struct cuda_matmul m = matmul_of(&job, 1, x, n_tok, gate->n_in);
    if (c->compute == COMPUTE_INT8 && job.w->int8_ok) { /* the next product likely has the same format and wants them */
        void *mem = workspace_get(c, &c->made_mem, acts_bytes(n_tok, gate->n_out), "activations");
        c->made = acts_at(mem, n_tok, gate->n_out);
        m.out = &c->made;
    }
    product(c, &m, norm, eps);
    if (m.out) c->acts_of = y;
}

/* ---- rows */

static const int32_t *ints_on_device(struct cuda_ctx *c, const int32_t *v, int64_t n)
{
    int32_t *p = static_cast<int32_t *>(workspace_get(c, &c->host_ints, size_t(n) * sizeof *p, "token ids"));
    context_upload(c, p, v, size_t(n) * sizeof *p);
    return p;
}

static void be_embed(struct backend *be, float *x, const struct weight *table, const int32_t *tokens, int64_t n_tok)
{
    struct cuda_ctx *c = begin(be);
    const struct step_state *step = step_state_of(c);
    const int64_t n = table->n_in, ld = (n + 7) / 8 * 8;
    assert(!step || n_tok == 1);
    for (int64_t t = 0; t < n_tok && !step; t++) assert(tokens[t] >= 0 && tokens[t] < table->n_out);
    const int32_t *ids = step ? &step->token : ints_on_device(c, tokens, n_tok);
    float *rows = x;
    if (ld != n)
        rows = static_cast<float *>(
            workspace_get(c, &c->normed, size_t(n_tok) * size_t(ld) * sizeof(float), "embeddings"));
    dequant_rows(rows, CUF_F32, ld, weight_of(table), ids, 0, n_tok, c->stream);
    if (ld != n)
        cuda_must(c, cudaMemcpy2DAsync(x, size_t(n) * 4, rows, size_t(ld) * 4, size_t(n) * 4, size_t(n_tok),
                                       cudaMemcpyDeviceToDevice, c->stream), "embeddings");
    context_check(c);
}

static void be_rmsnorm(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n,
                       double eps)
{
    struct cuda_ctx *c = begin(be);
    rmsnorm_rows(y, NULL, x, w, n_rows, n, float(eps), c->stream);
    context_check(c);
}

static void be_swiglu(struct backend *be, float *y, const float *gate, const float *up, int64_t n)
{
    struct cuda_ctx *c = begin(be);
    swiglu_rows(y, NULL, gate, up, 1, n, c->stream);
    context_check(c);
}

static void be_add(struct backend *be, float *x, const float *y, int64_t n)
{
    struct cuda_ctx *c = begin(be);
    add_to(x, y, n, c->stream);
    context_check(c);
}

/* ---- attention */

static attn_shape shape_of(const struct kv_cache *kv, int64_t n_heads)
{
    return {int(n_heads), int(kv->n_kv_heads), int(kv->head_dim), kv->dtype == DT_F16};
}

/* At most attn_batch_max of the spans, with the layer's part of their caches (layer < 0: none). */
static attn_batch batch_of(const struct cuda_ctx *c, const struct span *spans, int n, int64_t layer)
{
    attn_batch b = {};
    const struct step_state *step = step_state_of(c);
    assert(!step || (n == 1 && spans[0].n_new == 1));
    b.n = n;
    b.pos = step ? &step->pos : NULL;
    for (int i = 0; i < n; i++) {
        const struct kv_cache *kv = spans[i].kv;
        attn_span *s = &b.span[i];
        *s = {NULL, NULL, int(kv->n), int(spans[i].row0), int(spans[i].n_new), int(kv->capacity)};
        if (layer < 0) continue;
        assert(kv->n + spans[i].n_new <= kv->capacity && layer < kv->n_layers);
        const size_t at = size_t(layer * kv->capacity * kv->n_kv_heads * kv->head_dim) * (kv->dtype == DT_F16 ? 2 : 4);
        s->k = static_cast<char *>(kv->k) + at;
        s->v = static_cast<char *>(kv->v) + at;
    }
    return b;
}

static int some(int n) { return n < attn_batch_max ? n : attn_batch_max; }

static const float *inv_freq_on_device(struct cuda_ctx *c, const float *v, int64_t n)
{
    const size_t bytes = size_t(n) * sizeof *v;
    if (c->inv_freq && c->n_inv_freq == n && !memcmp(c->inv_freq_host, v, bytes)) return c->inv_freq;
    struct err e;
    if (c->n_inv_freq != n) {
        if (c->inv_freq) context_free(c, c->inv_freq);
        c->inv_freq = static_cast<float *>(context_alloc(c, bytes, &e));
        if (!c->inv_freq) die("rotary frequencies: %s", e.msg);
        c->inv_freq_host = static_cast<float *>(mem_grow(c->inv_freq_host, size_t(n), sizeof *v));
        c->n_inv_freq = n;
    }
    memcpy(c->inv_freq_host, v, bytes);
    context_upload(c, c->inv_freq, v, bytes);
    return c->inv_freq;
}

static void be_rope(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads,
                    int64_t head_dim, const float *inv_freq)
{
    struct cuda_ctx *c = begin(be);
    const float *f = inv_freq_on_device(c, inv_freq, head_dim / 2);
    for (int i = 0; i < n_spans; i += attn_batch_max)
        rope_rows(x, batch_of(c, spans + i, some(n_spans - i), -1), int(n_heads), int(head_dim), f, c->stream);
    context_check(c);
}

static void be_kv_append(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                         const float *v)
{
    struct cuda_ctx *c = begin(be);
    const attn_new in = {NULL, const_cast<float *>(k), v, NULL, NULL, 0, NULL};
    for (int i = 0; i < n_spans; i += attn_batch_max)
        rope_append(in, batch_of(c, spans + i, some(n_spans - i), layer),
                    shape_of(spans[0].kv, spans[0].kv->n_kv_heads), c->stream);
    context_check(c);
}

static void *attention_work(struct cuda_ctx *c, const attn_shape &s)
{
    return workspace_get(c, &c->attention, attention_work_bytes(s, c->env.n_sm), "attention");
}

static void be_attention(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                         int64_t layer, int64_t n_heads)
{
    struct cuda_ctx *c = begin(be);
    const attn_shape s = shape_of(spans[0].kv, n_heads);
    for (int i = 0; i < n_spans; i += attn_batch_max)
        attention(out, q, batch_of(c, spans + i, some(n_spans - i), layer), s, attention_work(c, s), c->env.n_sm,
                  c->stream);
    context_check(c);
}

static void be_rope_attention(struct backend *be, float *out, const struct rope_attention *a, const struct span *spans,
                              int n_spans, int64_t layer, int64_t n_heads)
{
    struct cuda_ctx *c = begin(be);
    const attn_shape s = shape_of(spans[0].kv, n_heads);
    const attn_new in = {a->q, a->k, a->v, a->q_norm, a->k_norm, float(a->eps),
                         inv_freq_on_device(c, a->inv_freq, s.head_dim / 2)};
    for (int i = 0; i < n_spans; i += attn_batch_max)
        rope_attention(out, in, batch_of(c, spans + i, some(n_spans - i), layer), s, attention_work(c, s), c->env.n_sm,
                       c->stream);
    context_check(c);
}

/* ---- logits */

static void be_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets, int64_t n_tok,
                     int64_t n_vocab)
{
    struct cuda_ctx *c = begin(be);
    void *work = workspace_get(c, &c->logits, logits_work_bytes(n_tok, n_vocab), "scores");
    struct score *results =
        static_cast<struct score *>(workspace_get(c, &c->results, size_t(n_tok) * sizeof *out, "scores"));
    logits_score(results, logits, ints_on_device(c, targets, n_tok), n_tok, n_vocab, work, c->stream);
    context_check(c);
    context_download(c, out, results, size_t(n_tok) * sizeof *out);
}

static void be_diverge(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                       const int32_t *targets, int64_t n_tok, int64_t n_vocab)
{
    struct cuda_ctx *c = begin(be);
    const size_t bytes = size_t(n_tok) * sizeof *out;
    void *work = workspace_get(c, &c->logits, logits_work_bytes(n_tok, n_vocab), "divergences");
    struct divergence *results = static_cast<struct divergence *>(workspace_get(c, &c->results, bytes, "divergences"));
    logits_diverge(results, logits_ref, logits, ints_on_device(c, targets, n_tok), n_tok, n_vocab, work, c->stream);
    context_check(c);
    context_download(c, out, results, bytes);
}

static int32_t be_argmax(struct backend *be, const struct weight *head, const float *hidden, float *logits)
{
    struct cuda_ctx *c = begin(be);
    const struct matmul job = {logits, head, NULL};
    products(c, &job, 1, hidden, 1, NULL, 0);
    return step_choose(c, logits, head->n_out,
                       workspace_get(c, &c->logits, logits_work_bytes(1, head->n_out), "scores"));
}

/* ---- decode steps, the device */

static int32_t be_step(struct backend *be, const struct step *s) { return step_run(begin(be), s); }

static void be_describe(struct backend *be, struct device *d)
{
    struct cuda_ctx *c = ctx_of(be);
    size_t free_bytes = 0, total = 0;
    cuda_must(c, cudaMemGetInfo(&free_bytes, &total), "its memory");
    snprintf(d->name, sizeof d->name, "%s", c->name);
    snprintf(d->driver, sizeof d->driver, "%s", c->driver);
    d->memory_bytes = int64_t(total);
    d->free_bytes = int64_t(free_bytes);
    d->context_bytes = int64_t(c->context_bytes);
    d->peak_bytes = int64_t(c->peak + c->context_bytes);
}

static void be_sense(struct backend *be, struct sensors *s) { nvml_sense(ctx_of(be)->nvml, s); }
static double be_copy_bandwidth(struct backend *be) { return context_copy_bandwidth(begin(be)); }

static void be_time_begin(struct backend *be)
{
    struct cuda_ctx *c = ctx_of(be);
    context_chill(c);
    cuda_must(c, cudaEventRecord(c->begin, c->stream), "a timer");
}

static double be_time_end(struct backend *be)
{
    struct cuda_ctx *c = ctx_of(be);
    float ms;
    cuda_must(c, cudaEventRecord(c->end, c->stream), "a timer");
    context_sync(c);
    cuda_must(c, cudaEventElapsedTime(&ms, c->begin, c->end), "a timer");
    return double(ms) * 1e-3;
}

/* As the ops above ask for it. */
static size_t be_workspace_bytes(struct backend *be, const struct config *g, int64_t rows)
{
    struct cuda_ctx *c = ctx_of(be);
    const int64_t q = g->n_heads * g->head_dim;
    const int64_t wide = g->intermediate_size > g->hidden_size ? g->intermediate_size : g->hidden_size;
    const int64_t most = wide > q ? wide : q;
    const attn_shape s = {int(g->n_heads), int(g->n_kv_heads), int(g->head_dim), c->compute != COMPUTE_F32};
    size_t n = matmul_scratch(&c->env, c->compute, rows, most) + attention_work_bytes(s, c->env.n_sm);
    n += c->compute == COMPUTE_INT8 ? acts_bytes(rows, g->hidden_size) + acts_bytes(rows, g->intermediate_size) : 0;
    n += size_t(rows) * size_t(g->hidden_size) * sizeof(float) + logits_work_bytes(1, g->vocab_size);
    return n;
}

static struct backend_ops ops_of_device(void)
{
    struct backend_ops o = {};
    o.name = "cuda";
    o.close = be_close;
    o.alloc = be_alloc;
    o.free = be_free;
    o.upload = be_upload;
    o.download = be_download;
    o.load_weight = be_load_weight;
    o.free_weight = be_free_weight;
    o.matmul = be_matmul;
    o.embed = be_embed;
    o.rmsnorm = be_rmsnorm;
    o.rope = be_rope;
    o.kv_append = be_kv_append;
    o.attention = be_attention;
    o.swiglu = be_swiglu;
    o.add = be_add;
    o.score = be_score;
    o.diverge = be_diverge;
    o.sync = be_sync;
    o.norm_matmul = be_norm_matmul;
    o.matmul_add = be_matmul_add;
    o.gate_up = be_gate_up;
    o.rope_attention = be_rope_attention;
    o.argmax = be_argmax;
    o.step = be_step;
    o.describe = be_describe;
    o.sense = be_sense;
    o.copy_bandwidth = be_copy_bandwidth;
    o.time_begin = be_time_begin;
    o.time_end = be_time_end;
    o.weight_bytes = be_weight_bytes;
    o.workspace_bytes = be_workspace_bytes;
    return o;
}

int cuda_open(struct backend *be, int index, enum compute compute, bool fastest, struct err *e)
{
    static struct backend_ops ops;
    ops = ops_of_device();
    if (fastest) compute = COMPUTE_INT8;
    struct cuda_ctx *c = context_open(index, compute, e);
    if (!c) return -1;
    be->ops = &ops;
    be->compute = compute;
    be->ctx = c;
    return 0;
}
