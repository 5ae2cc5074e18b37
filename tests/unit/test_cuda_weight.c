/* The device layout of weights: the planes are read back element by element as weight.h describes them and must give
 * qweight_rows_f32 bit for bit; pieces must cover the planes exactly and nothing else. */
#include "backend/cuda/weight.h"
#include "base/half.h"
#include "base/mem.h"
#include "qrandom.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { UNTOUCHED = 0x5a };

static float scalar(const uint8_t *p, enum cuda_float t, int64_t i)
{
    if (t == CUF_F32) return ((const float *)(const void *)p)[i];
    uint16_t h = ((const uint16_t *)(const void *)p)[i];
    return t == CUF_F16 ? f16_to_f32(h) : bf16_to_f32(h);
}

static float rounded(enum cuda_float t, float v)
{
    return t == CUF_F16 ? f16_to_f32(f32_to_f16(v)) : t == CUF_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v;
}

static float element(const struct cuda_weight *p, const uint8_t *d, int64_t r, int64_t k)
{
    const uint8_t *row = d + p->codes_at + (size_t)(r * p->row_bytes);
    if (p->kind == CUW_FLOAT) return scalar(row, p->type, k);
    int64_t in = k % 32;
    if (p->kind == CUW_INT8) {
        int8_t q = (int8_t)row[k / 32 * 32 + in % 8 / 4 * 16 + in / 8 * 4 + in % 4];
        int64_t g = r * p->n_groups + k / p->group;
        int z = p->zeros_at ? (int8_t)d[p->zeros_at + (size_t)g] : 0;
        return rounded(p->type, (float)(q - z) * scalar(d + p->scales_at, p->scale, g));
    }
    const uint8_t *word = row + k / 32 * 16 + in / 8 * 4;
    if (p->kind == CUW_BOOK) {
        int code = word[in % 8 / 2] >> in % 2 * 4 & 15;
        int64_t b = (r * p->n_in + k) / p->group;
        float absmax;
        if (p->scale == CUF_DQ) {
            const float *nested = (const void *)(d + p->nested_at), *map = (const void *)(d + p->map_at);
            float v = map[d[p->scales_at + (size_t)b]] * nested[b / 256];
            absmax = v + p->offset;
        } else {
            absmax = scalar(d + p->scales_at, CUF_F32, b);
        }
        return rounded(p->type, p->book[code] * absmax);
    }
    int u = word[in % 4] >> in % 8 / 4 * 4 & 15;
    if (p->kind == CUW_STRIDED) {
        int64_t g = r * 128 + k % 128;
        float q = rounded(CUF_F16, (float)u - scalar(d + p->zeros_at, CUF_F16, g));
        return rounded(p->type, rounded(CUF_F16, q * scalar(d + p->scales_at, CUF_F16, g)));
    }
    int64_t g = r * p->n_groups + k / p->group;
    int z = p->zeros_at ? d[p->zeros_at + (size_t)g] : 8;
    return rounded(p->type, (float)(u - z) * scalar(d + p->scales_at, p->scale, g));
}

static void one_format(const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype, struct rng *rng)
{
    struct qbuffer b;
    struct cuda_weight p;
    struct err e;
    qrandom(&b, f, n_out, n_in, dtype, rng, false);
    if (cuda_weight_plan(&p, &b.w, &e)) fail_msg("%s: %s", f->name, e.msg);
    uint8_t *d = mem_array(p.bytes, 1), *host = mem_array(CUDA_PIECE_MIN, 1), *hit = mem_new(p.bytes, 1);
    memset(d, UNTOUCHED, p.bytes);
    struct cuda_piece it = {0};
    size_t total = 0;
    while (cuda_weight_next(&p, &it, CUDA_PIECE_MIN)) {
        assert_true(it.bytes > 0 && it.bytes <= CUDA_PIECE_MIN && it.at + it.bytes <= p.bytes);
        memset(host, UNTOUCHED, CUDA_PIECE_MIN);
        cuda_weight_pack(&p, &b.w, &it, host);
        for (size_t i = it.bytes; i < CUDA_PIECE_MIN; i++) assert_int_equal(host[i], UNTOUCHED);
        memcpy(d + it.at, host, it.bytes);
        for (size_t i = 0; i < it.bytes; i++) assert_int_equal(hit[it.at + i]++, 0);
        total += it.bytes;
    }
    assert_int_equal(total, p.read_bytes);
    float *want = mem_array((size_t)n_in, 4);
    for (int64_t r = 0; r < n_out; r++) {
        qweight_rows_f32(&b.w, r, 1, want);
        for (int64_t k = 0; k < n_in; k++) {
            float got = element(&p, d, r, k);
            if (memcmp(&got, want + k, 4))
                fail_msg("%s %dx%d: element %d, %d is %g, not %g", f->name, (int)n_out, (int)n_in, (int)r, (int)k, got,
                         want[k]);
        }
        const uint8_t *row = d + p.codes_at + (size_t)(r * p.row_bytes); /* what lies behind a float row is 0 */
        size_t used = p.kind == CUW_FLOAT ? (size_t)n_in * (p.type == CUF_F32 ? 4 : 2) : (size_t)p.row_bytes;
        for (size_t i = used; i < (size_t)p.row_bytes; i++) assert_int_equal(row[i], 0);
    }
    if (p.int8_ok) {
        int64_t chunks = (n_in + 31) / 32;
        bool flat = p.kind == CUW_BOOK;
        for (int64_t i = 0; i < chunks * (flat ? n_out : 1); i++)
            assert_int_equal(2 * (uint64_t)i * p.group_div >> 32, i * 32 / p.group);
    }
    free(want);
    free(hit);
    free(host);
    free(d);
    qbuffer_free(&b);
}

static void test_layout(void **state)
{
    (void)state;
    static const struct format others[] = {
        {"g24", CODE_INT, CONT_CT, DT_F32, 4, 24, false, NULL, false},
        {"g5-sym", CODE_INT, CONT_CT, DT_F32, 4, 5, true, NULL, false},
        {"g48-int8", CODE_INT, CONT_CT, DT_F32, 8, 48, false, NULL, false},
        {"g96-int8", CODE_INT, CONT_CT, DT_F32, 8, 96, true, NULL, false},
        {"row-int8-asym", CODE_INT, CONT_CT, DT_F32, 8, 0, false, NULL, false},
        {"g192-sym", CODE_INT, CONT_CT, DT_F32, 4, 192, true, NULL, false},
    };
    static const int64_t widths[] = {1, 7, 31, 33, 64, 96, 200, 416, 641};
    static const enum dtype dtypes[] = {DT_F16, DT_BF16, DT_F32};
    size_t n;
    const struct format *t = format_table(&n);
    struct rng rng = {21};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int d = 0; d < 3; d++) {
            for (size_t i = 0; i < n; i++) one_format(&t[i], 11, widths[s], dtypes[d], &rng);
            for (size_t i = 0; i < sizeof others / sizeof *others; i++)
                one_format(&others[i], 11, widths[s], dtypes[d], &rng);
        }
    one_format(format_find("f16"), 700, 1000, DT_F16, &rng); /* several pieces */
    one_format(format_find("nf4-dq"), 1100, 2080, DT_F16, &rng);
}

/* Sizes of a real shape, by hand: what the memory ledger promises. */
static void test_sizes(void **state)
{
    (void)state;
    struct {
        const char *format;
        size_t bytes;
        bool int8_ok;
    } want[] = {
        {"int4-g128", 2048 * (11008 / 2) + 2048 * 86 * 3, true}, {"int4-g64-sym", 2048 * (11008 / 2) + 2048 * 172 * 2, true},
        {"int8-row", 2048 * 11008 + 2048 * 2, true},             {"f16", 2048 * 11008 * 2, false},
        {"nf4", 2048 * (11008 / 2) + 2048 * 172 * 4, true},      {"int4-strided128", 2048 * (11008 / 2 + 512), false},
        {"nf4-dq", 2048 * (11008 / 2) + 2048 * 172 + 1376 * 4 + 1024, true},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct qweight w = {.fmt = *format_find(want[i].format), .n_out = 2048, .n_in = 11008, .out_dtype = DT_BF16,
                            .scale_dtype = DT_BF16};
        w.book = w.fmt.book;
        w.zero = w.fmt.kind == CODE_INT && !w.fmt.symmetric ? &w : NULL;
        struct cuda_weight p;
        struct err e;
        assert_int_equal(cuda_weight_plan(&p, &w, &e), 0);
        assert_int_equal(p.read_bytes, want[i].bytes);
        assert_true(p.bytes >= p.read_bytes && p.bytes < p.read_bytes + 5 * CUW_ALIGN && p.bytes % CUW_ALIGN == 0);
        assert_int_equal(p.int8_ok, want[i].int8_ok);
    }
    struct qweight wide = {.fmt = *format_find("f32"), .n_out = 1, .n_in = 300000, .out_dtype = DT_F32};
    struct qweight blocks = {.fmt = {.kind = CODE_FLOAT, .dtype = DT_Q4_K}, .n_out = 1, .n_in = 256};
    struct cuda_weight p;
    struct err e;
    assert_int_equal(cuda_weight_plan(&p, &wide, &e), -1);
    assert_non_null(strstr(e.msg, "262144"));
    assert_int_equal(cuda_weight_plan(&p, &blocks, &e), -1);
    assert_non_null(strstr(e.msg, "Q4_K"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layout), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
