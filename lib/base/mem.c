#include "base/mem.h"

#include "base/msg.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

bool size_mul(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}

static _Noreturn void out_of_memory(size_t n, size_t size)
{
    die("out of memory (%zu x %zu bytes wanted)", n, size);
}

void *mem_new(size_t n, size_t size)
{
    size_t bytes;
    if (!size_mul(n, size, &bytes)) out_of_memory(n, size);
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) out_of_memory(n, size);
    return p;
}

void *mem_array(size_t n, size_t size)
{
    size_t bytes;
    if (!size_mul(n, size, &bytes) || bytes > SIZE_MAX - 64) out_of_memory(n, size);
    bytes = (bytes + 63) / 64 * 64;
    void *p = aligned_alloc(64, bytes ? bytes : 64);
    if (!p) out_of_memory(n, size);
    return p;
}

void *mem_grow(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (!size_mul(n, size, &bytes)) out_of_memory(n, size);
    p = realloc(p, bytes ? bytes : 1);
    if (!p) out_of_memory(n, size);
    return p;
}

char *mem_strndup(const char *s, size_t n)
{
    char *p = mem_new(n + 1, 1);
    memcpy(p, s, n);
    return p;
}

char *mem_strdup(const char *s) { return mem_strndup(s, strlen(s)); }

char *mem_printf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = mem_new((size_t)n + 1, 1);
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

int64_t mem_peak_rss(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)u.ru_maxrss * 1024;
}

int64_t mem_rss_anon(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return -1;
    char buf[256];
    long long kb = -1;
    while (fgets(buf, sizeof buf, f))
        if (sscanf(buf, "RssAnon: %lld kB", &kb) == 1) break;
    fclose(f);
    return kb < 0 ? -1 : (int64_t)kb * 1024;
}
