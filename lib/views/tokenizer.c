#include "views/tokenizer.h"

#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <stdlib.h>

struct encoding {
    const struct tokenizer *t;
    struct tok_walk walk;
    struct tok_bpe_work work;
    struct tok_ids out;
    struct tok_buf normal; /* the stretch being encoded, normalized */
    const char *text;      /* the raw text */
    size_t n0;             /* of `normal` */
    struct err *e;
};

static int on_piece(void *ctx, const char *s, size_t n)
{
    struct encoding *x = ctx;
    return tok_bpe_encode(&x->t->bpe, &x->work, s, n, &x->out, x->e);
}

static int on_normalized(void *ctx, const struct tok_added *token, size_t start, size_t end)
{
    struct encoding *x = ctx;
    if (token) {
        tok_ids_put(&x->out, token->id);
        return 0;
    }
    if (start == end) return 0; /* nothing is left after normalization */
    size_t n0 = x->n0 <= start ? 0 : x->n0 < end ? x->n0 - start : end - start;
    return tok_steps_run(&x->walk, 0, x->normal.p + start, end - start, n0);
}

static int on_raw(void *ctx, const struct tok_added *token, size_t start, size_t end)
{
    struct encoding *x = ctx;
    size_t n = end - start, first = 0;
    if (token) {
        tok_ids_put(&x->out, token->id);
        return 0;
    }
    if (!n) return 0;
    if (!start) utf8_next(x->text, n, &first);
    x->n0 = first;
    if (tok_normalize(&x->t->norms, x->walk.m, x->text + start, n, &x->n0, &x->normal, x->e)) return -1;
    return tok_added_scan(&x->t->normalized, x->t->added, x->normal.p, x->normal.n, on_normalized, x);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special, int32_t **ids, size_t *n_ids,
                     struct err *e)
{
    *ids = NULL;
    *n_ids = 0;
    char *clean = NULL;
    if (utf8_valid_prefix(text, n) < n) text = clean = utf8_replace_invalid(text, n, &n, NULL);
    struct encoding x = {.t = t, .text = text, .e = e};
    struct tok_buf *buf = mem_new(t->steps.n, sizeof *buf);
    x.walk = (struct tok_walk){.steps = &t->steps, .m = tok_match_new(), .buf = buf,
                             .piece = on_piece, .ctx = &x, .e = e};
    for (size_t i = 0; special && i < t->n_prefix; i++) tok_ids_put(&x.out, t->prefix[i]);
    int rc = tok_added_scan(&t->raw, t->added, text, n, on_raw, &x);
    for (size_t i = 0; special && i < t->n_suffix; i++) tok_ids_put(&x.out, t->suffix[i]);
    for (size_t i = 0; i < t->steps.n; i++) free(buf[i].p);
    free(buf);
    tok_match_free(x.walk.m);
    tok_bpe_work_free(&x.work);
    free(x.normal.p);
    free(clean);
    if (rc) {
        free(x.out.p);
        return -1;
    }
    *ids = x.out.p ? x.out.p : mem_new(1, sizeof **ids);
    *n_ids = x.out.n;
    return 0;
}

char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special, size_t *n_text)
{
    struct tok_buf all = {0}, out = {0};
    size_t *end = mem_new(n + 1, sizeof *end), k = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= t->n_piece || !t->piece[ids[i]].s) continue;
        const struct tok_piece *p = &t->piece[ids[i]];
        if (skip_special && p->special) continue;
        tok_buf_put(&all, p->s, p->n);
        end[k++] = all.n;
    }
    struct err e;
    /* Only a replacement pattern can fail, and then what was read so far is the best answer: none. */
    if (tok_decode_strings(&t->decs, &all, end, k, &out, &e)) out.n = 0;
    free(all.p);
    free(end);
    char *text = utf8_replace_invalid(out.p ? out.p : "", out.n, n_text, NULL);
    free(out.p);
    return text;
}

int64_t tokenizer_vocab_size(const struct tokenizer *t) { return t->n_vocab; }
int64_t tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int64_t tokenizer_eos(const struct tokenizer *t) { return t->eos; }
bool tokenizer_adds_bos(const struct tokenizer *t) { return t->n_prefix && t->prefix[0] == t->bos; }

const char *tokenizer_type(const struct tokenizer *t)
{
    return t->bpe.byte_fallback ? "bpe-byte-fallback" : t->steps.byte_level ? "byte-level-bpe" : "bpe";
}
