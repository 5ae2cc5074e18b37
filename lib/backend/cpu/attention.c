/* KV cache and causal attention. Cache layout of this backend, per layer and KV head, capacity a multiple of KV_BLOCK:
 *   K (capacity/KV_BLOCK, head_dim, KV_BLOCK): the keys of a block lie side by side, one lane each
 *   V (capacity, head_dim)
 * Keys are taken in chunks of ATTN_CHUNK whose partial results are merged in rising order, whether one thread walks all
 * chunks of its queries (prefill) or threads share the chunks of a few queries (decode): the same sums in the same order
 * for any number of threads. K and V of a chunk are read once for all query heads of their KV head. */
#include "backend/cpu/cpu.h"

#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

_Static_assert((int)KV_BLOCK == (int)KV_ROUND && ATTN_CHUNK % KV_BLOCK == 0, "whole blocks in a cache and in a chunk");

static size_t elem_size(const struct kv_cache *kv) { return kv->dtype == DT_F16 ? 2 : 4; }

/* First element of layer `layer`, KV head h, of either cache. */
static int64_t head_at(const struct kv_cache *kv, int64_t layer, int64_t h)
{
    return (layer * kv->n_kv_heads + h) * kv->capacity * kv->head_dim;
}

/* ---- append ---- */

struct append {
    const struct kernels *k;
    const struct span *span;
    int64_t layer;
    const float *key, *value; /* rows of the span */
};

/* Key and value (head_dim each) of KV head h at position pos. */
static void append_head(const struct kernels *k, const struct kv_cache *kv, int64_t layer, int64_t h, int64_t pos,
                        const float *key, const float *value)
{
    int64_t hd = kv->head_dim, at = head_at(kv, layer, h), to = at + pos / KV_BLOCK * KV_BLOCK * hd + pos % KV_BLOCK;
    if (kv->dtype == DT_F32) {
        for (int64_t d = 0; d < hd; d++) ((float *)kv->k)[to + d * KV_BLOCK] = key[d];
        memcpy((float *)kv->v + at + pos * hd, value, (size_t)hd * sizeof(float));
        return;
    }
    enum { PIECE = 256 };
    uint16_t half[PIECE];
    for (int64_t d0 = 0; d0 < hd; d0 += PIECE) {
        int64_t n = hd - d0 < PIECE ? hd - d0 : PIECE;
        k->to_f16(half, key + d0, n);
        for (int64_t d = 0; d < n; d++) ((uint16_t *)kv->k)[to + (d0 + d) * KV_BLOCK] = half[d];
    }
    k->to_f16((uint16_t *)kv->v + at + pos * hd, value, hd);
}

static void append_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct append *a = ctx;
    const struct kv_cache *kv = a->span->kv;
    int64_t hd = kv->head_dim, row = kv->n_kv_heads * hd;
    for (int64_t r = begin; r < end; r++)
        for (int64_t h = 0; h < kv->n_kv_heads; h++)
            append_head(a->k, kv, a->layer, h, kv->n + r, a->key + r * row + h * hd, a->value + r * row + h * hd);
}

void cpu_kv_append(struct backend *be, const struct span *spans, int n_spans, int64_t layer, const float *k,
                   const float *v)
{
    struct cpu_ctx *c = be->ctx;
    for (int s = 0; s < n_spans; s++) {
        const struct kv_cache *kv = spans[s].kv;
        int64_t row = kv->n_kv_heads * kv->head_dim, at = spans[s].row0 * row;
        assert(kv->capacity % KV_BLOCK == 0 && kv->n + spans[s].n_new <= kv->capacity);
        struct append a = {c->k, &spans[s], layer, k + at, v + at};
        par_if(spans[s].n_new * row, spans[s].n_new, KV_BLOCK, append_rows, &a);
    }
}

/* ---- attention ---- */

enum {
    QUERY_TILE = 48, /* queries (tokens × heads of a group) that walk the chunks together: their outputs stay in L1 */
    DECODE_TOKENS = 4 /* up to so many new tokens a span, threads share chunks */
};

struct attn {
    struct cpu_ctx *c;
    float *out;
    const float *q;
    const struct span *span;
    int64_t layer, n_heads, group; /* group: query heads a KV head */
    int64_t tokens;                /* tokens a tile */
    int64_t n_tiles, n_chunks;
    float *part; /* decode: (kv heads, chunks, queries): m, l, then o (head_dim) */
    float scale;
};

/* Queries of tokens t0 … t0+n−1 of KV head h, tokens outermost. */
static int tile_queries(const struct attn *a, int64_t h, int64_t t0, int64_t n, const float **q)
{
    int64_t hd = a->span->kv->head_dim;
    int k = 0;
    for (int64_t t = t0; t < t0 + n; t++)
        for (int64_t g = 0; g < a->group; g++) q[k++] = a->q + (t * a->n_heads + h * a->group + g) * hd;
    return k;
}

/* Chunk c for n_q such queries, the first of token t0: partial results into m, l, o. False: no query sees any of it. */
static bool run_chunk(const struct attn *a, int64_t h, int64_t t0, const float *const *q, int n_q, int64_t c, float *m,
                      float *l, float *o, float *p, int32_t *seen)
{
    const struct kv_cache *kv = a->span->kv;
    int64_t hd = kv->head_dim, at = head_at(kv, a->layer, h), key0 = c * ATTN_CHUNK;
    bool any = false;
    for (int i = 0; i < n_q; i++) {
        int64_t n = kv->n + t0 + i / a->group + 1 - key0;
        seen[i] = (int32_t)(n < 0 ? 0 : n > ATTN_CHUNK ? ATTN_CHUNK : n);
        any |= seen[i] > 0;
    }
    if (!any) return false;
    size_t es = elem_size(kv);
    const void *blocks[ATTN_CHUNK / KV_BLOCK];
    for (int64_t b = 0; b < ATTN_CHUNK / KV_BLOCK; b++) {
        int64_t key = key0 + b * KV_BLOCK < kv->capacity ? key0 + b * KV_BLOCK : key0; /* never read behind the cache */
        blocks[b] = (const uint8_t *)kv->k + (size_t)(at + key * hd) * es;
    }
    const void *v = (const uint8_t *)kv->v + (size_t)(at + key0 * hd) * es;
    a->c->k->attn_chunk(q, seen, n_q, hd, kv->dtype == DT_F16, blocks, v, a->scale, m, l, o, p);
    return true;
}

static void normalise(float *out, const float *o, float l, int64_t hd)
{
    float inv = 1 / l;
    for (int64_t d = 0; d < hd; d++) out[d] = o[d] * inv;
}

/* Scratch of one thread, for n_q queries of hd. */
struct tile_buf {
    const float **q;
    int32_t *seen;
    float *m, *l, *o, *m2, *l2, *o2, *p;
};

static struct tile_buf tile_buf(struct thread_buf *b, int64_t n_q, int64_t hd)
{
    struct tile_buf t;
    size_t n = (size_t)n_q, floats = n * (4 + 2 * (size_t)hd + ATTN_CHUNK);
    char *p = buf_get(b, n * sizeof *t.q + floats * sizeof(float) + n * sizeof *t.seen);
    t.q = (const float **)(void *)p;
    t.p = (float *)(void *)(p + n * sizeof *t.q);
    t.o = t.p + n * ATTN_CHUNK;
    t.o2 = t.o + n * (size_t)hd;
    t.m = t.o2 + n * (size_t)hd;
    t.l = t.m + n;
    t.m2 = t.l + n;
    t.l2 = t.m2 + n;
    t.seen = (int32_t *)(t.l2 + n);
    return t;
}

/* Prefill: an item is (tile of tokens, KV head); the last tiles, which see most, come first. */
static void tiles(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn *a = ctx;
    const struct kv_cache *kv = a->span->kv;
    int64_t hd = kv->head_dim;
    struct tile_buf b = tile_buf(&a->c->buf[thread], a->tokens * a->group, hd);
    for (int64_t item = begin; item < end; item++) {
        int64_t h = item % kv->n_kv_heads, t0 = (a->n_tiles - 1 - item / kv->n_kv_heads) * a->tokens;
        int64_t n = a->span->n_new - t0 < a->tokens ? a->span->n_new - t0 : a->tokens;
        int n_q = tile_queries(a, h, t0, n, b.q);
        for (int i = 0; i < n_q; i++) b.m[i] = -INFINITY, b.l[i] = 0;
        memset(b.o, 0, (size_t)(n_q * hd) * sizeof *b.o);
        for (int64_t c = 0; c < a->n_chunks; c++) {
            if (!run_chunk(a, h, t0, b.q, n_q, c, b.m2, b.l2, b.o2, b.p, b.seen)) break;
            for (int i = 0; i < n_q; i++)
                a->c->k->attn_merge(b.m + i, b.l + i, b.o + i * hd, b.m2[i], b.l2[i], b.o2 + i * hd, hd);
        }
        for (int i = 0; i < n_q; i++)
            normalise(a->out + (b.q[i] - a->q), b.o + i * hd, b.l[i], hd);
    }
}

static float *part_at(const struct attn *a, int64_t h, int64_t c)
{
    int64_t n_q = a->span->n_new * a->group;
    return a->part + (h * a->n_chunks + c) * n_q * (2 + a->span->kv->head_dim);
}

/* Decode, first step: an item is (KV head, chunk). */
static void chunks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn *a = ctx;
    int64_t n_q = a->span->n_new * a->group;
    struct tile_buf b = tile_buf(&a->c->buf[thread], n_q, a->span->kv->head_dim);
    for (int64_t item = begin; item < end; item++) {
        int64_t h = item / a->n_chunks, c = item % a->n_chunks;
        float *m = part_at(a, h, c), *l = m + n_q, *o = l + n_q;
        tile_queries(a, h, 0, a->span->n_new, b.q);
        if (!run_chunk(a, h, 0, b.q, (int)n_q, c, m, l, o, b.p, b.seen))
            for (int64_t i = 0; i < n_q; i++) m[i] = -INFINITY;
    }
}

/* Second step: an item is a KV head. */
static void merge_chunks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct attn *a = ctx;
    int64_t n_q = a->span->n_new * a->group, hd = a->span->kv->head_dim;
    struct tile_buf b = tile_buf(&a->c->buf[thread], n_q, hd);
    for (int64_t h = begin; h < end; h++) {
        tile_queries(a, h, 0, a->span->n_new, b.q);
        for (int64_t i = 0; i < n_q; i++) {
            float m = -INFINITY, l = 0;
            memset(b.o, 0, (size_t)hd * sizeof *b.o);
            for (int64_t c = 0; c < a->n_chunks; c++) {
                const float *p = part_at(a, h, c);
                a->c->k->attn_merge(&m, &l, b.o, p[i], p[n_q + i], p + 2 * n_q + i * hd, hd);
            }
            normalise(a->out + (b.q[i] - a->q), b.o, l, hd);
        }
    }
}

static void attend(struct attn *a)
{
    const struct kv_cache *kv = a->span->kv;
    int64_t n_new = a->span->n_new, keys = kv->n + n_new;
    a->n_chunks = (keys + ATTN_CHUNK - 1) / ATTN_CHUNK;
    int64_t work = n_new * keys * a->n_heads * kv->head_dim;
    if (n_new > DECODE_TOKENS) {
        a->tokens = QUERY_TILE / a->group > 0 ? QUERY_TILE / a->group : 1;
        a->n_tiles = (n_new + a->tokens - 1) / a->tokens;
        par_for_dynamic(a->n_tiles * kv->n_kv_heads, 1, tiles, a);
        return;
    }
    size_t n = (size_t)(kv->n_kv_heads * a->n_chunks * n_new * a->group * (2 + kv->head_dim));
    a->part = buf_get(&a->c->shared, n * sizeof *a->part);
    par_if(work, kv->n_kv_heads * a->n_chunks, 1, chunks, a);
    par_if(a->n_chunks * a->n_heads * kv->head_dim, kv->n_kv_heads, 1, merge_chunks, a);
}

void cpu_attention(struct backend *be, float *out, const float *q, const struct span *spans, int n_spans,
                   int64_t layer, int64_t n_heads)
{
    struct cpu_ctx *c = cpu_begin(be);
    for (int s = 0; s < n_spans; s++) {
        const struct kv_cache *kv = spans[s].kv;
        if (spans[s].n_new <= 0) continue;
        int64_t at = spans[s].row0 * n_heads * kv->head_dim;
        struct attn a = {.c = c, .out = out + at, .q = q + at, .span = &spans[s], .layer = layer, .n_heads = n_heads,
                         .group = n_heads / kv->n_kv_heads, .scale = (float)(1 / sqrt((double)kv->head_dim))};
        attend(&a);
    }
}

/* ---- one new token: norms, rotation, append and attention in one piece of work ---- */

struct fused {
    struct attn a; /* n_new = 1; q unrotated */
    const struct rope_attention *in;
    const float *cs; /* cosines and sines of the position */
    atomic_int *left; /* chunks that a KV head still waits for */
};

/* Queries of KV head h, normed and rotated, to `to` (group, head_dim). */
static void make_queries(const struct fused *f, int64_t h, float *to)
{
    int64_t hd = f->a.span->kv->head_dim, n = f->a.group;
    const struct kernels *k = f->a.c->k;
    memcpy(to, f->a.q + h * n * hd, (size_t)(n * hd) * sizeof *to);
    for (int64_t g = 0; f->in->q_norm && g < n; g++) k->rmsnorm(to + g * hd, to + g * hd, f->in->q_norm, hd, f->in->eps);
    k->rope(to, f->cs, f->cs + hd / 2, n, hd / 2);
}

static void append_new(const struct fused *f, int64_t h, float *key)
{
    const struct span *s = f->a.span;
    const struct kernels *k = f->a.c->k;
    int64_t hd = s->kv->head_dim, at = (s->row0 * s->kv->n_kv_heads + h) * hd;
    memcpy(key, f->in->k + at, (size_t)hd * sizeof *key);
    if (f->in->k_norm) k->rmsnorm(key, key, f->in->k_norm, hd, f->in->eps);
    k->rope(key, f->cs, f->cs + hd / 2, 1, hd / 2);
    append_head(k, s->kv, f->a.layer, h, s->kv->n, key, f->in->v + at);
}

/* An item is (KV head, chunk). The last chunk's holds the new key; whoever ends the last item of a head merges it. */
static void fused_chunks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct fused *f = ctx;
    const struct attn *a = &f->a;
    int64_t n_q = a->group, hd = a->span->kv->head_dim;
    struct tile_buf b = tile_buf(&a->c->buf[thread], n_q, hd);
    for (int64_t item = begin; item < end; item++) {
        int64_t h = item / a->n_chunks, c = item % a->n_chunks;
        float *m = part_at(a, h, c), *l = m + n_q, *o = l + n_q;
        if (c == a->n_chunks - 1) append_new(f, h, b.o2);
        make_queries(f, h, b.o2);
        for (int64_t i = 0; i < n_q; i++) b.q[i] = b.o2 + i * hd;
        run_chunk(a, h, 0, b.q, (int)n_q, c, m, l, o, b.p, b.seen);
        if (atomic_fetch_sub_explicit(&f->left[h], 1, memory_order_acq_rel) == 1) merge_chunks(ctx, h, h + 1, thread);
    }
}

static bool fused_span(struct cpu_ctx *c, float *out, const struct rope_attention *in, const struct span *s, int64_t layer,
                       int64_t n_heads)
{
    const struct kv_cache *kv = s->kv;
    int64_t hd = kv->head_dim, at = s->row0 * n_heads * hd, keys = kv->n + 1;
    if (s->n_new != 1) return false;
    struct fused f = {.a = {.c = c, .out = out + at, .q = in->q + at, .span = s, .layer = layer, .n_heads = n_heads,
                            .group = n_heads / kv->n_kv_heads, .scale = (float)(1 / sqrt((double)hd)),
                            .n_chunks = (keys + ATTN_CHUNK - 1) / ATTN_CHUNK},
                      .in = in, .cs = rope_at(c, in->inv_freq, hd / 2, kv->n)};
    size_t n = (size_t)(kv->n_kv_heads * f.a.n_chunks * f.a.group * (2 + hd));
    f.a.part = buf_get(&c->shared, n * sizeof *f.a.part + (size_t)kv->n_kv_heads * sizeof *f.left);
    f.left = (atomic_int *)(void *)(f.a.part + n);
    for (int64_t h = 0; h < kv->n_kv_heads; h++) atomic_init(&f.left[h], (int)f.a.n_chunks);
    int64_t items = kv->n_kv_heads * f.a.n_chunks;
    if (keys * n_heads * hd < 16384)
        fused_chunks(&f, 0, items, 0);
    else
        par_for_dynamic(items, 1, fused_chunks, &f);
    return true;
}

void cpu_rope_attention(struct backend *be, float *out, const struct rope_attention *a, const struct span *spans, int n_spans,
                        int64_t layer, int64_t n_heads)
{
    struct cpu_ctx *c = cpu_begin(be);
    for (int i = 0; i < n_spans; i++) {
        const struct span *s = &spans[i];
        int64_t hd = s->kv->head_dim, n_kv = s->kv->n_kv_heads;
        if (s->n_new <= 0 || fused_span(c, out, a, s, layer, n_heads)) continue;
        float *q = a->q + s->row0 * n_heads * hd, *k = a->k + s->row0 * n_kv * hd;
        if (a->q_norm) cpu_rmsnorm(be, q, q, a->q_norm, s->n_new * n_heads, hd, a->eps);
        if (a->k_norm) cpu_rmsnorm(be, k, k, a->k_norm, s->n_new * n_kv, hd, a->eps);
        cpu_rope(be, a->q, s, 1, n_heads, hd, a->inv_freq);
        cpu_rope(be, a->k, s, 1, n_kv, hd, a->inv_freq);
        cpu_kv_append(be, s, 1, layer, a->k, a->v);
        cpu_attention(be, out, a->q, s, 1, layer, n_heads);
    }
}
