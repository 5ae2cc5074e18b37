#include "eval/protocol.h"

#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"llamacpp", "seed", "hf-sliding", "gptq"};

enum protocol protocol_of(const char *name)
{
    for (int i = 0; i < 4; i++)
        if (!strcmp(name, names[i])) return (enum protocol)i;
    assert(!"a protocol's name");
    return PROTO_LLAMACPP;
}

const char *protocol_name(enum protocol p) { return names[p]; }

static void push(struct windows *ws, struct window w)
{
    ws->w = mem_grow(ws->w, (size_t)ws->n + 1, sizeof *ws->w);
    ws->w[ws->n++] = w;
    ws->n_scored += w.n - 1 - w.first;
    if (w.n > ws->longest) ws->longest = w.n;
}

static bool full(const struct windows *ws, int64_t max) { return max > 0 && ws->n >= max; }

/* Non-overlapping windows of ctx tokens, the tail dropped. */
static void tiled(struct windows *ws, int64_t n_tokens, int64_t first, int64_t max)
{
    for (int64_t at = 0; at + ws->ctx <= n_tokens && !full(ws, max); at += ws->ctx)
        push(ws, (struct window){at, ws->ctx, first, (double)(ws->ctx - 1 - first)});
}

/* for b = 0, stride, …: tokens b … e−1 with e = min(b+ctx, n); the last trg = e − (previous e) inputs are labels. A
 * label is scored by the row before it, so the first window has trg−1 scores but, as in the recipe, weighs trg. */
static void sliding(struct windows *ws, int64_t n_tokens, int64_t max)
{
    int64_t prev = 0;
    for (int64_t b = 0; prev < n_tokens && !full(ws, max); b += ws->stride) {
        int64_t e = b + ws->ctx < n_tokens ? b + ws->ctx : n_tokens, trg = e - prev, n = e - b;
        int64_t first = n - trg - 1 > 0 ? n - trg - 1 : 0;
        push(ws, (struct window){b, n, first, (double)trg});
        prev = e;
    }
}

int windows_make(struct windows *ws, enum protocol p, int64_t n_tokens, int64_t ctx, int64_t stride, int64_t max_windows,
                 int64_t max_pos, bool adds_bos, struct err *e)
{
    memset(ws, 0, sizeof *ws);
    int64_t own = p == PROTO_LLAMACPP ? 512 : p == PROTO_GPTQ ? 2048 : max_pos < 4096 ? max_pos : 4096;
    ws->ctx = ctx ? ctx : own;
    if (ws->ctx < 4) return err_set(e, "context of %lld tokens (at least 4 was expected)", (long long)ws->ctx);
    if (ws->ctx > max_pos)
        return err_set(e, "windows of %lld tokens, but the model's context is %lld (--ctx makes them shorter)",
                       (long long)ws->ctx, (long long)max_pos);
    int64_t need = p == PROTO_LLAMACPP ? 2 * ws->ctx : p == PROTO_GPTQ ? ws->ctx : 2;
    if (n_tokens < need)
        return err_set(e, "text too short: %lld tokens (protocol %s needs at least %lld)", (long long)n_tokens, names[p],
                       (long long)need);
    switch (p) {
    case PROTO_LLAMACPP:
        ws->replace_bos = adds_bos;
        tiled(ws, n_tokens, ws->ctx / 2, max_windows);
        break;
    case PROTO_GPTQ: tiled(ws, n_tokens, 0, max_windows); break;
    case PROTO_SEED:
    case PROTO_HF_SLIDING:
        ws->stride = stride ? stride : SLIDING_STRIDE < ws->ctx ? SLIDING_STRIDE : ws->ctx;
        if (ws->stride > ws->ctx)
            return err_set(e, "stride %lld skips tokens (at most the context, %lld, was expected)",
                           (long long)ws->stride, (long long)ws->ctx);
        sliding(ws, n_tokens, max_windows);
        break;
    }
    return 0;
}

struct windows windows_first(const struct windows *ws, int64_t n)
{
    struct windows v = *ws;
    if (n > 0 && n < v.n) v.n = n;
    v.n_scored = v.longest = 0;
    for (int64_t i = 0; i < v.n; i++) {
        v.n_scored += v.w[i].n - 1 - v.w[i].first;
        if (v.w[i].n > v.longest) v.longest = v.w[i].n;
    }
    return v;
}

void windows_free(struct windows *ws)
{
    free(ws->w);
    memset(ws, 0, sizeof *ws);
}

void windows_mean(const struct windows *ws, const double *x, double *mean, double *se)
{
    double total = 0, m = 0, v = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < ws->n; i++) total += ws->w[i].weight;
    for (int64_t i = 0; i < ws->n; i++) {
        int64_t n = ws->w[i].n - 1 - ws->w[i].first;
        double s = 0;
        for (int64_t k = 0; k < n; k++) s += x[at + k];
        m += ws->w[i].weight * (s / (double)n);
        at += n;
    }
    m /= total;
    at = 0;
    for (int64_t i = 0; i < ws->n; i++) {
        int64_t n = ws->w[i].n - 1 - ws->w[i].first;
        double c = ws->w[i].weight / ((double)n * total);
        for (int64_t k = 0; k < n; k++) v += c * c * (x[at + k] - m) * (x[at + k] - m);
        at += n;
    }
    *mean = m;
    *se = at > 1 ? sqrt(v * (double)at / (double)(at - 1)) : 0;
}
