/* Decoders: token strings → text. A step works on the list of strings (bytes in one buffer, string i ends at end[i]),
 * as the reference's decode_chain does. */
#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 64
#define MAX_DEPTH 8

static int one_char(const json_t *j, const char *key, int32_t *cp, struct err *e)
{
    const char *s;
    size_t n, len;
    if (tok_json_str(j, key, &s, &n, e)) return -1;
    *cp = n ? utf8_next(s, n, &len) : -1;
    return *cp < 0 || len != n ? err_set(e, "\"%s\" is not one character", key) : 0;
}

static int load_one(struct tok_decs *a, const json_t *j, int depth, struct err *e)
{
    static const char *const known[] = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"};
    const char *type = tok_json_type(j, "a decoder", e), *s;
    size_t n, k = 0;
    bool prefix;
    if (!type) return -1;
    if (!strcmp(type, "Sequence")) {
        const json_t *v = json_object_get(j, "decoders");
        if (!json_is_array(v)) return err_set(e, "\"decoders\" is not an array");
        if (depth >= MAX_DEPTH) return err_set(e, "decoders are nested too deeply");
        for (size_t i = 0; i < json_array_size(v); i++)
            if (load_one(a, json_array_get(v, i), depth + 1, e)) return -1;
        return 0;
    }
    while (k < 6 && strcmp(known[k], type)) k++;
    if (k == 6)
        return err_set(e, "the decoder %.64s is not supported (ByteLevel, Metaspace, Replace, ByteFallback, Fuse, "
                          "Strip or a Sequence of them was expected)", type);
    if (a->n >= MAX_STEPS) return err_set(e, "more than %d decoders", MAX_STEPS);
    a->v = mem_grow(a->v, a->n + 1, sizeof *a->v);
    struct tok_dec *d = &a->v[a->n++];
    memset(d, 0, sizeof *d);
    d->kind = (enum tok_dec_kind)k;
    switch (d->kind) {
    case DEC_METASPACE:
        if (json_get_str(j, "prepend_scheme", false, "always", &s, e) ||
            json_get_bool(j, "add_prefix_space", false, true, &prefix, e))
            return -1;
        d->keep_first = !strcmp(s, "never") || !prefix;
        return one_char(j, "replacement", &d->cp, e);
    case DEC_REPLACE:
        if (tok_json_str(j, "content", &s, &n, e)) return -1;
        d->text = mem_new(n + 1, 1);
        memcpy(d->text, s, n);
        d->n_text = n;
        return tok_json_pattern(j, &d->pat, e);
    case DEC_STRIP:
        if (one_char(j, "content", &d->cp, e) || json_get_int(j, "start", true, 0, 1 << 20, 0, &d->start, e) ||
            json_get_int(j, "stop", true, 0, 1 << 20, 0, &d->stop, e))
            return -1;
        return 0;
    default: return 0;
    }
}

int tok_decs_load(struct tok_decs *a, const json_t *json, struct err *e)
{
    if (!json || json_is_null(json)) return 0;
    a->any = true;
    return load_one(a, json, 0, e);
}

void tok_decs_free(struct tok_decs *a)
{
    for (size_t i = 0; i < a->n; i++) {
        free(a->v[i].text);
        tok_pattern_free(&a->v[i].pat);
    }
    free(a->v);
    memset(a, 0, sizeof *a);
}

/* Bytes of a string in the byte alphabet; a string with any other character is taken as it is. */
static void from_alphabet(const char *s, size_t n, struct tok_buf *out)
{
    size_t len, was = out->n;
    for (size_t i = 0; i < n; i += len) {
        int b = tok_char_to_byte(utf8_next(s + i, n - i, &len));
        if (b < 0) {
            out->n = was;
            tok_buf_put(out, s, n);
            return;
        }
        char c = (char)b;
        tok_buf_put(out, &c, 1);
    }
}

static void fuse(struct tok_buf *b, size_t *end, size_t *n)
{
    end[0] = b->n;
    *n = 1;
}

static void byte_level(struct tok_buf *b, size_t *end, size_t *n)
{
    struct tok_buf raw = {0};
    for (size_t i = 0, at = 0; i < *n; at = end[i++]) from_alphabet(b->p + at, end[i] - at, &raw);
    b->n = 0;
    size_t len;
    char *text = utf8_replace_invalid(raw.p ? raw.p : "", raw.n, &len, NULL);
    tok_buf_put(b, text, len);
    free(text);
    free(raw.p);
    fuse(b, end, n);
}

static int byte_of(const char *s, size_t n)
{
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return -1;
    /* Rust's from_str_radix takes a sign too: "+A" is 10. */
    if (s[3] == '+' && isxdigit((unsigned char)s[4])) return (int)strtol((char[]){s[4], 0}, NULL, 16);
    if (!isxdigit((unsigned char)s[3]) || !isxdigit((unsigned char)s[4])) return -1;
    return (int)strtol((char[]){s[3], s[4], 0}, NULL, 16);
}

/* A run of byte tokens becomes its text if that is valid, else one U+FFFD a byte. In place: nothing grows, since each
 * byte token has 6 bytes. */
static void byte_fallback(struct tok_buf *b, size_t *end, size_t *n)
{
    size_t o = 0, k = 0, at = 0; /* written bytes and strings; start of string i */
    for (size_t i = 0; i < *n;) {
        size_t run = 0, j = i, from = at;
        for (int byte; j < *n && (byte = byte_of(b->p + from, end[j] - from)) >= 0; from = end[j++])
            b->p[at + run++] = (char)byte;
        if (!run) {
            size_t len = end[i] - at;
            memmove(b->p + o, b->p + at, len);
            at = end[i++];
            o += len;
            end[k++] = o;
            continue;
        }
        if (utf8_valid_prefix(b->p + at, run) == run) {
            memmove(b->p + o, b->p + at, run);
            o += run;
            end[k++] = o;
        } else {
            for (size_t q = 0; q < run; q++) {
                memcpy(b->p + o, "\xEF\xBF\xBD", 3);
                o += 3;
                end[k++] = o;
            }
        }
        at = from;
        i = j;
    }
    b->n = o;
    *n = k;
}

static void strip(const struct tok_dec *d, const char *s, size_t n, struct tok_buf *out)
{
    size_t from = 0, len, to = n;
    for (int64_t i = 0; i < d->start && from < n && utf8_next(s + from, n - from, &len) == d->cp; i++) from += len;
    for (int64_t i = 0; i < d->stop && to > from; i++) {
        size_t k = to - 1;
        while (k > from && ((uint8_t)s[k] & 0xC0) == 0x80) k--;
        if (utf8_next(s + k, to - k, &len) != d->cp) break;
        to = k;
    }
    tok_buf_put(out, s + from, to - from);
}

static int replace(const struct tok_dec *d, struct tok_match *m, const char *s, size_t n, struct tok_buf *out,
                   struct err *e)
{
    struct tok_segments it;
    size_t start, end;
    bool hit;
    int rc;
    if (!n) return 0;
    tok_segments_begin(&it, &d->pat, m, s, n);
    while ((rc = tok_segments_next(&it, &start, &end, &hit, e)) == 1) {
        if (hit) tok_buf_put(out, d->text, d->n_text);
        else tok_buf_put(out, s + start, end - start);
    }
    return rc;
}

static void metaspace(const struct tok_dec *d, const char *s, size_t n, bool first, struct tok_buf *out)
{
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        if (utf8_next(s + i, n - i, &len) != d->cp) tok_buf_put(out, s + i, len);
        else if (!first || d->keep_first) tok_buf_put(out, " ", 1);
    }
}

int tok_decode_strings(const struct tok_decs *a, struct tok_buf *all, size_t *end, size_t n, struct tok_buf *out,
                       struct err *e)
{
    struct tok_match *m = tok_match_new();
    int rc = 0;
    for (size_t k = 0; k < a->n && n && !rc; k++) {
        const struct tok_dec *d = &a->v[k];
        if (d->kind == DEC_BYTES) byte_level(all, end, &n);
        else if (d->kind == DEC_FUSE) fuse(all, end, &n);
        else if (d->kind == DEC_BYTE_FALLBACK) byte_fallback(all, end, &n);
        else {
            struct tok_buf b = {0};
            for (size_t i = 0, at = 0, stop; i < n && !rc; i++, at = stop) {
                stop = end[i];
                if (d->kind == DEC_REPLACE) rc = replace(d, m, all->p + at, stop - at, &b, e);
                else if (d->kind == DEC_STRIP) strip(d, all->p + at, stop - at, &b);
                else metaspace(d, all->p + at, stop - at, i == 0, &b);
                end[i] = b.n;
            }
            free(all->p);
            *all = b;
        }
    }
    tok_match_free(m);
    if (rc) return -1;
    for (size_t i = 0, at = 0; i < n; at = end[i++]) {
        if (i && !a->any) tok_buf_put(out, " ", 1);
        if (end[i] > at) tok_buf_put(out, all->p + at, end[i] - at);
    }
    return 0;
}
