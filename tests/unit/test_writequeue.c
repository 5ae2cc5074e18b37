/* The write queue against a writer used directly: the same file whatever may wait, and the first failure told. Run under
 * TSan too (make check-tsan). */
#include "base/file.h"
#include "base/mem.h"
#include "golden.h"
#include "qrandom.h"
#include "quantize/writequeue.h"
#include "views/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ITEMS = 200, ROWS = 24, COLUMNS = 192, FLOATS = 6000 };

/* Every third item is a tensor that lies in a mapped file, the others are codes. */
static bool is_tensor(int i) { return i % 3 == 2; }

static size_t declare(struct tensor *decl, const struct format *f)
{
    size_t n = 0;
    for (int i = 0; i < ITEMS; i++) {
        char name[32];
        snprintf(name, sizeof name, "w%d%s", i, is_tensor(i) ? "" : ".weight");
        if (is_tensor(i))
            decl[n++] = (struct tensor){.name = mem_strdup(name), .dtype = DT_F32, .n_dims = 1, .shape = {FLOATS}};
        else
            n += container_declare(decl + n, name, f, ROWS, COLUMNS, DT_F16);
    }
    return n;
}

static void undeclare(struct tensor *decl, size_t n)
{
    for (size_t i = 0; i < n; i++) free((char *)decl[i].name);
}

static void codes_of(struct qbuffer *b, const struct format *f, int i)
{
    struct rng rng = {(uint64_t)i + 1};
    qrandom(b, f, ROWS, COLUMNS, DT_F16, &rng, false);
}

static void open_source(struct safetensors *s)
{
    const char *path = test_tmp("source.safetensors");
    struct tensor t = {.name = "t", .dtype = DT_F32, .n_dims = 1, .shape = {FLOATS}};
    struct st_writer w;
    struct err e;
    float *x = mem_array(FLOATS, sizeof *x);
    struct rng rng = {99};
    random_floats(&rng, x, FLOATS);
    assert_int_equal(st_writer_open(&w, path, &t, 1, &e), 0);
    assert_int_equal(st_writer_append(&w, x, FLOATS * sizeof *x, &e), 0);
    assert_int_equal(st_writer_close(&w, &e), 0);
    assert_int_equal(safetensors_open(s, path, &e), 0);
    free(x);
}

static void same_file(const char *a, const char *b)
{
    char *x, *y;
    size_t n, m;
    struct err e;
    assert_int_equal(file_read(a, SIZE_MAX, &x, &n, &e), 0);
    assert_int_equal(file_read(b, SIZE_MAX, &y, &m, &e), 0);
    assert_int_equal(n, m);
    assert_true(n > ITEMS / 3 * FLOATS * sizeof(float));
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void test_same_as_direct(void **state)
{
    (void)state;
    const struct format *f = format_find("int4-g64");
    struct tensor decl[ITEMS * CONTAINER_PARTS];
    struct safetensors s;
    struct st_writer w;
    struct err e;
    size_t n = declare(decl, f);
    open_source(&s);
    char direct[4096], queued[4096];
    snprintf(direct, sizeof direct, "%s", test_tmp("direct.safetensors"));
    snprintf(queued, sizeof queued, "%s", test_tmp("queued.safetensors"));
    assert_int_equal(st_writer_open(&w, direct, decl, n, &e), 0);
    for (int i = 0; i < ITEMS; i++) {
        struct qbuffer b;
        if (is_tensor(i)) {
            assert_int_equal(st_writer_append(&w, s.tensors[0].data, s.tensors[0].n_bytes, &e), 0);
            continue;
        }
        codes_of(&b, f, i);
        assert_int_equal(container_append(&w, &b, &e), 0);
        qbuffer_free(&b);
    }
    assert_int_equal(st_writer_close(&w, &e), 0);
    static const int64_t limits[] = {0, 3000, 1 << 30}; /* an item waits for the one before it, for two, for none */
    for (int l = 0; l < 3; l++) {
        struct write_queue q;
        assert_int_equal(st_writer_open(&w, queued, decl, n, &e), 0);
        write_queue_begin(&q, &w, limits[l]);
        for (int i = 0; i < ITEMS; i++) {
            struct qbuffer b;
            if (i == ITEMS / 2) { /* all is written, and what comes next may go past the queue */
                assert_int_equal(write_queue_flush(&q, &e), 0);
                if (is_tensor(i)) {
                    assert_int_equal(st_writer_append(&w, s.tensors[0].data, s.tensors[0].n_bytes, &e), 0);
                } else {
                    codes_of(&b, f, i);
                    assert_int_equal(container_append(&w, &b, &e), 0);
                    qbuffer_free(&b);
                }
                continue;
            }
            if (is_tensor(i)) {
                assert_int_equal(write_queue_tensor(&q, &s.tensors[0], &e), 0);
                continue;
            }
            codes_of(&b, f, i);
            assert_int_equal(write_queue_codes(&q, &b, &e), 0);
        }
        assert_int_equal(write_queue_end(&q, &e), 0);
        assert_int_equal(st_writer_close(&w, &e), 0);
        same_file(direct, queued);
    }
    undeclare(decl, n);
    safetensors_close(&s);
}

/* The writer takes half of what comes: the failure is told to a later item at the latest at the end, nothing blocks and
 * what waits is freed. */
static void test_failure(void **state)
{
    (void)state;
    const struct format *f = format_find("int8-row");
    struct tensor decl[ITEMS * CONTAINER_PARTS];
    size_t n = declare(decl, f);
    for (int64_t limit = 0; limit <= 1 << 20; limit += 1 << 20) {
        struct st_writer w;
        struct write_queue q;
        struct err e;
        bool told = false;
        assert_int_equal(st_writer_open(&w, test_tmp("failure.safetensors"), decl, n / 2, &e), 0);
        write_queue_begin(&q, &w, limit);
        for (int i = 0; i < ITEMS; i++) {
            struct qbuffer b;
            codes_of(&b, f, i);
            for (int copies = 0; copies < 6; copies++) { /* codes alone are smaller than the tensors */
                if (copies) codes_of(&b, f, i);
                int rc = write_queue_codes(&q, &b, &e);
                assert_true(rc == -1 || !told); /* told once, told for good */
                if (rc) told = true;
            }
        }
        e = (struct err){0};
        assert_int_equal(write_queue_end(&q, &e), -1);
        assert_non_null(strstr(e.msg, "more than the declared tensors have"));
        st_writer_abort(&w);
    }
    undeclare(decl, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_as_direct), cmocka_unit_test(test_failure)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
