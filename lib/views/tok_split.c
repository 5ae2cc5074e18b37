/* Pre-tokenizers. Each is turned into one or two steps: cutting a piece into pieces, or changing its text. */
#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 64
#define MAX_DEPTH 8

static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ---- loading ---- */

static struct tok_step *add_step(struct tok_steps *a, enum tok_step_kind kind)
{
    a->v = mem_grow(a->v, a->n + 1, sizeof *a->v);
    struct tok_step *s = &a->v[a->n++];
    memset(s, 0, sizeof *s);
    s->kind = kind;
    return s;
}

static int load_behavior(const json_t *j, enum tok_behavior *b, struct err *e)
{
    static const char *const name[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *s;
    if (json_get_str(j, "behavior", true, NULL, &s, e)) return -1;
    for (size_t i = 0; i < 5; i++) {
        if (strcmp(s, name[i])) continue;
        *b = (enum tok_behavior)i;
        return 0;
    }
    return err_set(e, "the behavior %.64s is not known (Removed, Isolated, MergedWithPrevious, MergedWithNext or "
                      "Contiguous was expected)", s);
}

static int load_byte_level(struct tok_steps *a, const json_t *j, struct err *e)
{
    bool prefix, regex;
    if (json_get_bool(j, "add_prefix_space", true, true, &prefix, e) ||
        json_get_bool(j, "use_regex", false, true, &regex, e))
        return -1;
    if (prefix) add_step(a, STEP_PREFIX_SPACE);
    if (regex) {
        struct tok_step *s = add_step(a, STEP_SPLIT);
        s->behavior = SPLIT_ISOLATED;
        s->pat.kind = PAT_REGEX;
        s->pat.re = tok_regex_new(gpt2_pattern, sizeof gpt2_pattern - 1, false, e);
        if (!s->pat.re) return -1;
    }
    add_step(a, STEP_BYTES);
    a->byte_level = true;
    return 0;
}

static int load_metaspace(struct tok_steps *a, const json_t *j, struct err *e)
{
    static const char *const name[] = {"always", "first", "never"};
    const char *rep, *scheme;
    size_t n, len, k = 0;
    bool prefix, split;
    if (tok_json_str(j, "replacement", &rep, &n, e) ||
        json_get_str(j, "prepend_scheme", false, "always", &scheme, e) ||
        json_get_bool(j, "add_prefix_space", false, true, &prefix, e) ||
        json_get_bool(j, "split", false, true, &split, e))
        return -1;
    int32_t cp = n ? utf8_next(rep, n, &len) : -1;
    if (cp < 0 || len != n) return err_set(e, "Metaspace: \"replacement\" is not one character");
    while (k < 3 && strcmp(scheme, name[k])) k++;
    if (k == 3)
        return err_set(e, "Metaspace: \"prepend_scheme\" is %.64s (always, first or never was expected)", scheme);
    if (!prefix && k != PREPEND_NEVER)
        return err_set(e, "Metaspace: \"add_prefix_space\" false does not match \"prepend_scheme\" %s", name[k]);
    struct tok_step *s = add_step(a, STEP_METASPACE);
    memcpy(s->rep, rep, n);
    s->n_rep = n;
    s->prepend = (enum tok_prepend)k;
    if (!split) return 0;
    s = add_step(a, STEP_SPLIT);
    s->behavior = SPLIT_MERGED_NEXT;
    s->pat = (struct tok_pattern){.kind = PAT_CHAR, .cp = cp};
    return 0;
}

static int load_one(struct tok_steps *a, const json_t *j, int depth, struct err *e)
{
    const char *type = tok_json_type(j, "a pre-tokenizer", e);
    if (!type) return -1;
    if (a->n >= MAX_STEPS) return err_set(e, "more than %d pre-tokenizer steps", MAX_STEPS);
    if (!strcmp(type, "Sequence")) {
        const json_t *v = json_object_get(j, "pretokenizers");
        if (!json_is_array(v)) return err_set(e, "\"pretokenizers\" is not an array");
        if (depth >= MAX_DEPTH) return err_set(e, "pre-tokenizers are nested too deeply");
        for (size_t i = 0; i < json_array_size(v); i++)
            if (load_one(a, json_array_get(v, i), depth + 1, e)) return -1;
        return 0;
    }
    if (!strcmp(type, "ByteLevel")) return load_byte_level(a, j, e);
    if (!strcmp(type, "Metaspace")) return load_metaspace(a, j, e);
    if (!strcmp(type, "Split")) {
        struct tok_step *s = add_step(a, STEP_SPLIT);
        if (load_behavior(j, &s->behavior, e) || json_get_bool(j, "invert", true, false, &s->invert, e)) return -1;
        return tok_json_pattern(j, &s->pat, e);
    }
    if (!strcmp(type, "Digits")) {
        bool one;
        if (json_get_bool(j, "individual_digits", true, false, &one, e)) return -1;
        struct tok_step *s = add_step(a, STEP_SPLIT);
        s->pat.kind = PAT_DIGIT;
        s->behavior = one ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return 0;
    }
    if (!strcmp(type, "WhitespaceSplit")) {
        struct tok_step *s = add_step(a, STEP_SPLIT);
        s->pat.kind = PAT_SPACE;
        s->behavior = SPLIT_REMOVED;
        return 0;
    }
    if (!strcmp(type, "Whitespace")) {
        add_step(a, STEP_WORDS);
        return 0;
    }
    if (!strcmp(type, "Punctuation")) {
        struct tok_step *s = add_step(a, STEP_SPLIT);
        s->pat.kind = PAT_PUNCT;
        s->behavior = SPLIT_ISOLATED;
        return json_object_get(j, "behavior") ? load_behavior(j, &s->behavior, e) : 0;
    }
    return err_set(e, "the pre-tokenizer %.64s is not supported (ByteLevel, Metaspace, Split, Digits, Whitespace, "
                      "WhitespaceSplit, Punctuation or a Sequence of them was expected)", type);
}

int tok_steps_load(struct tok_steps *a, const json_t *json, struct err *e)
{
    if (!json || json_is_null(json)) return 0;
    return load_one(a, json, 0, e);
}

void tok_steps_free(struct tok_steps *a)
{
    for (size_t i = 0; i < a->n; i++) tok_pattern_free(&a->v[i].pat);
    free(a->v);
    memset(a, 0, sizeof *a);
}

/* ---- running ---- */

static size_t rest_of(size_t n0, size_t start, size_t end)
{
    return n0 <= start ? 0 : n0 < end ? n0 - start : end - start;
}

static int next_step(struct tok_walk *w, size_t step, const char *s, size_t start, size_t end, size_t n0)
{
    return start == end ? 0 : tok_steps_run(w, step + 1, s + start, end - start, rest_of(n0, start, end));
}

/* Segments are joined as the behavior says; `held` is one that may still grow. */
static int split(struct tok_walk *w, size_t step, const char *s, size_t n, size_t n0)
{
    const struct tok_step *st = &w->steps->v[step];
    struct tok_segments it;
    size_t start, end, held_start = 0, held_end = 0;
    bool hit, held = false, held_hit = false;
    int rc, more;
    tok_segments_begin(&it, &st->pat, w->m, s, n);
    while ((more = tok_segments_next(&it, &start, &end, &hit, w->e)) == 1) {
        hit ^= st->invert;
        bool join = false;
        switch (st->behavior) {
        case SPLIT_REMOVED:
            if (hit) continue;
            break;
        case SPLIT_ISOLATED: break;
        case SPLIT_CONTIGUOUS: join = held && hit == held_hit; break;
        case SPLIT_MERGED_PREVIOUS: join = held && hit && !held_hit; break;
        case SPLIT_MERGED_NEXT: join = held && !hit && held_hit; break;
        }
        if (join) {
            held_end = end;
            held_hit = hit;
            continue;
        }
        if (held && (rc = next_step(w, step, s, held_start, held_end, n0))) return rc;
        held = true;
        held_start = start;
        held_end = end;
        held_hit = hit;
    }
    if (more < 0) return -1;
    return held ? next_step(w, step, s, held_start, held_end, n0) : 0;
}

static int metaspace(struct tok_walk *w, size_t step, const char *s, size_t n, size_t n0)
{
    const struct tok_step *st = &w->steps->v[step];
    struct tok_buf *b = &w->buf[step];
    size_t first = 0; /* n0 in the new text */
    bool has = n >= st->n_rep && !memcmp(s, st->rep, st->n_rep);
    b->n = 0;
    if (s[0] != ' ' && !has && (st->prepend == PREPEND_ALWAYS || (st->prepend == PREPEND_FIRST && n0))) {
        tok_buf_put(b, st->rep, st->n_rep);
        if (n0) first = b->n;
    }
    for (size_t i = 0; i < n;) {
        const char *sp = memchr(s + i, ' ', n - i);
        size_t end = sp ? (size_t)(sp - s) : n;
        tok_buf_put(b, s + i, end - i);
        if (n0 > i) first += (n0 < end ? n0 : end) - i;
        if (sp) {
            tok_buf_put(b, st->rep, st->n_rep);
            if (n0 > end) first += st->n_rep;
            end++;
        }
        i = end;
    }
    return tok_steps_run(w, step + 1, b->p, b->n, first);
}

/* Runs of word characters and runs of what is neither word nor white space. */
static int words(struct tok_walk *w, size_t step, const char *s, size_t n, size_t n0)
{
    enum { SPACE, WORD, OTHER } kind, run = SPACE;
    size_t start = 0, len;
    int rc;
    for (size_t i = 0; i < n; i += len) {
        int32_t c = utf8_next(s + i, n - i, &len);
        kind = tok_is_word(c) ? WORD : utf8_is_space(c) ? SPACE : OTHER;
        if (kind == run) continue;
        if (run != SPACE && (rc = next_step(w, step, s, start, i, n0))) return rc;
        start = i;
        run = kind;
    }
    return run == SPACE ? 0 : next_step(w, step, s, start, n, n0);
}

int tok_steps_run(struct tok_walk *w, size_t step, const char *s, size_t n, size_t n0)
{
    if (!n) return 0;
    if (step == w->steps->n) return w->piece(w->ctx, s, n);
    struct tok_buf *b = &w->buf[step];
    switch (w->steps->v[step].kind) {
    case STEP_SPLIT: return split(w, step, s, n, n0);
    case STEP_METASPACE: return metaspace(w, step, s, n, n0);
    case STEP_WORDS: return words(w, step, s, n, n0);
    case STEP_PREFIX_SPACE:
        if (s[0] == ' ') return tok_steps_run(w, step + 1, s, n, n0);
        b->n = 0;
        tok_buf_put(b, " ", 1);
        tok_buf_put(b, s, n);
        return tok_steps_run(w, step + 1, b->p, b->n, n0 ? n0 + 1 : 0);
    case STEP_BYTES:
        b->n = 0;
        tok_bytes_to_chars(s, n0, b);
        n0 = b->n;
        b->n = 0;
        tok_bytes_to_chars(s, n, b);
        return tok_steps_run(w, step + 1, b->p, b->n, n0);
    }
    return 0;
}
