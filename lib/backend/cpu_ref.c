/* The oracle of every other backend: plain loops over dequantized weights, written for clarity. Products of f32 values
 * are exact in double and are summed in double, and each result is rounded to f32 once; exp, log, cos and sin are the
 * C library's in double. Threads share rows or tokens only, so results do not depend on their number. */
#include "backend/backend_impl.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/par.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ref_close(struct backend *be) { (void)be; }

static void *ref_alloc(struct backend *be, size_t bytes, struct err *e)
{
    (void)be, (void)e;
    return mem_array(bytes, 1);
}

static void ref_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static void ref_copy(struct backend *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    if (bytes) memcpy(dst, src, bytes);
}

static void ref_sync(struct backend *be) { (void)be; }

/* weight.data is a copy of the qweight: it stays packed, rows are dequantized when they are used. */
static int ref_load_weight(struct backend *be, struct weight *out, const struct qweight *src, struct err *e)
{
    (void)be, (void)e;
    struct qweight *q = mem_new(1, sizeof *q);
    *q = *src;
    *out = (struct weight){.n_out = src->n_out, .n_in = src->n_in, .resident_bytes = (size_t)src->bytes,
                           .read_bytes = (size_t)src->bytes, .mapped = true, .data = q};
    snprintf(out->format, sizeof out->format, "%s", src->fmt.name ? src->fmt.name : "other");
    return 0;
}

static void ref_free_weight(struct backend *be, struct weight *w)
{
    (void)be;
    free(w->data);
    *w = (struct weight){0};
}

struct matmul_job {
    const struct matmul *m;
    const float *x;
    int64_t n_tok;
};

static void matmul_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct matmul_job *j = ctx;
    int64_t n_in = j->m->w->n_in, n_out = j->m->w->n_out;
    float *w = mem_array((size_t)n_in, 4);
    for (int64_t r = begin; r < end; r++) {
        qweight_rows_f32(j->m->w->data, r, 1, w);
        for (int64_t t = 0; t < j->n_tok; t++) {
            const float *x = j->x + t * n_in;
            double sum = 0;
            for (int64_t k = 0; k < n_in; k++) sum += (double)x[k] * w[k];
            j->m->y[t * n_out + r] = (float)sum + (j->m->bias ? j->m->bias[r] : 0);
        }
    }
    free(w);
}

static void ref_matmul(struct backend *be, const struct matmul *jobs, int n, const float *x, int64_t n_tok)
{
    (void)be;
    for (int i = 0; i < n; i++) {
        assert(jobs[i].w->n_in == jobs[0].w->n_in);
        par_for(jobs[i].w->n_out, 1, matmul_rows, &(struct matmul_job){&jobs[i], x, n_tok});
    }
}

static void ref_embed(struct backend *be, float *x, const struct weight *table, const int32_t *tokens, int64_t n_tok)
{
    (void)be;
    for (int64_t t = 0; t < n_tok; t++) {
        assert(tokens[t] >= 0 && tokens[t] < table->n_out);
        qweight_rows_f32(table->data, tokens[t], 1, x + t * table->n_in);
    }
}

static void ref_rmsnorm(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n,
                        double eps)
{
    (void)be;
    for (int64_t r = 0; r < n_rows; r++, x += n, y += n) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
        float scale = (float)(1 / sqrt(sum / (double)n + eps));
        for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
    }
}

static void ref_rope(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads,
                     int64_t head_dim, const float *inv_freq)
{
    (void)be;
    int64_t half = head_dim / 2;
    for (int s = 0; s < n_spans; s++)
        for (int64_t t = 0; t < spans[s].n_new; t++) {
            float pos = (float)(spans[s].kv->n + t);
            float *row = x + (spans[s].row0 + t) * n_heads * head_dim;
            for (int64_t j = 0; j < half; j++) {
                float angle = pos * inv_freq[j];
                float c = (float)cos(angle), sn = (float)sin(angle);
                for (int64_t h = 0; h < n_heads; h++) {
                    float *a = row + h * head_dim + j, *b = a + half, a0 = *a, b0 = *b;
                    *a = a0 * c - b0 * sn;
                    *b = b0 * c + a0 * sn;
                }
            }
        }
}

static float kv_get(const struct kv_cache *kv, const void *base, int64_t i)
{
    return kv->dtype == DT_F32 ? ((const float *)base)[i] : f16_to_f32(((const uint16_t *)base)[i]);
}

static void kv_put(const struct kv_cache *kv, void *base, int64_t i, float v)
{
    if (kv->dtype == DT_F32)
        ((float *)base)[i] = v;
    else
        ((uint16_t *)base)[i] = f32_to_f16(v);
}

static void ref_kv_append(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                          const float *v)
{
    (void)be;
    for (int s = 0; s < n_spans; s++) {
        struct kv_cache *kv = spans[s].kv;
        int64_t row = kv->n_kv_heads * kv->head_dim;
        assert(kv->n + spans[s].n_new <= kv->capacity && layer < kv->n_layers);
        int64_t at = (layer * kv->capacity + kv->n) * row, from = spans[s].row0 * row;
        for (int64_t i = 0; i < spans[s].n_new * row; i++) {
            kv_put(kv, kv->k, at + i, k[from + i]);
            kv_put(kv, kv->v, at + i, v[from + i]);
        }
    }
}

struct attention_job {
    float *out;
    const float *q;
    const struct span *span;
    int64_t layer, n_heads;
};

/* Items are (token, head) of one span. */
static void attention_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct attention_job *j = ctx;
    const struct kv_cache *kv = j->span->kv;
    int64_t hd = kv->head_dim, row = kv->n_kv_heads * hd;
    double *p = mem_array((size_t)(kv->n + j->span->n_new), sizeof *p), *o = mem_array((size_t)hd, sizeof *o);
    for (int64_t item = begin; item < end; item++) {
        int64_t t = item / j->n_heads, h = item % j->n_heads, n_keys = kv->n + t + 1;
        int64_t at = ((j->span->row0 + t) * j->n_heads + h) * hd;
        int64_t base = j->layer * kv->capacity * row + h / (j->n_heads / kv->n_kv_heads) * hd;
        double max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n_keys; i++) {
            double s = 0;
            for (int64_t d = 0; d < hd; d++) s += (double)j->q[at + d] * kv_get(kv, kv->k, base + i * row + d);
            p[i] = s / sqrt((double)hd);
            max = fmax(max, p[i]);
        }
        memset(o, 0, (size_t)hd * sizeof *o);
        for (int64_t i = 0; i < n_keys; i++) {
            double e = exp(p[i] - max);
            sum += e;
            for (int64_t d = 0; d < hd; d++) o[d] += e * kv_get(kv, kv->v, base + i * row + d);
        }
        for (int64_t d = 0; d < hd; d++) j->out[at + d] = (float)(o[d] / sum);
    }
    free(p);
    free(o);
}

static void ref_attention(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                          int64_t layer, int64_t n_heads)
{
    (void)be;
    for (int s = 0; s < n_spans; s++) {
        assert(n_heads % spans[s].kv->n_kv_heads == 0);
        par_for_dynamic(spans[s].n_new * n_heads, 1, attention_items,
                        &(struct attention_job){out, q, &spans[s], layer, n_heads});
    }
}

static void ref_swiglu(struct backend *be, float *y, const float *gate, const float *up, int64_t n)
{
    (void)be;
    for (int64_t i = 0; i < n; i++) y[i] = (float)(gate[i] / (1 + exp(-(double)gate[i])) * up[i]);
}

static void ref_add(struct backend *be, float *x, const float *y, int64_t n)
{
    (void)be;
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

static double log_sum_exp(const float *x, int64_t n, int32_t *argmax)
{
    *argmax = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[*argmax]) *argmax = (int32_t)i;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp((double)x[i] - x[*argmax]);
    return x[*argmax] + log(sum);
}

static void ref_score(struct backend *be, struct score *out, const float *logits, const int32_t *targets,
                      int64_t n_tok, int64_t n_vocab)
{
    (void)be;
    for (int64_t t = 0; t < n_tok; t++, logits += n_vocab) {
        out[t].lse = log_sum_exp(logits, n_vocab, &out[t].argmax);
        out[t].target = logits[targets[t]];
    }
}

static void ref_diverge(struct backend *be, struct divergence *out, const float *logits_ref, const float *logits,
                        const int32_t *targets, int64_t n_tok, int64_t n_vocab)
{
    (void)be;
    for (int64_t t = 0; t < n_tok; t++, logits += n_vocab, logits_ref += n_vocab) {
        struct divergence *o = &out[t];
        double lse_ref = log_sum_exp(logits_ref, n_vocab, &o->argmax_ref);
        double lse = log_sum_exp(logits, n_vocab, &o->argmax_model);
        o->kld = 0;
        for (int64_t i = 0; i < n_vocab; i++) {
            double a = logits_ref[i] - lse_ref, b = logits[i] - lse;
            o->kld += exp(a) * (a - b);
        }
        o->nll_ref = lse_ref - logits_ref[targets[t]];
        o->nll_model = lse - logits[targets[t]];
        o->p_ref = exp(-o->nll_ref);
        o->p_model = exp(-o->nll_model);
    }
}

static const struct backend_ops ref_ops = {
    .name = "cpu-ref",
    .close = ref_close,
    .alloc = ref_alloc,
    .free = ref_free,
    .upload = ref_copy,
    .download = ref_copy,
    .load_weight = ref_load_weight,
    .free_weight = ref_free_weight,
    .matmul = ref_matmul,
    .embed = ref_embed,
    .rmsnorm = ref_rmsnorm,
    .rope = ref_rope,
    .kv_append = ref_kv_append,
    .attention = ref_attention,
    .swiglu = ref_swiglu,
    .add = ref_add,
    .score = ref_score,
    .diverge = ref_diverge,
    .sync = ref_sync,
};

int cpu_ref_open(struct backend *be, enum compute compute, struct err *e)
{
    if (compute != COMPUTE_F32)
        return err_set(e, "compute '%s': not offered by device cpu-ref (f32 was expected)", compute_name(compute));
    *be = (struct backend){.ops = &ref_ops, .compute = compute};
    return 0;
}
