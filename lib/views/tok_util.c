#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <stdlib.h>
#include <string.h>

void tok_buf_put(struct tok_buf *b, const void *p, size_t n)
{
    if (n > b->cap - b->n) {
        size_t want;
        if (!size_add(b->n, n, &want) || !size_add(want, want / 2 + 64, &want)) want = SIZE_MAX;
        b->p = mem_grow(b->p, want, 1);
        b->cap = want;
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

void tok_ids_put(struct tok_ids *a, int32_t id)
{
    if (a->n == a->cap) {
        a->cap = a->cap + a->cap / 2 + 64;
        a->p = mem_grow(a->p, a->cap, sizeof *a->p);
    }
    a->p[a->n++] = id;
}

/* Printable Latin-1 bytes stand for themselves, the other 68 follow from U+0100 in ascending order. */
static bool byte_is_printable(int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

static int32_t byte_char(int b)
{
    if (byte_is_printable(b)) return b;
    int32_t below = b <= 32 ? b : b <= 160 ? b - 94 : 67; /* 0 … 32, then 127 … 160, then 173 */
    return 0x100 + below;
}

void tok_bytes_to_chars(const char *s, size_t n, struct tok_buf *out)
{
    char t[256];
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (k > sizeof t - 4) tok_buf_put(out, t, k), k = 0;
        k += utf8_put(byte_char((uint8_t)s[i]), t + k);
    }
    tok_buf_put(out, t, k);
}

int tok_char_to_byte(int32_t cp)
{
    if (cp >= 0 && cp < 256) return byte_is_printable(cp) ? cp : -1;
    if (cp < 0x100 || cp > 0x143) return -1;
    int k = cp - 0x100;
    return k <= 32 ? k : k <= 66 ? k + 94 : 173;
}

int tok_json_str(const json_t *o, const char *key, const char **s, size_t *n, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_string(v)) return err_set(e, "\"%s\" is not a string", key);
    *s = json_string_value(v);
    *n = json_string_length(v);
    return 0;
}

const char *tok_json_type(const json_t *o, const char *what, struct err *e)
{
    const char *s = json_string_value(json_object_get(o, "type"));
    if (!s) err_set(e, "%s without a \"type\"", what);
    return s;
}

int tok_json_pattern(const json_t *o, struct tok_pattern *pat, struct err *e)
{
    const json_t *p = json_object_get(o, "pattern");
    const char *s = NULL;
    size_t n = 0;
    bool literal = json_object_get(p, "String") != NULL;
    if (!literal && !json_object_get(p, "Regex"))
        return err_set(e, "\"pattern\" is neither {\"String\": …} nor {\"Regex\": …}");
    if (tok_json_str(p, literal ? "String" : "Regex", &s, &n, e)) return -1;
    pat->kind = PAT_REGEX;
    pat->re = tok_regex_new(s, n, literal, e);
    return pat->re ? 0 : -1;
}

void tok_pattern_free(struct tok_pattern *pat)
{
    tok_regex_free(pat->re);
    pat->re = NULL;
}
