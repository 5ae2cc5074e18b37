/* config.json: keys, defaults, the two RoPE styles, refusals; RoPE frequencies against transformers'. */
#include "golden.h"
#include "views/config.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LLAMA "\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"]"
#define SIZES "\"hidden_size\":64,\"intermediate_size\":160,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
              "\"vocab_size\":256"
#define KV ",\"num_key_value_heads\":2"

static int parse(struct config *c, const char *text, struct err *e)
{
    json_t *j = json_parse("config.json", text, strlen(text), e);
    if (!j) fail_msg("test's own JSON: %s", e->msg);
    int rc = config_parse(c, j, "config.json", e);
    json_decref(j);
    return rc;
}

static struct config ok(const char *text)
{
    struct config c;
    struct err e;
    if (parse(&c, text, &e)) fail_msg("refused: %s", e.msg);
    return c;
}

static void refused(const char *text, const char *what)
{
    struct config c;
    struct err e;
    if (!parse(&c, text, &e)) fail_msg("accepted: %s", text);
    if (strncmp(e.msg, "config.json: ", 13) || !strstr(e.msg, what)) fail_msg("\"%s\" does not say \"%s\"", e.msg, what);
}

static void test_llama(void **state)
{
    (void)state;
    struct config c = ok("{" LLAMA "," SIZES "}");
    assert_int_equal(c.arch, ARCH_LLAMA);
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(c.rms_norm_eps == 1e-6);
    assert_false(c.tied_embeddings || c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm);
    assert_int_equal(c.rope.type, ROPE_DEFAULT);
    assert_true(c.rope.theta == 10000);
    assert_int_equal(c.bos, 1);
    assert_int_equal(c.eos, 2);
    c = ok("{" LLAMA "," SIZES ",\"num_key_value_heads\":null,\"head_dim\":null,\"rms_norm_eps\":1e-5,"
           "\"tie_word_embeddings\":true,\"attention_bias\":true,\"mlp_bias\":true,\"eos_token_id\":[7,8],"
           "\"bos_token_id\":null}");
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.tied_embeddings && c.qkv_bias && c.o_bias && c.mlp_bias);
    assert_int_equal(c.bos, -1);
    assert_int_equal(c.eos, 7);
    c = ok("{" LLAMA "," SIZES KV ",\"head_dim\":32}");
    int64_t n_out, n_in;
    config_op_shape(&c, OP_Q, &n_out, &n_in);
    assert_true(n_out == 128 && n_in == 64);
    config_op_shape(&c, OP_V, &n_out, &n_in);
    assert_true(n_out == 64 && n_in == 64);
    config_op_shape(&c, OP_O, &n_out, &n_in);
    assert_true(n_out == 64 && n_in == 128);
    config_op_shape(&c, OP_DOWN, &n_out, &n_in);
    assert_true(n_out == 64 && n_in == 160);
    ok("{\"model_type\":\"llama\"," SIZES "}");
    ok("{\"architectures\":[\"LlamaForCausalLM\"]," SIZES "}");
}

static void test_others(void **state)
{
    (void)state;
    struct config c = ok("{\"model_type\":\"qwen2\"," SIZES KV ",\"use_sliding_window\":false,\"sliding_window\":16,"
                         "\"max_window_layers\":1}");
    assert_true(c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.qk_norm);
    assert_true(config_op_bias(&c, OP_K) && !config_op_bias(&c, OP_O) && !config_op_bias(&c, OP_UP));
    assert_int_equal(c.max_position_embeddings, 32768);
    assert_int_equal(c.bos, -1);
    c = ok("{\"model_type\":\"qwen3\",\"architectures\":[\"Qwen3ForCausalLM\"]," SIZES KV "}");
    assert_true(c.qk_norm && !c.qkv_bias && !c.o_bias);
    assert_int_equal(c.head_dim, 128);
    c = ok("{\"model_type\":\"qwen3\"," SIZES KV ",\"head_dim\":32,\"attention_bias\":true}");
    assert_true(c.qkv_bias && c.o_bias);
    assert_int_equal(c.head_dim, 32);
    c = ok("{\"model_type\":\"mistral\"," SIZES KV ",\"sliding_window\":null}");
    assert_string_equal(c.architecture, "MistralForCausalLM");
    assert_false(c.qkv_bias);
    ok("{\"model_type\":\"mistral\"," SIZES KV ",\"sliding_window\":4096,\"max_position_embeddings\":4096}");
    ok("{\"model_type\":\"qwen2\"," SIZES KV ",\"use_sliding_window\":true,\"sliding_window\":16,\"max_window_layers\":2}");
    refused("{\"model_type\":\"mistral\"," SIZES KV "}", "sliding-window");
    refused("{\"model_type\":\"mistral\"," SIZES KV ",\"sliding_window\":4096}", "sliding-window");
    refused("{\"model_type\":\"qwen2\"," SIZES KV ",\"use_sliding_window\":true,\"sliding_window\":16,"
            "\"max_window_layers\":1}", "sliding-window");
    refused("{\"model_type\":\"qwen3\"," SIZES KV ",\"layer_types\":[\"full_attention\",\"sliding_attention\"],"
            "\"sliding_window\":16}", "sliding-window");
    refused("{\"model_type\":\"qwen2\"," SIZES "}", "num_key_value_heads");
    refused("{\"model_type\":\"mistral\"," SIZES ",\"sliding_window\":null}", "num_key_value_heads");
}

static void test_unsupported(void **state)
{
    (void)state;
    const char *list = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM are supported";
    refused("{\"model_type\":\"gemma2\",\"architectures\":[\"Gemma2ForCausalLM\"]," SIZES "}",
            "architecture Gemma2ForCausalLM of model_type gemma2 is not supported");
    refused("{\"model_type\":\"gemma2\"," SIZES "}", list);
    refused("{\"model_type\":\"llama\",\"architectures\":[\"LlamaForSequenceClassification\"]," SIZES "}", list);
    refused("{\"model_type\":\"qwen2\",\"architectures\":[\"LlamaForCausalLM\"]," SIZES KV "}", list);
    refused("{\"model_type\":\"qwen2_moe\",\"architectures\":[\"Qwen2MoeForCausalLM\"]," SIZES KV "}", list);
    refused("{" SIZES "}", list);
    refused("{\"architectures\":\"LlamaForCausalLM\"," SIZES "}", "not a list");
    refused("{\"model_type\":7," SIZES "}", "model_type");
    refused("[]", "not a JSON object");
    refused("{" LLAMA "," SIZES ",\"hidden_act\":\"gelu\"}", "gelu");
}

static void test_absurd(void **state)
{
    (void)state;
    const char *keys[] = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"};
    for (size_t i = 0; i < 5; i++)
        for (int v = 0; v < 6; v++) {
            const char *values[] = {"0", "-1", "1.5", "\"4\"", "99999999999", "null"};
            char text[512];
            int n = snprintf(text, sizeof text, "{" LLAMA);
            for (size_t k = 0; k < 5; k++)
                n += snprintf(text + n, sizeof text - (size_t)n, ",\"%s\":%s", keys[k], k == i ? values[v] : "4");
            snprintf(text + n, sizeof text - (size_t)n, "}");
            refused(text, keys[i]);
        }
    refused("{" LLAMA ",\"hidden_size\":64}", "intermediate_size");
    refused("{" LLAMA "," SIZES ",\"num_key_value_heads\":3}", "not a multiple of 3");
    refused("{" LLAMA "," SIZES ",\"num_key_value_heads\":0}", "num_key_value_heads");
    refused("{" LLAMA "," SIZES ",\"head_dim\":7}", "odd");
    refused("{" LLAMA "," SIZES ",\"head_dim\":0}", "head_dim");
    refused("{" LLAMA "," SIZES ",\"rms_norm_eps\":0}", "rms_norm_eps");
    refused("{" LLAMA "," SIZES ",\"rms_norm_eps\":\"x\"}", "rms_norm_eps");
    refused("{" LLAMA "," SIZES ",\"tie_word_embeddings\":1}", "tie_word_embeddings");
    refused("{" LLAMA "," SIZES ",\"eos_token_id\":\"</s>\"}", "eos_token_id");
    refused("{" LLAMA ",\"hidden_size\":66,\"intermediate_size\":160,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
            "\"vocab_size\":256}", "not a multiple");
}

#define L3 "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64"

static void test_rope_styles(void **state)
{
    (void)state;
    struct config c = ok("{" LLAMA "," SIZES ",\"rope_theta\":500000,\"rope_scaling\":null}");
    assert_true(c.rope.theta == 500000 && c.rope.type == ROPE_DEFAULT);
    c = ok("{" LLAMA "," SIZES ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," L3 "}}");
    assert_true(c.rope.theta == 500000 && c.rope.type == ROPE_LLAMA3 && c.rope.factor == 8);
    assert_true(c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
    assert_int_equal(c.rope.original_max_position_embeddings, 64);
    c = ok("{" LLAMA "," SIZES ",\"rope_scaling\":{\"type\":\"llama3\"," L3 "}}");
    assert_true(c.rope.type == ROPE_LLAMA3 && c.rope.theta == 10000);
    c = ok("{" LLAMA "," SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":77," L3 "}}");
    assert_true(c.rope.type == ROPE_LLAMA3 && c.rope.theta == 77);
    c = ok("{" LLAMA "," SIZES ",\"rope_parameters\":{\"rope_theta\":77},\"rope_theta\":5}"); /* no type; inner theta */
    assert_true(c.rope.type == ROPE_DEFAULT && c.rope.theta == 77);
    c = ok("{" LLAMA "," SIZES ",\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_theta\":5}");
    assert_true(c.rope.theta == 5);
    /* both: rope_scaling and the top-level theta win */
    c = ok("{" LLAMA "," SIZES ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":77},\"rope_theta\":5,"
           "\"rope_scaling\":{\"rope_type\":\"llama3\"," L3 "}}");
    assert_true(c.rope.type == ROPE_LLAMA3 && c.rope.theta == 5);
    /* without original_max_position_embeddings it is max_position_embeddings */
    c = ok("{" LLAMA "," SIZES ",\"max_position_embeddings\":99,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
           "\"low_freq_factor\":1,\"high_freq_factor\":4}}");
    assert_int_equal(c.rope.original_max_position_embeddings, 99);
}

static void test_rope_refusals(void **state)
{
    (void)state;
    const char *types[] = {"linear", "dynamic", "yarn", "longrope", "mrope"};
    for (size_t i = 0; i < 5; i++) {
        char text[512];
        snprintf(text, sizeof text, "{" LLAMA "," SIZES ",\"rope_scaling\":{\"type\":\"%s\",\"factor\":2}}", types[i]);
        refused(text, types[i]);
    }
    refused("{" LLAMA "," SIZES ",\"rope_theta\":0}", "rope_theta");
    refused("{" LLAMA "," SIZES ",\"rope_theta\":-1}", "rope_theta");
    refused("{" LLAMA "," SIZES ",\"rope_theta\":\"x\"}", "rope_theta");
    refused("{" LLAMA "," SIZES ",\"rope_scaling\":[]}", "rope_scaling");
    refused("{" LLAMA "," SIZES ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor");
    refused("{" LLAMA "," SIZES ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
            "\"high_freq_factor\":1}}", "llama3");
    refused("{" LLAMA "," SIZES ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":0.5,\"low_freq_factor\":1,"
            "\"high_freq_factor\":4}}", "llama3");
    refused("{" LLAMA "," SIZES ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor");
    refused("{" LLAMA "," SIZES ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":5}}}", "full_attention");
}

/* transformers computes pow in f32, which another library may round differently: 3 ulp. */
static void test_inv_freq(void **state)
{
    (void)state;
    json_t *g = golden_load("numeric.json"), *item;
    size_t i, n;
    json_array_foreach(golden_get(g, "rope"), i, item)
    {
        const json_t *p = golden_get(item, "rope_parameters");
        bool l3 = !strcmp(json_string_value(golden_get(p, "rope_type")), "llama3");
        int64_t hd = json_integer_value(golden_get(item, "head_dim"));
        struct rope r = {l3 ? ROPE_LLAMA3 : ROPE_DEFAULT, json_number_value(golden_get(p, "rope_theta")), 0, 0, 0, 0};
        if (l3) {
            r.factor = json_number_value(golden_get(p, "factor"));
            r.low_freq_factor = json_number_value(golden_get(p, "low_freq_factor"));
            r.high_freq_factor = json_number_value(golden_get(p, "high_freq_factor"));
            r.original_max_position_embeddings = json_integer_value(golden_get(p, "original_max_position_embeddings"));
        }
        double *want = golden_nums(golden_get(item, "inv_freq"), &n);
        assert_int_equal(n, hd / 2);
        float *got = test_malloc(n * sizeof *got);
        rope_inv_freq(&r, hd, got);
        for (size_t k = 0; k < n; k++) {
            assert_true(isfinite(got[k]));
            float w = (float)want[k], ulp = nextafterf(w, INFINITY) - w;
            if (!(fabsf(got[k] - w) <= 3 * ulp))
                fail_msg("%s: inv_freq[%zu] is %.9g (%.9g was expected)", json_string_value(json_object_get(item, "name")),
                         k, got[k], w);
        }
        test_free(got);
        free(want);
    }
    assert_int_equal(i, 5);
    json_decref(g);
}

static void test_names(void **state)
{
    (void)state;
    char buf[LINEAR_NAME_MAX];
    int64_t layer;
    enum op op;
    assert_string_equal(linear_name(buf, 31, OP_GATE), "model.layers.31.mlp.gate_proj");
    for (enum op k = 0; k < N_OPS; k++) {
        assert_true(linear_parse(linear_name(buf, 12, k), &layer, &op));
        assert_true(layer == 12 && op == k);
    }
    assert_string_equal(op_name(OP_O), "o_proj");
    assert_string_equal(op_module(OP_O), "self_attn.o_proj");
    const char *no[] = {"lm_head", "model.layers.x.mlp.up_proj", "model.layers.01.mlp.up_proj", "model.layers.1.mlp.up",
                        "model.layers.1.mlp.up_proj.weight", "model.layers..mlp.up_proj", "model.layers.1",
                        "model.layers.9999999999.mlp.up_proj"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) assert_false(linear_parse(no[i], &layer, &op));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),         cmocka_unit_test(test_others),   cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_absurd),        cmocka_unit_test(test_rope_styles), cmocka_unit_test(test_rope_refusals),
        cmocka_unit_test(test_inv_freq),      cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
