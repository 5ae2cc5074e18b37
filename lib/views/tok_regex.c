/* Hugging Face tokenizers match with Oniguruma; here PCRE2 does it. The pattern is rewritten so that what both can
 * say means the same, and the rest is refused by name:
 *   \s \S      White_Space, spelt out (PCRE2's has U+180E besides)
 *   \p{L} …    completed with the characters of Unicode 15 and 16 (tok_unicode.h)
 *   \d \h \v   Unicode decimal digits, hexadecimal digits, U+000B
 *   ^ $        at every line, as Ruby's syntax has it (PCRE2_MULTILINE, newline is "\n" alone)
 * Nested classes, &&, back references, \w, \b and modifiers other than i are refused. Case-insensitive matching folds
 * single characters (so 's matches U+017F); Oniguruma's folds of one character to several ("ss" matching "ß") are
 * not done. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "base/mem.h"
#include "views/tok.h"
#include "views/tok_unicode.h"
#include "views/utf8.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define MAX_PATTERN 65536
#define MATCH_LIMIT 200000000u /* backtracking steps of one search; the shipped patterns stay far below */

struct tok_regex {
    pcre2_code *code;
    bool jit;
};

struct tok_match {
    pcre2_match_data *data;
    pcre2_match_context *ctx;
    pcre2_jit_stack *stack;
};

static const char space_class[] = "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
                                  "\\x{202f}\\x{205f}\\x{3000}";
static const char not_space_class[] =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}";

static void put(struct tok_buf *b, const char *s) { tok_buf_put(b, s, strlen(s)); }

/* The members of a property, without brackets. */
static void put_property(struct tok_buf *b, const char *name)
{
    char t[64];
    bool han = !strcmp(name, "Han");
    snprintf(t, sizeof t, han ? "\\p{sc:%s}" : "\\p{%s}", name);
    put(b, t);
    const struct unicode_range *r = han ? han_new : unicode_new;
    size_t n = han ? sizeof han_new / sizeof han_new[0] : sizeof unicode_new / sizeof unicode_new[0];
    for (size_t i = 0; i < n; i++) {
        if (strncmp(r[i].cat, name, strlen(name))) continue;
        snprintf(t, sizeof t, "\\x{%x}-\\x{%x}", (unsigned)r[i].lo, (unsigned)r[i].hi);
        put(b, t);
    }
}

static bool property_known(const char *name)
{
    static const char *const known[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me",
                                        "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi",
                                        "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp",
                                        "Z",  "Han"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i], name)) return true;
    return false;
}

struct rewrite {
    const char *s;
    size_t n, i;
    struct tok_buf out;
    bool in_class;
    struct err *e;
};

static int no(struct rewrite *r, const char *what)
{
    return err_set(r->e, "the regular expression has %s, which is not supported", what);
}

static void put_set(struct rewrite *r, const char *members, bool negated)
{
    if (!r->in_class) put(&r->out, negated ? "[^" : "[");
    put(&r->out, members);
    if (!r->in_class) put(&r->out, "]");
}

static int hex_escape(struct rewrite *r, size_t max_digits)
{
    uint32_t v = 0;
    size_t digits = 0;
    bool brace = r->i < r->n && r->s[r->i] == '{';
    if (brace) r->i++, max_digits = 8;
    while (r->i < r->n && digits < max_digits && isxdigit((unsigned char)r->s[r->i])) {
        char c = r->s[r->i++];
        v = v << 4 | (uint32_t)(isdigit((unsigned char)c) ? c - '0' : (c | 32) - 'a' + 10);
        digits++;
    }
    if (brace && (r->i >= r->n || r->s[r->i++] != '}')) return no(r, "a broken \\x escape");
    if (!digits || v > 0x10FFFF || (v >= 0xD800 && v < 0xE000) || (!brace && max_digits == 2 && v >= 0x80))
        return no(r, "a \\x escape that is no character");
    char t[32];
    snprintf(t, sizeof t, "\\x{%x}", v);
    put(&r->out, t);
    return 0;
}

static int property_escape(struct rewrite *r, bool negated)
{
    char name[16];
    size_t k = 0;
    if (r->i >= r->n || r->s[r->i] != '{') return no(r, "\\p without {…}");
    r->i++;
    if (r->i < r->n && r->s[r->i] == '^') negated = !negated, r->i++;
    while (r->i < r->n && r->s[r->i] != '}' && k + 1 < sizeof name) name[k++] = r->s[r->i++];
    name[k] = 0;
    if (r->i >= r->n || r->s[r->i++] != '}' || !property_known(name)) {
        char what[64];
        snprintf(what, sizeof what, "the property \\p{%.15s}", name);
        return no(r, what);
    }
    if (negated && r->in_class) return no(r, "a negated property inside a class");
    if (!r->in_class) put(&r->out, negated ? "[^" : "[");
    put_property(&r->out, name);
    if (!r->in_class) put(&r->out, "]");
    return 0;
}

static int escape(struct rewrite *r)
{
    if (r->i >= r->n) return no(r, "a backslash at its end");
    char c = r->s[r->i++];
    char t[3] = {'\\', c, 0};
    switch (c) {
    case 's': put_set(r, space_class, false); return 0;
    case 'S': put_set(r, r->in_class ? not_space_class : space_class, true); return 0;
    case 'd':
    case 'D':
        if (c == 'D' && r->in_class) return no(r, "\\D inside a class");
        if (!r->in_class) put(&r->out, c == 'D' ? "[^" : "[");
        put_property(&r->out, "Nd");
        if (!r->in_class) put(&r->out, "]");
        return 0;
    case 'h': put_set(r, "0-9a-fA-F", false); return 0;
    case 'v': put(&r->out, "\\x{b}"); return 0;
    case 'p':
    case 'P': return property_escape(r, c == 'P');
    case 'x': return hex_escape(r, 2);
    case 'u': return hex_escape(r, 4);
    case 'r':
    case 'n':
    case 't':
    case 'f':
    case 'a':
    case 'e': put(&r->out, t); return 0;
    case 'A':
    case 'z':
    case 'Z':
        if (r->in_class) break;
        put(&r->out, t);
        return 0;
    default:
        if ((unsigned char)c < 0x80 && ispunct((unsigned char)c)) {
            put(&r->out, t);
            return 0;
        }
        if (c == ' ') {
            put(&r->out, "\\x{20}");
            return 0;
        }
    }
    char what[32];
    snprintf(what, sizeof what, "the escape \\%c", (unsigned char)c < 0x80 && isprint((unsigned char)c) ? c : '?');
    return no(r, what);
}

static int class(struct rewrite *r)
{
    put(&r->out, "[");
    r->in_class = true;
    if (r->i < r->n && r->s[r->i] == '^') put(&r->out, "^"), r->i++;
    if (r->i < r->n && r->s[r->i] == ']') return no(r, "an empty class");
    while (r->i < r->n && r->s[r->i] != ']') {
        char c = r->s[r->i++];
        if (c == '\\') {
            if (escape(r)) return -1;
            continue;
        }
        if (c == '[') return no(r, "a class inside a class");
        if (c == '&' && r->i < r->n && r->s[r->i] == '&') return no(r, "an intersection of classes");
        tok_buf_put(&r->out, &c, 1);
    }
    if (r->i >= r->n) return no(r, "a class without its end");
    r->i++;
    r->in_class = false;
    put(&r->out, "]");
    return 0;
}

static int group(struct rewrite *r)
{
    static const char *const known[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:", "?-i:", "?i)"};
    put(&r->out, "(");
    if (r->i >= r->n || r->s[r->i] != '?') {
        if (r->i < r->n && r->s[r->i] == '*') return no(r, "a (* verb");
        return 0;
    }
    for (size_t k = 0; k < sizeof known / sizeof known[0]; k++) {
        size_t len = strlen(known[k]);
        if (r->n - r->i < len || memcmp(r->s + r->i, known[k], len)) continue;
        put(&r->out, known[k]);
        r->i += len;
        return 0;
    }
    return no(r, "a group of another kind than (?: (?= (?! (?<= (?<! (?> (?i: (?-i:");
}

/* {n} {n,} {n,m}; Oniguruma takes any other { as itself, and {n,m}+ as a repeated repeat. */
static int braces(struct rewrite *r)
{
    size_t i = r->i, digits = 0, digits2 = 0;
    while (i < r->n && isdigit((unsigned char)r->s[i])) i++, digits++;
    if (i < r->n && r->s[i] == ',') {
        i++;
        while (i < r->n && isdigit((unsigned char)r->s[i])) i++, digits2++;
    }
    if (!digits || digits > 4 || digits2 > 4 || i >= r->n || r->s[i] != '}')
        return no(r, "a { that is not a repeat count");
    i++;
    if (i < r->n && r->s[i] == '+') return no(r, "a + after a repeat count");
    put(&r->out, "{");
    tok_buf_put(&r->out, r->s + r->i, i - r->i);
    r->i = i;
    return 0;
}

static int rewrite(struct rewrite *r)
{
    while (r->i < r->n) {
        char c = r->s[r->i++];
        int rc = 0;
        if (c == '\\') rc = escape(r);
        else if (c == '[') rc = class(r);
        else if (c == '(') rc = group(r);
        else if (c == '{') rc = braces(r);
        else tok_buf_put(&r->out, &c, 1);
        if (rc) return -1;
    }
    return 0;
}

struct tok_regex *tok_regex_new(const char *pattern, size_t n, bool literal, struct err *e)
{
    if (n > MAX_PATTERN) {
        err_set(e, "the pattern has %zu bytes (%d at most were expected)", n, MAX_PATTERN);
        return NULL;
    }
    struct rewrite r = {.s = pattern, .n = n, .e = e};
    if (literal) tok_buf_put(&r.out, pattern, n);
    else if (rewrite(&r)) {
        free(r.out.p);
        return NULL;
    }
    int code;
    size_t at;
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (cc) pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    pcre2_code *re =
        cc ? pcre2_compile((PCRE2_SPTR)(r.out.p ? r.out.p : ""), r.out.n, options, &code, &at, cc) : NULL;
    if (cc) pcre2_compile_context_free(cc);
    free(r.out.p);
    if (!re) {
        char msg[256] = "out of memory";
        if (cc) pcre2_get_error_message(code, (PCRE2_UCHAR *)msg, sizeof msg);
        err_set(e, "the regular expression is not valid: %s", msg);
        return NULL;
    }
    struct tok_regex *out = mem_new(1, sizeof *out);
    out->code = re;
    out->jit = pcre2_jit_compile(re, PCRE2_JIT_COMPLETE) == 0;
    return out;
}

void tok_regex_free(struct tok_regex *re)
{
    if (!re) return;
    pcre2_code_free(re->code);
    free(re);
}

struct tok_match *tok_match_new(void)
{
    struct tok_match *m = mem_new(1, sizeof *m);
    m->data = pcre2_match_data_create(1, NULL);
    m->ctx = pcre2_match_context_create(NULL);
    if (m->ctx) pcre2_set_match_limit(m->ctx, MATCH_LIMIT);
    m->stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, NULL);
    if (m->ctx && m->stack) pcre2_jit_stack_assign(m->ctx, NULL, m->stack);
    return m;
}

void tok_match_free(struct tok_match *m)
{
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->ctx);
    pcre2_jit_stack_free(m->stack);
    free(m);
}

/* Leftmost match in s[from … n): 1, 0, or −1. */
static int search(const struct tok_regex *re, struct tok_match *m, const char *s, size_t n, size_t from, size_t *start,
                  size_t *end, struct err *e)
{
    if (!m->data) return err_set(e, "out of memory");
    int rc = re->jit ? pcre2_jit_match(re->code, (PCRE2_SPTR)s, n, from, 0, m->data, m->ctx)
                     : pcre2_match(re->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, m->data, m->ctx);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        char msg[256] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)msg, sizeof msg);
        return err_set(e, "the pre-tokenizer's regular expression failed on this text: %s", msg);
    }
    PCRE2_SIZE *v = pcre2_get_ovector_pointer(m->data);
    *start = v[0];
    *end = v[1];
    if (*start < from || *end < *start || *end > n)
        return err_set(e, "the pre-tokenizer's regular expression moves its match backwards");
    return 1;
}

/* ---- single characters ---- */

/* Rust's char::is_numeric: Nd, Nl, No of Unicode 17. */
static bool is_numeric(int32_t c)
{
    if (c < 0x80) return c >= '0' && c <= '9';
    utf8proc_category_t cat = utf8proc_category(c);
    if (cat == UTF8PROC_CATEGORY_ND || cat == UTF8PROC_CATEGORY_NL || cat == UTF8PROC_CATEGORY_NO) return true;
    const struct unicode_range *r = unicode_find(unicode_new, sizeof unicode_new / sizeof unicode_new[0], c);
    return (r && r->cat[0] == 'N') || (c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6);
}

static bool is_punct(int32_t c)
{
    if (c < 0x80) return ispunct((unsigned char)c) != 0;
    if (UNICODE_IN(punct_new, c) || UNICODE_IN(unicode_new, c)) return false;
    if (c == 0x166D || c == 0x111C9) return true; /* no longer punctuation */
    utf8proc_category_t cat = utf8proc_category(c);
    return cat >= UTF8PROC_CATEGORY_PC && cat <= UTF8PROC_CATEGORY_PO;
}

static bool char_matches(const struct tok_pattern *pat, int32_t c)
{
    return pat->kind == PAT_DIGIT   ? is_numeric(c)
           : pat->kind == PAT_SPACE ? utf8_is_space(c)
           : pat->kind == PAT_PUNCT ? is_punct(c)
                                    : c == pat->cp;
}

/* ---- segments ---- */

void tok_segments_begin(struct tok_segments *it, const struct tok_pattern *pat, struct tok_match *m, const char *s,
                        size_t n)
{
    *it = (struct tok_segments){.pat = pat, .m = m, .s = s, .n = n};
}

/* The next match into hit_start, hit_end: 1, 0 or −1. An empty match right behind the last one does not count. */
static int next_hit(struct tok_segments *it, struct err *e)
{
    size_t len;
    if (it->pat->kind != PAT_REGEX) {
        for (; it->pos < it->n; it->pos += len) {
            int32_t c = utf8_next(it->s + it->pos, it->n - it->pos, &len);
            if (!char_matches(it->pat, c)) continue;
            it->hit_start = it->pos;
            it->hit_end = it->pos += len;
            return 1;
        }
        return 0;
    }
    while (it->pos <= it->n) {
        int rc = search(it->pat->re, it->m, it->s, it->n, it->pos, &it->hit_start, &it->hit_end, e);
        if (rc <= 0) return rc;
        if (it->hit_start == it->hit_end && it->match_end == it->hit_end + 1) {
            len = 1;
            if (it->pos < it->n) utf8_next(it->s + it->pos, it->n - it->pos, &len);
            it->pos += len;
            continue;
        }
        it->pos = it->hit_end;
        it->match_end = it->hit_end + 1;
        return 1;
    }
    return 0;
}

int tok_segments_next(struct tok_segments *it, size_t *start, size_t *end, bool *is_match, struct err *e)
{
    if (!it->have_hit && !it->done) {
        int rc = next_hit(it, e);
        if (rc < 0) return -1;
        it->have_hit = rc == 1;
        it->done = rc == 0;
    }
    *start = it->last;
    if (it->have_hit) {
        *is_match = it->hit_start == it->last;
        *end = *is_match ? it->hit_end : it->hit_start;
        if (*is_match) it->have_hit = false;
    } else {
        *is_match = false;
        *end = it->n;
        if (it->last == it->n) return 0;
    }
    it->last = *end;
    return 1;
}
