/* mkgguf MODEL OUT.gguf [options]: a float checkpoint as GGUF, so that other programs can run the same weights. */
#include "base/args.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/par.h"
#include "gguf_writer.h"
#include "views/checkpoint.h"
#include "views/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *dtype_arg = "f16", *pre = "gpt-2";
static enum dtype dtype;

/* ---- names and metadata ---- */

static bool is_llama(const struct config *c) { return c->arch == ARCH_LLAMA || c->arch == ARCH_MISTRAL; }

static const char *arch_of(const struct config *c)
{
    if (c->arch == ARCH_QWEN3) die("architecture Qwen3 is not written (Llama, Mistral and Qwen2 are)");
    return is_llama(c) ? "llama" : "qwen2";
}

/* GGUF's name of a Hugging Face tensor, in buf; false if it is not kept. */
static bool gguf_name(const struct tensor *t, char buf[64])
{
    static const char *const parts[][2] = {
        {"input_layernorm.", "attn_norm."},     {"post_attention_layernorm.", "ffn_norm."}, {"self_attn.q_proj.", "attn_q."},
        {"self_attn.k_proj.", "attn_k."},       {"self_attn.v_proj.", "attn_v."},           {"self_attn.o_proj.", "attn_output."},
        {"mlp.gate_proj.", "ffn_gate."},        {"mlp.up_proj.", "ffn_up."},                {"mlp.down_proj.", "ffn_down."},
    };
    static const char *const whole[][2] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                           {"model.norm.weight", "output_norm.weight"},
                                           {"lm_head.weight", "output.weight"}};
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(t->name, whole[i][0])) return snprintf(buf, 64, "%s", whole[i][1]), true;
    int layer, at;
    if (sscanf(t->name, "model.layers.%d.%n", &layer, &at) != 1) return false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = strlen(parts[i][0]);
        if (!strncmp(t->name + at, parts[i][0], n))
            return snprintf(buf, 64, "blk.%d.%s%s", layer, parts[i][1], t->name + at + n), true;
    }
    return false;
}

static void put_sizes(struct gguf_writer *w, const struct config *c)
{
    char key[80];
    const char *arch = arch_of(c);
    const struct {
        const char *key;
        int64_t v;
    } sizes[] = {
        {"block_count", c->n_layers}, {"context_length", c->max_position_embeddings}, {"embedding_length", c->hidden_size},
        {"feed_forward_length", c->intermediate_size}, {"attention.head_count", c->n_heads},
        {"attention.head_count_kv", c->n_kv_heads}, {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim}, {"rope.dimension_count", c->head_dim}, {"vocab_size", c->vocab_size},
    };
    gguf_put_str(w, "general.architecture", arch);
    gguf_put_str(w, "general.name", "qlab");
    gguf_put_u32(w, "general.file_type", dtype == DT_F16 ? 1 : 32);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].key);
        gguf_put_u32(w, key, (uint32_t)sizes[i].v);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_put_f32(w, key, (float)c->rms_norm_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    gguf_put_f32(w, key, (float)c->rope.theta);
}

/* ---- tokenizer ---- */

static void put_token(char **text, int32_t *type, int64_t n, int64_t id, const char *s, int32_t kind)
{
    if (id < 0 || id >= n) die("tokenizer.json: id %lld (below %lld was expected)", (long long)id, (long long)n);
    free(text[id]);
    text[id] = mem_strdup(s);
    type[id] = kind;
}

static void put_vocab(struct gguf_writer *w, const json_t *json, int64_t n)
{
    char **text = mem_new((size_t)n, sizeof *text);
    int32_t *type = mem_new((size_t)n, sizeof *type);
    for (int64_t i = 0; i < n; i++) text[i] = mem_printf("[PAD%lld]", (long long)i), type[i] = 5;
    const char *s;
    json_t *v;
    size_t k;
    json_object_foreach(json_object_get(json_object_get(json, "model"), "vocab"), s, v)
        put_token(text, type, n, json_integer_value(v), s, 1);
    json_array_foreach(json_object_get(json, "added_tokens"), k, v)
        put_token(text, type, n, json_integer_value(json_object_get(v, "id")),
                  json_string_value(json_object_get(v, "content")), json_is_true(json_object_get(v, "special")) ? 3 : 4);
    gguf_put_strs(w, "tokenizer.ggml.tokens", (const char *const *)text, (size_t)n);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", type, (size_t)n);
    for (int64_t i = 0; i < n; i++) free(text[i]);
    free(text);
    free(type);
}

static void put_merges(struct gguf_writer *w, const json_t *json)
{
    const json_t *merges = json_object_get(json_object_get(json, "model"), "merges"), *v;
    char **text = mem_new(json_array_size(merges), sizeof *text);
    size_t k;
    json_array_foreach(merges, k, v)
        text[k] = json_is_string(v) ? mem_strdup(json_string_value(v))
                                    : mem_printf("%s %s", json_string_value(json_array_get(v, 0)),
                                                 json_string_value(json_array_get(v, 1)));
    gguf_put_strs(w, "tokenizer.ggml.merges", (const char *const *)text, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) free(text[i]);
    free(text);
}

static void put_tokenizer(struct gguf_writer *w, const char *path, const struct config *c)
{
    struct err e;
    char *file = path_join(path, "tokenizer.json"), *text;
    size_t n;
    struct tokenizer *t = tokenizer_of_model(path, &e); /* checks the file */
    if (!t || file_read(file, (size_t)1 << 30, &text, &n, &e)) die("%s", e.msg);
    json_t *json = json_loadb(text, n, 0, NULL);
    if (strcmp(tokenizer_type(t), "byte-level-bpe")) die("%s: tokenizer is %s (byte-level-bpe was expected)", file, tokenizer_type(t));
    gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
    gguf_put_str(w, "tokenizer.ggml.pre", pre);
    put_vocab(w, json, c->vocab_size);
    put_merges(w, json);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", tokenizer_adds_bos(t));
    int64_t bos = tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : c->bos, eos = tokenizer_eos(t) >= 0 ? tokenizer_eos(t) : c->eos;
    if (bos >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (eos >= 0) gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
    json_decref(json);
    tokenizer_free(t);
    free(text);
    free(file);
}

/* ---- data ---- */

/* Rows of q and k change places in arch llama: GGUF row h·hd + 2j + t is row h·hd + t·hd/2 + j. */
static int64_t heads_of(const struct tensor *t, const struct config *c)
{
    if (!is_llama(c)) return 0;
    if (strstr(t->name, "self_attn.q_proj.")) return c->n_heads;
    if (strstr(t->name, "self_attn.k_proj.")) return c->n_kv_heads;
    return 0;
}

/* n floats, a multiple of 32, as blocks of Q8_0: the scale in f16, then 32 codes. */
static void to_q8_0(const float *v, uint8_t *out, int64_t n)
{
    for (int64_t b = 0; b < n / 32; b++, v += 32, out += 34) {
        float most = 0;
        for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(v[i]));
        uint16_t scale = f32_to_f16(most / 127);
        float d = f16_to_f32(scale);
        memcpy(out, &scale, sizeof scale);
        for (int i = 0; i < 32; i++) { /* the scale may have been rounded down */
            float q = d > 0 ? roundf(v[i] / d) : 0;
            int8_t code = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
            memcpy(out + 2 + i, &code, 1);
        }
    }
}

struct rows {
    const struct tensor *t;
    int64_t heads, n, cols, first; /* first: row of the file that `out` begins with */
    uint8_t *out;
};

static int64_t source_row(const struct rows *r, int64_t i)
{
    if (!r->heads) return i;
    int64_t hd = r->n / r->heads, in = i % hd;
    return i - in + in % 2 * (hd / 2) + in / 2;
}

static void convert(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct rows *r = ctx;
    const struct dtype_traits *from = dtype_traits(r->t->dtype);
    float *v = mem_array((size_t)r->cols, sizeof *v);
    size_t row = dtype_bytes(dtype, r->cols);
    for (int64_t i = begin; i < end; i++) {
        const uint8_t *src = (const uint8_t *)r->t->data + dtype_bytes(r->t->dtype, source_row(r, r->first + i) * r->cols);
        if (r->t->dtype == dtype) {
            memcpy(r->out + (size_t)i * row, src, row);
        } else {
            from->to_f32(src, v, r->cols);
            if (dtype == DT_Q8_0) to_q8_0(v, r->out + (size_t)i * row, r->cols);
            else dtype_from_f32(dtype, v, r->out + (size_t)i * row, r->cols);
        }
    }
    free(v);
}

static int append_matrix(struct gguf_stream *s, const struct tensor *t, const struct config *c, struct err *e)
{
    struct rows r = {t, heads_of(t, c), t->shape[0], t->shape[1], 0, NULL};
    int64_t step = ((int64_t)1 << 23) / r.cols + 1;
    r.out = mem_array((size_t)(step < r.n ? step : r.n), dtype_bytes(dtype, r.cols));
    int rc = 0;
    for (; rc == 0 && r.first < r.n; r.first += step) {
        int64_t n = r.n - r.first < step ? r.n - r.first : step;
        par_for(n, 1, convert, &r);
        rc = gguf_stream_append(s, r.out, (size_t)n * dtype_bytes(dtype, r.cols), e);
    }
    free(r.out);
    checkpoint_drop(t);
    return rc;
}

static int append_vector(struct gguf_stream *s, const struct tensor *t, const struct config *c, struct err *e)
{
    struct rows r = {.heads = heads_of(t, c), .n = t->shape[0]};
    float *v = mem_array((size_t)r.n, sizeof *v), *out = mem_array((size_t)r.n, sizeof *out);
    tensor_rows_f32(t, 0, 1, v);
    for (int64_t i = 0; i < r.n; i++) out[i] = v[source_row(&r, i)];
    int rc = gguf_stream_append(s, out, (size_t)r.n * sizeof *out, e);
    free(v);
    free(out);
    return rc;
}

/* Divisors of the inverse frequencies, as llama3 scaling gives them. */
static int append_rope(struct gguf_stream *s, const struct config *c, struct err *e)
{
    int64_t n = c->head_dim / 2;
    float *scaled = mem_array((size_t)n, sizeof *scaled), *plain = mem_array((size_t)n, sizeof *plain);
    struct rope flat = {.type = ROPE_DEFAULT, .theta = c->rope.theta};
    rope_inv_freq(&c->rope, c->head_dim, scaled);
    rope_inv_freq(&flat, c->head_dim, plain);
    for (int64_t i = 0; i < n; i++) plain[i] /= scaled[i];
    int rc = gguf_stream_append(s, plain, (size_t)n * sizeof *plain, e);
    free(scaled);
    free(plain);
    return rc;
}

int main(int argc, char **argv)
{
    struct opt opts[] = {
        {"dtype", 0, OPT_CHOICE, &dtype_arg, "f16|bf16|q8_0", "element type of matrices (vectors are F32)",
         "f16|bf16|q8_0", 0, 0},
        {"pre", 0, OPT_STR, &pre, "NAME", "how llama.cpp calls the text splitting: llama-bpe, qwen2, smollm, gpt-2", NULL, 0, 0},
        {0},
    };
    struct tool tool = {.name = "mkgguf", .summary = "a float checkpoint as GGUF", .usage = "MODEL OUT.gguf [options]",
                        .details = "", .compute_dflt = "f32", .opts = opts};
    int n_args;
    struct err e;
    struct checkpoint c;
    struct gguf_stream s;
    char **arg = args_parse(&tool, argc, argv, &n_args), name[64];
    if (n_args != 2) die_usage("MODEL and OUT.gguf were expected");
    dtype = !strcmp(dtype_arg, "f16") ? DT_F16 : !strcmp(dtype_arg, "bf16") ? DT_BF16 : DT_Q8_0;
    if (checkpoint_open(&c, arg[0], &e)) die("%s", e.msg);
    if (c.is_gguf || c.quant) die("%s: not a folder of float weights", arg[0]);
    struct gguf_writer *w = gguf_writer_new();
    put_sizes(w, &c.config);
    put_tokenizer(w, arg[0], &c.config);
    bool divisors = c.config.rope.type == ROPE_LLAMA3;
    if (divisors) gguf_declare_tensor(w, "rope_freqs.weight", DT_F32, 1, (int64_t[]){c.config.head_dim / 2});
    for (size_t i = 0; i < c.n_tensors; i++) {
        const struct tensor *t = &c.tensors[i];
        if (!gguf_name(t, name)) continue;
        if (t->n_dims > 1 && t->shape[1] % dtype_traits(dtype)->block_elems)
            die("%s: %lld columns (a multiple of %lld was expected)", t->name, (long long)t->shape[1],
                (long long)dtype_traits(dtype)->block_elems);
        gguf_declare_tensor(w, name, t->n_dims == 1 ? DT_F32 : dtype, t->n_dims, t->shape);
    }
    if (gguf_stream_open(&s, w, arg[1], &e)) die("%s", e.msg);
    int rc = divisors ? append_rope(&s, &c.config, &e) : 0;
    for (size_t i = 0; rc == 0 && i < c.n_tensors; i++) {
        const struct tensor *t = &c.tensors[i];
        if (!gguf_name(t, name)) continue;
        rc = t->n_dims == 1 ? append_vector(&s, t, &c.config, &e) : append_matrix(&s, t, &c.config, &e);
    }
    if (rc) gguf_stream_abort(&s);
    else rc = gguf_stream_close(&s, &e);
    if (rc) die("%s", e.msg);
    checkpoint_close(&c);
    return 0;
}
