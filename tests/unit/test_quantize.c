/* Codes and metadata against the containers' own libraries (tests/golden), methods against each other and themselves. */
#include "base/half.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/par.h"
#include "base/rng.h"
#include "golden.h"
#include "quantize/method.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A float weight in memory. */
struct source {
    struct tensor t;
    struct qweight w;
};

static void source_init(struct source *s, enum dtype dtype, void *data, int64_t n_out, int64_t n_in)
{
    s->t = (struct tensor){.name = "w", .dtype = dtype, .n_dims = 2, .shape = {n_out, n_in}, .data = data,
                           .n_bytes = dtype_bytes(dtype, n_out * n_in)};
    s->w = (struct qweight){.fmt = {.kind = CODE_FLOAT, .dtype = dtype}, .n_out = n_out, .n_in = n_in,
                            .out_dtype = dtype, .src = &s->t, .codes = data};
}

static struct qbuffer quantize(const char *method, const struct format *f, enum dtype model_dtype, enum dtype dtype,
                               const float *x, int64_t n_out, int64_t n_in, struct quant_stats *stats)
{
    void *data = mem_array((size_t)(n_out * n_in), 4);
    dtype_from_f32(dtype, x, data, n_out * n_in);
    struct source s;
    source_init(&s, dtype, data, n_out, n_in);
    struct quant_job job = {"w", &s.w, f, model_dtype};
    struct qbuffer b;
    struct err e = {""};
    if (method_quantize(method_find(method), &job, &b, stats, &e)) fail_msg("%s", e.msg);
    free(data);
    return b;
}

static float *rows(const struct qweight *w)
{
    float *y = mem_array((size_t)(w->n_out * w->n_in), sizeof *y);
    qweight_rows_f32(w, 0, w->n_out, y);
    return y;
}

static enum dtype golden_dtype(const json_t *c)
{
    const char *s = json_string_value(golden_get(c, "dtype"));
    return !strcmp(s, "float16") ? DT_F16 : !strcmp(s, "bfloat16") ? DT_BF16 : DT_F32;
}

/* ---- compressed-tensors ---- */

static void ct_weight(const char *name, float *w, int64_t *n_out, int64_t *n_in)
{
    float base[1024];
    for (int64_t i = 0; i < 1024; i++)
        base[i] = (float)((i * i * 31 + 17 * i) % 1009 - 504) / 1024.0f * (float)(1 + i / 64 % 3) +
                  0.25f * (float)(i / 256 % 2);
    *n_out = 4, *n_in = 256;
    memcpy(w, base, sizeof base);
    if (strstr(name, "N12")) {
        *n_out = 12;
        const float by[3] = {1, 2, 4};
        for (int64_t i = 0; i < 3072; i++) w[i] = base[i % 1024] * by[i / 1024];
    } else if (strstr(name, "zero-row")) {
        *n_in = 64;
        for (int64_t r = 0; r < 4; r++)
            for (int64_t k = 0; k < 64; k++) w[r * 64 + k] = r ? base[r * 256 + k] : 0;
    }
}

static void equal_part(const char *name, const json_t *part, const void *got, size_t n_got)
{
    size_t n;
    uint8_t *want = golden_hex(golden_get(part, "le_hex"), &n);
    if (n != n_got) fail_msg("%s: %zu bytes for %zu", name, n_got, n);
    for (size_t i = 0; i < n; i++)
        if (want[i] != ((const uint8_t *)got)[i]) fail_msg("%s: byte %zu is %02x for %02x", name, i, ((const uint8_t *)got)[i], want[i]);
    free(want);
}

static void ct_golden(void **state)
{
    (void)state;
    json_t *g = golden_load("ct_pack.json"), *c;
    size_t i, n_cases = 0;
    json_array_foreach(golden_get(g, "cases"), i, c) {
        const char *name = json_string_value(golden_get(c, "name"));
        int64_t group = json_integer_value(golden_get(c, "group_size")), n_out, n_in;
        struct format f = {.kind = CODE_INT, .container = CONT_CT, .bits = (int)json_integer_value(golden_get(c, "num_bits")),
                           .group = group < 0 ? 0 : group, .symmetric = json_is_true(golden_get(c, "symmetric"))};
        format_set_name(&f);
        enum dtype dt = golden_dtype(c);
        static float w[3072];
        ct_weight(name, w, &n_out, &n_in);
        struct qbuffer b = quantize("rtn", &f, dt, DT_F32, w, n_out, n_in, NULL);
        int64_t groups = format_groups(&f, n_in);
        equal_part(name, golden_get(c, "weight_packed"), b.codes, 4 * (size_t)(n_out * format_words(&f, n_in)));
        equal_part(name, golden_get(c, "weight_scale"), b.scale, 2 * (size_t)(n_out * groups));
        if (!f.symmetric)
            equal_part(name, golden_get(c, "weight_zero_point"), b.zero, 4 * (size_t)(format_words(&f, n_out) * groups));
        float *y = rows(&b.w);
        size_t n;
        double *first = golden_nums(golden_get(c, "dequant_row0_first16"), &n);
        for (size_t k = 0; k < n; k++) assert_true(y[k] == (float)first[k]);
        free(first);
        json_t *hex = json_object_get(c, "dequant_le_hex");
        if (json_is_string(hex)) {
            uint8_t *want = golden_hex(hex, &n);
            assert_int_equal(n, 2 * n_out * n_in);
            uint16_t *half = mem_array((size_t)(n_out * n_in), 2);
            dtype_from_f32(dt, y, half, n_out * n_in);
            assert_memory_equal(half, want, n);
            free(half);
            free(want);
        }
        free(y);
        qbuffer_free(&b);
        n_cases++;
    }
    assert_int_equal(n_cases, 10);
    json_decref(g);
}

/* ---- bitsandbytes ---- */

static float x37(int64_t i) { return (float)((37 * i) % 101 - 50) / 64; }

static float big(int64_t i) { return (float)((i * i * 31 + 17 * i) % 1009 - 504) / 1024.0f * (float)(1 + i / 64 % 7); }

static void bnb_values(const char *name, const float *code, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = x37(i);
        if (!strcmp(name, "ramp-bf16")) x[i] = x37(i) / 3;
        if (!strcmp(name, "zero-block")) x[i] = i < 64 ? 0 : x37(i - 64);
        if (!strcmp(name, "outlier")) x[i] = i == 5 ? 100.0f : i % 2 ? 0x1p-8f : -0x1p-8f;
        if (!strcmp(name, "negative-zero")) x[i] = i == 1 ? 1.0f : i == 3 ? -1.0f : i % 2 ? 0.0f : -0.0f;
        if (!strcmp(name, "big4096")) x[i] = big(i);
        if (!strcmp(name, "nf4-midpoints")) x[i] = i == 0 ? 1 : i < 16 ? (code[i] + code[i - 1]) / 2 : 0;
    }
}

/* FP4 has two zeros. */
static uint8_t one_zero(uint8_t q, bool fp4) { return fp4 && q == 8 ? 0 : q; }

static void sha_equal(const char *name, enum dtype dt, const float *y, int64_t n, const json_t *want)
{
    void *raw = mem_array((size_t)n, 4);
    char hex[65];
    dtype_from_f32(dt, y, raw, n);
    sha256_hex(raw, dtype_bytes(dt, n), hex);
    if (strcmp(hex, json_string_value(want))) fail_msg("%s: dequantized bytes differ", name);
    free(raw);
}

static void bnb_golden(void **state)
{
    (void)state;
    json_t *g = golden_load("bnb_4bit.json"), *c;
    size_t i, n, n_cases = 0;
    double *code = golden_nums(golden_get(g, "nf4_code"), &n);
    float nf4[16];
    for (int k = 0; k < 16; k++) nf4[k] = (float)code[k];
    assert_memory_equal(nf4, format_book(true), sizeof nf4);
    free(code);
    code = golden_nums(golden_get(g, "fp4_code"), &n);
    for (int k = 0; k < 16; k++) assert_true((float)code[k] == format_book(false)[k]);
    free(code);
    json_array_foreach(golden_get(g, "cases"), i, c) {
        const char *name = json_string_value(golden_get(c, "name"));
        bool fp4 = !strcmp(json_string_value(golden_get(c, "quant_type")), "fp4");
        int64_t count = json_integer_value(golden_get(c, "n"));
        enum dtype dt = golden_dtype(c);
        static float x[4096];
        bnb_values(name, nf4, x, count);
        struct qbuffer b = quantize("rtn", format_find(fp4 ? "fp4" : "nf4"), dt, DT_F32, x, 1, count, NULL);
        uint8_t *want = golden_hex(golden_get(c, "packed_hex"), &n);
        assert_int_equal(n, (count + 1) / 2);
        for (size_t k = 0; k < n; k++) {
            uint8_t a = ((uint8_t *)b.codes)[k], w = want[k];
            if (one_zero(a >> 4, fp4) != one_zero(w >> 4, fp4) || one_zero(a & 15, fp4) != one_zero(w & 15, fp4))
                fail_msg("%s: byte %zu is %02x for %02x", name, k, a, w);
            if (!fp4) assert_int_equal(a, w);
        }
        free(want);
        double *absmax = golden_nums(golden_get(c, "absmax"), &n);
        assert_int_equal(n, (count + 63) / 64);
        for (size_t k = 0; k < n; k++) assert_true(((float *)b.absmax)[k] == (float)absmax[k]);
        free(absmax);
        float *y = rows(&b.w);
        sha_equal(name, dt, y, count, golden_get(c, "dequant_sha256"));
        free(y);
        qbuffer_free(&b);
        n_cases++;
    }
    assert_int_equal(n_cases, 17);
    json_decref(g);
}

static void bnb_double_quant(void **state)
{
    (void)state;
    json_t *g = golden_load("bnb_4bit.json"), *c;
    size_t i, n;
    float x[4096];
    for (int64_t k = 0; k < 4096; k++) x[k] = big(k);
    json_array_foreach(golden_get(g, "double_quant"), i, c) {
        bool fp4 = !strcmp(json_string_value(golden_get(c, "quant_type")), "fp4");
        enum dtype dt = golden_dtype(c);
        struct format f = *format_find("nf4-dq");
        f.book = format_book(!fp4);
        format_set_name(&f);
        struct qbuffer b = quantize("rtn", &f, dt, DT_F32, x, 64, 64, NULL);
        /* the offset is a mean in torch's own order; ours is the exact one */
        double offset = json_real_value(golden_get(c, "offset"));
        assert_true(fabs(b.w.nested_offset - offset) <= 2e-7 * offset);
        uint8_t *codes = golden_hex(golden_get(c, "absmax_codes_hex"), &n);
        for (size_t k = 0; k < n; k++) assert_true(abs((int)codes[k] - (int)((uint8_t *)b.absmax)[k]) <= 1);
        size_t m;
        double *nested = golden_nums(golden_get(c, "nested_absmax"), &m);
        assert_int_equal(m, 1);
        assert_true(fabs(*(float *)b.nested_absmax - nested[0]) <= 4e-7 * nested[0]);
        char hex[65];
        if (!fp4) {
            sha256_hex(b.codes, 2048, hex);
            assert_string_equal(hex, json_string_value(golden_get(c, "packed_sha256")));
        }
        /* with the stored codes, map and offset the restored values are the library's */
        double *map = golden_nums(golden_get(g, "dynamic_map"), &m);
        for (int k = 0; k < 256; k++) {
            assert_true(fabs(b.nested_map[k] - map[k]) <= 2.5e-7 * fabs(map[k]));
            b.nested_map[k] = (float)map[k];
        }
        memcpy(b.absmax, codes, n);
        *(float *)b.nested_absmax = (float)nested[0];
        b.w.nested_offset = (float)offset;
        float *y = rows(&b.w);
        sha_equal("double quant", dt, y, 4096, golden_get(c, "dequant_sha256"));
        free(y);
        free(map);
        free(nested);
        free(codes);
        qbuffer_free(&b);
    }
    json_decref(g);
}

/* ---- the strided replica: the same arithmetic written a second time, element by element ---- */

static float h(float v) { return f16_to_f32(f32_to_f16(v)); }

static void strided_replica(void **state)
{
    (void)state;
    struct rng r = {7};
    const int64_t shapes[][2] = {{3, 576}, {5, 257}, {2, 100}, {4, 2048}};
    for (size_t t = 0; t < 4; t++) {
        int64_t n_out = shapes[t][0], n_in = shapes[t][1];
        float *x = mem_array((size_t)(n_out * n_in), sizeof *x);
        for (int64_t i = 0; i < n_out * n_in; i++) x[i] = (float)rng_normal(&r) * (i % 97 ? 0.02f : 0.5f);
        for (int64_t i = 0; i < 8; i++) x[i] = 0;
        struct qbuffer b = quantize("rtn", format_find("int4-strided128"), DT_F16, DT_F32, x, n_out, n_in, NULL);
        float *y = rows(&b.w);
        for (int64_t i = 0; i < n_out * n_in; i++) {
            int64_t row = i / n_in, j = i % n_in % 128;
            float mn = INFINITY, mx = -INFINITY;
            for (int64_t k = j; k < n_in; k += 128) {
                mn = fminf(mn, h(x[row * n_in + k]));
                mx = fmaxf(mx, h(x[row * n_in + k]));
            }
            float s = h(fmaxf(h(mx - mn), h(1e-5f)) / 15), z = rintf(h(-mn / s));
            z = z < 0 ? 0 : z > 15 ? 15 : z;
            float q = rintf(h(h(h(x[i]) / s) + z));
            q = q < 0 ? 0 : q > 15 ? 15 : q;
            float want = h(h(q - z) * s);
            if (want != y[i]) fail_msg("shape %zu, element %lld: %g for %g", t, (long long)i, (double)y[i], (double)want);
        }
        free(x);
        free(y);
        qbuffer_free(&b);
    }
}

/* ---- methods ---- */

static float *random_weights(int64_t n, uint64_t seed)
{
    struct rng r = {seed};
    float *x = mem_array((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        double scale = rng_uniform(&r) < 0.01 ? 0.4 : 0.02;
        x[i] = h((float)(rng_normal(&r) * scale));
    }
    for (int64_t i = 0; i < 64 && i < n; i++) x[i] = 0; /* a zero group */
    for (int64_t i = 128; i < 192 && i < n; i++) x[i] = fabsf(x[i]);
    for (int64_t i = 200; i < 230 && i < n; i++) x[i] = (float)(i % 5) * 0x1p-24f; /* subnormals */
    return x;
}

static int64_t group_of(const struct format *f, int64_t n_in, int64_t i)
{
    int64_t r = i / n_in, k = i % n_in;
    if (f->kind == CODE_BOOK) return i / f->group;
    if (f->kind == CODE_STRIDED) return r * 128 + k % 128;
    return r * format_groups(f, n_in) + (f->group ? k / f->group : 0);
}

static double *group_errors(const struct format *f, const struct qweight *w, const float *x, int64_t *n_groups)
{
    float *y = rows(w);
    int64_t n = w->n_out * w->n_in;
    *n_groups = group_of(f, w->n_in, n - 1) + 1 + 128;
    double *sum = mem_new((size_t)*n_groups, sizeof *sum);
    for (int64_t i = 0; i < n; i++) {
        double d = (double)y[i] - (double)x[i];
        assert_true(isfinite(d));
        sum[group_of(f, w->n_in, i)] += d * d;
    }
    free(y);
    return sum;
}

static void mse_never_worse(void **state)
{
    (void)state;
    size_t n_formats;
    const struct format *table = format_table(&n_formats);
    const int64_t shapes[][2] = {{5, 576}, {13, 130}, {3, 33}, {9, 320}};
    for (size_t t = 0; t < 4; t++) {
        int64_t n_out = shapes[t][0], n_in = shapes[t][1];
        float *x = random_weights(n_out * n_in, t + 1);
        for (size_t i = 0; i < n_formats; i++) {
            const struct format *f = &table[i];
            struct quant_stats rs, ms;
            struct qbuffer a = quantize("rtn", f, DT_F16, DT_F16, x, n_out, n_in, &rs);
            struct qbuffer b = quantize("mse", f, DT_F16, DT_F16, x, n_out, n_in, &ms);
            int64_t n_groups;
            if (f->kind != CODE_FLOAT && !f->double_quant) {
                double *ea = group_errors(f, &a.w, x, &n_groups), *eb = group_errors(f, &b.w, x, &n_groups);
                for (int64_t g = 0; g < n_groups; g++)
                    /* code books are compared before the last rounding to f16 */
                    if (!(eb[g] <= ea[g] * (f->kind == CODE_BOOK ? 1.002 : 1 + 1e-12)))
                        fail_msg("%s, group %lld: mse %g, rtn %g", f->name, (long long)g, eb[g], ea[g]);
                free(ea);
                free(eb);
            }
            assert_true(isfinite(ms.nmse) && isfinite(rs.nmse));
            if (f->kind == CODE_FLOAT) assert_true(rs.nmse == 0 || f->dtype == DT_BF16);
            else if (f->bits == 4 && !(ms.nmse < 0.98 * rs.nmse)) fail_msg("%s gains too little: %g, rtn %g", f->name, ms.nmse, rs.nmse);
            else assert_true(ms.nmse <= rs.nmse);
            qbuffer_free(&a);
            qbuffer_free(&b);
        }
        free(x);
    }
}

static bool same_bytes(const struct qbuffer *a, const struct qbuffer *b)
{
    const struct qweight *w = &a->w;
    const struct format *f = &w->fmt;
    float *x = rows(&a->w), *y = rows(&b->w);
    bool same = !memcmp(x, y, (size_t)(w->n_out * w->n_in) * 4);
    free(x);
    free(y);
    if (f->kind == CODE_INT) {
        size_t g = (size_t)format_groups(f, w->n_in);
        same &= !memcmp(a->codes, b->codes, 4 * (size_t)(w->n_out * format_words(f, w->n_in)));
        same &= !memcmp(a->scale, b->scale, 2 * (size_t)w->n_out * g);
        if (a->zero) same &= !memcmp(a->zero, b->zero, 4 * (size_t)format_words(f, w->n_out) * g);
    } else if (f->kind == CODE_BOOK) {
        same &= !memcmp(a->codes, b->codes, (size_t)((w->n_out * w->n_in + 1) / 2));
        same &= a->w.nested_offset == b->w.nested_offset;
    }
    return same;
}

/* Groups of any length, odd ones too, as a foreign folder may have them: each code by its bits alone. */
static void groups_of_any_length(void **state)
{
    (void)state;
    enum { ROWS = 9, COLUMNS = 301 };
    static const enum dtype out[] = {DT_F16, DT_BF16, DT_F32};
    for (int bits = 4; bits <= 8; bits += 4)
        for (int64_t group = 1; group <= 302; group += group < 20 ? 1 : 47) {
            struct format f = *format_find(bits == 4 ? "int4-g32" : "int8-row");
            f.group = group;
            f.symmetric = false;
            int per = 32 / bits, off = 1 << (bits - 1);
            int64_t n_g = format_groups(&f, COLUMNS), words = format_words(&f, COLUMNS), zwords = format_words(&f, ROWS);
            uint32_t *codes = mem_array((size_t)(ROWS * words), 4), *zero = mem_array((size_t)(zwords * n_g), 4);
            float *scale = random_weights(ROWS * n_g, 9), y[2 * COLUMNS];
            struct rng rng = {(uint64_t)group};
            for (int64_t i = 0; i < ROWS * words; i++) codes[i] = (uint32_t)rng_next(&rng);
            for (int64_t i = 0; i < zwords * n_g; i++) zero[i] = (uint32_t)rng_next(&rng);
            for (int t = 0; t < 3; t++) {
                struct qweight w = {.fmt = f, .n_out = ROWS, .n_in = COLUMNS, .out_dtype = out[t], .codes = codes,
                                    .scale = scale, .scale_dtype = DT_F32, .zero = zero};
                qweight_rows_f32(&w, 5, 2, y);
                for (int64_t r = 5; r < 7; r++)
                    for (int64_t k = 0; k < COLUMNS; k++) {
                        int q = (int)(codes[r * words + k / per] >> bits * (k % per) & ((1u << bits) - 1)) - off;
                        int z = (int)(zero[r / per * n_g + k / group] >> bits * (r % per) & ((1u << bits) - 1)) - off;
                        float v = (float)(q - z) * scale[r * n_g + k / group];
                        if (t == 0) v = f16_to_f32(f32_to_f16(v));
                        if (t == 1) v = bf16_to_f32(f32_to_bf16(v));
                        if (f32_bits(v) != f32_bits(y[(r - 5) * COLUMNS + k]))
                            fail_msg("%d bits, group %d, row %d, column %d", bits, (int)group, (int)r, (int)k);
                    }
            }
            free(codes);
            free(zero);
            free(scale);
        }
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    size_t n_formats, n_methods;
    const struct format *table = format_table(&n_formats);
    const struct method *methods = method_table(&n_methods);
    int64_t n_out = 77, n_in = 67;
    float *x = random_weights(n_out * n_in, 5);
    for (size_t i = 0; i < n_formats; i++)
        for (size_t m = 0; m < n_methods; m++) {
            struct quant_stats s1, s;
            par_set_threads(1);
            struct qbuffer one = quantize(methods[m].name, &table[i], DT_F16, DT_F16, x, n_out, n_in, &s1);
            for (int t = 2; t <= 3; t++) {
                par_set_threads(t);
                struct qbuffer b = quantize(methods[m].name, &table[i], DT_F16, DT_F16, x, n_out, n_in, &s);
                if (!same_bytes(&one, &b)) fail_msg("%s %s differs with %d threads", table[i].name, methods[m].name, t);
                assert_memory_equal(&s, &s1, sizeof s);
                qbuffer_free(&b);
            }
            qbuffer_free(&one);
        }
    par_set_threads(0);
    free(x);
}

/* What a reader gives back lies on a code point, the weight it came from nearer to that one than to the next. */
static void scaled_rows(void **state)
{
    (void)state;
    size_t n_formats;
    const struct format *table = format_table(&n_formats);
    int64_t n_out = 19, n_in = 267;
    float *x = random_weights(n_out * n_in, 9), *at = mem_array((size_t)(n_out * n_in), 4), *back = mem_array((size_t)(n_out * n_in), 4);
    for (int64_t i = 0; i < n_out * n_in; i++) x[i] = round_f16(x[i]);
    for (size_t i = 0; i < n_formats; i++) {
        const struct format *f = &table[i];
        struct qbuffer b = quantize("rtn", f, DT_F16, DT_F16, x, n_out, n_in, NULL);
        float *y = rows(&b.w), n_codes = ldexpf(1, (int)f->bits);
        float lo = f->kind == CODE_STRIDED ? 0 : -n_codes / 2, hi = lo + n_codes - 1;
        qweight_rows_scaled(&b.w, 0, n_out, y, back);
        for (int64_t r = 0; r < n_out; r += 4) /* rows in pieces: flat blocks begin where they do */
            qweight_rows_scaled(&b.w, r, r + 4 < n_out ? 4 : n_out - r, x + r * n_in, at + r * n_in);
        for (int64_t k = 0; k < n_out * n_in; k++) {
            if (f->kind == CODE_FLOAT) {
                assert_float_equal(at[k], x[k], 0);
                continue;
            }
            double code = rint((double)back[k]), off = fabs((double)back[k] - code), step = 0.5;
            if (f->kind == CODE_BOOK) {
                int best = 0;
                for (int q = 1; q < 16; q++)
                    if (fabsf(f->book[q] - back[k]) < fabsf(f->book[best] - back[k])) best = q;
                double near = INFINITY;
                for (int q = 0; q < 16; q++) near = fmin(near, fabs((double)f->book[q] - (double)at[k]));
                off = fabs((double)f->book[best] - (double)back[k]);
                code = (double)f->book[best];
                step = near;
                lo = -1, hi = 1;
            }
            /* codes of double quantization are chosen before absmax is rounded, as the library does;
             * the weights' own rounding to f16 moves a level of 127 by a twentieth */
            double eps = f->kind == CODE_BOOK ? 2e-3 : f->bits == 8 ? 0.08 : 0.02;
            bool clamped = (f->symmetric || f->kind == CODE_STRIDED) && (at[k] > hi || at[k] < lo); /* absmax/7.5; no zero in range */
            if (!(off < eps) || !(fabs((double)at[k] - code) <= step + eps || clamped || f->double_quant) || code < (double)lo || code > (double)hi)
                fail_msg("%s: %g is at %g, read back at %g", f->name, (double)x[k], (double)at[k], (double)back[k]);
        }
        free(y);
        qbuffer_free(&b);
    }
    free(x);
    free(at);
    free(back);
}

static void refuses_nan(void **state)
{
    (void)state;
    size_t n_formats;
    const struct format *table = format_table(&n_formats);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < n_formats; i++)
        for (size_t k = 0; k < 4; k++) {
            par_set_threads((int)k); /* the first one is named, whoever meets it */
            float *x = random_weights(200 * 70, 3);
            uint32_t nan_bits = 0x7fffffffu; /* the NaN that rounding by addition would turn into a zero */
            x[111 * 70 + 7] = k < 3 ? bad[k] : f32_from_bits(nan_bits);
            for (int r = 115; r < 200; r += 20) x[r * 70 + 9] = NAN;
            struct source s;
            source_init(&s, DT_F32, x, 200, 70);
            struct quant_job job = {"model.layers.3.mlp.up_proj", &s.w, &table[i], DT_F16};
            struct qbuffer b;
            struct err e = {""};
            assert_int_equal(method_quantize(method_find("rtn"), &job, &b, NULL, &e), -1);
            if (!strstr(e.msg, "model.layers.3.mlp.up_proj") || !strstr(e.msg, "row 111, column 7")) fail_msg("%s", e.msg);
            free(x);
        }
    par_set_threads(0);
    /* too large for f16 */
    float *x = random_weights(4 * 64, 3);
    x[70] = 70000;
    struct source s;
    source_init(&s, DT_F32, x, 4, 64);
    struct quant_job job = {"w", &s.w, format_find("int4-g64"), DT_F16};
    struct qbuffer b;
    struct err e = {""};
    assert_int_equal(method_quantize(method_find("rtn"), &job, &b, NULL, &e), -1);
    assert_non_null(strstr(e.msg, "70000"));
    free(x);
}

static void statistics(void **state)
{
    (void)state;
    float x[256];
    for (int i = 0; i < 256; i++) x[i] = (float)(i - 128) / 16;
    struct quant_stats s;
    struct qbuffer b = quantize("rtn", format_find("int4-row"), DT_F16, DT_F32, x, 2, 128, &s);
    float *y = rows(&b.w);
    double xx = 0, yy = 0, xy = 0, dd = 0, max = 0;
    for (int i = 0; i < 256; i++) {
        double d = (double)x[i] - (double)y[i];
        xx += (double)x[i] * x[i], yy += (double)y[i] * y[i], xy += (double)x[i] * y[i], dd += d * d;
        max = fmax(max, fabs(d));
    }
    assert_true(fabs(s.nmse - dd / xx) <= 1e-14 && dd > 0);
    assert_true(fabs(s.sqnr_db - 10 * log10(xx / dd)) <= 1e-10);
    assert_true(fabs(s.cosine - xy / sqrt(xx * yy)) <= 1e-14);
    assert_true(s.max_abs_err == max);
    assert_true(fabs(s.mse - dd / 256) <= 1e-14);
    free(y);
    qbuffer_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ct_golden),         cmocka_unit_test(bnb_golden),       cmocka_unit_test(bnb_double_quant),
        cmocka_unit_test(strided_replica),   cmocka_unit_test(mse_never_worse),  cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(groups_of_any_length), cmocka_unit_test(scaled_rows),
        cmocka_unit_test(refuses_nan),       cmocka_unit_test(statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
