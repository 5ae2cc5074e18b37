/* A GGUF seen as a Hugging Face checkpoint: its config.json and its tensors' names. */
#include "base/mem.h"
#include "views/gguf.h"
#include "views/gguf_rope.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_LIMIT ((int64_t)1 << 31)

static const struct tensor *find_tensor(const struct gguf *g, const char *name)
{
    for (size_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name)) return &g->tensors[i];
    return NULL;
}

static const char *path_of(const struct gguf *g) { return g->map.path ? g->map.path : "GGUF"; }

/* ---- architecture ---- */

static int get_arch(const struct gguf *g, enum arch *arch, struct err *e)
{
    char *name;
    int64_t parts;
    if (gguf_get_int(g, "split.count", false, 1, &parts, e)) return -1;
    if (parts > 1)
        return err_set(e, "%s: one of %" PRId64 " parts (a whole file was expected: join them with llama-gguf-split "
                          "--merge)", path_of(g), parts);
    if (gguf_get_str(g, "general.architecture", true, &name, e)) return -1;
    int rc = 0;
    if (!strcmp(name, "llama")) *arch = ARCH_LLAMA;
    else if (!strcmp(name, "qwen2")) *arch = ARCH_QWEN2;
    else rc = err_set(e, "%s: architecture %s is not supported (llama and qwen2 are)", path_of(g), name);
    free(name);
    return rc;
}

static void arch_key(char buf[80], enum arch arch, const char *key)
{
    snprintf(buf, 80, "%s.%s", arch == ARCH_LLAMA ? "llama" : "qwen2", key);
}

static int get_size(const struct gguf *g, enum arch arch, const char *key, int64_t dflt, int64_t *out, struct err *e)
{
    char full[80];
    arch_key(full, arch, key);
    if (gguf_get_int(g, full, dflt < 0, dflt, out, e)) return -1;
    if (*out < 1 || *out > SIZE_LIMIT)
        return err_set(e, "%s: %s is %" PRId64 " (1 to 2^31 was expected)", path_of(g), full, *out);
    return 0;
}

/* A number stored as f32 stands for the shortest decimal that rounds to it: 1e-05, not 9.99999974737875e-06. */
static double shortest(double v)
{
    char buf[40];
    if ((double)(float)v != v) return v;
    for (int digits = 1; digits < 9; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (strtof(buf, NULL) == (float)v) return strtod(buf, NULL);
    }
    return v;
}

static int get_positive(const struct gguf *g, enum arch arch, const char *key, double dflt, double *out, struct err *e)
{
    char full[80];
    arch_key(full, arch, key);
    if (gguf_get_num(g, full, dflt < 0, dflt, out, e)) return -1;
    if (!(*out > 0)) return err_set(e, "%s: %s is %g (a positive number was expected)", path_of(g), full, *out);
    *out = shortest(*out);
    return 0;
}

struct sizes {
    enum arch arch;
    int64_t n_layers, n_ctx, hidden, ff, heads, kv_heads, head_dim, vocab;
    double eps, theta;
};

static int get_head_dim(const struct gguf *g, struct sizes *s, struct err *e)
{
    int64_t value, rope;
    if (get_size(g, s->arch, "attention.key_length", s->hidden / s->heads ? s->hidden / s->heads : 1, &s->head_dim,
                 e) ||
        get_size(g, s->arch, "attention.value_length", s->head_dim, &value, e) ||
        get_size(g, s->arch, "rope.dimension_count", s->head_dim, &rope, e))
        return -1;
    if (value != s->head_dim || rope != s->head_dim || s->head_dim % 2)
        return err_set(e, "%s: keys of %" PRId64 ", values of %" PRId64 ", RoPE over %" PRId64 " elements (equal and "
                          "even numbers were expected)", path_of(g), s->head_dim, value, rope);
    char key[80];
    arch_key(key, s->arch, "attention.key_length");
    int64_t given;
    if (gguf_get_int(g, key, false, 0, &given, e)) return -1;
    if (!given && s->hidden % s->heads)
        return err_set(e, "%s: embedding length %" PRId64 " is not a multiple of %" PRId64 " heads", path_of(g),
                       s->hidden, s->heads);
    return 0;
}

static int get_sizes(const struct gguf *g, struct sizes *s, struct err *e)
{
    int64_t vocab;
    const struct tensor *embed = find_tensor(g, "token_embd.weight");
    if (get_arch(g, &s->arch, e)) return -1;
    if (!embed) return err_set(e, "%s: tensor token_embd.weight is missing", path_of(g));
    if (embed->n_dims != 2)
        return err_set(e, "%s: tensor token_embd.weight has %d dimensions (2 were expected)", path_of(g),
                       embed->n_dims);
    if (get_size(g, s->arch, "block_count", -1, &s->n_layers, e) ||
        get_size(g, s->arch, "context_length", -1, &s->n_ctx, e) ||
        get_size(g, s->arch, "embedding_length", -1, &s->hidden, e) ||
        get_size(g, s->arch, "feed_forward_length", -1, &s->ff, e) ||
        get_size(g, s->arch, "attention.head_count", -1, &s->heads, e) ||
        get_size(g, s->arch, "attention.head_count_kv", s->heads, &s->kv_heads, e) ||
        get_size(g, s->arch, "vocab_size", embed->shape[0], &vocab, e) ||
        get_positive(g, s->arch, "attention.layer_norm_rms_epsilon", -1, &s->eps, e) ||
        get_positive(g, s->arch, "rope.freq_base", 10000, &s->theta, e) || get_head_dim(g, s, e))
        return -1;
    s->vocab = embed->shape[0];
    if (vocab != s->vocab)
        return err_set(e, "%s: vocab_size is %" PRId64 " but token_embd.weight has %" PRId64 " rows", path_of(g), vocab,
                       s->vocab);
    return 0;
}

/* ---- what a config.json of these architectures cannot say ---- */

static int refuse_variants(const struct gguf *g, enum arch arch, struct err *e)
{
    char key[80], *scaling;
    int64_t experts, window;
    arch_key(key, arch, "expert_count");
    if (gguf_get_int(g, key, false, 0, &experts, e)) return -1;
    if (experts) return err_set(e, "%s: a mixture of %" PRId64 " experts is not supported", path_of(g), experts);
    arch_key(key, arch, "attention.sliding_window");
    if (gguf_get_int(g, key, false, 0, &window, e)) return -1;
    if (window)
        return err_set(e, "%s: attention in a sliding window of %" PRId64 " is not supported", path_of(g), window);
    arch_key(key, arch, "rope.scaling.type");
    if (gguf_get_str(g, key, false, &scaling, e)) return -1;
    int rc = 0;
    if (scaling && strcmp(scaling, "none"))
        rc = err_set(e, "%s: RoPE scaling of type %s is not supported (none, and rope_freqs of type llama3, are)",
                     path_of(g), scaling);
    free(scaling);
    double scale;
    arch_key(key, arch, "rope.scale_linear"); /* an older way to say it */
    if (rc == 0 && gguf_get_num(g, key, false, 1, &scale, e) == 0 && scale != 1 && scale != 0)
        rc = err_set(e, "%s: %s is %g (linear RoPE scaling is not supported)", path_of(g), key, scale);
    if (find_tensor(g, "rope_factors_long.weight") || find_tensor(g, "rope_factors_short.weight"))
        rc = err_set(e, "%s: RoPE scaling of type longrope is not supported", path_of(g));
    return rc;
}

/* Which of these biases layer 0 has: all → 1, none → 0, some → an error. */
static int has_biases(const struct gguf *g, const char *const *ops, const char *what, struct err *e)
{
    int have = 0, n = 0;
    for (; ops[n]; n++) {
        char name[64];
        snprintf(name, sizeof name, "blk.0.%s.bias", ops[n]);
        have += find_tensor(g, name) != NULL;
    }
    if (have && have != n)
        return err_set(e, "%s: %d of %d biases in %s (all or none were expected)", path_of(g), have, n, what);
    return have != 0;
}

static int put_biases(const struct gguf *g, enum arch arch, json_t *c, struct err *e)
{
    static const char *const llama[] = {"attn_q", "attn_k", "attn_v", "attn_output", NULL};
    static const char *const mlp[] = {"ffn_gate", "ffn_up", "ffn_down", NULL};
    int up = has_biases(g, mlp, "the MLP", e);
    if (up < 0) return -1;
    if (arch == ARCH_LLAMA) {
        int attn = has_biases(g, llama, "attention", e);
        if (attn < 0) return -1;
        json_put(c, "attention_bias", json_boolean(attn));
        json_put(c, "mlp_bias", json_boolean(up));
        return 0;
    }
    if (up || find_tensor(g, "blk.0.attn_output.bias"))
        return err_set(e, "%s: biases outside q, k and v (qwen2 has none there)", path_of(g));
    json_put(c, "use_sliding_window", json_false());
    return 0;
}

static int put_rope(const struct gguf *g, const struct sizes *s, json_t *c, struct err *e)
{
    const struct tensor *t = find_tensor(g, "rope_freqs.weight");
    json_put(c, "rope_theta", json_real(s->theta));
    json_put(c, "rope_scaling", json_null());
    if (!t) return 0;
    if (t->dtype != DT_F32 || t->n_dims != 1 || t->shape[0] != s->head_dim / 2)
        return err_set(e, "%s: tensor rope_freqs.weight: %s of %" PRId64 " elements (F32 of %" PRId64 " was expected)",
                       path_of(g), dtype_traits(t->dtype)->name, tensor_elems(t), s->head_dim / 2);
    float *div = mem_new((size_t)t->shape[0], sizeof *div);
    tensor_rows_f32(t, 0, 1, div);
    struct rope r;
    bool ok = gguf_rope_recover(s->theta, s->head_dim, div, &r);
    free(div);
    if (!ok)
        return err_set(e, "%s: tensor rope_freqs.weight is no llama3 RoPE scaling (other kinds are not supported)",
                       path_of(g));
    if (r.type == ROPE_DEFAULT) return 0;
    json_t *o = json_object();
    json_put(o, "rope_type", json_string("llama3"));
    json_put(o, "factor", json_real(r.factor));
    json_put(o, "low_freq_factor", json_real(r.low_freq_factor));
    json_put(o, "high_freq_factor", json_real(r.high_freq_factor));
    json_put(o, "original_max_position_embeddings", json_integer(r.original_max_position_embeddings));
    json_put(c, "rope_scaling", o);
    return 0;
}

static int put_token_ids(const struct gguf *g, const struct sizes *s, json_t *c, struct err *e)
{
    static const char *const keys[][2] = {{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                          {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                          {"pad_token_id", "tokenizer.ggml.padding_token_id"}};
    for (size_t i = 0; i < 3; i++) {
        int64_t id;
        if (gguf_get_int(g, keys[i][1], false, -1, &id, e)) return -1;
        if (id < -1 || id >= s->vocab)
            return err_set(e, "%s: %s is %" PRId64 " (0 to %" PRId64 " was expected)", path_of(g), keys[i][1], id,
                           s->vocab - 1);
        json_put(c, keys[i][0], id < 0 ? json_null() : json_integer(id));
    }
    return 0;
}

json_t *gguf_config_json(const struct gguf *g, struct err *e)
{
    struct sizes s;
    if (get_sizes(g, &s, e) || refuse_variants(g, s.arch, e)) return NULL;
    json_t *c = json_object();
    bool llama = s.arch == ARCH_LLAMA;
    json_put(c, "architectures", json_pack("[s]", llama ? "LlamaForCausalLM" : "Qwen2ForCausalLM"));
    json_put(c, "model_type", json_string(llama ? "llama" : "qwen2"));
    json_put(c, "hidden_size", json_integer(s.hidden));
    json_put(c, "intermediate_size", json_integer(s.ff));
    json_put(c, "num_hidden_layers", json_integer(s.n_layers));
    json_put(c, "num_attention_heads", json_integer(s.heads));
    json_put(c, "num_key_value_heads", json_integer(s.kv_heads));
    json_put(c, "head_dim", json_integer(s.head_dim));
    json_put(c, "vocab_size", json_integer(s.vocab));
    json_put(c, "max_position_embeddings", json_integer(s.n_ctx));
    json_put(c, "rms_norm_eps", json_real(s.eps));
    json_put(c, "hidden_act", json_string("silu"));
    json_put(c, "tie_word_embeddings", json_boolean(!find_tensor(g, "output.weight")));
    if (put_biases(g, s.arch, c, e) || put_rope(g, &s, c, e) || put_token_ids(g, &s, c, e)) {
        json_decref(c);
        return NULL;
    }
    return c;
}

/* ---- names ---- */

static const char *const top_names[][2] = {
    {"token_embd.", "model.embed_tokens."},
    {"output_norm.", "model.norm."},
    {"output.", "lm_head."},
};
static const char *const layer_names[][2] = {
    {"attn_norm.", "input_layernorm."},    {"ffn_norm.", "post_attention_layernorm."},
    {"attn_q.", "self_attn.q_proj."},      {"attn_k.", "self_attn.k_proj."},
    {"attn_v.", "self_attn.v_proj."},      {"attn_output.", "self_attn.o_proj."},
    {"ffn_gate.", "mlp.gate_proj."},       {"ffn_up.", "mlp.up_proj."},
    {"ffn_down.", "mlp.down_proj."},
};

/* The rest of s after the prefix, if it is "weight" or "bias"; else NULL. */
static const char *kind_after(const char *s, const char *prefix)
{
    size_t n = strlen(prefix);
    if (strncmp(s, prefix, n)) return NULL;
    return !strcmp(s + n, "weight") || !strcmp(s + n, "bias") ? s + n : NULL;
}

/* "blk.L." with L plain decimal: the rest, and L's text; else NULL. */
static const char *after_layer(const char *s, const char **digits, int *n_digits)
{
    if (strncmp(s, "blk.", 4)) return NULL;
    size_t n = strspn(s + 4, "0123456789");
    if (n < 1 || n > 9 || s[4 + n] != '.' || (s[4] == '0' && n > 1)) return NULL;
    *digits = s + 4;
    *n_digits = (int)n;
    return s + 4 + n + 1;
}

/* A new string; a name that is none of ours stays what it is, and nothing will read it (also not one that looks like a
 * Hugging Face name already). */
static char *hf_name(const char *name)
{
    const char *digits, *kind, *rest;
    int n;
    for (size_t i = 0; i < sizeof top_names / sizeof *top_names; i++)
        if ((kind = kind_after(name, top_names[i][0]))) return mem_printf("%s%s", top_names[i][1], kind);
    if ((rest = after_layer(name, &digits, &n)))
        for (size_t i = 0; i < sizeof layer_names / sizeof *layer_names; i++)
            if ((kind = kind_after(rest, layer_names[i][0])))
                return mem_printf("model.layers.%.*s.%s%s", n, digits, layer_names[i][1], kind);
    bool looks_hf = !strncmp(name, "model.", 6) || !strncmp(name, "lm_head.", 8);
    return mem_printf("%s%s", looks_hf ? "gguf:" : "", name);
}

/* Heads whose rows arch llama permutes in this tensor, or 0. */
static int64_t permuted(const char *name, int64_t heads, int64_t kv_heads)
{
    const char *digits, *rest;
    int n;
    if (!(rest = after_layer(name, &digits, &n))) return 0;
    return kind_after(rest, "attn_q.") ? heads : kind_after(rest, "attn_k.") ? kv_heads : 0;
}

int gguf_hf_tensors(const struct gguf *g, struct tensor **out, size_t *n, struct err *e)
{
    *out = NULL;
    *n = 0;
    struct sizes s;
    if (get_sizes(g, &s, e)) return -1;
    struct tensor *list = mem_new(g->n_tensors, sizeof *list);
    size_t k = 0;
    int rc = 0;
    for (size_t i = 0; i < g->n_tensors && rc == 0; i++) {
        if (!strcmp(g->tensors[i].name, "rope_freqs.weight")) continue;
        struct tensor *t = &list[k++];
        *t = g->tensors[i];
        t->name = hf_name(g->tensors[i].name);
        if (s.arch != ARCH_LLAMA || !(t->permuted_heads = permuted(g->tensors[i].name, s.heads, s.kv_heads))) continue;
        int64_t rows = t->shape[0];
        if (t->n_dims > 2 || rows % (2 * t->permuted_heads) || (t->n_dims == 1 && dtype_is_block(t->dtype)))
            rc = err_set(e, "%s: tensor %s: %" PRId64 " rows of %s are not %" PRId64 " heads of even size", path_of(g),
                         g->tensors[i].name, rows, dtype_traits(t->dtype)->name, t->permuted_heads);
    }
    if (rc) {
        for (size_t i = 0; i < k; i++) free((char *)(uintptr_t)list[i].name);
        free(list);
        return -1;
    }
    *out = list;
    *n = k;
    return 0;
}
