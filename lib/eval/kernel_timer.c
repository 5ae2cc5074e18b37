#include "eval/kernel_timer.h"

#include "base/mem.h"
#include "base/msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct kernel_timer *timer_of(struct backend *be) { return be->ctx; }

static struct kernel_row *row_of(struct kernel_timer *t, const char *op, const char *format)
{
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->rows[i].op, op) && !strcmp(t->rows[i].format, format) && !strcmp(t->rows[i].phase, t->phase))
            return &t->rows[i];
    t->rows = mem_grow(t->rows, t->n + 1, sizeof *t->rows);
    struct kernel_row *r = &t->rows[t->n++];
    memset(r, 0, sizeof *r);
    snprintf(r->phase, sizeof r->phase, "%s", t->phase);
    snprintf(r->op, sizeof r->op, "%s", op);
    snprintf(r->format, sizeof r->format, "%s", format);
    return r;
}

/* A device may run behind the host: it measures by its own clock, or an op has ended when sync returns. */
static double begin(struct kernel_timer *t)
{
    const struct backend_ops *ops = t->inner->ops;
    if (ops->time_begin) {
        ops->time_begin(t->inner);
        return 0;
    }
    ops->sync(t->inner);
    return clock_s();
}

static struct kernel_row *end(struct kernel_timer *t, double t0, const char *op, const char *format, double bytes,
                              double ops)
{
    const struct backend_ops *of = t->inner->ops;
    double seconds;
    if (of->time_end) {
        seconds = of->time_end(t->inner);
    } else {
        of->sync(t->inner);
        seconds = clock_s() - t0;
    }
    struct kernel_row *r = row_of(t, op, format);
    r->calls++;
    r->seconds += seconds;
    r->bytes += bytes;
    r->ops += ops;
    return r;
}

/* ---- memory and weights pass through ---- */

static void t_close(struct backend *be) { (void)be; }
static void *t_alloc(struct backend *be, size_t n, struct err *e)
{
    struct backend *in = timer_of(be)->inner;
    return in->ops->alloc(in, n, e);
}
static void t_free(struct backend *be, void *p)
{
    struct backend *in = timer_of(be)->inner;
    in->ops->free(in, p);
}
static void t_upload(struct backend *be, void *dst, const void *src, size_t n)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t);
    t->inner->ops->upload(t->inner, dst, src, n);
    end(t, t0, "upload", "", (double)n, 0);
}
static void t_download(struct backend *be, void *dst, const void *src, size_t n)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t);
    t->inner->ops->download(t->inner, dst, src, n);
    end(t, t0, "download", "", (double)n, 0);
}
static int t_load_weight(struct backend *be, struct weight *out, const struct qweight *src, struct err *e)
{
    struct backend *in = timer_of(be)->inner;
    return in->ops->load_weight(in, out, src, e);
}
static void t_free_weight(struct backend *be, struct weight *w)
{
    struct backend *in = timer_of(be)->inner;
    in->ops->free_weight(in, w);
}
static void t_sync(struct backend *be)
{
    struct backend *in = timer_of(be)->inner;
    in->ops->sync(in);
}

/* ---- compute ---- */

static void formats_of(char *buf, size_t size, const struct matmul *jobs, int n)
{
    buf[0] = 0;
    for (int i = 0; i < n; i++) {
        int seen = 0;
        for (int k = 0; k < i; k++) seen |= !strcmp(jobs[k].w->format, jobs[i].w->format);
        size_t at = strlen(buf);
        if (!seen) snprintf(buf + at, size - at, "%s%s", at ? "+" : "", jobs[i].w->format);
    }
}

/* extra bytes and operations beside those of the products; outputs: bytes of y counted or not */
static void end_matmul(struct kernel_timer *t, double t0, const char *op, const struct matmul *jobs, int n,
                       int64_t n_tok, bool outputs, double bytes, double ops)
{
    bytes += 4.0 * (double)n_tok * (double)jobs[0].w->n_in;
    for (int i = 0; i < n; i++) {
        const struct weight *w = jobs[i].w;
        bytes += (double)w->read_bytes + (outputs ? 4.0 * (double)n_tok * (double)w->n_out : 0);
        ops += 2.0 * (double)n_tok * (double)w->n_in * (double)w->n_out;
    }
    char format[sizeof((struct kernel_row *)0)->format];
    formats_of(format, sizeof format, jobs, n);
    enum compute compute = jobs[0].w->compute;
    for (int i = 1; i < n; i++)
        if (jobs[i].w->compute != compute) compute = COMPUTE_F32; /* no one peak is theirs */
    end(t, t0, op, format, bytes, ops)->compute = compute;
}

static void t_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t);
    t->inner->ops->matmul(t->inner, jobs, n, x, n_tok);
    end_matmul(t, t0, "matmul", jobs, n, n_tok, true, 0, 0);
}

static void t_norm_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, const float *norm,
                          double eps, int64_t n_tok)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), width = (double)jobs[0].w->n_in;
    t->inner->ops->norm_matmul(t->inner, jobs, n, x, norm, eps, n_tok);
    end_matmul(t, t0, "norm_matmul", jobs, n, n_tok, true, 4.0 * width, 4.0 * (double)n_tok * width);
}

static void t_matmul_add(struct backend *be, float *y, const struct weight *w, const float *bias, const float *in,
                         int64_t n_tok)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = (double)n_tok * (double)w->n_out;
    t->inner->ops->matmul_add(t->inner, y, w, bias, in, n_tok);
    end_matmul(t, t0, "matmul_add", &(struct matmul){y, w, bias}, 1, n_tok, true, 4.0 * all, all);
}

static void t_gate_up(struct backend *be, float *y, const struct matmul jobs[2], const float *x, const float *norm,
                      double eps, int64_t n_tok)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), width = (double)jobs[0].w->n_in, all = (double)n_tok * (double)jobs[0].w->n_out;
    t->inner->ops->gate_up(t->inner, y, jobs, x, norm, eps, n_tok);
    end_matmul(t, t0, "gate_up", jobs, 2, n_tok, false, 4.0 * width + 4.0 * all, 4.0 * (double)n_tok * width + 5.0 * all);
}

static int32_t t_argmax(struct backend *be, const struct weight *head, const float *hidden, float *logits)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = (double)head->n_out;
    int32_t id = t->inner->ops->argmax(t->inner, head, hidden, logits);
    end_matmul(t, t0, "argmax", &(struct matmul){logits, head, NULL}, 1, 1, true, 0, all);
    return id;
}

static void t_embed(struct backend *be, float *x, const struct weight *table, const int32_t *tokens, int64_t n_tok)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), row = (double)table->read_bytes / (double)table->n_out;
    t->inner->ops->embed(t->inner, x, table, tokens, n_tok);
    end(t, t0, "embed", table->format, (double)n_tok * (row + 4.0 * (double)table->n_in), 0);
}

static void t_rmsnorm(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n, double eps)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = (double)n_rows * (double)n;
    t->inner->ops->rmsnorm(t->inner, y, x, w, n_rows, n, eps);
    end(t, t0, "rmsnorm", "", 8.0 * all + 4.0 * (double)n, 4.0 * all);
}

static double rows_of(const struct span *spans, int n_spans)
{
    double n = 0;
    for (int i = 0; i < n_spans; i++) n += (double)spans[i].n_new;
    return n;
}

static void t_rope(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads,
                   int64_t head_dim, const float *inv_freq)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = rows_of(spans, n_spans) * (double)(n_heads * head_dim);
    t->inner->ops->rope(t->inner, x, spans, n_spans, n_heads, head_dim, inv_freq);
    end(t, t0, "rope", "", 8.0 * all, 3.0 * all);
}

static void t_kv_append(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                        const float *v)
{
    struct kernel_timer *t = timer_of(be);
    const struct kv_cache *kv = spans[0].kv;
    double t0 = begin(t), all = 2.0 * rows_of(spans, n_spans) * (double)(kv->n_kv_heads * kv->head_dim);
    t->inner->ops->kv_append(t->inner, spans, n_spans, layer, k, v);
    end(t, t0, "kv_append", "", all * (4.0 + (double)dtype_bytes(kv->dtype, 1)), 0);
}

static void attention_work(const struct span *spans, int n_spans, int64_t n_heads, double *bytes, double *ops)
{
    for (int i = 0; i < n_spans; i++) {
        const struct kv_cache *kv = spans[i].kv;
        double n_new = (double)spans[i].n_new, context = (double)kv->n + n_new;
        double width = (double)(n_heads * kv->head_dim), pairs = n_new * ((double)kv->n + (n_new + 1) / 2);
        *bytes += 2.0 * context * (double)(kv->n_kv_heads * kv->head_dim) * (double)dtype_bytes(kv->dtype, 1);
        *bytes += 8.0 * n_new * width;
        *ops += 4.0 * pairs * width + 3.0 * pairs * (double)n_heads; /* scores and values; softmax */
    }
}

static void t_attention(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                        int64_t layer, int64_t n_heads)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), bytes = 0, ops = 0;
    t->inner->ops->attention(t->inner, out, q, spans, n_spans, layer, n_heads);
    attention_work(spans, n_spans, n_heads, &bytes, &ops);
    end(t, t0, "attention", "", bytes, ops);
}

static void t_rope_attention(struct backend *be, float *out, const struct rope_attention *a, const struct span *spans,
                             int n_spans, int64_t layer, int64_t n_heads)
{
    struct kernel_timer *t = timer_of(be);
    const struct kv_cache *kv = spans[0].kv;
    double t0 = begin(t), rows = rows_of(spans, n_spans), bytes = 0, ops = 0;
    double rotated = rows * (double)((n_heads + kv->n_kv_heads) * kv->head_dim);
    t->inner->ops->rope_attention(t->inner, out, a, spans, n_spans, layer, n_heads);
    attention_work(spans, n_spans, n_heads, &bytes, &ops);
    bytes += 8.0 * rows * (double)(kv->n_kv_heads * kv->head_dim); /* k and v come from the products */
    end(t, t0, "rope_attention", "", bytes, ops + (a->q_norm ? 7.0 : 3.0) * rotated);
}

static void t_swiglu(struct backend *be, float *y, const float *gate, const float *up, int64_t n)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t);
    t->inner->ops->swiglu(t->inner, y, gate, up, n);
    end(t, t0, "swiglu", "", 12.0 * (double)n, 5.0 * (double)n);
}

static void t_add(struct backend *be, float *x, const float *y, int64_t n)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t);
    t->inner->ops->add(t->inner, x, y, n);
    end(t, t0, "add", "", 12.0 * (double)n, (double)n);
}

static void t_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets, int64_t n_tok,
                    int64_t n_vocab)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = (double)n_tok * (double)n_vocab;
    t->inner->ops->score(t->inner, out, logits, targets, n_tok, n_vocab);
    end(t, t0, "score", "", 4.0 * all, 4.0 * all);
}

static void t_diverge(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                      const int32_t *targets, int64_t n_tok, int64_t n_vocab)
{
    struct kernel_timer *t = timer_of(be);
    double t0 = begin(t), all = (double)n_tok * (double)n_vocab;
    t->inner->ops->diverge(t->inner, out, logits_ref, logits, targets, n_tok, n_vocab);
    end(t, t0, "diverge", "", 8.0 * all, 11.0 * all);
}

static const struct backend_ops timer_ops = {
    .name = "timer",
    .close = t_close,
    .alloc = t_alloc,
    .free = t_free,
    .upload = t_upload,
    .download = t_download,
    .load_weight = t_load_weight,
    .free_weight = t_free_weight,
    .matmul = t_matmul,
    .embed = t_embed,
    .rmsnorm = t_rmsnorm,
    .rope = t_rope,
    .kv_append = t_kv_append,
    .attention = t_attention,
    .swiglu = t_swiglu,
    .add = t_add,
    .score = t_score,
    .diverge = t_diverge,
    .sync = t_sync,
    .norm_matmul = t_norm_matmul,
    .matmul_add = t_matmul_add,
    .gate_up = t_gate_up,
    .rope_attention = t_rope_attention,
    .argmax = t_argmax,
};

void kernel_timer_open(struct kernel_timer *t, struct backend *inner)
{
    memset(t, 0, sizeof *t);
    t->inner = inner;
    t->ops = timer_ops; /* steps are not recorded: every op is called */
    if (!inner->ops->norm_matmul) t->ops.norm_matmul = NULL;
    if (!inner->ops->matmul_add) t->ops.matmul_add = NULL;
    if (!inner->ops->gate_up) t->ops.gate_up = NULL;
    if (!inner->ops->rope_attention) t->ops.rope_attention = NULL;
    if (!inner->ops->argmax) t->ops.argmax = NULL;
    t->be = (struct backend){.ops = &t->ops, .compute = inner->compute, .ctx = t};
}

void kernel_timer_phase(struct kernel_timer *t, const char *phase)
{
    snprintf(t->phase, sizeof t->phase, "%s", phase);
}

static int dearest_first(const void *a, const void *b)
{
    double x = ((const struct kernel_row *)a)->seconds, y = ((const struct kernel_row *)b)->seconds;
    return (x < y) - (x > y);
}

static void put_fractions(json_t *o, const struct kernel_row *r, const struct roofs *roofs)
{
    const struct peaks *p = roofs->peaks;
    const struct peak *peak = p && r->ops > 0 ? peak_of(p, r->compute) : NULL;
    double bytes_per_s = r->bytes / r->seconds, ops_per_s = r->ops / r->seconds;
    json_put(o, "bandwidth_fraction",
             roofs->read_bytes_per_s > 0 ? json_num(bytes_per_s / roofs->read_bytes_per_s) : json_null());
    json_put(o, "peak_fraction", peak ? json_num(ops_per_s / peak->ops_per_s) : json_null());
    json_put(o, "peak", !peak ? json_null() : json_string(peak == &p->int8 ? "int8" : peak == &p->bf16 ? "bf16" : "f32"));
}

json_t *kernel_timer_json(const struct kernel_timer *t, const struct roofs *roofs)
{
    struct kernel_row *r = mem_array(t->n, sizeof *r);
    if (t->n) memcpy(r, t->rows, t->n * sizeof *r);
    qsort(r, t->n, sizeof *r, dearest_first);
    json_t *a = json_array();
    for (size_t i = 0; i < t->n; i++) {
        json_t *o = json_object();
        json_put(o, "phase", json_string(r[i].phase));
        json_put(o, "op", json_string(r[i].op));
        json_put(o, "format", r[i].format[0] ? json_string(r[i].format) : json_null());
        json_put(o, "calls", json_integer(r[i].calls));
        json_put(o, "ms", json_num(r[i].seconds * 1e3));
        json_put(o, "bytes", json_integer((json_int_t)r[i].bytes));
        json_put(o, "ops", json_integer((json_int_t)r[i].ops));
        json_put(o, "bytes_per_s", json_num(r[i].bytes / r[i].seconds));
        json_put(o, "ops_per_s", json_num(r[i].ops / r[i].seconds));
        put_fractions(o, &r[i], roofs);
        json_array_append_new(a, o);
    }
    free(r);
    return a;
}

void kernel_timer_close(struct kernel_timer *t)
{
    free(t->rows);
    memset(t, 0, sizeof *t);
}
