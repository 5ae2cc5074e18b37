/* The safetensors reader against hand-made bytes: every refusal of docs/formats.md, and what must be accepted; the
 * writer against the reader and the layout of the format. */
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "golden.h"
#include "views/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* header length as stated, header text, n_data bytes 0, 1, 2 … */
static uint8_t *make(uint64_t len, const char *header, size_t n_data, size_t *n)
{
    size_t h = strlen(header);
    *n = 8 + h + n_data;
    uint8_t *p = mem_new(*n, 1);
    for (int i = 0; i < 8; i++) p[i] = (uint8_t)(len >> (8 * i));
    memcpy(p + 8, header, h);
    for (size_t i = 0; i < n_data; i++) p[8 + h + i] = (uint8_t)i;
    return p;
}

static int parse(struct safetensors *s, const char *header, size_t n_data, struct err *e, uint8_t **bytes)
{
    size_t n;
    *bytes = make(strlen(header), header, n_data, &n);
    return safetensors_parse(s, "x.safetensors", *bytes, n, e);
}

/* The message must name the file and say `what`. */
static void refused(const char *header, size_t n_data, const char *what)
{
    struct safetensors s;
    struct err e;
    uint8_t *p;
    int rc = parse(&s, header, n_data, &e, &p);
    if (rc == 0) fail_msg("accepted: %s", header);
    if (strncmp(e.msg, "x.safetensors: ", 15) || !strstr(e.msg, what))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, what);
    assert_null(strchr(e.msg, '\n'));
    free(p);
}

static void accepted(const char *header, size_t n_data, size_t n_tensors)
{
    struct safetensors s;
    struct err e;
    uint8_t *p;
    if (parse(&s, header, n_data, &e, &p)) fail_msg("refused: %s", e.msg);
    assert_int_equal(s.n_tensors, n_tensors);
    safetensors_close(&s);
    free(p);
}

#define A(off) "\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[" off "]}"

static void test_accepts(void **state)
{
    (void)state;
    accepted("{" A("0,8") "}", 8, 1);
    accepted("{}", 0, 0);
    accepted("{\"__metadata__\":{\"format\":\"pt\"}," A("0,8") "}   ", 8, 1);
    accepted("  {\"__metadata__\":null," A("0,8") "}", 8, 1);
    accepted("{\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9],\"more\":1}," A("0,8") "}", 9, 2);
    accepted("{\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[8,8]}," A("0,8") "}", 8, 2);
    accepted("{\"e\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,0],\"data_offsets\":[0,0]}}", 0, 1);
}

static void test_refuses_headers(void **state)
{
    (void)state;
    refused("{" A("0,8"), 8, "not valid JSON");
    refused("[1]", 0, "not a JSON object");
    refused("{\"__metadata__\":{\"a\":1}," A("0,8") "}", 8, "not a string");
    refused("{\"__metadata__\":3," A("0,8") "}", 8, "__metadata__");
    refused("{" A("0,8") "," A("0,8") "}", 8, "not valid JSON");
    refused("{\"a\":3}", 0, "not described");
    refused("{\"a\":{\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "dtype");
    refused("{\"a\":{\"dtype\":\"F17\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "F17");
    refused("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "F8_E4M3");
    refused("{\"a\":{\"dtype\":\"F16\",\"data_offsets\":[0,4]}}", 4, "shape");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[-2],\"data_offsets\":[0,4]}}", 4, "shape");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[2.0],\"data_offsets\":[0,4]}}", 4, "shape");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,4]}}", 4, "dimensions");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[2]}}", 4, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0]}}", 4, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,-4]}}", 4, "data_offsets");
}

static void test_refuses_places(void **state)
{
    (void)state;
    refused("{" A("0,8") "}", 9, "after the last tensor");
    refused("{" A("0,8") "}", 7, "cut short");
    refused("{" A("8,0") "}", 8, "before it begins");
    refused("{" A("0,6") "}", 6, "bytes");
    refused("{" A("1,9") "}", 9, "hole");
    refused("{" A("0,8") ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}", 10, "hole");
    refused("{" A("0,8") ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8, "overlaps");
    refused("{" A("0,8") ",\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8, "overlaps");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "overflows");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "overflows");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807],\"data_offsets\":[0,9223372036854775807]}}", 8,
            "cut short");
}

static void test_refuses_lengths(void **state)
{
    (void)state;
    const struct {
        uint64_t len;
        const char *header, *what;
    } t[] = {{UINT64_MAX, "{}", "header of 18446744073709551615 bytes"},
             {3, "{}", "header of 3 bytes"},
             {1, "{}", "header of 1 bytes"},
             {0, "{}", "header of 0 bytes"},
             {100000001, "{}", "header of 100000001 bytes"}};
    struct safetensors s;
    struct err e;
    size_t n;
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        uint8_t *p = make(t[i].len, t[i].header, 0, &n);
        assert_int_equal(safetensors_parse(&s, "x", p, n, &e), -1);
        assert_non_null(strstr(e.msg, t[i].what));
        free(p);
    }
    for (n = 0; n < 8; n++) assert_int_equal(safetensors_parse(&s, "x", "12345678", n, &e), -1);
    assert_int_equal(safetensors_open(&s, test_tmp("none.safetensors"), &e), -1);
    assert_non_null(strstr(e.msg, "none.safetensors: No such file"));
}

/* A file cut at every length is refused, never read beyond its end (the sanitizers watch). */
static void test_cut_short(void **state)
{
    (void)state;
    size_t n;
    struct safetensors s;
    struct err e;
    const char *h = "{" A("0,8") "}";
    uint8_t *p = make(strlen(h), h, 8, &n);
    for (size_t k = 0; k < n; k++) {
        uint8_t *cut = mem_new(k, 1);
        memcpy(cut, p, k);
        assert_int_equal(safetensors_parse(&s, "x", cut, k, &e), -1);
        free(cut);
    }
    free(p);
}

static void test_values_and_order(void **state)
{
    (void)state;
    struct safetensors s;
    struct err e;
    uint8_t *p;
    /* b comes first in the file, at an odd place for F32 (its header has 6 mod 8 bytes): the data is copied */
    const char *h = "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                    "\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[3,11]}}";
    assert_int_equal(parse(&s, h, 11, &e, &p), 0);
    assert_int_equal(s.n_tensors, 2);
    assert_string_equal(s.tensors[0].name, "a");
    assert_string_equal(s.tensors[1].name, "b");
    assert_int_equal(s.tensors[0].n_dims, 2);
    assert_int_equal(s.tensors[0].shape[1], 2);
    assert_int_equal((uintptr_t)s.tensors[0].data % 4, 0);
    assert_memory_equal(s.tensors[0].data, "\3\4\5\6\7\10\11\12", 8);
    assert_memory_equal(s.tensors[1].data, "\0\1\2", 3);
    safetensors_close(&s);
    free(p);
}

/* ---- writer ---- */

static const struct tensor decl[] = {
    {.name = "z.u8", .dtype = DT_U8, .n_dims = 1, .shape = {5}},
    {.name = "a\"quoted\\", .dtype = DT_F32, .n_dims = 2, .shape = {2, 3}},
    {.name = "empty", .dtype = DT_F16, .n_dims = 2, .shape = {0, 3}},
    {.name = "scalar", .dtype = DT_I64, .n_dims = 0},
    {.name = "half", .dtype = DT_BF16, .n_dims = 1, .shape = {3}},
};
#define TOTAL (5 + 24 + 0 + 8 + 6)

static void test_writer(void **state)
{
    (void)state;
    const char *path = test_tmp("w.safetensors");
    struct st_writer w;
    struct safetensors s;
    struct err e;
    uint8_t bytes[TOTAL];
    for (size_t i = 0; i < TOTAL; i++) bytes[i] = (uint8_t)(i * 7 + 1);
    assert_int_equal(st_writer_open(&w, path, decl, 5, &e), 0);
    for (size_t at = 0; at < TOTAL; at += 4) /* pieces that cross tensors */
        assert_int_equal(st_writer_append(&w, bytes + at, TOTAL - at < 4 ? TOTAL - at : 4, &e), 0);
    assert_int_equal(st_writer_append(&w, bytes, 1, &e), -1);
    assert_non_null(strstr(e.msg, "more than"));
    assert_int_equal(st_writer_close(&w, &e), 0);
    if (safetensors_open(&s, path, &e)) fail_msg("%s", e.msg);
    assert_int_equal(s.n_tensors, 5);
    assert_int_equal(s.n_copies, 0); /* everything is aligned */
    size_t at = 0;
    for (size_t i = 0; i < 5; i++) {
        const struct tensor *t = NULL;
        for (size_t k = 0; k < 5; k++)
            if (!strcmp(s.tensors[k].name, decl[i].name)) t = &s.tensors[k];
        assert_non_null(t);
        assert_int_equal(t->dtype, decl[i].dtype);
        assert_int_equal(t->n_dims, decl[i].n_dims);
        assert_memory_equal(t->shape, decl[i].shape, sizeof t->shape);
        if (t->n_bytes) assert_memory_equal(t->data, bytes + at, t->n_bytes);
        at += t->n_bytes;
    }
    uint64_t len = 0;
    for (int i = 7; i >= 0; i--) len = len << 8 | s.map.data[i];
    assert_int_equal(len % 8, 0);
    assert_non_null(strstr((const char *)s.map.data + 8, "\"__metadata__\":{\"format\":\"pt\"}"));
    safetensors_close(&s);
}

static void test_writer_fails(void **state)
{
    (void)state;
    const char *path = test_tmp("short.safetensors");
    struct st_writer w;
    struct err e;
    assert_int_equal(st_writer_open(&w, path, decl, 5, &e), 0);
    assert_int_equal(st_writer_append(&w, "123456", 6, &e), 0);
    assert_int_equal(st_writer_close(&w, &e), -1);
    assert_non_null(strstr(e.msg, "misses 23 bytes"));
    assert_false(path_exists(path));
    assert_int_equal(st_writer_open(&w, test_tmp("no/such/folder.safetensors"), decl, 5, &e), -1);
    assert_int_equal(st_writer_open(&w, path, decl, 5, &e), 0);
    st_writer_abort(&w);
    assert_false(path_exists(path));
}

/* Lines of the cache, whose last digest goes to `last`. */
static int cached(const char *digests, char last[65])
{
    FILE *f = fopen(digests, "r");
    int n = 0;
    while (f && fscanf(f, "%*s %64s", last) == 1) n++;
    if (f) fclose(f);
    return n;
}

/* A checkpoint's digest is in the cache when it is written; that of any other file, of a small one or with the cache off is not. */
static void test_writer_digest(void **state)
{
    (void)state;
    struct st_writer w;
    struct err e;
    char hex[65], last[65] = "", *was = getenv("XDG_CACHE_HOME"), *old = was ? mem_strdup(was) : NULL;
    char *home = mem_strdup(test_tmp("cache")), *digests = path_join(home, "qlab/digests"), *path = mem_strdup(test_tmp("m.safetensors"));
    struct tensor t = {.name = "t", .dtype = DT_U8, .n_dims = 1, .shape = {3 << 20}};
    uint8_t *bytes = mem_new(3 << 20, 1);
    for (size_t i = 0; i < 3 << 20; i++) bytes[i] = (uint8_t)(i * 31 >> 8);
    assert_int_equal(path_remove_tree(home, &e), 0);
    setenv("XDG_CACHE_HOME", home, 1);
    assert_int_equal(file_write(path, bytes, 3 << 20, &e), 0);
    assert_int_equal(cached(digests, last), 0);
    for (int round = 0; round < 3; round++) { /* large; small; large with the cache off */
        t.shape[0] = round == 1 ? 1000 : 3 << 20;
        if (round == 2) setenv("QLAB_NO_CACHE", "1", 1);
        assert_int_equal(st_writer_open(&w, path, &t, 1, &e), 0);
        assert_int_equal(st_writer_append(&w, bytes, (size_t)t.shape[0], &e), 0);
        assert_int_equal(st_writer_close(&w, &e), 0);
        assert_int_equal(cached(digests, last), 1);
        if (round) continue;
        char *all;
        size_t n;
        assert_int_equal(file_read(path, 4 << 20, &all, &n, &e), 0);
        sha256_hex(all, n, hex);
        free(all);
        assert_string_equal(last, hex);
        /* and it is found there: the reader adds no line */
        assert_int_equal(sha256_file(path, last, NULL, &e), 0);
        assert_string_equal(last, hex);
        assert_int_equal(cached(digests, last), 1);
    }
    unsetenv("QLAB_NO_CACHE");
    if (old) setenv("XDG_CACHE_HOME", old, 1);
    else unsetenv("XDG_CACHE_HOME");
    path_remove_tree(home, &e);
    unlink(path);
    free(old);
    free(home);
    free(digests);
    free(path);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),         cmocka_unit_test(test_refuses_headers),
        cmocka_unit_test(test_refuses_places),  cmocka_unit_test(test_refuses_lengths),
        cmocka_unit_test(test_cut_short),       cmocka_unit_test(test_values_and_order),
        cmocka_unit_test(test_writer),          cmocka_unit_test(test_writer_fails),
        cmocka_unit_test(test_writer_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
