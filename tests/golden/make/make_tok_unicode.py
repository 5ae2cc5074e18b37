#!/usr/bin/env python3
"""lib/views/tok_unicode.h: where the Unicode tables of Hugging Face tokenizers differ from Unicode 14 (PCRE2 10.42).
Needs tokenizers 0.23 and a Python whose unicodedata is of Unicode 14 (3.11).  Usage: make_tok_unicode.py OUT.h"""
import collections, sys, tokenizers, unicodedata as U
from tokenizers import Regex, normalizers as N, pre_tokenizers as P
assert U.unidata_version.startswith("14."), U.unidata_version
CPS = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000]
ALL = "".join(map(chr, CPS))
def regex_set(p): return {ord(c) for t, _ in P.Split(Regex(p), "removed", invert=True).pre_tokenize_str(ALL) for c in t}
def alone(pre):  # characters that become a piece of their own
    out = set()
    for i in range(0, len(CPS), 5000):
        out |= {ord(p) for p, _ in pre.pre_tokenize_str("a" + "a".join(map(chr, CPS[i:i + 5000])) + "a") if len(p) == 1 and p != "a"}
    return out
def ranges(l, label):
    out = []
    for c in sorted(l):
        if out and out[-1][1] == c - 1 and out[-1][2] == label(c): out[-1][1] = c
        else: out.append([c, c, label(c)])
    return out
def lay(rows):
    lines, line = [], "   "
    for r in rows:
        it = ' {0x%X, 0x%X, "%s"},' % tuple(r)
        if len(line) + len(it) > 118: lines.append(line); line = "   "
        line += it
    return "\n".join(lines + [line])
cat = {}
for k in "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So".split():
    for c in regex_set(r"\p{%s}" % k):
        if U.category(chr(c)) == "Cn": cat[c] = k
        elif U.category(chr(c)) != k: print("changed: %x %s -> %s" % (c, U.category(chr(c)), k))
han = {c for c in regex_set(r"\p{Han}") if U.category(chr(c)) == "Cn"}
spaces = {c for c in CPS if chr(c).isspace() and not 0x1c <= c <= 0x1f}
assert regex_set(r"\s") == spaces, "white space"
print("Digits beyond:", [hex(c) for c in sorted(alone(P.Digits(True)) - {c for c in CPS if U.category(chr(c))[0] == "N" or cat.get(c, "")[:1] == "N"})])
young = {0x11930, 0x11935}  # parts of U+11938, which the reference does not compose
for f in "NFD", "NFKD":
    n = getattr(N, f)(); young |= {c for c in CPS if n.normalize_str(chr(c)) != U.normalize(f, chr(c))}
n = N.NFD()  # combining classes show in the order of marks
for c in CPS:
    if not U.combining(chr(c)): continue
    for x, y in (0x334, 0x345), (0x345, 0x334), (0x323, 0x301), (0x301, 0x323), (0x94d, 0x93c), (0x93c, 0x94d):
        s = "a" + chr(x) + chr(c) + chr(x) + chr(y)
        if n.normalize_str(s) != U.normalize("NFD", s): young.add(c)
punct = {c for c in CPS if U.category(chr(c))[0] == "P"} - alone(P.Punctuation("isolated"))
none = lambda c: ""
open(sys.argv[1], "w").write('''/* Hugging Face tokenizers 0.23 draws on tables of several Unicode versions, and the libraries here have others (in
 * Debian 12: PCRE2 10.42 has 14, utf8proc 2.8 has 15). These are the differences, for this version of tokenizers; what
 * they do not cover is characters that Unicode 17 and later bring and a newer PCRE2 or utf8proc knows.
 * Made by tests/golden/make/make_tok_unicode.py with the real library. */
#ifndef QLAB_VIEWS_TOK_UNICODE_H
#define QLAB_VIEWS_TOK_UNICODE_H

#include <stddef.h>
#include <stdint.h>

struct unicode_range {
    int32_t lo, hi;
    char cat[4]; /* general category */
};

/* clang-format off */

/* Characters of Unicode 15 to 16, which the reference's regular expressions (Oniguruma) know: the classes of a pattern
 * are completed with them. */
static const struct unicode_range unicode_new[] = {
%s
};

/* The same for the script Han. */
static const struct unicode_range han_new[] = {
%s
};

/* Characters younger than Unicode 9, the version of the reference's normalization, that have a combining class, a
 * decomposition or a composition (unicode_new not repeated): it leaves them as they are. */
static const struct unicode_range norm_new[] = {
%s
};

/* Punctuation that the reference's Punctuation does not know (unicode_new not repeated). */
static const struct unicode_range punct_new[] = {
%s
};

/* clang-format on */

/* The range of a sorted table that has c, or NULL. */
static inline const struct unicode_range *unicode_find(const struct unicode_range *r, size_t n, int32_t c)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c > r[mid].hi) lo = mid + 1;
        else hi = mid;
    }
    return lo < n && c >= r[lo].lo ? &r[lo] : NULL;
}
#define UNICODE_IN(table, c) (unicode_find(table, sizeof table / sizeof table[0], c) != NULL)

#endif
''' % (lay(ranges(cat, cat.get)), lay(ranges(han, lambda c: "Han")), lay(ranges(young - set(cat), none)), lay(ranges(punct - set(cat), none))))
