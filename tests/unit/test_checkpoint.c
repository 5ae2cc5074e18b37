/* Opening folders: presence and shapes, shards and index, tying, what is unused; and the conversion to a folder. */
#include "base/file.h"
#include "base/half.h"
#include "base/mem.h"
#include "golden.h"
#include "tiny.h"
#include "views/checkpoint.h"
#include "views/convert.h"
#include "views/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct tiny kind(const char *name)
{
    struct tiny t;
    if (tiny_kind(&t, name)) fail_msg("no kind %s", name);
    return t;
}

static const char *written(const struct tiny *t, const char *dir)
{
    struct err e;
    const char *path = test_tmp(dir);
    path_remove_tree(path, NULL);
    if (tiny_write(t, path, &e)) fail_msg("%s", e.msg);
    return path;
}

static void open_ok(struct checkpoint *c, const char *path)
{
    struct err e;
    if (checkpoint_open(c, path, &e)) fail_msg("refused: %s", e.msg);
}

/* The message names the folder and says `what`. */
static void refused(const char *path, const char *what)
{
    struct checkpoint c;
    struct err e;
    if (!checkpoint_open(&c, path, &e)) fail_msg("%s was accepted (%s was expected)", path, what);
    if (strncmp(e.msg, path, strlen(path)) || !strstr(e.msg, what)) fail_msg("\"%s\" does not say \"%s\"", e.msg, what);
}

static void put_text(const char *dir, const char *name, const char *text)
{
    char *p = path_join(dir, name);
    test_write(p, text, strlen(text));
    free(p);
}

/* Change one member of config.json; v NULL removes it. */
static void edit_config(const char *dir, const char *key, json_t *v)
{
    struct err e;
    char *p = path_join(dir, "config.json");
    json_t *j = json_read(p, 1 << 20, &e);
    if (v) json_put(j, key, v);
    else json_object_del(j, key);
    char *s = json_text(j, 0);
    put_text(dir, "config.json", s);
    free(s);
    json_decref(j);
    free(p);
}

/* ---- opening ---- */

static void test_kinds(void **state)
{
    (void)state;
    for (int i = 0; tiny_kinds[i]; i++) {
        struct tiny t = kind(tiny_kinds[i]);
        struct checkpoint c;
        open_ok(&c, written(&t, "m"));
        assert_int_equal(c.tied, t.tied);
        assert_null(c.unused[0]);
        assert_null(c.quant);
        assert_int_equal(c.config.arch, t.arch);
        assert_true(checkpoint_has_linear(&c, "model.layers.1.mlp.down_proj"));
        assert_int_equal(checkpoint_has_linear(&c, "lm_head"), !t.tied);
        checkpoint_close(&c);
    }
}

/* The generator is the formula of tests/golden: its own checks. */
static void test_golden_weights(void **state)
{
    (void)state;
    json_t *g = golden_load("tiny_models.json"), *item, *m;
    const char *name;
    size_t i, n;
    json_array_foreach(golden_get(g, "checks"), i, item)
    {
        double *w = golden_nums(golden_get(item, "w"), &n);
        float v[4];
        assert_int_equal(n, 4);
        tiny_formula(json_string_value(golden_get(item, "name")), 0, 0, 4, v);
        for (size_t k = 0; k < 4; k++) assert_true(v[k] == (float)w[k]);
        free(w);
    }
    json_object_foreach(golden_get(g, "models"), name, m)
    {
        struct tiny t = kind(name);
        struct checkpoint c;
        open_ok(&c, written(&t, "m"));
        int64_t elems = checkpoint_bytes(&c) / 2;
        assert_int_equal(elems, json_integer_value(golden_get(m, "params")));
        const json_t *cfg = golden_get(m, "config");
        assert_int_equal(c.config.hidden_size, json_integer_value(golden_get(cfg, "hidden_size")));
        assert_true(c.config.rope.theta == json_number_value(golden_get(golden_get(cfg, "rope_parameters"), "rope_theta")));
        assert_true(c.config.rms_norm_eps == json_number_value(golden_get(cfg, "rms_norm_eps")));
        assert_int_equal(c.config.tied_embeddings, json_is_true(golden_get(cfg, "tie_word_embeddings")));
        checkpoint_close(&c);
    }
    json_decref(g);
}

static void test_config_styles_agree(void **state)
{
    (void)state;
    struct tiny t = kind("llama-untied-rope3");
    struct checkpoint a, b;
    open_ok(&a, written(&t, "new"));
    t.old_config = true;
    open_ok(&b, written(&t, "old"));
    assert_memory_equal(&a.config.rope, &b.config.rope, sizeof a.config.rope);
    assert_int_equal(a.config.rope.type, ROPE_LLAMA3);
    checkpoint_close(&a);
    checkpoint_close(&b);
}

static void test_missing_and_unused(void **state)
{
    (void)state;
    const char *names[] = {"model.embed_tokens.weight", "model.layers.1.mlp.gate_proj.weight",
                           "model.layers.0.self_attn.k_proj.bias", "model.layers.1.input_layernorm.weight",
                           "model.norm.weight", "lm_head.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct tiny t = kind("qwen2-untied");
        t.drop = names[i];
        const char *dir = written(&t, "m");
        refused(dir, names[i]);
        refused(dir, "is missing");
    }
    struct tiny t = kind("qwen3");
    t.drop = "model.layers.0.self_attn.q_norm.weight";
    refused(written(&t, "m"), t.drop);

    t = kind("llama-tied");
    t.extra = "model.layers.2.mlp.gate_proj.weight";
    struct checkpoint c;
    open_ok(&c, written(&t, "m"));
    assert_string_equal(c.unused[0], t.extra);
    assert_null(c.unused[1]);
    checkpoint_close(&c);
    t.extra = "model.layers.1.self_attn.rotary_emb.inv_freq";
    open_ok(&c, written(&t, "m"));
    assert_null(c.unused[0]);
    checkpoint_close(&c);
    t.extra = "model.layers.0.mlp.up_proj.weight_scale"; /* a part of a packed weight, but nothing is packed here */
    open_ok(&c, written(&t, "m"));
    assert_string_equal(c.unused[0], t.extra);
    checkpoint_close(&c);
}

static void test_shapes(void **state)
{
    (void)state;
    const struct {
        const char *key, *what;
        int64_t v;
    } t[] = {{"hidden_size", "has shape", 128},        {"intermediate_size", "model.layers.0.mlp.gate_proj.weight", 161},
             {"vocab_size", "model.embed_tokens.weight has shape [256, 64] ([257, 64] was expected)", 257},
             {"num_hidden_layers", "model.layers.2.input_layernorm.weight is missing", 3},
             {"head_dim", "model.layers.0.self_attn.q_proj.weight", 18},
             {"num_key_value_heads", "model.layers.0.self_attn.k_proj.weight", 4}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct tiny m = kind("llama-tied");
        const char *dir = written(&m, "m");
        edit_config(dir, t[i].key, json_integer(t[i].v));
        refused(dir, t[i].what);
    }
    struct tiny m = kind("llama-tied");
    m.layers = 3; /* one layer less than stored: the rest is reported */
    const char *dir = written(&m, "m");
    struct checkpoint c;
    edit_config(dir, "num_hidden_layers", json_integer(2));
    open_ok(&c, dir);
    size_t n = 0;
    while (c.unused[n]) n++;
    assert_int_equal(n, 9);
    checkpoint_close(&c);
}

/* Tensors of a type no weight can have. */
static void test_dtypes(void **state)
{
    (void)state;
    const char *dir = test_tmp("m"), *names[] = {"model.embed_tokens.weight", "model.norm.weight"};
    for (size_t k = 0; k < 2; k++) {
        struct tiny m = kind("llama-tied");
        m.drop = names[k];
        m.shards = 2;
        written(&m, "m");
        struct tensor d = {.name = names[k], .dtype = DT_F64, .n_dims = k ? 1 : 2, .shape = {k ? 64 : 256, 64}};
        struct st_writer w;
        struct err e;
        char *path = path_join(dir, "extra.safetensors"), *index = path_join(dir, "model.safetensors.index.json");
        size_t n = k ? 64 * 8 : 256 * 64 * 8;
        void *zero = mem_new(n, 1);
        assert_int_equal(st_writer_open(&w, path, &d, 1, &e) || st_writer_append(&w, zero, n, &e) ||
                             st_writer_close(&w, &e), 0);
        json_t *j = json_read(index, 1 << 20, &e);
        json_put(json_object_get(j, "weight_map"), names[k], json_string("extra.safetensors"));
        char *s = json_text(j, 0);
        test_write(index, s, strlen(s));
        refused(dir, "has dtype F64");
        free(s);
        json_decref(j);
        free(zero);
        free(path);
        free(index);
    }
}

static void same_tensors(const struct checkpoint *a, const struct checkpoint *b)
{
    assert_int_equal(a->n_tensors, b->n_tensors);
    for (size_t i = 0; i < a->n_tensors; i++) {
        const struct tensor *x = &a->tensors[i], *y = &b->tensors[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->dtype, y->dtype);
        assert_int_equal(x->n_dims, y->n_dims);
        assert_memory_equal(x->shape, y->shape, sizeof x->shape);
        assert_memory_equal(x->data, y->data, x->n_bytes);
    }
}

static void test_shards(void **state)
{
    (void)state;
    struct tiny t = kind("qwen2-untied");
    struct checkpoint a, b;
    open_ok(&a, written(&t, "one"));
    t.shards = 3;
    const char *dir = written(&t, "three");
    open_ok(&b, dir);
    assert_int_equal(b.n_shards, 3);
    same_tensors(&a, &b);
    checkpoint_close(&a);
    checkpoint_close(&b);

    char *index = path_join(dir, "model.safetensors.index.json");
    struct err e;
    json_t *j = json_read(index, 1 << 20, &e), *map = json_object_get(j, "weight_map");
    const char *key = "model.norm.weight";
    json_t *file = json_incref(json_object_get(map, key));
    const struct {
        const char *to, *what;
    } bad[] = {{"../model-00001-of-00003.safetensors", "plain file name"}, {"/etc/passwd", "plain file name"},
               {"..", "plain file name"},                                   {"", "plain file name"},
               {"model-00009-of-00003.safetensors", "missing (model.safetensors.index.json names it)"},
               {"model-00001-of-00003.safetensors", "tensor model.norm.weight is not in"},
               {"config.json", "config.json"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_put(map, key, json_string(bad[i].to));
        char *s = json_text(j, 0);
        test_write(index, s, strlen(s));
        free(s);
        refused(dir, bad[i].what);
    }
    json_object_set_new(map, key, file);
    json_put(map, "no.such.weight", json_string("model-00001-of-00003.safetensors"));
    json_object_del(j, "metadata");
    char *s = json_text(j, 0);
    test_write(index, s, strlen(s));
    refused(dir, "tensor no.such.weight is not in");
    free(s);
    json_decref(j);
    test_write(index, "{}", 2);
    refused(dir, "weight_map");
    test_write(index, "{", 1);
    refused(dir, "not valid JSON");
    free(index);
    /* the single file is preferred, whatever the index says */
    const char *one = test_tmp("one");
    put_text(one, "model.safetensors.index.json", "{");
    open_ok(&a, one);
    checkpoint_close(&a);
}

static void test_folders(void **state)
{
    (void)state;
    refused(test_tmp("nowhere"), "no such file or folder");
    const char *dir = test_tmp("bare");
    struct err e;
    path_make_dirs(dir, &e);
    refused(dir, "config.json: No such file");
    struct tiny t = kind("llama-tied");
    written(&t, "bare");
    char *st = path_join(dir, "model.safetensors");
    assert_int_equal(remove(st), 0);
    refused(dir, "neither model.safetensors nor model.safetensors.index.json");
    free(st);
    put_text(dir, "config.json", "{\"model_type\":");
    refused(dir, "config.json: not valid JSON");
    char *cfg = path_join(dir, "config.json");
    refused(cfg, "GGUF");
    free(cfg);
}

static void test_tying(void **state)
{
    (void)state;
    struct checkpoint c;
    struct tiny t = kind("qwen2-untied");
    const char *dir = written(&t, "m");
    edit_config(dir, "tie_word_embeddings", json_true()); /* a stored head is used, whatever config.json says */
    open_ok(&c, dir);
    assert_false(c.tied);
    assert_null(c.unused[0]);
    checkpoint_close(&c);
    t = kind("qwen2-tied");
    dir = written(&t, "m");
    edit_config(dir, "tie_word_embeddings", NULL); /* default: false */
    refused(dir, "lm_head.weight is missing");
}

static void test_quantized(void **state)
{
    (void)state;
    struct tiny t = kind("llama-tied");
    t.drop = "model.layers.0.mlp.up_proj.weight";
    t.extra = "model.layers.0.mlp.up_proj.weight_packed";
    const char *dir = written(&t, "m");
    struct checkpoint c;
    refused(dir, "is packed, but config.json has no \"quantization_config\"");
    edit_config(dir, "quantization_config", json_pack("{s:s}", "quant_method", "compressed-tensors"));
    open_ok(&c, dir); /* presence only: the parts' shapes are quantize/qweight.h's */
    assert_non_null(c.quant);
    assert_null(c.unused[0]);
    checkpoint_close(&c);
    edit_config(dir, "quantization_config", json_pack("{s:s}", "quant_method", "gptq"));
    refused(dir, "quantization method \"gptq\" is not supported");
}

/* ---- converting ---- */

static int convert(const char *from, const char *to, enum dtype dtype, int64_t shard, struct convert_report *r,
                   struct err *e)
{
    struct checkpoint c;
    open_ok(&c, from);
    struct convert_opts o = {.dtype = dtype, .shard_bytes = shard};
    int rc = convert_folder(&c, to, &o, r, e);
    if (rc == 0) assert_int_equal(r->not_finite[0] != NULL, 0);
    checkpoint_close(&c);
    return rc;
}

static void test_convert_keeps(void **state)
{
    (void)state;
    struct tiny t = kind("llama-untied-rope3");
    t.shards = 2;
    t.extra = "unused";
    const char *from = written(&t, "from"), *to = test_tmp("to");
    struct convert_report r;
    struct checkpoint a, b;
    struct err e;
    path_remove_tree(to, NULL);
    if (convert(from, to, DT_COUNT, 1 << 30, &r, &e)) fail_msg("%s", e.msg);
    assert_int_equal(r.n_files, 1);
    assert_true(r.tokenizer);
    convert_report_free(&r);
    t.extra = NULL;
    open_ok(&a, written(&t, "from"));
    open_ok(&b, to);
    same_tensors(&a, &b);
    checkpoint_close(&b);
    /* several files and an index */
    if (convert(from, to, DT_COUNT, 50000, &r, &e)) fail_msg("%s", e.msg);
    assert_true(r.n_files > 2);
    convert_report_free(&r);
    open_ok(&b, to);
    assert_int_equal(b.n_shards > 2, 1);
    same_tensors(&a, &b);
    checkpoint_close(&a);
    checkpoint_close(&b);
    const char *names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
    for (size_t i = 0; i < 3; i++) {
        char *p = path_join(from, names[i]), *q = path_join(to, names[i]), *x, *y;
        size_t n, k;
        assert_int_equal(file_read(p, 1 << 20, &x, &n, &e) || file_read(q, 1 << 20, &y, &k, &e), 0);
        assert_int_equal(n, k);
        assert_memory_equal(x, y, n);
        free(x), free(y), free(p), free(q);
    }
}

static void test_convert_dtypes(void **state)
{
    (void)state;
    struct tiny t = kind("qwen2-tied");
    const char *from = written(&t, "from"), *to = test_tmp("to");
    const struct {
        enum dtype t;
        const char *name;
    } types[] = {{DT_F32, "float32"}, {DT_F16, "float16"}, {DT_BF16, "bfloat16"}};
    for (size_t i = 0; i < 3; i++) {
        struct convert_report r;
        struct checkpoint a, b;
        struct err e;
        path_remove_tree(to, NULL);
        if (convert(from, to, types[i].t, 1 << 30, &r, &e)) fail_msg("%s", e.msg);
        convert_report_free(&r);
        open_ok(&a, from);
        open_ok(&b, to);
        assert_string_equal(json_string_value(json_object_get(b.config_json, "dtype")), types[i].name);
        assert_int_equal(a.n_tensors, b.n_tensors);
        for (size_t k = 0; k < a.n_tensors; k++) {
            int64_t n = tensor_elems(&a.tensors[k]);
            const uint16_t *x = a.tensors[k].data, *h = b.tensors[k].data;
            const float *f = b.tensors[k].data;
            assert_int_equal(b.tensors[k].dtype, types[i].t);
            for (int64_t q = 0; q < n; q++) {
                float v = bf16_to_f32(x[q]);
                if (types[i].t == DT_F32) assert_true(f[q] == v);
                else assert_int_equal(h[q], types[i].t == DT_F16 ? f32_to_f16(v) : x[q]);
            }
        }
        checkpoint_close(&a);
        checkpoint_close(&b);
    }
}

/* One value of a bf16 folder's first tensor, in place. */
static void poke(const char *dir, float v)
{
    char *p = path_join(dir, "model.safetensors");
    struct safetensors s;
    struct err e;
    assert_int_equal(safetensors_open(&s, p, &e), 0);
    long at = (long)((const uint8_t *)s.tensors[0].data - s.map.data);
    safetensors_close(&s);
    FILE *f = fopen(p, "r+b");
    uint16_t h = f32_to_bf16(v);
    assert_true(f && !fseek(f, at, SEEK_SET) && fwrite(&h, 2, 1, f) == 1);
    fclose(f);
    free(p);
}

static void test_convert_range(void **state)
{
    (void)state;
    struct tiny t = kind("llama-tied");
    const char *from = written(&t, "from"), *to = test_tmp("to");
    struct convert_report r;
    struct checkpoint c;
    struct err e;
    path_remove_tree(to, NULL);
    poke(from, 70000);
    assert_int_equal(convert(from, to, DT_F16, 1 << 30, &r, &e), -1);
    assert_non_null(strstr(e.msg, "beyond F16's range"));
    assert_non_null(strstr(e.msg, "model.embed_tokens.weight"));
    assert_false(path_exists(to));
    assert_int_equal(convert(from, to, DT_F32, 1 << 30, &r, &e), 0);
    convert_report_free(&r);
    poke(from, INFINITY); /* was there before: kept, and reported */
    open_ok(&c, from);
    struct convert_opts o = {.dtype = DT_F16, .shard_bytes = 1 << 30};
    assert_int_equal(convert_folder(&c, to, &o, &r, &e), 0);
    assert_string_equal(r.not_finite[0], "model.embed_tokens.weight");
    assert_null(r.not_finite[1]);
    convert_report_free(&r);
    checkpoint_close(&c);
}

static void test_convert_ties(void **state)
{
    (void)state;
    struct tiny t = kind("llama-untied-rope3");
    const char *from = written(&t, "from"), *to = test_tmp("to");
    struct convert_report r;
    struct checkpoint c;
    struct err e;
    path_remove_tree(to, NULL);
    edit_config(from, "tie_word_embeddings", json_true());
    assert_int_equal(convert(from, to, DT_COUNT, 1 << 30, &r, &e), 0); /* other values: the tie is cut */
    convert_report_free(&r);
    open_ok(&c, to);
    assert_false(c.tied || c.config.tied_embeddings);
    checkpoint_close(&c);
}

static void test_convert_refuses(void **state)
{
    (void)state;
    struct tiny t = kind("llama-tied");
    const char *from = written(&t, "from"), *to = test_tmp("other");
    struct convert_report r;
    struct err e;
    put_text(to, "mine.txt", "keep me");
    assert_int_equal(convert(from, to, DT_COUNT, 1 << 30, &r, &e), -1);
    assert_non_null(strstr(e.msg, "already there with other contents"));
    char *p = path_join(to, "mine.txt"), *st = path_join(to, "model.safetensors");
    assert_true(path_exists(p) && !path_exists(st));
    free(p), free(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),           cmocka_unit_test(test_golden_weights),
        cmocka_unit_test(test_config_styles_agree), cmocka_unit_test(test_missing_and_unused),
        cmocka_unit_test(test_shapes),          cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_shards),          cmocka_unit_test(test_folders),
        cmocka_unit_test(test_tying),           cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_convert_keeps),   cmocka_unit_test(test_convert_dtypes),
        cmocka_unit_test(test_convert_range),   cmocka_unit_test(test_convert_ties),
        cmocka_unit_test(test_convert_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
