#include "golden.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Noreturn void give_up(const char *what)
{
    fprintf(stderr, "test: %s\n", what);
    exit(1);
}

char *test_src(const char *rel)
{
    const char *src = getenv("QLAB_SRC");
    return path_join(src && *src ? src : QLAB_SRC, rel);
}

json_t *golden_load(const char *name)
{
    struct err e;
    char *rel = mem_printf("tests/golden/%s", name), *path = test_src(rel);
    json_t *v = json_read(path, (size_t)64 << 20, &e);
    if (!v) give_up(e.msg);
    free(path);
    free(rel);
    return v;
}

json_t *golden_get(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    if (!v) give_up(mem_printf("golden file without \"%s\"", key));
    return v;
}

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

uint8_t *golden_hex(const json_t *hex, size_t *n)
{
    const char *s = json_string_value(hex);
    if (!s || strlen(s) % 2) give_up("golden file: a hex string was expected");
    *n = strlen(s) / 2;
    uint8_t *p = mem_new(*n, 1);
    for (size_t i = 0; i < *n; i++) {
        int hi = digit(s[2 * i]), lo = digit(s[2 * i + 1]);
        if (hi < 0 || lo < 0) give_up("golden file: a hex string was expected");
        p[i] = (uint8_t)(hi << 4 | lo);
    }
    return p;
}

double *golden_nums(const json_t *array, size_t *n)
{
    *n = json_array_size(array);
    double *v = mem_new(*n, sizeof *v);
    for (size_t i = 0; i < *n; i++) v[i] = json_number_value(json_array_get(array, i));
    return v;
}

static char *tmp_dir;
static pid_t tmp_owner;

static void remove_tmp(void)
{
    if (getpid() == tmp_owner) path_remove_tree(tmp_dir, NULL); /* not in a forked child */
    free(tmp_dir);
}

const char *test_tmp(const char *name)
{
    /* Kept in a list so that leak checkers see them. */
    static char **names;
    static size_t n;
    if (!tmp_dir) {
        const char *base = getenv("TMPDIR");
        tmp_dir = path_join(base && *base ? base : "/tmp", "qlab-test-XXXXXX");
        if (!mkdtemp(tmp_dir)) give_up("cannot make a scratch folder");
        tmp_owner = getpid();
        atexit(remove_tmp);
    }
    names = mem_grow(names, n + 1, sizeof *names);
    return names[n++] = path_join(tmp_dir, name);
}

void test_write(const char *path, const void *p, size_t n)
{
    struct err e;
    char *dir = mem_strdup(path);
    *strrchr(dir, '/') = 0;
    if (path_make_dirs(dir, &e) || file_write(path, p, n, &e)) give_up(e.msg);
    free(dir);
}

char *test_shared(const char *rel, const char *what)
{
    const char *shared = getenv("QLAB_SHARED");
    char *base = shared && *shared ? mem_strdup(shared) : test_src("../shared"), *path = path_join(base, rel);
    free(base);
    if (path_exists(path)) return path;
    printf("# skipped: %s (%s is not there)\n", what, path);
    free(path);
    return NULL;
}
