/* A GGUF seen as a Hugging Face checkpoint: config.json, RoPE parameters, names, row order, tokenizer.json. */
#include "base/half.h"
#include "base/json.h"
#include "base/mem.h"
#include "gguf_writer.h"
#include "views/config.h"
#include "views/gguf.h"
#include "views/gguf_rope.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- small files ---- */

enum { HIDDEN = 64, HEADS = 4, KV = 2, VOCAB = 8 };

struct want {
    const char *arch;
    int64_t key_length;   /* 0: not given */
    const float *divisors; /* 8 of them, or NULL */
    bool head, q_bias, o_bias;
    void (*more)(struct gguf_writer *w);
    const char *skip; /* a key left out */
};

static void put_size(struct gguf_writer *w, const struct want *o, const char *key, uint32_t v)
{
    char full[80];
    if (o->skip && !strcmp(o->skip, key)) return;
    snprintf(full, sizeof full, "%s.%s", o->arch, key);
    gguf_put_u32(w, full, v);
}

static uint8_t *make(const struct want *o, size_t *n)
{
    struct gguf_writer *w = gguf_writer_new();
    float zero[VOCAB * HIDDEN] = {0};
    char key[80];
    gguf_put_str(w, "general.architecture", o->arch);
    put_size(w, o, "block_count", 1);
    put_size(w, o, "context_length", 4096);
    put_size(w, o, "embedding_length", HIDDEN);
    put_size(w, o, "feed_forward_length", 96);
    put_size(w, o, "attention.head_count", HEADS);
    put_size(w, o, "attention.head_count_kv", KV);
    if (o->key_length) {
        put_size(w, o, "attention.key_length", (uint32_t)o->key_length);
        put_size(w, o, "attention.value_length", (uint32_t)o->key_length);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", o->arch);
    gguf_put_f32(w, key, 1e-5f);
    snprintf(key, sizeof key, "%s.rope.freq_base", o->arch);
    gguf_put_f32(w, key, 500000);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    if (o->more) o->more(w);
    if (!o->skip || strcmp(o->skip, "token_embd.weight"))
        gguf_put_tensor(w, "token_embd.weight", DT_F32, 2, (int64_t[]){VOCAB, HIDDEN}, zero);
    gguf_put_tensor(w, "output_norm.weight", DT_F32, 1, (int64_t[]){HIDDEN}, zero);
    if (o->head) gguf_put_tensor(w, "output.weight", DT_F32, 2, (int64_t[]){VOCAB, HIDDEN}, zero);
    if (o->q_bias) gguf_put_tensor(w, "blk.0.attn_q.bias", DT_F32, 1, (int64_t[]){HIDDEN}, zero);
    if (o->q_bias) gguf_put_tensor(w, "blk.0.attn_k.bias", DT_F32, 1, (int64_t[]){HIDDEN / 2}, zero);
    if (o->q_bias) gguf_put_tensor(w, "blk.0.attn_v.bias", DT_F32, 1, (int64_t[]){HIDDEN / 2}, zero);
    if (o->o_bias) gguf_put_tensor(w, "blk.0.attn_output.bias", DT_F32, 1, (int64_t[]){HIDDEN}, zero);
    if (o->divisors) gguf_put_tensor(w, "rope_freqs.weight", DT_F32, 1, (int64_t[]){8}, o->divisors);
    return gguf_writer_bytes(w, n);
}

/* The config, or NULL with the error. */
static json_t *config_of(const struct want *o, struct err *e)
{
    size_t n;
    struct gguf g;
    uint8_t *p = make(o, &n);
    assert_int_equal(gguf_parse(&g, "test.gguf", p, n, e), 0);
    json_t *c = gguf_config_json(&g, e);
    gguf_close(&g);
    free(p);
    return c;
}

static void refuses(const struct want *o, const char *why)
{
    struct err e = {""};
    json_t *c = config_of(o, &e);
    if (c) fail_msg("accepted; expected: %s", why);
    if (!strstr(e.msg, why)) fail_msg("\"%s\" does not say \"%s\"", e.msg, why);
}

/* expected: JSON with ' for ", for reading's sake. Frees got. */
static void equals(json_t *got, const char *expected)
{
    struct err e;
    char *text = mem_strdup(expected);
    for (char *p = text; *p; p++)
        if (*p == '\'') *p = '"';
    json_t *want = json_parse("expected", text, strlen(text), &e);
    free(text);
    assert_non_null(got);
    if (!want) fail_msg("%s", e.msg);
    if (!json_equal(got, want)) fail_msg("%s\nis not\n%s", json_text(got, 0), json_text(want, 0));
    json_decref(got);
    json_decref(want);
}

/* ---- config ---- */

static void configs(void **state)
{
    (void)state;
    struct err e;
    equals(config_of(&(struct want){.arch = "llama"}, &e),
           "{'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'hidden_size': 64, 'intermediate_size': 96,"
           " 'num_hidden_layers': 1, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 16,"
           " 'vocab_size': 8, 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-05, 'hidden_act': 'silu',"
           " 'tie_word_embeddings': true, 'attention_bias': false, 'mlp_bias': false, 'rope_theta': 500000.0,"
           " 'rope_scaling': null, 'bos_token_id': 1, 'eos_token_id': null, 'pad_token_id': null}");
    json_t *c = config_of(&(struct want){.arch = "qwen2", .head = true, .key_length = 32, .q_bias = true}, &e);
    struct config cfg;
    assert_non_null(c);
    assert_int_equal(config_parse(&cfg, c, "test", &e), 0);
    assert_int_equal(cfg.arch, ARCH_QWEN2);
    assert_int_equal(cfg.head_dim, 32);
    assert_false(cfg.tied_embeddings);
    assert_true(cfg.qkv_bias);
    assert_true(cfg.rms_norm_eps == 1e-5); /* the decimal that was meant, not the f32 */
    json_decref(c);
    c = config_of(&(struct want){.arch = "llama", .q_bias = true, .o_bias = true}, &e);
    assert_int_equal(config_parse(&cfg, c, "test", &e), 0);
    assert_true(cfg.qkv_bias && cfg.o_bias);
    json_decref(c);
}

static void more_experts(struct gguf_writer *w) { gguf_put_u32(w, "llama.expert_count", 8); }
static void more_window(struct gguf_writer *w) { gguf_put_u32(w, "llama.attention.sliding_window", 4096); }
static void more_yarn(struct gguf_writer *w) { gguf_put_str(w, "llama.rope.scaling.type", "yarn"); }
static void more_none(struct gguf_writer *w) { gguf_put_str(w, "llama.rope.scaling.type", "none"); }
static void more_linear(struct gguf_writer *w) { gguf_put_f32(w, "llama.rope.scale_linear", 2); }
static void more_partial(struct gguf_writer *w) { gguf_put_u32(w, "llama.rope.dimension_count", 8); }
static void more_vocab(struct gguf_writer *w) { gguf_put_u32(w, "llama.vocab_size", 9); }
static void more_bos(struct gguf_writer *w) { gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 8); }
static void more_split(struct gguf_writer *w) { gguf_put_u32(w, "split.count", 3); }
static void more_long(struct gguf_writer *w)
{
    gguf_put_tensor(w, "rope_factors_long.weight", DT_F32, 1, (int64_t[]){8}, (float[8]){1});
}

static void refusals(void **state)
{
    (void)state;
    struct err e;
    refuses(&(struct want){.arch = "gemma"}, "architecture gemma is not supported (llama and qwen2 are)");
    static const char *const needed[] = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                         "attention.head_count"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char why[80];
        snprintf(why, sizeof why, "llama.%s is missing", needed[i]);
        refuses(&(struct want){.arch = "llama", .skip = needed[i]}, why);
    }
    refuses(&(struct want){.arch = "llama", .skip = "token_embd.weight"}, "token_embd.weight is missing");
    refuses(&(struct want){.arch = "llama", .key_length = 17}, "even numbers were expected");
    refuses(&(struct want){.arch = "llama", .q_bias = true}, "3 of 4 biases in attention");
    refuses(&(struct want){.arch = "qwen2", .q_bias = true, .o_bias = true}, "biases outside q, k and v");
    refuses(&(struct want){.arch = "llama", .more = more_experts}, "mixture of 8 experts");
    refuses(&(struct want){.arch = "llama", .more = more_window}, "sliding window of 4096");
    refuses(&(struct want){.arch = "llama", .more = more_yarn}, "RoPE scaling of type yarn");
    refuses(&(struct want){.arch = "llama", .more = more_linear}, "linear RoPE scaling");
    refuses(&(struct want){.arch = "llama", .more = more_long}, "longrope");
    refuses(&(struct want){.arch = "llama", .more = more_partial}, "RoPE over 8 elements");
    refuses(&(struct want){.arch = "llama", .more = more_vocab}, "vocab_size is 9 but token_embd.weight has 8 rows");
    refuses(&(struct want){.arch = "llama", .more = more_bos}, "eos_token_id is 8 (0 to 7 was expected)");
    refuses(&(struct want){.arch = "llama", .more = more_split}, "one of 3 parts");
    refuses(&(struct want){.arch = "llama", .key_length = 18, .divisors = (float[8]){1}}, "F32 of 9 was expected");
    refuses(&(struct want){.arch = "llama", .divisors = (float[8]){1, 1, 1, 1, 2, 2, 2, NAN}},
            "no llama3 RoPE scaling");
    json_t *c = config_of(&(struct want){.arch = "llama", .more = more_none}, &e);
    assert_non_null(c);
    json_decref(c);
}

/* ---- RoPE parameters ---- */

/* The convert script's formula in double: float noise comes on top in the torch tables below. */
static void divisors(double theta, int hd, double factor, double low, double high, double old, float *out)
{
    for (int i = 0; i < hd / 2; i++) {
        double wl = 2 * M_PI * pow(theta, 2.0 * i / hd);
        double s = (old / wl - low) / (high - low);
        out[i] = (float)(s >= 1 ? 1 : s <= 0 ? factor : 1 / ((1 - s) / factor + s));
    }
}

static void torch_tables(void **state)
{
    (void)state;
    /* Llama-3.2-1B and -3B / 3.1-8B, computed by torch 2.15 in f32 as llama.cpp's convert_hf_to_gguf.py does */
    static const float slope_1b[] = {1.65132928f, 3.29226279f, 9.66673088f};
    static const float slope_8b[] = {1.20748389f, 1.55341458f, 2.02631307f, 2.69453001f, 3.68425322f, 5.25732708f};
    float t[64];
    struct rope r;
    for (int i = 0; i < 32; i++) t[i] = i < 15 ? 1 : i < 18 ? slope_1b[i - 15] : 32;
    assert_true(gguf_rope_recover(500000, 64, t, &r));
    assert_int_equal(r.type, ROPE_LLAMA3);
    assert_true(r.theta == 500000 && r.factor == 32 && r.low_freq_factor == 1 && r.high_freq_factor == 4);
    assert_int_equal(r.original_max_position_embeddings, 8192);
    for (int i = 0; i < 64; i++) t[i] = i < 29 ? 1 : i < 35 ? slope_8b[i - 29] : 8;
    assert_true(gguf_rope_recover(500000, 128, t, &r));
    assert_true(r.factor == 8 && r.low_freq_factor == 1 && r.high_freq_factor == 4);
    assert_int_equal(r.original_max_position_embeddings, 8192);
    /* an error of 1e-3 in any single entry is seen */
    for (int i = 0; i < 64; i++) {
        float old = t[i];
        t[i] *= 1.001f;
        assert_false(gguf_rope_recover(500000, 128, t, &r));
        t[i] = old;
    }
    /* and so is the table under another base or as another size */
    assert_false(gguf_rope_recover(600000, 128, t, &r));
    assert_false(gguf_rope_recover(500000, 64, t, &r));
}

static void other_parameters(void **state)
{
    (void)state;
    static const struct {
        double theta, factor, low, high, old;
        int hd;
    } cases[] = {
        {500000, 16, 1, 4, 8192, 128}, {10000, 4, 1, 8, 2048, 64},      {1000000, 8, 2, 6, 4096, 128},
        {10000, 2.5, 1, 32, 4096, 64}, {500000, 32, 1, 4, 8192, 16},    {10000, 8, 1, 4, 256, 16},
        {500000, 8, 3, 7, 8192, 128},  {500000, 8, 1, 1.05, 8192, 128}, {500000, 8, 1, 2, 100000, 32},
        {10000, 8, 1, 4, 8192, 64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float t[64], want[64], got[64];
        struct rope r, truth = {ROPE_LLAMA3, cases[i].theta, cases[i].factor, cases[i].low, cases[i].high,
                                (int64_t)cases[i].old};
        divisors(cases[i].theta, cases[i].hd, cases[i].factor, cases[i].low, cases[i].high, cases[i].old, t);
        if (!gguf_rope_recover(cases[i].theta, cases[i].hd, t, &r)) fail_msg("case %zu was refused", i);
        assert_int_equal(r.type, ROPE_LLAMA3);
        rope_inv_freq(&truth, cases[i].hd, want);
        rope_inv_freq(&r, cases[i].hd, got);
        for (int k = 0; k < cases[i].hd / 2; k++)
            if (!(fabs(got[k] / want[k] - 1) <= 6e-5)) fail_msg("case %zu, entry %d: %g for %g", i, k, got[k], want[k]);
        /* two points on the slope say what high/low is */
        if (cases[i].hd >= 64 && cases[i].high > 1.1)
            assert_true(fabs(r.high_freq_factor / r.low_freq_factor / (cases[i].high / cases[i].low) - 1) < 1e-3);
    }
    float ones[64], bad[64];
    struct rope r;
    for (int i = 0; i < 64; i++) ones[i] = 1, bad[i] = 1 + (float)i; /* longrope-like */
    assert_true(gguf_rope_recover(10000, 128, ones, &r));
    assert_int_equal(r.type, ROPE_DEFAULT);
    assert_false(gguf_rope_recover(10000, 128, bad, &r));
    for (int i = 0; i < 64; i++) bad[i] = 4; /* linear scaling */
    assert_false(gguf_rope_recover(10000, 128, bad, &r));
    for (int i = 0; i < 64; i++) bad[i] = i < 30 ? 1 : 0.5f;
    assert_false(gguf_rope_recover(10000, 128, bad, &r));
    bad[0] = INFINITY;
    assert_false(gguf_rope_recover(10000, 128, bad, &r));
}

static void scaled_config(void **state)
{
    (void)state;
    float t[8];
    struct err e;
    divisors(500000, 16, 32, 1, 4, 8192, t);
    json_t *c = config_of(&(struct want){.arch = "llama", .divisors = t}, &e);
    assert_non_null(c);
    json_t *s = json_incref(json_object_get(c, "rope_scaling"));
    json_decref(c);
    equals(s, "{'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,"
              " 'original_max_position_embeddings': 8192}");
}

/* ---- tensors ---- */

static const struct tensor *named(const struct tensor *t, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(t[i].name, name)) return &t[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* Row i of w is all i (Q8_0 rows: d = 1, q = i), so the order shows in the values. */
static void permutation(const char *arch, int64_t head_dim)
{
    int64_t q_rows = HEADS * head_dim, k_rows = KV * head_dim;
    float *f = mem_new((size_t)(q_rows * HIDDEN), sizeof *f), *bias = mem_new((size_t)q_rows, sizeof *bias);
    uint8_t *q8 = mem_new((size_t)k_rows, 68);
    for (int64_t r = 0; r < q_rows; r++) {
        bias[r] = (float)r;
        for (int c = 0; c < HIDDEN; c++) f[r * HIDDEN + c] = (float)r + (float)c / 128;
    }
    for (int64_t r = 0; r < k_rows; r++)
        for (int b = 0; b < 2; b++) {
            uint16_t one = f32_to_f16(1);
            memcpy(q8 + r * 68 + b * 34, &one, 2);
            memset(q8 + r * 68 + b * 34 + 2, (int)r, 32);
        }
    struct want o = {.arch = arch, .key_length = head_dim};
    bool permute = !strcmp(arch, "llama");
    struct gguf_writer *w = gguf_writer_new();
    const struct tensor qt = {"q", DT_F32, 2, {q_rows, HIDDEN}, f, (size_t)(q_rows * HIDDEN) * 4, 0};
    const struct tensor bt = {"b", DT_F32, 1, {q_rows}, bias, (size_t)q_rows * 4, 0};
    const struct tensor kt = {"k", DT_Q8_0, 2, {k_rows, HIDDEN}, q8, (size_t)k_rows * 68, 0};
    gguf_put_str(w, "general.architecture", arch);
    put_size(w, &o, "block_count", 1);
    put_size(w, &o, "context_length", 64);
    put_size(w, &o, "embedding_length", HIDDEN);
    put_size(w, &o, "feed_forward_length", 96);
    put_size(w, &o, "attention.head_count", HEADS);
    put_size(w, &o, "attention.head_count_kv", KV);
    put_size(w, &o, "attention.key_length", (uint32_t)head_dim);
    put_size(w, &o, "attention.value_length", (uint32_t)head_dim);
    char key[80];
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_put_f32(w, key, 1e-6f);
    gguf_put_tensor(w, "token_embd.weight", DT_F32, 2, (int64_t[]){1, HIDDEN}, f);
    gguf_put_permuted(w, "blk.0.attn_q.weight", &qt, permute ? HEADS : q_rows / 2);
    gguf_put_permuted(w, "blk.0.attn_q.bias", &bt, permute ? HEADS : q_rows / 2);
    gguf_put_permuted(w, "blk.0.attn_k.weight", &kt, permute ? KV : k_rows / 2);
    gguf_put_tensor(w, "blk.0.attn_v.weight", DT_Q8_0, 2, kt.shape, q8);
    gguf_put_tensor(w, "rope_freqs.weight", DT_F32, 1, (int64_t[]){1}, f);
    gguf_put_tensor(w, "blk.00.attn_q.weight", DT_F32, 1, (int64_t[]){1}, f);
    gguf_put_tensor(w, "lm_head.weight", DT_F32, 1, (int64_t[]){1}, f);

    size_t n, k;
    struct err e;
    struct gguf g;
    struct tensor *t;
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_int_equal(gguf_parse(&g, "test.gguf", p, n, &e), 0);
    if (gguf_hf_tensors(&g, &t, &k, &e)) fail_msg("%s", e.msg);
    assert_int_equal(k, 7); /* without rope_freqs */
    const struct tensor *q = named(t, k, "model.layers.0.self_attn.q_proj.weight");
    const struct tensor *b = named(t, k, "model.layers.0.self_attn.q_proj.bias");
    const struct tensor *kk = named(t, k, "model.layers.0.self_attn.k_proj.weight");
    const struct tensor *v = named(t, k, "model.layers.0.self_attn.v_proj.weight");
    named(t, k, "blk.00.attn_q.weight"); /* no name of ours: left alone */
    named(t, k, "gguf:lm_head.weight");  /* nor may it pose as one */
    assert_int_equal(q->permuted_heads, permute ? HEADS : 0);
    assert_int_equal(kk->permuted_heads, permute ? KV : 0);
    assert_int_equal(v->permuted_heads, 0);
    float row[2 * HIDDEN], *all = mem_new((size_t)q_rows, sizeof *all), *copy = mem_new((size_t)q_rows, sizeof *copy);
    for (int64_t r = 0; r + 1 < q_rows; r++) {
        tensor_rows_f32(q, r, 2, row);
        assert_memory_equal(row, f + r * HIDDEN, sizeof row);
        tensor_copy_row(q, r, row);
        assert_memory_equal(row, f + r * HIDDEN, sizeof row / 2);
    }
    for (int64_t r = 0; r < k_rows; r++) {
        assert_memory_equal(tensor_row(kk, r), q8 + r * 68, 68);
        assert_memory_equal(tensor_row(v, r), q8 + r * 68, 68);
    }
    tensor_rows_f32(b, 0, 1, all);
    assert_memory_equal(all, bias, (size_t)q_rows * 4);
    tensor_copy_row(b, 0, copy);
    assert_memory_equal(copy, bias, (size_t)q_rows * 4);
    for (size_t i = 0; i < k; i++) free((char *)(uintptr_t)t[i].name);
    free(t);
    free(all);
    free(copy);
    free(f);
    free(bias);
    free(q8);
    gguf_close(&g);
    free(p);
}

static void row_order(void **state)
{
    (void)state;
    permutation("llama", 16);
    permutation("llama", 32);
    permutation("llama", 2);
    permutation("qwen2", 16);
}

static void uneven_heads(struct gguf_writer *w)
{
    float zero[HIDDEN * 9] = {0};
    gguf_put_tensor(w, "blk.0.attn_k.weight", DT_F32, 2, (int64_t[]){9, HIDDEN}, zero);
}

static void refuses_uneven_heads(void **state)
{
    (void)state;
    size_t n, k;
    struct err e;
    struct gguf g;
    struct tensor *t;
    uint8_t *p = make(&(struct want){.arch = "llama", .more = uneven_heads}, &n);
    assert_int_equal(gguf_parse(&g, "test.gguf", p, n, &e), 0);
    assert_int_equal(gguf_hf_tensors(&g, &t, &k, &e), -1);
    assert_non_null(strstr(e.msg, "9 rows of F32 are not 2 heads of even size"));
    gguf_close(&g);
    free(p);
}

/* ---- tokenizer ---- */

struct words {
    const char *model, *pre;
    const char *tokens[6], *merges[2];
    int32_t types[6];
    size_t n_types;
    int add_bos; /* −1: not said */
    int64_t bos;
};

static json_t *tokenizer_of(const struct words *t, bool config, struct err *e)
{
    struct gguf_writer *w = gguf_writer_new();
    size_t n, n_tokens = 0, n_merges = 0;
    while (n_tokens < 6 && t->tokens[n_tokens]) n_tokens++;
    while (n_merges < 2 && t->merges[n_merges]) n_merges++;
    if (t->model) gguf_put_str(w, "tokenizer.ggml.model", t->model);
    if (t->pre) gguf_put_str(w, "tokenizer.ggml.pre", t->pre);
    gguf_put_strs(w, "tokenizer.ggml.tokens", t->tokens, n_tokens);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", t->types, t->n_types ? t->n_types : n_tokens);
    gguf_put_strs(w, "tokenizer.ggml.merges", t->merges, n_merges);
    if (t->add_bos >= 0) gguf_put_bool(w, "tokenizer.ggml.add_bos_token", t->add_bos);
    if (t->bos >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)t->bos);
    gguf_put_str(w, "tokenizer.chat_template", "{{ x }}");
    struct gguf g;
    uint8_t *p = gguf_writer_bytes(w, &n);
    assert_int_equal(gguf_parse(&g, "test.gguf", p, n, e), 0);
    json_t *j = config ? gguf_tokenizer_config_json(&g, e) : gguf_tokenizer_json(&g, e);
    gguf_close(&g);
    free(p);
    return j;
}

/* ByteLevel with trim_offsets and use_regex as given */
#define BYTES(trim, regex) \
    "{'type': 'ByteLevel', 'add_prefix_space': false, 'trim_offsets': " trim ", 'use_regex': " regex "}"
#define ADDED(id, text, special) \
    "{'id': " id ", 'content': '" text "', 'single_word': false, 'lstrip': false, 'rstrip': false," \
    " 'normalized': false, 'special': " special "}"
#define TEXT(id, n) "{'Sequence': {'id': '" id "', 'type_id': " n "}}"
#define BOS(n) "{'SpecialToken': {'id': '<s>', 'type_id': " n "}}"

/* clang-format off */
static const struct words smollm = {
    .model = "gpt2", .pre = "smollm", .merges = {"a b"}, .add_bos = 0, .bos = 0,
    .tokens = {"<s>", "a", "b", "ab", "<u>", "[PAD5]"}, .types = {3, 1, 1, 1, 4, 5},
};
static const char smollm_json[] =
    "{'version': '1.0', 'truncation': null, 'padding': null,"
    " 'added_tokens': [" ADDED("0", "<s>", "true") ", " ADDED("4", "<u>", "false") "],"
    " 'normalizer': null,"
    " 'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': ["
    "     {'type': 'Digits', 'individual_digits': true}, " BYTES("true", "true") "]},"
    " 'post_processor': " BYTES("false", "false") ","
    " 'decoder': " BYTES("true", "true") ","
    " 'model': {'type': 'BPE', 'dropout': null, 'unk_token': null, 'continuing_subword_prefix': null,"
    "     'end_of_word_suffix': null, 'fuse_unk': false, 'byte_fallback': false, 'ignore_merges': false,"
    "     'vocab': {'<s>': 0, 'a': 1, 'b': 2, 'ab': 3, '<u>': 4}, 'merges': ['a b']}}";
static const char bos_json[] =
    "{'type': 'Sequence', 'processors': [" BYTES("false", "false") ", {'type': 'TemplateProcessing',"
    " 'single': [" BOS("0") ", " TEXT("A", "0") "],"
    " 'pair': [" BOS("0") ", " TEXT("A", "0") ", " BOS("1") ", " TEXT("B", "1") "],"
    " 'special_tokens': {'<s>': {'id': '<s>', 'ids': [0], 'tokens': ['<s>']}}}]}";
/* clang-format on */

static void tokenizers(void **state)
{
    (void)state;
    struct err e;
    equals(tokenizer_of(&smollm, false, &e), smollm_json);
    struct words llama = smollm;
    llama.pre = "llama-bpe";
    llama.add_bos = -1; /* this kind adds BOS unless told not to */
    json_t *t = tokenizer_of(&llama, false, &e);
    assert_non_null(t);
    assert_true(json_is_true(json_object_get(json_object_get(t, "model"), "ignore_merges")));
    equals(json_incref(json_object_get(t, "post_processor")), bos_json);
    json_decref(t);
    struct words qwen = smollm;
    qwen.pre = "qwen2";
    t = tokenizer_of(&qwen, false, &e);
    assert_non_null(t);
    equals(json_incref(json_object_get(t, "normalizer")), "{'type': 'NFC'}");
    json_decref(t);
    equals(tokenizer_of(&smollm, true, &e),
           "{'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': false, 'bos_token': '<s>',"
           " 'chat_template': '{{ x }}'}");
}

static void refuses_words(const struct words *t, const char *why)
{
    struct err e = {""};
    json_t *j = tokenizer_of(t, false, &e);
    if (j) fail_msg("accepted; expected: %s", why);
    if (!strstr(e.msg, why)) fail_msg("\"%s\" does not say \"%s\"", e.msg, why);
}

static void refuses_tokenizers(void **state)
{
    (void)state;
    struct words t = smollm;
    t.model = "llama";
    refuses_words(&t, "tokenizer model llama is not supported");
    t.model = NULL;
    refuses_words(&t, "tokenizer.ggml.model is missing");
    t = smollm, t.pre = "deepseek-llm";
    refuses_words(&t, "pre-tokenizer deepseek-llm is not supported");
    t.pre = NULL;
    refuses_words(&t, "tokenizer.ggml.pre is missing");
    t = smollm, t.tokens[2] = "a";
    refuses_words(&t, "token 2, a, is there twice");
    t = smollm, t.tokens[2] = "\xff";
    refuses_words(&t, "token 2 is not a text in UTF-8");
    t = smollm, t.tokens[2] = "";
    refuses_words(&t, "token 2 is not a text");
    t = smollm, t.types[2] = 6;
    refuses_words(&t, "token 2 is of type 6");
    t = smollm, t.n_types = 5;
    refuses_words(&t, "6 tokens and 5 token types");
    static const char *const merges[] = {"ab", " ab", "ab ", "a  b", "a b ", "", " "};
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        t = smollm, t.merges[0] = merges[i];
        refuses_words(&t, "merge 0 is not two texts with one space between");
    }
    t = smollm, t.add_bos = 1, t.bos = -1;
    refuses_words(&t, "bos_token_id is missing");
    t.bos = 6;
    refuses_words(&t, "bos_token_id is 6 (there are 6 tokens)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(configs),       cmocka_unit_test(refusals),   cmocka_unit_test(torch_tables),
        cmocka_unit_test(other_parameters), cmocka_unit_test(scaled_config), cmocka_unit_test(row_order),
        cmocka_unit_test(refuses_uneven_heads), cmocka_unit_test(tokenizers), cmocka_unit_test(refuses_tokenizers),
    };
    return cmocka_run_group_tests_name("gguf_hf", tests, NULL, NULL);
}
