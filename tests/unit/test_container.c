/* Containers: what is written reads back as it was, the scheme of a module is the one transformers would choose, and
 * tensors that contradict it are refused. */
#include "base/mem.h"
#include "base/rng.h"
#include "golden.h"
#include "quantize/container.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NAME "model.layers.0.mlp.up_proj"

/* One quantized linear in a file, and a checkpoint that sees it. */
struct stored {
    struct recipe_entry entry;
    struct recipe recipe;
    struct qbuffer buf;
    struct safetensors st;
    struct checkpoint c;
};

static void store(struct stored *s, const char *format, int64_t n_out, int64_t n_in, enum dtype model_dtype)
{
    struct err e = {""};
    struct rng r = {(uint64_t)(n_out * 1000 + n_in)};
    float *x = mem_array((size_t)(n_out * n_in), sizeof *x);
    for (int64_t i = 0; i < n_out * n_in; i++) x[i] = (float)(rng_normal(&r) * 0.05);
    struct tensor t = {.name = NAME, .dtype = DT_F32, .n_dims = 2, .shape = {n_out, n_in}, .data = x,
                       .n_bytes = (size_t)(n_out * n_in) * 4};
    struct qweight src = {.fmt = {.kind = CODE_FLOAT, .dtype = DT_F32}, .n_out = n_out, .n_in = n_in,
                          .out_dtype = DT_F32, .src = &t, .codes = x};
    memset(s, 0, sizeof *s);
    s->entry = (struct recipe_entry){.name = NAME, .n_out = n_out, .n_in = n_in, .op = OP_UP,
                                     .fmt = format_find(format), .method = method_find("rtn")};
    s->recipe = (struct recipe){&s->entry, 1};
    struct quant_job job = {NAME, &src, s->entry.fmt, model_dtype};
    if (method_quantize(s->entry.method, &job, &s->buf, NULL, &e)) fail_msg("%s", e.msg);
    free(x);

    struct tensor parts[CONTAINER_PARTS];
    size_t n = container_declare(parts, NAME, s->entry.fmt, n_out, n_in, model_dtype);
    struct st_writer w;
    const char *path = test_tmp("one.safetensors");
    if (st_writer_open(&w, path, parts, n, &e) || container_append(&w, &s->buf, &e) || st_writer_close(&w, &e) ||
        safetensors_open(&s->st, path, &e))
        fail_msg("%s", e.msg);
    for (size_t i = 0; i < n; i++) free((char *)(uintptr_t)parts[i].name);
    s->c = (struct checkpoint){.path = (char *)(uintptr_t)"mem", .tensors = s->st.tensors, .n_tensors = s->st.n_tensors,
                               .quant = container_config(&s->recipe, model_dtype)};
}

static void drop(struct stored *s)
{
    json_decref(s->c.quant);
    safetensors_close(&s->st);
    qbuffer_free(&s->buf);
}

static void round_trip(void **state)
{
    (void)state;
    size_t n_formats;
    const struct format *table = format_table(&n_formats);
    const int64_t shapes[][2] = {{9, 576}, {5, 33}, {12, 130}, {3, 7}, {1, 1}, {17, 257}};
    for (size_t i = 0; i < n_formats; i++)
        for (size_t k = 0; k < 6; k++)
            for (enum dtype dt = DT_F16; dt <= DT_BF16; dt++) {
                int64_t n_out = shapes[k][0], n_in = shapes[k][1], count = n_out * n_in;
                struct stored s;
                struct qweight w;
                struct err e = {""};
                store(&s, table[i].name, n_out, n_in, dt);
                if (qweight_open(&w, &s.c, NAME, n_out, n_in, &e)) fail_msg("%s: %s", table[i].name, e.msg);
                assert_string_equal(w.fmt.name, table[i].name);
                assert_true(format_same(&w.fmt, &table[i]) && w.out_dtype == s.buf.w.out_dtype);
                assert_int_equal(w.bytes, format_bytes(&table[i], n_out, n_in));
                float *a = mem_array((size_t)count, 4), *b = mem_array((size_t)count, 4);
                qweight_rows_f32(&s.buf.w, 0, n_out, a);
                for (int64_t r = 0; r < n_out; r++) qweight_rows_f32(&w, r, 1, b + r * n_in); /* rows on their own */
                assert_memory_equal(a, b, (size_t)count * 4);
                qweight_drop(&w); /* gives pages back; they are read again */
                qweight_rows_f32(&w, 0, n_out, b);
                assert_memory_equal(a, b, (size_t)count * 4);
                qweight_drop(&s.buf.w); /* must leave memory alone */
                qweight_rows_f32(&s.buf.w, 0, n_out, b);
                assert_memory_equal(a, b, (size_t)count * 4);
                free(a);
                free(b);
                drop(&s);
            }
}

/* ---- which scheme ---- */

#define G(bits, group) "{\"num_bits\": " bits ", \"strategy\": \"group\", \"group_size\": " group "}"

static void precedence(void **state)
{
    (void)state;
    static const struct {
        const char *groups, *ignore, *want; /* a format's name, "float", or a part of the error */
    } cases[] = {
        /* exact name before regex before class, whatever the order in the file */
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "32") "},"
         " \"b\": {\"targets\": [\"re:.*up_proj$\"], \"weights\": " G("4", "64") "},"
         " \"c\": {\"targets\": [\"" NAME "\"], \"weights\": " G("4", "128") "}}", "[]", "int4-g128-sym"},
        {"{\"c\": {\"targets\": [\"" NAME "\"], \"weights\": " G("4", "128") "},"
         " \"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "32") "}}", "[]", "int4-g128-sym"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "32") "},"
         " \"b\": {\"targets\": [\"re:.*up_proj$\"], \"weights\": " G("4", "128") "}}", "[]", "int4-g128-sym"},
        /* of two regexes the alphabetically first */
        {"{\"a\": {\"targets\": [\"re:model.*up_proj\"], \"weights\": " G("4", "32") "},"
         " \"b\": {\"targets\": [\"re:.*_proj\"], \"weights\": " G("4", "128") "}}", "[]", "int4-g128-sym"},
        /* anchored at the start only, as Python's re.match */
        {"{\"a\": {\"targets\": [\"re:up_proj\"], \"weights\": " G("4", "32") "},"
         " \"b\": {\"targets\": [\"re:model\\\\.layers\"], \"weights\": " G("4", "128") "}}", "[]", "int4-g128-sym"},
        /* ignore beats all, by name, regex and class */
        {"{\"a\": {\"targets\": [\"" NAME "\"], \"weights\": " G("4", "128") "}}", "[\"" NAME "\"]", "has no group for it"},
        {"{\"a\": {\"targets\": [\"" NAME "\"], \"weights\": " G("4", "128") "}}", "[\"re:.*layers.0.*\"]", "has no group"},
        {"{\"a\": {\"targets\": [\"" NAME "\"], \"weights\": " G("4", "128") "}}", "[\"Linear\"]", "has no group for it"},
        {"{\"a\": {\"targets\": [\"Embedding\"], \"weights\": " G("4", "128") "}}", "[]", "has no group for it"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "128") "}}", "[\"lm_head\"]", "int4-g128-sym"},
        {"{\"W4A16\": [\"Linear\"]}", "null", "int4-g128-sym"},
        /* schemes that the tensors contradict, or that are not supported */
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "64") "}}", "[]", "another shape than its scheme implies ([9, 9]"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("8", "128") "}}", "[]", "([9, 144] was expected)"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"symmetric\": false, \"group_size\": 128}}}", "[]",
         "weight_zero_point: missing"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4}}}", "[]", "strategy \"tensor\" is not supported"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"type\": \"float\", \"group_size\": 128}}}", "[]",
         "4-bit float weights are not supported"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 3, \"group_size\": 128}}}", "[]", "3-bit int"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"group_size\": 0, \"strategy\": \"group\"}}}", "[]",
         "without a group_size"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, \"group_size\": 128, \"actorder\": \"group\"}}}", "[]",
         "actorder"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"format\": \"int-quantized\", \"weights\": " G("4", "128") "}}", "[]", "int-quantized"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"input_activations\": {\"num_bits\": 8}, \"weights\": " G("4", "128") "}}", "[]",
         "quantized activations"},
        {"{\"a\": {\"targets\": [\"re:(\"], \"weights\": " G("4", "128") "}}", "[]", "not a regular expression"},
        {"{\"a\": {\"targets\": [\"re:((.|.)*)*[A-Z]\"], \"weights\": " G("4", "128") "}}", "[]", "too costly"},
        {"{\"a\": {\"targets\": [7], \"weights\": " G("4", "128") "}}", "[]", "a target is not a string"},
        {"{\"a\": {\"weights\": " G("4", "128") "}}", "[]", "has no list of targets"},
        {"{\"FP8\": [\"Linear\"]}", "[]", "preset scheme \"FP8\""},
        {"7", "[]", "\"config_groups\" is missing"},
        {"{\"a\": {\"targets\": [\"Linear\"]}}", "[]", "\"weights\" is missing"},
        {"{\"a\": {\"targets\": [\"Linear\"], \"weights\": " G("4", "128") "}}", "\"lm_head\"", "\"ignore\" is not a list"},
    };
    struct stored s;
    store(&s, "int4-g128-sym", 9, 576, DT_F16);
    json_t *own = s.c.quant;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = mem_printf("{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", \"ignore\": %s, "
                                "\"config_groups\": %s}", cases[i].ignore, cases[i].groups);
        s.c.quant = json_loads(text, 0, NULL);
        assert_non_null(s.c.quant);
        struct qweight w;
        struct err e = {""};
        int rc = qweight_open(&w, &s.c, NAME, 9, 576, &e);
        if (rc ? !strstr(e.msg, cases[i].want) || strncmp(e.msg, "mem: ", 5) : strcmp(w.fmt.name, cases[i].want) != 0)
            fail_msg("case %zu: %s (%s was expected)", i, rc ? e.msg : w.fmt.name, cases[i].want);
        json_decref(s.c.quant);
        free(text);
    }
    s.c.quant = own;
    drop(&s);
}

static void untargeted_is_float(void **state)
{
    (void)state;
    static const uint16_t data[6] = {0x3c00, 0, 0, 0, 0, 0x4000};
    struct tensor t[2] = {{.name = "lm_head.weight", .dtype = DT_F16, .n_dims = 2, .shape = {2, 3}, .data = data, .n_bytes = 12},
                          {.name = "model.embed_tokens.weight", .dtype = DT_F16, .n_dims = 2, .shape = {2, 3}, .data = data,
                           .n_bytes = 12}};
    json_t *q = json_pack("{s:s,s:[s],s:{s:{s:[s],s:{s:i,s:i}}}}", "quant_method", "compressed-tensors", "ignore", "lm_head",
                          "config_groups", "g", "targets", "Linear", "weights", "num_bits", 4, "group_size", 32);
    struct checkpoint c = {.path = (char *)(uintptr_t)"mem", .tensors = t, .n_tensors = 2, .quant = q};
    struct qweight w;
    struct err e = {""};
    float y[6];
    assert_int_equal(qweight_open(&w, &c, "lm_head", 2, 3, &e), 0);
    assert_int_equal(w.fmt.kind, CODE_FLOAT);
    qweight_rows_f32(&w, 1, 1, y);
    assert_true(y[2] == 2.0f);
    assert_int_equal(qweight_open(&w, &c, "model.embed_tokens", 2, 3, &e), 0);
    assert_ptr_equal(w.src, &t[1]);
    /* a linear that should be packed, stored as a float: transformers would fill it with random numbers */
    json_array_clear(json_object_get(q, "ignore"));
    assert_int_equal(qweight_open(&w, &c, "lm_head", 2, 3, &e), -1);
    assert_non_null(strstr(e.msg, "says that lm_head is packed"));
    /* tied: the head is the embedding, whatever the config says of lm_head */
    c.tensors = &t[1], c.n_tensors = 1, c.tied = true;
    assert_int_equal(qweight_open(&w, &c, "lm_head", 2, 3, &e), 0);
    assert_ptr_equal(w.src, &t[1]);
    json_decref(q);
}

/* ---- tensors that contradict ---- */

static struct tensor *part(struct stored *s, const char *suffix)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", NAME, suffix);
    for (size_t i = 0; i < s->c.n_tensors; i++)
        if (!strcmp(s->c.tensors[i].name, full)) return &s->c.tensors[i];
    fail_msg("no %s", full);
    return NULL;
}

static void refused(struct stored *s, const char *message)
{
    struct qweight w;
    struct err e = {""};
    assert_int_equal(qweight_open(&w, &s->c, NAME, s->entry.n_out, s->entry.n_in, &e), -1);
    if (strncmp(e.msg, "mem: ", 5) || !strstr(e.msg, message)) fail_msg("\"%s\" (\"%s\" was expected)", e.msg, message);
}

static void bad_parts(void **state)
{
    (void)state;
    static const struct {
        const char *format, *suffix;
    } parts[] = {{"int4-g64", ".weight_packed"}, {"int4-g64", ".weight_scale"}, {"int4-g64", ".weight_zero_point"},
                 {"int4-g64", ".weight_shape"}, {"nf4-dq", ".weight"}, {"nf4-dq", ".weight.absmax"},
                 {"nf4-dq", ".weight.quant_map"}, {"nf4-dq", ".weight.nested_absmax"},
                 {"nf4-dq", ".weight.nested_quant_map"}, {"nf4-dq", ".weight.quant_state.bitsandbytes__nf4"},
                 {"int4-strided128", ".weight_packed"}, {"int4-strided128", ".weight_scale"},
                 {"int4-strided128", ".weight_zero_point"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        struct stored s;
        struct qweight w;
        struct err e;
        store(&s, parts[i].format, 9, 576, DT_F16);
        struct tensor *t = part(&s, parts[i].suffix), keep = *t;
        assert_int_equal(qweight_open(&w, &s.c, NAME, 9, 576, &e), 0);
        t->dtype = t->dtype == DT_BOOL ? DT_I8 : DT_BOOL;
        refused(&s, NAME);
        *t = keep;
        if (!strstr(parts[i].suffix, "quant_state")) {
            t->shape[0]++;
            refused(&s, NAME);
            t->shape[0] -= 2;
            refused(&s, NAME);
            *t = keep;
            t->n_dims = 3;
            t->shape[2] = 1;
            refused(&s, NAME);
            *t = keep;
        }
        size_t after = (size_t)(&s.c.tensors[s.c.n_tensors] - t) - 1; /* missing: taken out, put back at the end */
        memmove(t, t + 1, after * sizeof *t);
        s.c.n_tensors--;
        refused(&s, NAME);
        s.c.n_tensors++;
        s.c.tensors[s.c.n_tensors - 1] = keep;
        drop(&s);
    }
    struct stored s;
    store(&s, "int4-g64", 9, 576, DT_F16);
    int64_t other[2] = {9, 575};
    part(&s, ".weight_shape")->data = other;
    refused(&s, "is [9, 575] ([9, 576] was expected");
    drop(&s);
    store(&s, "int4-g64", 9, 576, DT_F16); /* without quantization_config a packed weight has no meaning */
    json_decref(s.c.quant);
    s.c.quant = NULL;
    refused(&s, NAME ".weight is missing");
    drop(&s);
}

static void bad_states(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{", "not valid JSON"},
        {"[]", "is not an object"},
        {"{\"quant_type\": \"fp4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [9, 576]}", "against the tensor's name"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 63, \"dtype\": \"float16\", \"shape\": [9, 576]}", "not a power of two"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 0, \"dtype\": \"float16\", \"shape\": [9, 576]}", "\"blocksize\" is 0"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"int8\", \"shape\": [9, 576]}", "dtype \"int8\""},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [576, 9]}", "shape is not [9, 576]"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\"}", "shape is not [9, 576]"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [9, 576], \"nested_blocksize\": 256}",
         "\"nested_offset\" is missing"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [9, 576], \"nested_blocksize\": 64, "
         "\"nested_offset\": 1}", "nested blocks of 64"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [9, 576], \"nested_blocksize\": 256, "
         "\"nested_offset\": 1e300}", "nested_offset is out of range"},
        {"{\"quant_type\": \"nf4\", \"blocksize\": 128, \"dtype\": \"float16\", \"shape\": [9, 576], \"nested_blocksize\": 256, "
         "\"nested_offset\": 1}", "weight.absmax: another shape"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stored s;
        store(&s, "nf4-dq", 9, 576, DT_F16);
        struct tensor *t = part(&s, ".weight.quant_state.bitsandbytes__nf4");
        t->data = cases[i].text;
        t->n_bytes = strlen(cases[i].text);
        refused(&s, cases[i].message);
        drop(&s);
    }
    struct stored s;
    store(&s, "nf4", 9, 576, DT_F16);
    part(&s, ".weight.quant_map")->data = format_book(false);
    refused(&s, "not the NF4 code table");
    drop(&s);
}

static void bad_qlab(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"quant_method\": \"gptq\"}", "quant_method \"gptq\" is not supported"},
        {"{}", "\"quant_method\" is missing"},
        {"{\"quant_method\": \"qlab\"}", "\"version\" is missing"},
        {"{\"quant_method\": \"qlab\", \"version\": 2}", "\"version\" is 2"},
        {"{\"quant_method\": \"qlab\", \"version\": 1}", "no \"tensors\""},
        {"{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {\"" NAME "\": {}}}", "\"format\" is missing"},
        {"{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {\"" NAME "\": {\"format\": \"int2\"}}}", "unknown format \"int2\""},
        {"{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {\"" NAME "\": {\"format\": \"nf4-dq\"}}}", "another format"},
        {"{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {\"" NAME "\": {\"format\": \"int4-g64\"}}}", "weight_packed: missing"},
        {"{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {}}", "dtype U8 (a float type was expected)"},
    };
    struct stored s;
    store(&s, "nf4", 9, 576, DT_F16);
    json_t *own = s.c.quant;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        s.c.quant = json_loads(cases[i].text, 0, NULL);
        refused(&s, cases[i].message);
        json_decref(s.c.quant);
    }
    s.c.quant = json_loads("{\"quant_method\": \"qlab\", \"version\": 1, \"tensors\": {\"" NAME "\": {\"format\": \"nf4\"}}}", 0, NULL);
    struct qweight w;
    struct err e = {""};
    assert_int_equal(qweight_open(&w, &s.c, NAME, 9, 576, &e), 0); /* another family's tensors under qlab's config */
    json_decref(s.c.quant);
    s.c.quant = own;
    drop(&s);
}

/* ---- what is promised ---- */

static void portable(void **state)
{
    (void)state;
    static const struct {
        int64_t hidden, ff;
        const char *format, *embed, *head, *rule, *rule_format, *transformers, *vllm;
    } cases[] = {
        {512, 1024, "f16", NULL, NULL, NULL, NULL, "yes", "expected"},
        {512, 1024, "int4-g128-sym", NULL, NULL, NULL, NULL, "yes", "expected"},
        {512, 1024, "int4-g128", NULL, NULL, NULL, NULL, "dequantize", "expected"},
        {512, 1024, "int4-row-sym", NULL, NULL, NULL, NULL, "yes", "expected"},
        {512, 1024, "int4-row", NULL, NULL, NULL, NULL, "dequantize", "no"},
        {512, 1024, "int4-g256-sym", NULL, NULL, NULL, NULL, "yes", "no"},
        {512, 1024, "int8-row", NULL, NULL, NULL, NULL, "yes", "expected"},
        {512, 1024, "int8-row", NULL, "int8-row", NULL, NULL, "yes", "expected"},
        {512, 1024, "int8-row", "int8-row", NULL, NULL, NULL, "no", "no"},
        {512, 1024, "int4-g64-sym", NULL, "int8-row", NULL, NULL, "yes", "expected"},
        {512, 1024, "int4-g64", NULL, "int8-row", NULL, NULL, "no", "expected"},
        {512, 1024, "int4-g64-sym", NULL, NULL, "*v_proj", "int8-row", "yes", "no"}, /* not alike in a fused layer */
        {512, 1024, "int4-g64-sym", NULL, NULL, "*down_proj", "int8-row", "yes", "expected"},
        {512, 1024, "int4-g64-sym", NULL, NULL, "model.layers.1.*", "f16", "yes", "expected"},
        {512, 1024, "int4-g64-sym", NULL, NULL, "*up_proj", "f16", "yes", "no"},
        {512, 1024, "int4-strided128", NULL, NULL, NULL, NULL, "no", "no"},
        {512, 1024, "nf4", NULL, NULL, NULL, NULL, "yes", "expected"},
        {512, 1024, "nf4", NULL, "nf4", NULL, NULL, "no", "no"},
        {512, 1024, "nf4", NULL, NULL, "*down_proj", "fp4", "yes", "no"},
        {512, 1024, "nf4", NULL, NULL, "*down_proj", "int8-row", "no", "no"},
        {512, 1024, "nf4", NULL, "int8-row", NULL, NULL, "no", "no"},
        {576, 1536, "int4-g64-sym", NULL, NULL, NULL, NULL, "yes", "no"},
        {576, 1536, "int4-g128-sym", NULL, NULL, NULL, NULL, "no", "no"}, /* a short last group */
        {64, 160, "nf4", NULL, NULL, NULL, NULL, "no", "expected"},       /* blocks across rows */
        {64, 160, "int4-g32", NULL, NULL, NULL, NULL, "dequantize", "no"},
        {8, 32, "int4-row", NULL, NULL, NULL, NULL, "no", "no"}, /* 8 rows: one word of zero points */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config cfg = {.hidden_size = cases[i].hidden, .intermediate_size = cases[i].ff, .n_layers = 2,
                             .n_heads = cases[i].hidden == 8 ? 1 : cases[i].hidden / 64, .n_kv_heads = 1,
                             .head_dim = cases[i].hidden == 8 ? 8 : 64, .vocab_size = 1024};
        json_t *v = json_pack("{s:s}", "default", cases[i].format), *p;
        if (cases[i].rule)
            json_put(v, "rules", json_pack("[{s:s,s:s}]", "match", cases[i].rule, "format", cases[i].rule_format));
        struct recipe r;
        struct err e = {""};
        if (recipe_resolve(&r, v, NULL, cases[i].embed, cases[i].head, &cfg, &e)) fail_msg("%s", e.msg);
        p = container_portable(&r);
        const char *t = json_string_value(json_object_get(p, "transformers")), *m = json_string_value(json_object_get(p, "vllm"));
        const char *why = json_string_value(json_object_get(p, "why"));
        if (strcmp(t, cases[i].transformers) || strcmp(m, cases[i].vllm)) fail_msg("case %zu: %s, %s (%s)", i, t, m, why ? why : "");
        assert_int_equal(!why, !strcmp(t, "yes") && !strcmp(m, "expected"));
        json_decref(p);
        json_decref(v);
        recipe_free(&r);
    }
}

/* Every mix within compressed-tensors must resolve, by the reader's rules, to what the recipe says. */
static void written_config_resolves(void **state)
{
    (void)state;
    struct config cfg = {.hidden_size = 64, .intermediate_size = 96, .n_layers = 12, .n_heads = 4, .n_kv_heads = 2,
                         .head_dim = 16, .vocab_size = 32};
    json_t *v = json_loads("{\"default\": \"int4-g32\", \"rules\": [{\"match\": \"model.layers.1.*\", \"format\": \"int8-row\"},"
                           "{\"match\": \"*.down_proj\", \"format\": \"int4-g64-sym\"}, {\"match\": \"*.11.*q_proj\", \"format\": \"f16\"}]}",
                           0, NULL);
    struct recipe r;
    struct err e = {""};
    if (recipe_resolve(&r, v, NULL, NULL, "int8-row", &cfg, &e)) fail_msg("%s", e.msg);
    struct checkpoint c = {.path = (char *)(uintptr_t)"mem", .quant = container_config(&r, DT_F16)};
    for (size_t i = 0; i < r.n; i++) {
        const struct recipe_entry *it = &r.entries[i];
        struct qweight w;
        struct tensor parts[CONTAINER_PARTS], *t = parts;
        static const int64_t zeros[4096];
        if (!it->fmt) continue;
        size_t n = container_declare(parts, it->name, it->fmt, it->n_out, it->n_in, DT_F16);
        int64_t shape[2] = {it->n_out, it->n_in};
        for (size_t k = 0; k < n; k++) t[k].data = strstr(t[k].name, "weight_shape") ? (const void *)shape : zeros;
        c.tensors = parts;
        c.n_tensors = n;
        if (qweight_open(&w, &c, it->name, it->n_out, it->n_in, &e)) fail_msg("%s: %s", it->name, e.msg);
        assert_true(format_same(&w.fmt, it->fmt));
        for (size_t k = 0; k < n; k++) free((char *)(uintptr_t)parts[k].name);
    }
    json_decref(c.quant);
    json_decref(v);
    recipe_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip), cmocka_unit_test(precedence), cmocka_unit_test(untargeted_is_float),
        cmocka_unit_test(bad_parts),  cmocka_unit_test(bad_states), cmocka_unit_test(bad_qlab),
        cmocka_unit_test(portable),   cmocka_unit_test(written_config_resolves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
