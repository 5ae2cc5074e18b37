/* Recipe names and recipes: which tensor gets which format. */
#include "quantize/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const struct config cfg = {.hidden_size = 64, .intermediate_size = 160, .n_layers = 12, .n_heads = 4,
                                  .n_kv_heads = 2, .head_dim = 16, .vocab_size = 256};

static struct recipe resolve(const char *text, const char *method, const char *embed, const char *head)
{
    struct recipe r;
    struct err e = {""};
    json_t *v = json_loads(text, 0, NULL);
    assert_non_null(v);
    if (recipe_resolve(&r, v, method, embed, head, &cfg, &e)) fail_msg("%s", e.msg);
    json_decref(v);
    return r;
}

static const struct recipe_entry *entry(const struct recipe *r, const char *name)
{
    for (size_t i = 0; i < r->n; i++)
        if (!strcmp(r->entries[i].name, name)) return &r->entries[i];
    fail_msg("no entry %s", name);
    return NULL;
}

static void is(const struct recipe *r, const char *name, const char *format, const char *method)
{
    const struct recipe_entry *it = entry(r, name);
    if (!format) {
        assert_null(it->fmt);
        return;
    }
    assert_non_null(it->fmt);
    assert_string_equal(it->fmt->name, format);
    assert_string_equal(it->method->name, method);
}

static void names(void **state)
{
    (void)state;
    static const struct {
        const char *name, *base, *method, *embed, *head;
    } good[] = {{"int4-g64", "int4-g64", NULL, NULL, NULL},
                {"nf4-dq+mse", "nf4-dq", "mse", NULL, NULL},
                {"int4-g64+head=int8-row", "int4-g64", NULL, NULL, "int8-row"},
                {"int4-g32-sym+head=int8-row+embed=int4-g64+mse", "int4-g32-sym", "mse", "int4-g64", "int8-row"},
                {"f16+embed=bf16", "f16", NULL, "bf16", NULL}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        const char *method, *embed, *head;
        struct err e = {""};
        json_t *v = recipe_from_name(good[i].name, &method, &embed, &head, &e);
        assert_non_null(v);
        assert_string_equal(json_string_value(json_object_get(v, "default")), good[i].base);
        const char *got[] = {method, embed, head}, *want[] = {good[i].method, good[i].embed, good[i].head};
        for (int k = 0; k < 3; k++) {
            assert_int_equal(!got[k], !want[k]);
            if (got[k]) assert_string_equal(got[k], want[k]);
        }
        json_decref(v);
    }
    static const struct {
        const char *name, *message;
    } bad[] = {{"int5", "unknown format \"int5\" (known: f32, bf16, f16, int8-row"},
               {"", "empty part"},
               {"int4-g64+", "empty part"},
               {"int4-g64++mse", "empty part"},
               {"mse", "unknown format \"mse\""},
               {"int4-g64+head=int9", "unknown format \"int9\""},
               {"int4-g64+tail=nf4", "head=FORMAT"},
               {"int4-g64+gptq", "unknown method \"gptq\" (known: rtn, mse)"},
               {"int4-g64+mse+rtn", "two methods"},
               {"int4-g64+head=nf4+head=nf4", "twice"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *method, *embed, *head;
        struct err e = {""};
        assert_null(recipe_from_name(bad[i].name, &method, &embed, &head, &e));
        if (!strstr(e.msg, bad[i].message)) fail_msg("%s: %s", bad[i].name, e.msg);
    }
}

static void linear_names(void **state)
{
    (void)state;
    static const struct {
        const char *name, *option, *format, *method; /* format NULL: method is the message */
    } t[] = {{"int4-g64", NULL, "int4-g64", "rtn"},      {"int4-g64", "mse", "int4-g64", "mse"},
             {"nf4-dq+mse", NULL, "nf4-dq", "mse"},      {"nf4-dq+mse", "rtn", "nf4-dq", "rtn"},
             {"nf4+head=nf4", NULL, NULL, "names the head"}, {"nf4+embed=nf4", NULL, NULL, "names the embedding"},
             {"nf4+", NULL, NULL, "empty part"},         {"nf4", "awq", NULL, "unknown method \"awq\""}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        const struct format *f;
        const struct method *m;
        struct err e = {""};
        assert_int_equal(recipe_linear(t[i].name, t[i].option, &f, &m, &e), t[i].format ? 0 : -1);
        if (!t[i].format && !strstr(e.msg, t[i].method)) fail_msg("%s: %s", t[i].name, e.msg);
        if (!t[i].format) continue;
        assert_string_equal(f->name, t[i].format);
        assert_string_equal(m->name, t[i].method);
    }
}

static void default_and_options(void **state)
{
    (void)state;
    struct recipe r = resolve("{\"default\": \"nf4\"}", NULL, NULL, NULL);
    assert_int_equal(r.n, 12 * 7 + 2);
    is(&r, "model.layers.0.self_attn.q_proj", "nf4", "rtn");
    is(&r, "model.layers.11.mlp.down_proj", "nf4", "rtn");
    is(&r, "model.embed_tokens", NULL, NULL);
    is(&r, "lm_head", NULL, NULL);
    const struct recipe_entry *it = entry(&r, "model.layers.3.mlp.gate_proj");
    assert_true(it->layer == 3 && it->op == OP_GATE && it->n_out == 160 && it->n_in == 64);
    it = entry(&r, "lm_head");
    assert_true(it->layer == -1 && it->n_out == 256 && it->n_in == 64);
    recipe_free(&r);

    r = resolve("{\"default\": \"nf4\"}", "mse", "int8-row", "int4-g64");
    is(&r, "model.layers.5.mlp.up_proj", "nf4", "mse");
    is(&r, "model.embed_tokens", "int8-row", "mse");
    is(&r, "lm_head", "int4-g64", "mse");
    recipe_free(&r);

    r = resolve("{}", NULL, NULL, "int8-row"); /* nothing but the head */
    is(&r, "model.layers.5.mlp.up_proj", NULL, NULL);
    is(&r, "lm_head", "int8-row", "rtn");
    recipe_free(&r);
}

static void rules(void **state)
{
    (void)state;
    struct recipe r = resolve("{\"default\": \"int4-g64\", \"method\": \"mse\", \"plan\": {\"bpw\": 4.5}, \"rules\": ["
                              "{\"match\": \"model.layers.1.*\", \"format\": \"f16\"},"
                              "{\"match\": \"*.mlp.down_proj\", \"format\": \"int8-row\", \"method\": \"rtn\"},"
                              "{\"match\": \"model.layers.[34].self_attn.?_proj\", \"format\": \"nf4\"},"
                              "{\"match\": \"lm_head\", \"format\": \"int8-row\"}]}",
                              NULL, NULL, NULL);
    is(&r, "model.layers.1.mlp.down_proj", "f16", "mse"); /* the first match wins */
    is(&r, "model.layers.11.mlp.down_proj", "int8-row", "rtn");
    is(&r, "model.layers.11.mlp.up_proj", "int4-g64", "mse");
    is(&r, "model.layers.3.self_attn.k_proj", "nf4", "mse");
    is(&r, "model.layers.5.self_attn.k_proj", "int4-g64", "mse");
    is(&r, "lm_head", "int8-row", "mse");
    is(&r, "model.embed_tokens", NULL, NULL);
    recipe_free(&r);

    /* options are stronger than rules, a given method than the recipe's */
    r = resolve("{\"default\": \"nf4\", \"method\": \"mse\", \"rules\": [{\"match\": \"lm_head\", \"format\": \"f16\"}]}", "rtn",
                NULL, "int8-row");
    is(&r, "lm_head", "int8-row", "rtn");
    is(&r, "model.layers.0.mlp.up_proj", "nf4", "rtn");
    recipe_free(&r);
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {{"[]", "not an object"},
               {"{\"default\": 4}", "\"default\" is not a string"},
               {"{\"default\": \"int3\"}", "unknown format \"int3\""},
               {"{\"defualt\": \"nf4\"}", "unknown key \"defualt\""},
               {"{\"default\": \"nf4\", \"method\": \"awq\"}", "unknown method \"awq\""},
               {"{\"default\": \"nf4\", \"rules\": {}}", "\"rules\" is not a list"},
               {"{\"default\": \"nf4\", \"rules\": [3]}", "rule 1: not an object"},
               {"{\"default\": \"nf4\", \"rules\": [{\"match\": \"*\"}]}", "rule 1: \"format\" is missing"},
               {"{\"default\": \"nf4\", \"rules\": [{\"match\": \"*\", \"format\": \"x\"}]}", "rule 1: unknown format"},
               {"{\"default\": \"nf4\", \"rules\": [{\"match\": \"*\", \"format\": \"nf4\", \"bits\": 3}]}", "unknown key \"bits\""},
               {"{\"default\": \"nf4\", \"rules\": [{\"match\": \"*\", \"format\": \"nf4\"}, {\"match\": \"model.layers.12.*\", "
                "\"format\": \"f16\"}]}", "rule 2: \"model.layers.12.*\" matches no tensor"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct recipe r;
        struct err e = {""};
        json_t *v = json_loads(bad[i].text, 0, NULL);
        assert_non_null(v);
        assert_int_equal(recipe_resolve(&r, v, NULL, NULL, NULL, &cfg, &e), -1);
        if (strncmp(e.msg, "recipe: ", 8) || !strstr(e.msg, bad[i].message)) fail_msg("%s: %s", bad[i].text, e.msg);
        json_decref(v);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(linear_names), cmocka_unit_test(default_and_options),
                                       cmocka_unit_test(rules), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
