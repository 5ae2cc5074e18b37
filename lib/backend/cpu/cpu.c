/* The CPU backend: device memory is host memory, weights stay where the checkpoint is mapped. */
#include "backend/cpu/cpu.h"

#include "backend/backend_impl.h"
#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *buf_get(struct thread_buf *b, size_t size)
{
    if (size > b->size) {
        free(b->p);
        b->p = mem_array(size, 1);
        b->size = size;
    }
    return b->p;
}

struct cpu_ctx *cpu_begin(struct backend *be)
{
    struct cpu_ctx *c = be->ctx;
    int n = par_threads();
    if (n > c->n_buf) {
        struct thread_buf *more = mem_array((size_t)n, sizeof *more);
        memset(more, 0, (size_t)n * sizeof *more);
        if (c->n_buf) memcpy(more, c->buf, (size_t)c->n_buf * sizeof *more);
        free(c->buf);
        c->buf = more;
        c->n_buf = n;
    }
    return c;
}

void par_if(int64_t work, int64_t n, int64_t grain, par_fn *fn, void *ctx)
{
    if (n <= 0) return;
    if (work < 16384)
        fn(ctx, 0, n, 0);
    else
        par_for(n, grain, fn, ctx);
}

static void cpu_close(struct backend *be)
{
    struct cpu_ctx *c = be->ctx;
    for (int i = 0; i < c->n_buf; i++) free(c->buf[i].p);
    free(c->buf);
    free(c->shared.p);
    free(c->normed.p);
    free(c->sums.p);
    free(c->packed.p);
    rope_table_free(c->rope);
    free(c);
}

static void *cpu_alloc(struct backend *be, size_t bytes, struct err *e)
{
    (void)be, (void)e;
    return mem_array(bytes, 1);
}

static void cpu_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static void cpu_copy(struct backend *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    if (bytes) memcpy(dst, src, bytes);
}

static void cpu_sync(struct backend *be) { (void)be; }

/* Whether the weight is repacked: its path and plan into w; returns the bytes that takes, 0 if it stays as it is. */
static size_t repacked(const struct backend *be, struct cpu_weight *w, const struct qweight *src)
{
    const struct cpu_ctx *c = be->ctx;
    if (c->passes > 0 && panels_plan(&w->panels, src, c->passes > 1)) {
        w->path = PATH_PANELS;
        return panels_bytes(&w->panels);
    }
    if (be->compute == COMPUTE_BF16 && bf16_plan(&w->bf16, src)) {
        w->path = PATH_BF16;
        return (size_t)w->bf16.n_panels * w->bf16.panel_bytes;
    }
    return 0;
}

static size_t cpu_weight_bytes(struct backend *be, const struct qweight *src)
{
    struct cpu_weight w;
    size_t bytes = repacked(be, &w, src);
    return bytes ? bytes + (src->in_memory ? (size_t)src->bytes : 0) : (size_t)src->bytes;
}

static int cpu_load_weight(struct backend *be, struct weight *out, const struct qweight *src, struct err *e)
{
    (void)e;
    struct cpu_ctx *ctx = be->ctx;
    struct cpu_weight *w = mem_new(1, sizeof *w);
    w->q = *src;
    w->path = !dequant_ok(src) ? PATH_REFERENCE : src->fmt.kind == CODE_FLOAT ? PATH_DIRECT : PATH_DEQUANT;
    w->elem = src->fmt.dtype == DT_F16 ? ELEM_F16 : src->fmt.dtype == DT_BF16 ? ELEM_BF16 : ELEM_F32;
    if (!src->src || !src->src->permuted_heads) w->rows = src->src ? src->src->data : src->codes;
    *out = (struct weight){.n_out = src->n_out, .n_in = src->n_in, .resident_bytes = (size_t)src->bytes,
                           .read_bytes = (size_t)src->bytes, .mapped = !src->in_memory, .data = w};
    if (src->fmt.kind == CODE_FLOAT) {
        out->memory = src->src ? src->src->data : src->codes;
        out->memory_bytes = (size_t)src->bytes;
    }
    snprintf(out->format, sizeof out->format, "%s", src->fmt.name ? src->fmt.name : "other");
    size_t bytes = repacked(be, w, src);
    if (!bytes) return 0;
    void *data = arena_alloc(&ctx->arena, bytes);
    if (w->path == PATH_PANELS) {
        w->panels.data = data;
        panels_pack(&w->panels, src, ctx->k);
    } else {
        w->bf16.data = data;
        bf16_pack(&w->bf16, src);
    }
    qweight_drop(src);
    out->resident_bytes = out->read_bytes = out->memory_bytes = bytes;
    out->memory = data;
    out->compute = be->compute;
    out->mapped = false;
    out->copied = true;
    return 0;
}

static void cpu_free_weight(struct backend *be, struct weight *w)
{
    struct cpu_ctx *ctx = be->ctx;
    struct cpu_weight *c = w->data;
    if (c) arena_free(&ctx->arena, c->panels.data);
    if (c) arena_free(&ctx->arena, c->bf16.data);
    free(c);
    *w = (struct weight){0};
}

struct embed_job {
    float *x;
    const struct cpu_weight *w;
    const struct kernels *k;
    const int32_t *tokens;
};

static void embed_tokens(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct embed_job *j = ctx;
    int64_t n = j->w->q.n_in;
    for (int64_t t = begin; t < end; t++) {
        assert(j->tokens[t] >= 0 && j->tokens[t] < j->w->q.n_out);
        dequant_whole_row(j->k, &j->w->q, j->tokens[t], j->x + t * n);
    }
}

static void cpu_embed(struct backend *be, float *x, const struct weight *table, const int32_t *tokens, int64_t n_tok)
{
    struct cpu_ctx *c = be->ctx;
    par_if(n_tok * table->n_in, n_tok, 1, embed_tokens, &(struct embed_job){x, table->data, c->k, tokens});
}

static const struct backend_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .load_weight = cpu_load_weight,
    .free_weight = cpu_free_weight,
    .matmul = cpu_matmul,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .rope = cpu_rope,
    .kv_append = cpu_kv_append,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .score = cpu_score,
    .diverge = cpu_diverge,
    .sync = cpu_sync,
    .norm_matmul = cpu_norm_matmul,
    .matmul_add = cpu_matmul_add,
    .gate_up = cpu_gate_up,
    .rope_attention = cpu_rope_attention,
    .argmax = cpu_argmax,
    .weight_bytes = cpu_weight_bytes,
};

int cpu_open(struct backend *be, enum compute compute, enum isa isa, struct err *e)
{
    if (compute == COMPUTE_F16)
        return err_set(e, "compute '%s': not offered by device cpu (f32, bf16, int8 or int8x2 was expected)", compute_name(compute));
    struct cpu_ctx *c = mem_new(1, sizeof *c);
    c->k = kernels_of(isa);
    c->k8 = int8_kernels_of(isa);
    c->k16 = bf16_kernels_of(isa);
    c->passes = compute == COMPUTE_INT8 ? 1 : compute == COMPUTE_INT8X2 ? 2 : 0;
    *be = (struct backend){.ops = &cpu_ops, .compute = compute, .ctx = c};
    return 0;
}
