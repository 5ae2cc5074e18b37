#include "views/utf8.h"

#include "base/mem.h"

#include <string.h>

int32_t utf8_next(const char *p, size_t n, size_t *len)
{
    const uint8_t *s = (const uint8_t *)p;
    uint8_t a = s[0];
    *len = 1;
    if (a < 0x80) return a;
    if (a < 0xC2 || a > 0xF4) return -1;
    size_t want = a < 0xE0 ? 1 : a < 0xF0 ? 2 : 3;
    /* The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF. */
    uint8_t lo = a == 0xE0 ? 0xA0 : a == 0xF0 ? 0x90 : 0x80, hi = a == 0xED ? 0x9F : a == 0xF4 ? 0x8F : 0xBF;
    int32_t cp = a & (0x3F >> want);
    for (size_t i = 1; i <= want; i++) {
        if (i >= n || s[i] < lo || s[i] > hi) return -1;
        cp = cp << 6 | (s[i] & 0x3F);
        *len = i + 1;
        lo = 0x80;
        hi = 0xBF;
    }
    return cp;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    size_t i = 0, len;
    while (i < n) {
        if ((uint8_t)s[i] < 0x80) i++;
        else if (utf8_next(s + i, n - i, &len) < 0) break;
        else i += len;
    }
    return i;
}

size_t utf8_put(int32_t cp, char *out)
{
    uint32_t c = (uint32_t)cp;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

char *utf8_replace_invalid(const char *s, size_t n, size_t *n_out, int64_t *n_bad)
{
    size_t bad = 0, len, i = utf8_valid_prefix(s, n), first = i;
    while (i < n) {
        bad += utf8_next(s + i, n - i, &len) < 0;
        i += len;
    }
    /* A subpart of one byte grows by two. */
    size_t grown, room;
    if (!size_mul(bad, 2, &grown) || !size_add(n, grown, &room) || !size_add(room, 1, &room)) room = SIZE_MAX;
    char *out = mem_new(room, 1);
    if (first) memcpy(out, s, first);
    size_t o = first;
    for (i = first; i < n; i += len) {
        if (utf8_next(s + i, n - i, &len) < 0) {
            memcpy(out + o, "\xEF\xBF\xBD", 3);
            o += 3;
        } else {
            memcpy(out + o, s + i, len);
            o += len;
        }
    }
    out[o] = 0;
    *n_out = o;
    if (n_bad) *n_bad = (int64_t)bad;
    return out;
}

int64_t utf8_count(const char *s, size_t n)
{
    int64_t c = 0;
    for (size_t i = 0; i < n; i++) c += ((uint8_t)s[i] & 0xC0) != 0x80;
    return c;
}

bool utf8_is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
