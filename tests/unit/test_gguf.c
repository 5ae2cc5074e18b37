/* The GGUF parser on good and hostile files, and the block decoders on ggml's bytes. */
#include "base/half.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "gguf_writer.h"
#include "views/gguf.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- blocks ---- */

static const struct dtype_traits *traits_named(const char *name)
{
    for (int t = 0; t < DT_COUNT; t++)
        if (!strcmp(dtype_traits((enum dtype)t)->name, name)) return dtype_traits((enum dtype)t);
    return NULL;
}

/* Quantized by ggml's reference, decoded by gguf-py: the first eight values to the bit, the sum of all in double. */
static void golden_blocks(void **state)
{
    (void)state;
    struct err e;
    json_t *doc = json_read("tests/golden/gguf_blocks.json", 1 << 24, &e), *c;
    assert_non_null(doc);
    size_t i, n_cases = 0;
    json_array_foreach(json_object_get(doc, "cases"), i, c) {
        const struct dtype_traits *d = traits_named(json_string_value(json_object_get(c, "type")));
        const char *hex = json_string_value(json_object_get(c, "bytes_hex"));
        int64_t n = json_integer_value(json_object_get(c, "n"));
        assert_non_null(d);
        assert_int_equal(strlen(hex), 2 * (size_t)(n / d->block_elems) * d->block_bytes);
        uint8_t *bytes = mem_new(strlen(hex) / 2, 1);
        float *y = mem_new((size_t)n, sizeof *y);
        for (size_t k = 0; hex[2 * k]; k++)
            bytes[k] = (uint8_t)strtoul((char[]){hex[2 * k], hex[2 * k + 1], 0}, NULL, 16);
        d->to_f32(bytes, y, n);
        double sum = 0;
        for (int64_t k = 0; k < n; k++) sum += y[k];
        for (size_t k = 0; k < 8; k++) {
            float want = (float)json_number_value(json_array_get(json_object_get(c, "dequant_first8"), k));
            assert_int_equal(f32_bits(y[k]) << (y[k] == 0), f32_bits(want) << (y[k] == 0));
        }
        double want = json_number_value(json_object_get(c, "dequant_sum"));
        assert_true(isfinite(sum));
        if (!(fabs(sum - want) <= 1e-10 * (1 + fabs(want)))) fail_msg("case %zu: sum %.12g, not %.12g", i, sum, want);
        free(bytes);
        free(y);
        n_cases++;
    }
    assert_int_equal(n_cases, 46);
    json_decref(doc);
}

/* Q5_0 and Q5_1: codes packed here, element by element as ggml-common.h lays them out. */
static void five_bit_blocks(void **state)
{
    (void)state;
    struct rng r = {5};
    for (int round = 0; round < 100; round++) {
        uint8_t b0[22] = {0}, b1[24] = {0};
        int q[32];
        uint16_t d = (uint16_t)(rng_next(&r) & 0xbbff), m = (uint16_t)(rng_next(&r) & 0xbbff); /* finite halves */
        uint32_t qh = 0;
        memcpy(b0, &d, 2);
        memcpy(b1, &d, 2);
        memcpy(b1 + 2, &m, 2);
        for (int j = 0; j < 32; j++) {
            q[j] = (int)rng_below(&r, 32);
            qh |= (uint32_t)(q[j] > 15) << j;
            int nibble = q[j] % 16 << (j < 16 ? 0 : 4);
            b0[6 + j % 16] |= (uint8_t)nibble;
            b1[8 + j % 16] |= (uint8_t)nibble;
        }
        memcpy(b0 + 2, &qh, 4);
        memcpy(b1 + 4, &qh, 4);
        float y0[32], y1[32];
        dtype_traits(DT_Q5_0)->to_f32(b0, y0, 32);
        dtype_traits(DT_Q5_1)->to_f32(b1, y1, 32);
        for (int j = 0; j < 32; j++) {
            double dd = f16_to_f32(d), mm = f16_to_f32(m); /* double: exact until the one rounding */
            assert_true(y0[j] == (float)(dd * (q[j] - 16)));
            assert_true(y1[j] == (float)(dd * q[j] + mm));
        }
    }
}

/* ---- a good file ---- */

static uint8_t *good_file(size_t *n)
{
    struct gguf_writer *w = gguf_writer_new();
    static const char *const words[] = {"a", "", "Ġthe"};
    static const int32_t types[] = {1, -3, 4};
    float norm[8], block_row[64];
    uint8_t q8[4 * 2 * 34];
    for (int i = 0; i < 8; i++) norm[i] = (float)i;
    for (int i = 0; i < 64; i++) block_row[i] = (float)i;
    for (size_t i = 0; i < sizeof q8; i++) q8[i] = (uint8_t)i;
    gguf_put_str(w, "general.architecture", "llama");
    gguf_put_u32(w, "llama.block_count", 2);
    gguf_put_f32(w, "eps", 1e-5f);
    gguf_put_f64(w, "wide", 0.1);
    gguf_put_u64(w, "huge", UINT64_MAX);
    gguf_put_bool(w, "yes", true);
    gguf_put_strs(w, "words", words, 3);
    gguf_put_i32s(w, "types", types, 3);
    gguf_put_tensor(w, "norm", DT_F32, 1, (int64_t[]){8}, norm);
    gguf_put_tensor(w, "q8", DT_Q8_0, 2, (int64_t[]){4, 64}, q8);
    gguf_put_tensor(w, "last", DT_F32, 2, (int64_t[]){2, 32}, block_row);
    return gguf_writer_bytes(w, n);
}

static void reads_good_file(void **state)
{
    (void)state;
    size_t n, k;
    uint8_t *p = good_file(&n);
    struct gguf g;
    struct err e;
    assert_int_equal(gguf_parse(&g, "mem", p, n, &e), 0);
    assert_int_equal(g.n_kv, 8);
    assert_int_equal(g.n_tensors, 3);
    assert_string_equal(g.tensors[1].name, "q8");
    assert_int_equal(g.tensors[1].dtype, DT_Q8_0);
    assert_int_equal(g.tensors[1].n_dims, 2);
    assert_int_equal(g.tensors[1].shape[0], 4);
    assert_int_equal(g.tensors[1].shape[1], 64);
    assert_int_equal(g.tensors[1].n_bytes, 4 * 2 * 34);
    assert_int_equal(((const uint8_t *)g.tensors[1].data)[271], 271 & 255);
    assert_int_equal((const uint8_t *)g.tensors[2].data + 256 - p, n);

    int64_t i;
    double v;
    bool b;
    char *s;
    const char *word;
    size_t len;
    assert_int_equal(gguf_get_int(&g, "llama.block_count", true, 0, &i, &e), 0);
    assert_int_equal(i, 2);
    assert_int_equal(gguf_get_num(&g, "wide", true, 0, &v, &e), 0);
    assert_true(v == 0.1);
    assert_int_equal(gguf_get_num(&g, "eps", true, 0, &v, &e), 0);
    assert_true(v == (double)1e-5f);
    assert_int_equal(gguf_get_bool(&g, "yes", true, false, &b, &e), 0);
    assert_true(b);
    assert_int_equal(gguf_get_str(&g, "general.architecture", true, &s, &e), 0);
    assert_string_equal(s, "llama");
    free(s);
    assert_int_equal(gguf_get_array(&g, "words", GGUF_STRINGS, true, &k, &e), 0);
    assert_int_equal(k, 3);
    gguf_array_str(&g, "words", 2, &word, &len);
    assert_int_equal(len, 5);
    assert_memory_equal(word, "Ġthe", 5);
    assert_int_equal(gguf_get_array(&g, "types", GGUF_INTS, true, &k, &e), 0);
    assert_int_equal(gguf_array_int(&g, "types", 1), -3);

    /* missing, and of another type: named */
    assert_int_equal(gguf_get_int(&g, "none", false, 7, &i, &e), 0);
    assert_int_equal(i, 7);
    assert_int_equal(gguf_get_int(&g, "none", true, 7, &i, &e), -1);
    assert_non_null(strstr(e.msg, "none"));
    assert_int_equal(gguf_get_int(&g, "huge", true, 7, &i, &e), -1);
    assert_int_equal(gguf_get_int(&g, "eps", true, 7, &i, &e), -1);
    assert_int_equal(gguf_get_int(&g, "types", true, 7, &i, &e), -1);
    assert_int_equal(gguf_get_num(&g, "words", true, 7, &v, &e), -1);
    assert_int_equal(gguf_get_str(&g, "eps", true, &s, &e), -1);
    assert_int_equal(gguf_get_bool(&g, "eps", true, false, &b, &e), -1);
    assert_int_equal(gguf_get_array(&g, "words", GGUF_INTS, true, &k, &e), -1);
    assert_int_equal(gguf_get_array(&g, "types", GGUF_STRINGS, true, &k, &e), -1);
    assert_int_equal(gguf_get_array(&g, "eps", GGUF_INTS, true, &k, &e), -1);
    gguf_close(&g);
    free(p);
}

/* ---- hostile files ---- */

/* A copy of exactly n bytes, so that the sanitizers see a read beyond. */
static int parse_copy(const uint8_t *p, size_t n, struct err *e)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n) memcpy(copy, p, n);
    struct gguf g;
    e->msg[0] = 0;
    int rc = gguf_parse(&g, "bad.gguf", copy, n, e);
    if (rc == 0) gguf_close(&g);
    free(copy);
    return rc;
}

static void truncated_anywhere(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = good_file(&n);
    struct err e;
    for (size_t k = 0; k < n; k++) {
        if (parse_copy(p, k, &e) == 0) fail_msg("accepted %zu of %zu bytes", k, n);
        assert_memory_equal(e.msg, "bad.gguf: ", 10);
    }
    assert_int_equal(parse_copy(p, n, &e), 0);
    free(p);
}

static void flipped_bytes(void **state)
{
    (void)state;
    size_t n;
    uint8_t *p = good_file(&n);
    struct rng r = {7};
    struct err e;
    for (int i = 0; i < 20000; i++) {
        size_t at[3];
        uint8_t old[3];
        for (int k = 0; k < 3; k++) {
            at[k] = (size_t)rng_below(&r, (int64_t)n);
            old[k] = p[at[k]];
            p[at[k]] = (uint8_t)rng_next(&r);
        }
        parse_copy(p, n, &e);
        for (int k = 2; k >= 0; k--) p[at[k]] = old[k];
    }
    free(p);
}

struct bytes {
    uint8_t p[1024];
    size_t n;
};
static void u32(struct bytes *b, uint32_t v)
{
    memcpy(b->p + b->n, &v, 4);
    b->n += 4;
}
static void u64(struct bytes *b, uint64_t v)
{
    memcpy(b->p + b->n, &v, 8);
    b->n += 8;
}
static void str(struct bytes *b, const char *s)
{
    u64(b, strlen(s));
    memcpy(b->p + b->n, s, strlen(s));
    b->n += strlen(s);
}
static struct bytes head(uint64_t n_tensors, uint64_t n_kv)
{
    struct bytes b = {{'G', 'G', 'U', 'F'}, 4};
    u32(&b, 3);
    u64(&b, n_tensors);
    u64(&b, n_kv);
    return b;
}
static void info(struct bytes *b, const char *name, uint64_t ne0, uint32_t type, uint64_t offset)
{
    str(b, name);
    u32(b, 1);
    u64(b, ne0);
    u32(b, type);
    u64(b, offset);
}
/* Zeros: padding, data, and room enough that only the lie itself is wrong. */
static void data(struct bytes *b, size_t n)
{
    size_t end = (b->n + 31) / 32 * 32 + n;
    memset(b->p + b->n, 0, end - b->n);
    b->n = end;
}

static void refuses(const struct bytes *b, const char *why)
{
    struct err e;
    if (parse_copy(b->p, b->n, &e) == 0) fail_msg("accepted; expected: %s", why);
    if (!strstr(e.msg, why)) fail_msg("\"%s\" does not say \"%s\"", e.msg, why);
}

static void refuses_header_lies(void **state)
{
    (void)state;
    struct bytes b = head(0, 0);
    struct err e;
    assert_int_equal(parse_copy(b.p, b.n, &e), 0); /* empty is odd but whole */
    b.p[0] = 'g';
    refuses(&b, "\"GGUF\" was expected");
    for (uint32_t v = 0; v < 6; v++) {
        b = head(0, 0);
        b.p[4] = (uint8_t)v;
        if (v != 3) refuses(&b, "version 3 was expected");
    }
    b = head(0, 0);
    memcpy(b.p + 4, "\0\0\0\3", 4);
    refuses(&b, "big-endian");
    b = head(UINT64_MAX, 0);
    refuses(&b, "18446744073709551615 tensors");
    b = head(1000, 0);
    data(&b, 64);
    refuses(&b, "1000 tensors");
    b = head(0, UINT64_MAX / 14);
    refuses(&b, "metadata keys");
}

static void refuses_metadata_lies(void **state)
{
    (void)state;
    struct bytes b = head(0, 1); /* a key longer than the file */
    u64(&b, UINT64_MAX - 3);
    data(&b, 64);
    refuses(&b, "only 64 are left");
    b = head(0, 1);
    str(&b, "");
    data(&b, 64);
    refuses(&b, "a metadata key of 0 bytes");
    b = head(0, 1);
    str(&b, "key");
    u32(&b, 13);
    data(&b, 64);
    refuses(&b, "unknown type 13");
    b = head(0, 1); /* a string value longer than the file */
    str(&b, "key");
    u32(&b, 8);
    u64(&b, (uint64_t)1 << 62);
    data(&b, 64);
    refuses(&b, "a string of 4611686018427387904 bytes in key");
    for (uint32_t elem = 0; elem < 13; elem++) { /* array counts that overflow or exceed the file */
        static const uint64_t counts[] = {1000, (uint64_t)1 << 61, UINT64_MAX};
        for (int i = 0; i < 3; i++) {
            b = head(0, 1);
            str(&b, "key");
            u32(&b, 9);
            u32(&b, elem);
            u64(&b, counts[i]);
            data(&b, 64);
            refuses(&b, elem == 9 ? "array of arrays" : "elements (only");
        }
    }
    b = head(0, 1);
    str(&b, "key");
    u32(&b, 7);
    b.p[b.n++] = 2;
    refuses(&b, "not a bool");
    b = head(0, 2);
    for (int i = 0; i < 2; i++) {
        str(&b, "key");
        u32(&b, 4);
        u32(&b, 1);
    }
    refuses(&b, "key key is there twice");
    static const uint32_t aligns[] = {0, 3, 33, 1u << 21, UINT32_MAX};
    for (int i = 0; i < 5; i++) {
        b = head(0, 1);
        str(&b, "general.alignment");
        u32(&b, 4);
        u32(&b, aligns[i]);
        refuses(&b, "power of two");
    }
    b = head(0, 1);
    str(&b, "general.alignment");
    u32(&b, 6);
    u32(&b, 32);
    refuses(&b, "general.alignment is f32");
}

static void refuses_tensor_lies(void **state)
{
    (void)state;
    struct bytes b = head(1, 0);
    struct err e;
    info(&b, "t", 16, 0, 0);
    data(&b, 64);
    assert_int_equal(parse_copy(b.p, b.n, &e), 0);
    b.n--;
    refuses(&b, "ends inside tensor t");
    b.n = 24 + 9 + 4 + 8 + 4 + 8;
    refuses(&b, "ends before its tensors' data");
    b = head(1, 0);
    info(&b, "t", 16, 0, 0);
    data(&b, 96);
    refuses(&b, "after its last tensor");

    static const struct {
        uint64_t ne0;
        uint32_t type;
        uint64_t offset;
        const char *why;
    } cases[] = {
        {0, 0, 0, "dimension 0 is 0"},
        {UINT64_MAX, 0, 0, "dimension 0"},
        {(uint64_t)1 << 62, 0, 0, "dimension 0"},
        {(uint64_t)1 << 59, 0, 0, "ends inside tensor"},
        {16, 0, 32, "starts at 32 (0 was expected"},
        {16, 0, UINT64_MAX, "starts at"},
        {16, 10, 0, "Q2_K"},
        {16, 26, 0, "I32"},
        {16, 77, 0, "type 77, unknown"},
        {16, UINT32_MAX, 0, "unknown"},
        {48, 8, 0, "not whole Q8_0 blocks of 32"},
        {128, 12, 0, "not whole Q4_K blocks of 256"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        b = head(1, 0);
        info(&b, "t", cases[i].ne0, cases[i].type, cases[i].offset);
        data(&b, 64);
        refuses(&b, cases[i].why);
    }
    for (uint32_t dims = 0; dims < 8; dims++) { /* 2^16 · 2^16 · 2^16 · 2^16 overflows too */
        b = head(1, 0);
        str(&b, "t");
        u32(&b, dims);
        for (uint32_t d = 0; d < dims; d++) u64(&b, 1 << 16);
        u32(&b, 0);
        u64(&b, 0);
        data(&b, 64);
        refuses(&b, dims == 0 || dims > 4 ? "1 to 4 were expected" : dims == 4 ? "dimension 3" : "ends inside tensor");
    }
    b = head(2, 0); /* overlap: the second starts where the first does */
    info(&b, "a", 8, 0, 0);
    info(&b, "b", 8, 0, 0);
    data(&b, 64);
    refuses(&b, "tensor b starts at 0 (32 was expected");
    b = head(2, 0);
    info(&b, "a", 8, 0, 0);
    info(&b, "a", 8, 0, 32);
    data(&b, 64);
    refuses(&b, "tensor a is there twice");
    b = head(1, 0);
    info(&b, "0123456789012345678901234567890123456789012345678901234567890123", 8, 0, 0);
    data(&b, 32);
    refuses(&b, "a tensor name of 64 bytes");
    b = head(1, 0);
    info(&b, "nul?", 8, 0, 0);
    *(uint8_t *)memchr(b.p, '?', b.n) = 0;
    data(&b, 32);
    refuses(&b, "without NUL");
}

static void opens_files(void **state)
{
    (void)state;
    struct gguf g;
    struct err e;
    assert_int_equal(gguf_open(&g, "tests/golden/no-such-file.gguf", &e), -1);
    assert_non_null(strstr(e.msg, "no-such-file.gguf"));
    assert_int_equal(gguf_open(&g, "/dev/null", &e), -1);
    assert_int_equal(gguf_open(&g, "tests/golden/gguf_blocks.json", &e), -1);
    assert_non_null(strstr(e.msg, "gguf_blocks.json: starts with"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_blocks),         cmocka_unit_test(five_bit_blocks),
        cmocka_unit_test(reads_good_file),       cmocka_unit_test(truncated_anywhere),
        cmocka_unit_test(flipped_bytes),         cmocka_unit_test(refuses_header_lies),
        cmocka_unit_test(refuses_metadata_lies), cmocka_unit_test(refuses_tensor_lies),
        cmocka_unit_test(opens_files),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
