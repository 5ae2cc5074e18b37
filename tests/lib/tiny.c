#include "tiny.h"

#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/par.h"
#include "golden.h"
#include "tiny_bigram.h"
#include "views/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const tiny_kinds[] = {"llama-tied", "llama-untied-rope3", "llama-headdim32", "qwen2-tied", "qwen2-untied",
                                  "mistral",    "qwen3",              "llama-bias",      "bigram",     NULL};

int tiny_kind(struct tiny *t, const char *kind)
{
    int k = 0;
    while (tiny_kinds[k] && strcmp(tiny_kinds[k], kind)) k++;
    *t = (struct tiny){.arch = ARCH_LLAMA, .hidden = 64, .ff = 160, .layers = 2, .heads = 4, .kv_heads = 2, .vocab = 256,
                       .max_position = 512, .rope = {.theta = 10000}, .eps = 1e-6, .dtype = DT_BF16, .shards = 1};
    switch (k) {
    case 0: t->tied = true, t->eps = 1e-5, t->head_dim = 16; break;
    case 1:
        t->eps = 1e-5, t->head_dim = 16;
        t->rope = (struct rope){ROPE_LLAMA3, 10000, 8, 1, 4, 64};
        break;
    case 2: t->head_dim = 32, t->rope.theta = 500000; break;
    case 3: t->arch = ARCH_QWEN2, t->tied = true, t->rope.theta = 1000000; break;
    case 4: t->arch = ARCH_QWEN2; break;
    case 5: t->arch = ARCH_MISTRAL, t->rope.theta = 1000000; break;
    case 6: t->arch = ARCH_QWEN3, t->tied = true, t->head_dim = 32, t->rope.theta = 1000000; break;
    case 7: t->attention_bias = t->mlp_bias = true; break;
    case 8:
        t->arch = ARCH_QWEN2, t->hidden = 512, t->ff = 384, t->heads = 8, t->max_position = 4096;
        break;
    default: return -1;
    }
    if (k == 8) t->text = "";
    return 0;
}

static float bf16_round(float f) { return bf16_to_f32(f32_to_bf16(f)); }

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

void tiny_formula(const char *name, uint32_t seed, int64_t i0, int64_t n, float *out)
{
    uint32_t h = fnv1a(name, strlen(name)) ^ seed * 0x9e3779b9u;
    bool norm = ends_with(name, "norm.weight");
    float div = !norm && (ends_with(name, ".bias") || strstr(name, "embed_tokens")) ? 1024.0f : 4096.0f;
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = h + (uint32_t)(i0 + i) * 2654435761u;
        x ^= x >> 16;
        x *= 0x85ebca6bu;
        x ^= x >> 13;
        x *= 0xc2b2ae35u;
        x ^= x >> 16;
        float v = (float)((int)(x % 2001) - 1000) / div;
        out[i] = bf16_round(norm ? 1.0f + v : v);
    }
}

/* ---- the tensors ---- */

struct list {
    struct tensor *t;
    size_t n;
    const struct tiny *spec;
};

static void add(struct list *l, const char *name, int n_dims, int64_t rows, int64_t cols)
{
    if (l->spec->drop && !strcmp(l->spec->drop, name)) return;
    l->t = mem_grow(l->t, l->n + 1, sizeof *l->t);
    l->t[l->n++] = (struct tensor){.name = mem_strdup(name), .dtype = l->spec->dtype, .n_dims = n_dims,
                                   .shape = {rows, cols}};
}

static void config_of(const struct tiny *t, struct config *c)
{
    *c = (struct config){.arch = t->arch, .hidden_size = t->hidden, .intermediate_size = t->ff, .n_layers = t->layers,
                         .n_heads = t->heads, .n_kv_heads = t->kv_heads, .vocab_size = t->vocab,
                         .head_dim = t->head_dim ? t->head_dim : t->hidden / t->heads,
                         .qkv_bias = t->arch == ARCH_QWEN2 || t->attention_bias, .o_bias = t->attention_bias,
                         .mlp_bias = t->mlp_bias};
}

static void list_tensors(struct list *l)
{
    const struct tiny *t = l->spec;
    struct config c;
    char name[LINEAR_NAME_MAX + 32], linear[LINEAR_NAME_MAX];
    config_of(t, &c);
    add(l, "model.embed_tokens.weight", 2, t->vocab, t->hidden);
    for (int64_t i = 0; i < t->layers; i++) {
        const char *norms[] = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
        for (int k = 0; k < (t->arch == ARCH_QWEN3 ? 4 : 2); k++) {
            snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)i, norms[k]);
            add(l, name, 1, k < 2 ? t->hidden : c.head_dim, 0);
        }
        for (enum op op = 0; op < N_OPS; op++) {
            int64_t n_out, n_in;
            config_op_shape(&c, op, &n_out, &n_in);
            snprintf(name, sizeof name, "%s.weight", linear_name(linear, i, op));
            add(l, name, 2, n_out, n_in);
            snprintf(name, sizeof name, "%s.bias", linear);
            if (config_op_bias(&c, op)) add(l, name, 1, n_out, 0);
        }
    }
    add(l, "model.norm.weight", 1, t->hidden, 0);
    if (!t->tied) add(l, "lm_head.weight", 2, t->vocab, t->hidden);
    if (t->extra) add(l, t->extra, 1, 3, 0);
}

/* Values of one tensor, made by threads, as the file holds them. */
struct chunk {
    const struct tiny *t;
    const struct bigram *b;
    const char *name;
    int64_t i0;
    uint8_t *out;
};

static void make_values(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct chunk *c = ctx;
    const struct tiny *t = c->t;
    float v[4096];
    for (int64_t i = begin, n; i < end; i += n) {
        n = end - i < 4096 ? end - i : 4096;
        if (t->normal) tiny_normal(c->name, t->seed, c->i0 + i, n, v);
        else tiny_formula(c->name, t->seed, c->i0 + i, n, v);
        if (c->i0 + i == 0 && t->nan && !strcmp(t->nan, c->name)) v[0] = NAN;
        dtype_from_f32(t->dtype, v, c->out + dtype_bytes(t->dtype, i), n);
    }
}

static void make_bigram(const struct chunk *c, int64_t n)
{
    float *v = mem_array((size_t)n, sizeof *v);
    bigram_fill(c->b, c->name, v, n);
    if (c->t->nan && !strcmp(c->t->nan, c->name)) v[0] = NAN;
    dtype_from_f32(c->t->dtype, v, c->out, n);
    free(v);
}

static int write_tensor(struct st_writer *w, const struct tiny *t, const struct bigram *b, const struct tensor *d,
                        struct err *e)
{
    int64_t n = tensor_elems(d), step = b || n < 1 << 23 ? n : 1 << 23;
    struct chunk c = {t, b, d->name, 0, mem_array((size_t)step, dtype_bytes(t->dtype, 1))};
    int rc = 0;
    for (; rc == 0 && c.i0 < n; c.i0 += step) {
        int64_t k = n - c.i0 < step ? n - c.i0 : step;
        if (b) make_bigram(&c, k);
        else par_for(k, 4096, make_values, &c);
        rc = st_writer_append(w, c.out, dtype_bytes(t->dtype, k), e);
    }
    free(c.out);
    return rc;
}

static int write_weights(const struct tiny *t, const char *dir, struct err *e)
{
    struct list l = {.spec = t};
    struct bigram *b = NULL;
    if (t->text && !(b = bigram_new(t, e))) return -1;
    list_tensors(&l);
    json_t *map = json_object();
    int64_t total = 0;
    int rc = 0;
    for (int s = 0; rc == 0 && s < t->shards; s++) {
        size_t i0 = l.n * (size_t)s / (size_t)t->shards, i1 = l.n * (size_t)(s + 1) / (size_t)t->shards;
        char *name = t->shards == 1 ? mem_strdup("model.safetensors")
                                    : mem_printf("model-%05d-of-%05d.safetensors", s + 1, t->shards);
        char *path = path_join(dir, name);
        struct st_writer w;
        rc = st_writer_open(&w, path, l.t + i0, i1 - i0, e);
        for (size_t i = i0; rc == 0 && i < i1; i++) {
            rc = write_tensor(&w, t, b, &l.t[i], e);
            json_put(map, l.t[i].name, json_string(name));
            total += (int64_t)dtype_bytes(l.t[i].dtype, tensor_elems(&l.t[i]));
            if (rc) st_writer_abort(&w);
        }
        if (rc == 0) rc = st_writer_close(&w, e);
        free(path);
        free(name);
    }
    if (rc == 0 && t->shards > 1) {
        json_t *index = json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
        char *text = json_text(index, 0), *path = path_join(dir, "model.safetensors.index.json");
        rc = file_write(path, text, strlen(text), e);
        free(path);
        free(text);
        json_decref(index);
    }
    json_decref(map);
    for (size_t i = 0; i < l.n; i++) free((char *)(uintptr_t)l.t[i].name);
    free(l.t);
    bigram_free(b);
    return rc;
}

/* ---- the other files ---- */

static json_t *rope_json(const struct rope *r, bool with_theta)
{
    json_t *o = json_object();
    json_put(o, "rope_type", json_string(r->type == ROPE_LLAMA3 ? "llama3" : "default"));
    if (with_theta) json_put(o, "rope_theta", json_real(r->theta));
    if (r->type == ROPE_LLAMA3) {
        json_put(o, "factor", json_real(r->factor));
        json_put(o, "low_freq_factor", json_real(r->low_freq_factor));
        json_put(o, "high_freq_factor", json_real(r->high_freq_factor));
        json_put(o, "original_max_position_embeddings", json_integer(r->original_max_position_embeddings));
    }
    return o;
}

static json_t *config_json(const struct tiny *t)
{
    static const char *const types[] = {"llama", "mistral", "qwen2", "qwen3"};
    static const char *const names[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"};
    json_t *o = json_pack("{s:[s],s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:i,s:i,s:b}", "architectures", names[t->arch],
                          "model_type", types[t->arch], "hidden_size", (json_int_t)t->hidden, "intermediate_size",
                          (json_int_t)t->ff, "num_hidden_layers", (json_int_t)t->layers, "num_attention_heads",
                          (json_int_t)t->heads, "num_key_value_heads", (json_int_t)t->kv_heads, "vocab_size",
                          (json_int_t)t->vocab, "max_position_embeddings", (json_int_t)t->max_position, "hidden_act",
                          "silu", "bos_token_id", 1, "eos_token_id", 2, "tie_word_embeddings", t->tied);
    json_put(o, "rms_norm_eps", json_real(t->eps));
    if (t->head_dim) json_put(o, "head_dim", json_integer(t->head_dim));
    if (t->arch == ARCH_MISTRAL) json_put(o, "sliding_window", json_null());
    if (t->attention_bias) json_put(o, "attention_bias", json_true());
    if (t->mlp_bias) json_put(o, "mlp_bias", json_true());
    const char *dt = t->dtype == DT_F32 ? "float32" : t->dtype == DT_F16 ? "float16" : "bfloat16";
    json_put(o, t->old_config ? "torch_dtype" : "dtype", json_string(dt));
    if (t->old_config) {
        json_put(o, "rope_theta", json_real(t->rope.theta));
        json_put(o, "rope_scaling", t->rope.type == ROPE_LLAMA3 ? rope_json(&t->rope, false) : json_null());
    } else {
        json_put(o, "rope_parameters", rope_json(&t->rope, true));
    }
    return o;
}

/* GPT-2's byte alphabet: printable bytes stand for themselves, the others for U+0100 … in ascending order. */
static json_t *byte_vocab(void)
{
    json_t *o = json_object();
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        bool self = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        int cp = self ? b : next++;
        char s[3] = {(char)cp, 0, 0};
        if (cp >= 0x80) s[0] = (char)(0xc0 | cp >> 6), s[1] = (char)(0x80 | (cp & 63));
        json_put(o, s, json_integer(b));
    }
    return o;
}

static json_t *tokenizer_json(void)
{
    json_t *level = json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                              "use_regex", 1);
    json_t *model = json_pack("{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b,s:o,s:[]}", "type", "BPE", "dropout", "unk_token",
                              "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                              "ignore_merges", 0, "vocab", byte_vocab(), "merges");
    return json_pack("{s:s,s:n,s:n,s:[],s:n,s:O,s:n,s:o,s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", "normalizer", "pre_tokenizer", level, "post_processor", "decoder", level, "model",
                     model);
}

static int write_json(const char *dir, const char *name, json_t *v, struct err *e)
{
    char *text = json_dumps(v, JSON_INDENT(2)), *path = path_join(dir, name);
    int rc = file_write(path, text, strlen(text), e);
    free(path);
    free(text);
    json_decref(v);
    return rc;
}

int tiny_write(const struct tiny *t, const char *dir, struct err *e)
{
    if (path_make_dirs(dir, e) || write_json(dir, "config.json", config_json(t), e) || write_weights(t, dir, e))
        return -1;
    if (write_json(dir, "generation_config.json", json_pack("{s:i,s:i}", "bos_token_id", 1, "eos_token_id", 2), e))
        return -1;
    if (t->no_tokenizer) return 0;
    return write_json(dir, "tokenizer.json", tokenizer_json(), e) ||
                   write_json(dir, "tokenizer_config.json",
                              json_pack("{s:s,s:I}", "tokenizer_class", "PreTrainedTokenizerFast", "model_max_length",
                                        (json_int_t)t->max_position), e)
               ? -1
               : 0;
}
