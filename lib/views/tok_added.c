#include "base/mem.h"
#include "views/tok.h"
#include "views/tok_unicode.h"
#include "views/utf8.h"

#include <ctype.h>
#include <string.h>
#include <utf8proc.h>

static int32_t node_new(struct tok_trie *t, uint8_t byte)
{
    if (!t->n) { /* the root */
        t->cap = 256;
        t->v = mem_new(t->cap, sizeof *t->v);
        t->v[0].token = -1;
        t->n = 1;
    }
    if (t->n == t->cap) {
        t->cap *= 2;
        t->v = mem_grow(t->v, t->cap, sizeof *t->v);
    }
    t->v[t->n] = (struct tok_trie_node){.token = -1, .byte = byte};
    return (int32_t)t->n++;
}

static int32_t child_of(const struct tok_trie *t, int32_t node, uint8_t byte)
{
    if (!node) return t->first[byte];
    int32_t c = t->v[node].child;
    while (c && t->v[c].byte != byte) c = t->v[c].next;
    return c;
}

void tok_trie_add(struct tok_trie *t, const char *s, size_t n, int32_t token)
{
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t b = (uint8_t)s[i];
        int32_t c = child_of(t, at, b);
        if (!c) {
            c = node_new(t, b);
            if (!at) t->first[b] = c;
            else {
                t->v[c].next = t->v[at].child;
                t->v[at].child = c;
            }
        }
        at = c;
    }
    if (at) t->v[at].token = token;
}

/* The longest token at s: its index, or −1. */
static int32_t longest(const struct tok_trie *t, const char *s, size_t n, size_t *len)
{
    int32_t at = 0, best = -1;
    for (size_t i = 0; i < n; i++) {
        at = child_of(t, at, (uint8_t)s[i]);
        if (!at) break;
        if (t->v[at].token >= 0) {
            best = t->v[at].token;
            *len = i + 1;
        }
    }
    return best;
}

/* Word characters of Rust's regular expressions: Alphabetic, M, Nd, Pc, Join_Control. utf8proc has no Alphabetic: its
 * few members that are neither letters nor marks nor Nl are the circled and squared Latin letters. */
bool tok_is_word(int32_t c)
{
    if (c < 0x80) return isalnum((unsigned char)c) || c == '_';
    const struct unicode_range *r = unicode_find(unicode_new, sizeof unicode_new / sizeof unicode_new[0], c);
    if (r) return r->cat[0] == 'L' || r->cat[0] == 'M' || !strcmp(r->cat, "Nd") || !strcmp(r->cat, "Pc");
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default:
        return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
               (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
    }
}

static size_t char_before(const char *s, size_t i)
{
    do i--;
    while (i && ((uint8_t)s[i] & 0xC0) == 0x80);
    return i;
}

int tok_added_scan(const struct tok_trie *t, const struct tok_added *added, const char *s, size_t n,
                   int (*found)(void *ctx, const struct tok_added *token, size_t start, size_t end), void *ctx)
{
    size_t done = 0, len = 0, cl;
    int rc;
    for (size_t i = 0; t->n && i < n;) {
        if (!t->first[(uint8_t)s[i]]) {
            i++;
            continue;
        }
        int32_t k = longest(t, s + i, n - i, &len);
        if (k < 0) {
            i++;
            continue;
        }
        const struct tok_added *a = &added[k];
        size_t start = i, stop = i + len;
        i = stop; /* a match that is refused below is still jumped over */
        if (a->single_word) {
            size_t before = start ? char_before(s, start) : 0;
            if (start && tok_is_word(utf8_next(s + before, n - before, &cl))) continue;
            if (stop < n && tok_is_word(utf8_next(s + stop, n - stop, &cl))) continue;
        }
        if (a->lstrip) {
            while (start) {
                size_t before = char_before(s, start);
                if (!utf8_is_space(utf8_next(s + before, n - before, &cl))) break;
                start = before;
            }
            if (start < done) start = done;
        }
        if (a->rstrip)
            while (stop < n && utf8_is_space(utf8_next(s + stop, n - stop, &cl))) stop += cl;
        if (done < start && (rc = found(ctx, NULL, done, start))) return rc;
        if ((rc = found(ctx, a, start, stop))) return rc;
        done = stop;
    }
    return done < n || !n ? found(ctx, NULL, done, n) : 0;
}
