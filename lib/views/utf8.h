/* UTF-8: decoding that never reads past n, and the replacement of what is not valid as the Unicode standard
 * recommends it (and Python's errors="replace" and Rust's from_utf8_lossy do it): every maximal subpart of an
 * ill-formed sequence becomes one U+FFFD. */
#ifndef QLAB_VIEWS_UTF8_H
#define QLAB_VIEWS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The code point at s[0 … n), n ≥ 1, and its length in bytes; −1 with the length of the maximal invalid subpart. */
int32_t utf8_next(const char *s, size_t n, size_t *len);
/* Length of the longest valid prefix. */
size_t utf8_valid_prefix(const char *s, size_t n);
/* Bytes written to out (4 at most) for a code point. */
size_t utf8_put(int32_t cp, char *out);
/* A new NUL-terminated copy with invalid subparts replaced; *n_out its length, *n_bad (may be NULL) how many. */
char *utf8_replace_invalid(const char *s, size_t n, size_t *n_out, int64_t *n_bad);
/* Code points of valid UTF-8. */
int64_t utf8_count(const char *s, size_t n);
/* The Unicode property White_Space (what Rust calls whitespace; Python's isspace() has U+001C … U+001F besides). */
bool utf8_is_space(int32_t cp);

#endif
