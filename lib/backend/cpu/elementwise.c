#include "backend/cpu/cpu.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct rows_job {
    const struct kernels *k;
    float *y;
    const float *x, *w;
    int64_t n;
    double eps;
};

static void rmsnorm_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rows_job *j = ctx;
    for (int64_t r = begin; r < end; r++) j->k->rmsnorm(j->y + r * j->n, j->x + r * j->n, j->w, j->n, j->eps);
}

void cpu_rmsnorm(struct backend *be, float *y, const float *x, const float *w, int64_t n_rows, int64_t n, double eps)
{
    struct cpu_ctx *c = be->ctx;
    par_if(n_rows * n, n_rows, 1, rmsnorm_rows, &(struct rows_job){c->k, y, x, w, n, eps});
}

static void swiglu_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rows_job *j = ctx;
    j->k->swiglu(j->y + begin, j->x + begin, j->w + begin, end - begin);
}

void cpu_swiglu(struct backend *be, float *y, const float *gate, const float *up, int64_t n)
{
    struct cpu_ctx *c = be->ctx;
    par_if(n, n, 1024, swiglu_range, &(struct rows_job){c->k, y, gate, up, n, 0});
}

static void add_range(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rows_job *j = ctx;
    j->k->add(j->y + begin, j->x + begin, end - begin);
}

void cpu_add(struct backend *be, float *x, const float *y, int64_t n)
{
    struct cpu_ctx *c = be->ctx;
    par_if(n, n, 1024, add_range, &(struct rows_job){c->k, x, y, NULL, n, 0});
}

/* cos and sin by position, kept from call to call: every layer of a forward pass asks for the same ones. */
enum { ROPE_BLOCK = 64 }; /* positions made at once */
struct rope_table {
    int64_t half;
    float *inv_freq;
    float **block; /* n_blocks; (ROPE_BLOCK, 2, half): cosines, then sines; NULL until needed */
    int64_t n_blocks;
};

void rope_table_free(struct rope_table *t)
{
    if (!t) return;
    for (int64_t i = 0; i < t->n_blocks; i++) free(t->block[i]);
    free(t->block);
    free(t->inv_freq);
    free(t);
}

static struct rope_table *rope_table(struct cpu_ctx *c, const float *inv_freq, int64_t half)
{
    struct rope_table *t = c->rope;
    if (t && t->half == half && !memcmp(t->inv_freq, inv_freq, (size_t)half * 4)) return t;
    rope_table_free(t);
    c->rope = t = mem_new(1, sizeof *t);
    t->half = half;
    t->inv_freq = mem_array((size_t)half, 4);
    memcpy(t->inv_freq, inv_freq, (size_t)half * 4);
    return t;
}

/* The angle is rounded to f32, its cosine and sine are taken in double. */
static void rope_table_need(struct rope_table *t, int64_t pos0, int64_t pos1)
{
    int64_t last = (pos1 + ROPE_BLOCK - 1) / ROPE_BLOCK;
    if (last > t->n_blocks) {
        t->block = mem_grow(t->block, (size_t)last, sizeof *t->block);
        for (int64_t i = t->n_blocks; i < last; i++) t->block[i] = NULL;
        t->n_blocks = last;
    }
    for (int64_t b = pos0 / ROPE_BLOCK; b < last; b++) {
        if (t->block[b]) continue;
        float *p = t->block[b] = mem_array((size_t)(ROPE_BLOCK * 2 * t->half), 4);
        for (int64_t i = 0; i < ROPE_BLOCK; i++, p += 2 * t->half)
            for (int64_t j = 0; j < t->half; j++) {
                float angle = (float)(b * ROPE_BLOCK + i) * t->inv_freq[j];
                p[j] = (float)cos((double)angle);
                p[t->half + j] = (float)sin((double)angle);
            }
    }
}

const float *rope_at(struct cpu_ctx *c, const float *inv_freq, int64_t half, int64_t pos)
{
    struct rope_table *t = rope_table(c, inv_freq, half);
    rope_table_need(t, pos, pos + 1);
    return t->block[pos / ROPE_BLOCK] + pos % ROPE_BLOCK * 2 * half;
}

struct rope_job {
    const struct kernels *k;
    const struct rope_table *t;
    float *x;
    int64_t pos, n_heads;
};

static void rope_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rope_job *j = ctx;
    int64_t half = j->t->half;
    for (int64_t r = begin; r < end; r++) {
        int64_t pos = j->pos + r;
        const float *cs = j->t->block[pos / ROPE_BLOCK] + pos % ROPE_BLOCK * 2 * half;
        j->k->rope(j->x + r * j->n_heads * 2 * half, cs, cs + half, j->n_heads, half);
    }
}

void cpu_rope(struct backend *be, float *x, const struct span *spans, int n_spans, int64_t n_heads, int64_t head_dim,
              const float *inv_freq)
{
    struct cpu_ctx *c = be->ctx;
    struct rope_table *t = rope_table(c, inv_freq, head_dim / 2);
    for (int s = 0; s < n_spans; s++) {
        int64_t pos = spans[s].kv->n, n = spans[s].n_new, row = n_heads * head_dim;
        if (n <= 0) continue;
        rope_table_need(t, pos, pos + n);
        par_if(n * row, n, 1, rope_rows, &(struct rope_job){c->k, t, x + spans[s].row0 * row, pos, n_heads});
    }
}
