/* Half and bfloat16 conversions against numpy's and torch's bits, and the kernels' own conversions against them over
 * every value. */
#include "backend/cpu/kernels.h"
#include "base/half.h"
#include "base/mem.h"
#include "golden.h"
#include "views/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t hex(const json_t *row, size_t i) { return (uint32_t)strtoul(json_string_value(json_array_get(row, i)), NULL, 16); }

static bool nan16(uint32_t h, uint32_t exp) { return (h & exp) == exp && (h & 0x7fff) != exp; }

static void test_golden(void **state)
{
    (void)state;
    json_t *g = golden_load("numeric.json"), *row;
    size_t i;
    json_array_foreach(golden_get(g, "fp32_to_fp16_bf16_hex"), i, row)
    {
        float f = f32_from_bits(hex(row, 0));
        uint32_t h = f32_to_f16(f), b = f32_to_bf16(f);
        if (isnan(f)) {
            assert_true(nan16(h, 0x7c00) && nan16(b, 0x7f80));
        } else {
            assert_int_equal(h, hex(row, 1));
            assert_int_equal(b, hex(row, 2));
        }
    }
    assert_true(i > 50);
    json_array_foreach(golden_get(g, "fp16_to_fp32_hex"), i, row)
    {
        float f = f16_to_f32((uint16_t)hex(row, 0)), want = f32_from_bits(hex(row, 1));
        if (isnan(want))
            assert_true(isnan(f));
        else
            assert_int_equal(f32_bits(f), hex(row, 1));
    }
    assert_true(i > 10);
    json_decref(g);
}

/* Every f16 there and back, and the midpoints between neighbours, on every instruction set. */
static void test_every_half(void **state)
{
    (void)state;
    for (int isa = 0; isa <= (int)isa_best(); isa++) {
        const struct kernels *k = kernels_of((enum isa)isa);
        float x[64], mid[64];
        uint16_t h[64];
        for (uint32_t first = 0; first < 0x7c00; first += 64) {
            for (uint32_t i = 0; i < 64; i++) {
                float next = first + i + 1 == 0x7c00 ? 65536.0f : f16_to_f32((uint16_t)(first + i + 1));
                x[i] = f16_to_f32((uint16_t)(first + i)) * (i % 2 ? 1 : -1);
                mid[i] = (f16_to_f32((uint16_t)(first + i)) + next) / 2; /* exact */
            }
            k->to_f16(h, x, 64);
            for (uint32_t i = 0; i < 64; i++) assert_int_equal(h[i], (first + i) | (i % 2 ? 0 : 0x8000));
            k->to_f16(h, mid, 63);
            for (uint32_t i = 0; i < 63; i++) {
                assert_int_equal(h[i], (first + i + 1) & ~1u); /* ties to even */
                assert_int_equal(f32_to_f16(mid[i]), h[i]);
                assert_int_equal(f32_bits(round_f16(mid[i])), f32_bits(f16_to_f32(h[i])));
            }
        }
    }
}

/* Arrays, which the compiler vectorizes, against one value at a time. */
static void test_arrays(void **state)
{
    (void)state;
    enum { N = 65536 };
    uint16_t *h = mem_array(N, 2), *back = mem_array(N, 2);
    float *x = mem_array(N, 4);
    for (uint32_t i = 0; i < N; i++) h[i] = (uint16_t)i;
    for (int t = 0; t < 2; t++) {
        enum dtype type = t ? DT_BF16 : DT_F16;
        dtype_traits(type)->to_f32(h, x, N);
        for (uint32_t i = 0; i < N; i++)
            assert_int_equal(f32_bits(x[i]), f32_bits(t ? bf16_to_f32((uint16_t)i) : f16_to_f32((uint16_t)i)));
        for (uint32_t i = 0; i < N; i++) /* bits behind the short ones: all ways of rounding */
            x[i] = f32_from_bits(f32_bits(x[i]) | (i * 2654435761u >> 20));
        dtype_from_f32(type, x, back, N);
        for (uint32_t i = 0; i < N; i++) assert_int_equal(back[i], t ? f32_to_bf16(x[i]) : f32_to_f16(x[i]));
    }
    free(h);
    free(back);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_every_half),
                                       cmocka_unit_test(test_arrays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
