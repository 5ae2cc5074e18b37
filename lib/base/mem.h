/* Checked memory. Running out is not something a caller of this library can mend, so the allocating calls end the
 * process with one clear line and exit code 1 instead of returning NULL; sizes that come from input are checked
 * against the file's size before they get here. */
#ifndef QLAB_BASE_MEM_H
#define QLAB_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* n × size bytes, zeroed; free with free(). n × size == 0 gives a valid pointer. */
void *mem_new(size_t n, size_t size);
/* n × size bytes, 64-byte aligned, not initialised; free with free(). Large blocks are page-aligned by the allocator,
 * so that unused pages cost nothing. */
void *mem_array(size_t n, size_t size);
/* Grow p (from mem_new/mem_grow, not mem_array) to n × size bytes. */
void *mem_grow(void *p, size_t n, size_t size);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);
/* printf into a new string, to be freed by the caller. */
char *mem_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* *out = a × b; false when it does not fit. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Peak resident set of this process so far, in bytes. */
int64_t mem_peak_rss(void);
/* Current anonymous resident memory (RssAnon) in bytes; -1 where /proc does not tell. */
int64_t mem_rss_anon(void);

#endif
