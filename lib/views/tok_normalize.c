/* Normalizers: Unicode forms by utf8proc's tables, Prepend, Replace, Strip, ByteLevel. */
#include "base/mem.h"
#include "views/tok.h"
#include "views/tok_unicode.h"
#include "views/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_NORMS 64
#define MAX_DEPTH 8

static int load_one(struct tok_norms *a, const json_t *j, int depth, struct err *e)
{
    static const struct {
        const char *type;
        enum tok_norm_kind kind;
    } known[] = {{"NFC", NORM_NFC},         {"NFD", NORM_NFD},
                 {"NFKC", NORM_NFKC},       {"NFKD", NORM_NFKD},
                 {"Prepend", NORM_PREPEND}, {"Replace", NORM_REPLACE},
                 {"Strip", NORM_STRIP},     {"ByteLevel", NORM_BYTES}};
    const char *type = tok_json_type(j, "a normalizer", e), *s;
    size_t n;
    if (!type) return -1;
    if (!strcmp(type, "Sequence")) {
        const json_t *v = json_object_get(j, "normalizers");
        if (!json_is_array(v)) return err_set(e, "\"normalizers\" is not an array");
        if (depth >= MAX_DEPTH) return err_set(e, "normalizers are nested too deeply");
        for (size_t i = 0; i < json_array_size(v); i++)
            if (load_one(a, json_array_get(v, i), depth + 1, e)) return -1;
        return 0;
    }
    if (a->n >= MAX_NORMS) return err_set(e, "more than %d normalizers", MAX_NORMS);
    a->v = mem_grow(a->v, a->n + 1, sizeof *a->v);
    struct tok_norm *m = &a->v[a->n++];
    memset(m, 0, sizeof *m);
    size_t k = 0;
    while (k < sizeof known / sizeof known[0] && strcmp(known[k].type, type)) k++;
    if (k == sizeof known / sizeof known[0])
        return err_set(e, "the normalizer %.64s is not supported (NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, "
                          "ByteLevel or a Sequence of them was expected)", type);
    m->kind = known[k].kind;
    if (m->kind == NORM_PREPEND || m->kind == NORM_REPLACE) {
        if (tok_json_str(j, m->kind == NORM_PREPEND ? "prepend" : "content", &s, &n, e)) return -1;
        m->text = mem_strndup(s, n);
        memcpy(m->text, s, n);
        m->n_text = n;
    }
    if (m->kind == NORM_REPLACE && tok_json_pattern(j, &m->pat, e)) return -1;
    if (m->kind == NORM_STRIP && (json_get_bool(j, "strip_left", true, false, &m->left, e) ||
                                  json_get_bool(j, "strip_right", true, false, &m->right, e)))
        return -1;
    return 0;
}

int tok_norms_load(struct tok_norms *a, const json_t *json, struct err *e)
{
    if (!json || json_is_null(json)) return 0;
    return load_one(a, json, 0, e);
}

void tok_norms_free(struct tok_norms *a)
{
    for (size_t i = 0; i < a->n; i++) {
        free(a->v[i].text);
        tok_pattern_free(&a->v[i].pat);
    }
    free(a->v);
    memset(a, 0, sizeof *a);
}

/* ---- Unicode forms ---- */

/* Too young for the reference's tables: left alone, and nothing combines across it. */
static bool is_opaque(int32_t cp)
{
    return cp >= 0x7FD && (UNICODE_IN(norm_new, cp) || UNICODE_IN(unicode_new, cp));
}

static uint8_t ccc(int32_t cp)
{
    uint8_t c = (uint8_t)utf8proc_get_property(cp)->combining_class;
    return c && is_opaque(cp) ? 0 : c;
}

/* Canonical ordering of a run of combining marks: a stable counting sort, so that a long run costs no more than
 * reading it. */
static void order_run(int32_t *cp, size_t n, int32_t *tmp)
{
    bool sorted = true;
    for (size_t i = 1; i < n && sorted; i++) sorted = ccc(cp[i - 1]) <= ccc(cp[i]);
    if (sorted) return;
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++) at[ccc(cp[i]) + 1]++;
    for (size_t i = 0; i < 256; i++) at[i + 1] += at[i];
    for (size_t i = 0; i < n; i++) tmp[at[ccc(cp[i])]++] = cp[i];
    memcpy(cp, tmp, n * sizeof *cp);
}

/* Composes what stands between opaque characters, in place; returns how many are left. */
static size_t compose_all(int32_t *cp, size_t n)
{
    size_t o = 0;
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && !is_opaque(cp[end]); end++) continue;
        size_t k = end - i;
        if (k > 1) {
            utf8proc_ssize_t left =
                utf8proc_normalize_utf32(cp + i, (utf8proc_ssize_t)k, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
            if (left >= 0) k = (size_t)left;
        }
        memmove(cp + o, cp + i, k * sizeof *cp);
        o += k;
        if (end < n) cp[o++] = cp[end++];
    }
    return o;
}

static int unicode_form(enum tok_norm_kind kind, const char *s, size_t n, size_t *n0, struct tok_buf *out,
                        struct err *e)
{
    bool compat = kind == NORM_NFKC || kind == NORM_NFKD, compose = kind == NORM_NFC || kind == NORM_NFKC;
    size_t plain = 0, len;
    while (plain < n && (uint8_t)s[plain] < 0x80) plain++;
    if (plain == n) { /* ASCII is in every form */
        tok_buf_put(out, s, n);
        return 0;
    }
    utf8proc_option_t opt = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                            (compat ? UTF8PROC_COMPAT : 0);
    size_t cap = n + 64, m = 0, first = 0; /* first: how many stem from s[0 … n0) */
    int32_t *cp = mem_array(cap, sizeof *cp);
    for (size_t i = 0; i < n; i += len) {
        int32_t c = utf8_next(s + i, n - i, &len);
        if (cap - m < 32) { /* no character decomposes into more than 18 */
            int32_t *more = mem_array(cap * 2, sizeof *cp);
            memcpy(more, cp, m * sizeof *cp);
            free(cp);
            cp = more;
            cap *= 2;
        }
        if (is_opaque(c)) {
            cp[m++] = c;
            if (i < *n0) first = m;
            continue;
        }
        int bound = 0;
        utf8proc_ssize_t k = utf8proc_decompose_char(c, cp + m, (utf8proc_ssize_t)(cap - m), opt, &bound);
        if (k < 0) {
            free(cp);
            return err_set(e, "cannot be normalized: %s", utf8proc_errmsg(k));
        }
        m += (size_t)k;
        if (i < *n0) first = m;
    }
    /* The first character's own form tells how much of the result is its. */
    int32_t *tmp = mem_array(m, sizeof *tmp);
    if (first) memcpy(tmp, cp, first * sizeof *cp);
    if (compose) first = compose_all(tmp, first);
    for (size_t i = 0, end; i < m; i = end) {
        for (end = i; end < m && ccc(cp[end]); end++) continue;
        if (end - i > 1) order_run(cp + i, end - i, tmp);
        if (end == i) end++;
    }
    free(tmp);
    if (compose) m = compose_all(cp, m);
    size_t start = out->n;
    char b[4];
    *n0 = 0;
    for (size_t i = 0; i < m; i++) {
        tok_buf_put(out, b, utf8_put(cp[i], b));
        if (i < first) *n0 = out->n - start;
    }
    free(cp);
    return 0;
}

/* ---- running them ---- */

static int replace(const struct tok_norm *norm, struct tok_match *m, const char *s, size_t n, size_t *n0,
                   struct tok_buf *out, struct err *e)
{
    struct tok_segments it;
    size_t start, end, from_first = 0;
    bool hit;
    int rc;
    tok_segments_begin(&it, &norm->pat, m, s, n);
    while ((rc = tok_segments_next(&it, &start, &end, &hit, e)) == 1) {
        if (hit) tok_buf_put(out, norm->text, norm->n_text);
        else tok_buf_put(out, s + start, end - start);
        if (end <= *n0) from_first = out->n;
        else if (!hit && start < *n0) from_first = out->n - (end - *n0);
    }
    *n0 = from_first;
    return rc;
}

static void strip(const struct tok_norm *norm, const char *s, size_t n, size_t *n0, struct tok_buf *out)
{
    size_t from = 0, len;
    while (norm->left && from < n && utf8_is_space(utf8_next(s + from, n - from, &len))) from += len;
    while (norm->right && n > from) {
        size_t k = n - 1;
        while (k > from && ((uint8_t)s[k] & 0xC0) == 0x80) k--;
        if (!utf8_is_space(utf8_next(s + k, n - k, &len))) break;
        n = k;
    }
    *n0 = *n0 > from ? *n0 - from : 0;
    if (*n0 > n - from) *n0 = n - from;
    tok_buf_put(out, s + from, n - from);
}

static int apply(const struct tok_norm *norm, struct tok_match *m, const char *s, size_t n, size_t *n0,
                 struct tok_buf *out, struct err *e)
{
    struct tok_buf head = {0};
    if (!n) return 0;
    switch (norm->kind) {
    case NORM_PREPEND:
        tok_buf_put(out, norm->text, norm->n_text);
        tok_buf_put(out, s, n);
        if (*n0) *n0 += norm->n_text;
        return 0;
    case NORM_REPLACE: return replace(norm, m, s, n, n0, out, e);
    case NORM_STRIP: strip(norm, s, n, n0, out); return 0;
    case NORM_BYTES:
        tok_bytes_to_chars(s, *n0, &head);
        *n0 = head.n;
        free(head.p);
        tok_bytes_to_chars(s, n, out);
        return 0;
    default: return unicode_form(norm->kind, s, n, n0, out, e);
    }
}

int tok_normalize(const struct tok_norms *a, struct tok_match *m, const char *s, size_t n, size_t *n0,
                  struct tok_buf *out, struct err *e)
{
    struct tok_buf other = {0};
    out->n = 0;
    tok_buf_put(out, s, n);
    for (size_t i = 0; i < a->n; i++) {
        other.n = 0;
        if (apply(&a->v[i], m, out->p, out->n, n0, &other, e)) {
            free(other.p);
            return -1;
        }
        struct tok_buf t = *out;
        *out = other;
        other = t;
    }
    free(other.p);
    return 0;
}
