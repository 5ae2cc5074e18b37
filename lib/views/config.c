#include "views/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Defaults are those of transformers' config classes (5.23); docs/formats.md has the table. kv_required: the class
 * default for a missing num_key_value_heads is a number that fits no real checkpoint without the key. */
static const struct arch_row {
    const char *model_type, *architecture;
    bool kv_required;
    int64_t max_position_embeddings, head_dim; /* head_dim 0: hidden_size / num_attention_heads */
    int64_t bos, eos;
} archs[] = {
    [ARCH_LLAMA] = {"llama", "LlamaForCausalLM", false, 2048, 0, 1, 2},
    [ARCH_MISTRAL] = {"mistral", "MistralForCausalLM", true, 131072, 0, 1, 2},
    [ARCH_QWEN2] = {"qwen2", "Qwen2ForCausalLM", true, 32768, 0, -1, -1},
    [ARCH_QWEN3] = {"qwen3", "Qwen3ForCausalLM", true, 32768, 128, -1, -1},
};
#define N_ARCHS ((int)(sizeof archs / sizeof *archs))
#define SUPPORTED "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM are supported"
#define SIZE_LIMIT ((int64_t)1 << 31)

static bool is_null(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return !v || json_is_null(v);
}

/* model_type decides; architectures[0], when there, must agree. One of the two suffices. */
static int parse_arch(struct config *c, const json_t *json, struct err *e)
{
    const char *type, *a = NULL;
    const json_t *list = json_object_get(json, "architectures");
    if (json_get_str(json, "model_type", false, NULL, &type, e)) return -1;
    if (list && !json_is_null(list)) {
        if (!json_is_array(list)) return err_set(e, "\"architectures\" is not a list");
        if (json_array_size(list) && !(a = json_string_value(json_array_get(list, 0))))
            return err_set(e, "\"architectures\" is not a list of strings");
    }
    if (!type && !a) return err_set(e, "neither \"model_type\" nor \"architectures\" is there (" SUPPORTED ")");
    for (int i = 0; i < N_ARCHS; i++) {
        if (type ? strcmp(type, archs[i].model_type) : strcmp(a, archs[i].architecture)) continue;
        if (a && strcmp(a, archs[i].architecture)) break;
        c->arch = (enum arch)i;
        c->architecture = archs[i].architecture;
        c->model_type = archs[i].model_type;
        return 0;
    }
    return err_set(e, "%s%s%s%s%s is not supported (" SUPPORTED ")", a ? "architecture " : "", a ? a : "",
                   a && type ? " of " : "", type ? "model_type " : "", type ? type : "");
}

static int parse_sizes(struct config *c, const json_t *j, struct err *e)
{
    const struct arch_row *row = &archs[c->arch];
    if (json_get_int(j, "hidden_size", true, 1, SIZE_LIMIT, 0, &c->hidden_size, e) ||
        json_get_int(j, "intermediate_size", true, 1, SIZE_LIMIT, 0, &c->intermediate_size, e) ||
        json_get_int(j, "num_hidden_layers", true, 1, 65536, 0, &c->n_layers, e) ||
        json_get_int(j, "num_attention_heads", true, 1, 65536, 0, &c->n_heads, e) ||
        json_get_int(j, "vocab_size", true, 1, SIZE_LIMIT, 0, &c->vocab_size, e) ||
        json_get_int(j, "num_key_value_heads", false, 1, 65536, c->n_heads, &c->n_kv_heads, e) ||
        json_get_int(j, "head_dim", false, 1, 65536, row->head_dim, &c->head_dim, e) ||
        json_get_int(j, "max_position_embeddings", false, 1, (int64_t)1 << 40, row->max_position_embeddings,
                     &c->max_position_embeddings, e))
        return -1;
    if (row->kv_required && !json_object_get(j, "num_key_value_heads"))
        return err_set(e, "\"num_key_value_heads\" is missing (%s needs it: its default is not the number of heads)",
                       c->model_type);
    if (c->n_heads % c->n_kv_heads)
        return err_set(e, "%lld attention heads are not a multiple of %lld key/value heads", (long long)c->n_heads,
                       (long long)c->n_kv_heads);
    if (!c->head_dim) {
        if (c->hidden_size % c->n_heads)
            return err_set(e, "\"hidden_size\" %lld is not a multiple of \"num_attention_heads\" %lld",
                           (long long)c->hidden_size, (long long)c->n_heads);
        c->head_dim = c->hidden_size / c->n_heads;
    }
    if (c->head_dim % 2) return err_set(e, "head_dim %lld is odd (RoPE turns pairs)", (long long)c->head_dim);
    return 0;
}

/* rope_scaling, if it says anything, beats rope_parameters; the theta inside the winner beats the top-level one. */
static int parse_rope(struct config *c, const json_t *j, struct err *e)
{
    struct rope *r = &c->rope;
    double partial;
    const json_t *scaling = json_object_get(j, "rope_scaling"), *params = json_object_get(j, "rope_parameters");
    if (!is_null(j, "rope_scaling") && !json_is_object(scaling)) return err_set(e, "\"rope_scaling\" is not an object");
    if (!is_null(j, "rope_parameters") && !json_is_object(params))
        return err_set(e, "\"rope_parameters\" is not an object");
    const json_t *o = json_object_size(scaling) ? scaling : params; /* NULL or null: no key is found in it */

    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
        if (json_is_object(v)) return err_set(e, "RoPE parameters per layer type (\"%s\") are not supported", key);

    const char *type;
    if (json_get_num(j, "rope_theta", false, 10000, &r->theta, e) ||
        json_get_num(o, "rope_theta", false, r->theta, &r->theta, e) ||
        json_get_num(j, "partial_rotary_factor", false, 1, &partial, e) ||
        json_get_num(o, "partial_rotary_factor", false, partial, &partial, e) ||
        json_get_str(o, "type", false, "default", &type, e) || json_get_str(o, "rope_type", false, type, &type, e))
        return -1;
    if (!(r->theta > 0) || r->theta > 1e30)
        return err_set(e, "\"rope_theta\" is %g (a positive base was expected)", r->theta);
    if (partial != 1) return err_set(e, "\"partial_rotary_factor\" is %g (only 1 is supported)", partial);
    r->type = ROPE_DEFAULT;
    if (!strcmp(type, "default")) return 0;
    if (strcmp(type, "llama3"))
        return err_set(e, "RoPE scaling of type \"%s\" is not supported (default and llama3 are)", type);
    r->type = ROPE_LLAMA3;
    if (json_get_num(o, "factor", true, 0, &r->factor, e) ||
        json_get_num(o, "low_freq_factor", true, 0, &r->low_freq_factor, e) ||
        json_get_num(o, "high_freq_factor", true, 0, &r->high_freq_factor, e) ||
        json_get_int(o, "original_max_position_embeddings", false, 1, (int64_t)1 << 40, c->max_position_embeddings,
                     &r->original_max_position_embeddings, e))
        return -1;
    if (!(r->factor >= 1) || !(r->low_freq_factor > 0) || !(r->high_freq_factor > r->low_freq_factor))
        return err_set(e, "llama3 RoPE with factor %g, low_freq_factor %g, high_freq_factor %g (factor at least 1 and "
                          "0 < low < high were expected)", r->factor, r->low_freq_factor, r->high_freq_factor);
    return 0;
}

/* Sliding windows are refused unless no position inside max_position_embeddings can see their edge. */
static int parse_window(const struct config *c, const json_t *j, struct err *e)
{
    bool use = false;
    int64_t window, from = 0;
    const json_t *types = json_object_get(j, "layer_types"), *t;
    size_t i;
    if (c->arch == ARCH_LLAMA) return 0;
    if (json_get_int(j, "sliding_window", false, 0, (int64_t)1 << 40, 0, &window, e)) return -1;
    if (c->arch == ARCH_MISTRAL) {
        if (!json_object_get(j, "sliding_window")) window = 4096; /* the class default; null switches it off */
        use = !is_null(j, "sliding_window") || window;
    } else {
        if (json_get_bool(j, "use_sliding_window", false, false, &use, e) ||
            json_get_int(j, "max_window_layers", false, 0, (int64_t)1 << 40, 28, &from, e))
            return -1;
        if (use && is_null(j, "sliding_window")) window = 4096;
        if (from >= c->n_layers) use = false;
        if (types && !json_is_null(types)) {
            use = false;
            json_array_foreach(types, i, t)
                if (json_is_string(t) && strcmp(json_string_value(t), "full_attention")) use = true;
        }
    }
    if (use && window < c->max_position_embeddings)
        return err_set(e, "sliding-window attention (%lld of %lld positions) is not supported", (long long)window,
                       (long long)c->max_position_embeddings);
    return 0;
}

static int parse_id(const json_t *j, const char *key, int64_t dflt, int64_t *out, struct err *e)
{
    const json_t *v = json_object_get(j, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    *out = v ? -1 : dflt;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) >= SIZE_LIMIT)
        return err_set(e, "\"%s\" is not a token id or a list of them", key);
    *out = (int64_t)json_integer_value(v);
    return 0;
}

static int parse_rest(struct config *c, const json_t *j, struct err *e)
{
    const char *act;
    bool att = false, mlp = false;
    if (json_get_num(j, "rms_norm_eps", false, 1e-6, &c->rms_norm_eps, e) ||
        json_get_bool(j, "tie_word_embeddings", false, false, &c->tied_embeddings, e) ||
        json_get_str(j, "hidden_act", false, "silu", &act, e))
        return -1;
    if (!(c->rms_norm_eps > 0) || c->rms_norm_eps > 1)
        return err_set(e, "\"rms_norm_eps\" is %g (above 0 and at most 1 was expected)", c->rms_norm_eps);
    if (strcmp(act, "silu")) return err_set(e, "\"hidden_act\" is \"%s\" (only \"silu\" is supported)", act);
    if ((c->arch == ARCH_LLAMA || c->arch == ARCH_QWEN3) && json_get_bool(j, "attention_bias", false, false, &att, e))
        return -1;
    if (c->arch == ARCH_LLAMA && json_get_bool(j, "mlp_bias", false, false, &mlp, e)) return -1;
    c->qkv_bias = att || c->arch == ARCH_QWEN2;
    c->o_bias = att;
    c->mlp_bias = mlp;
    c->qk_norm = c->arch == ARCH_QWEN3;
    const struct arch_row *row = &archs[c->arch];
    if (parse_id(j, "bos_token_id", row->bos, &c->bos, e)) return -1;
    return parse_id(j, "eos_token_id", row->eos, &c->eos, e);
}

int config_parse(struct config *c, const json_t *json, const char *where, struct err *e)
{
    memset(c, 0, sizeof *c);
    if (!json_is_object(json)) return err_set(e, "%s: not a JSON object", where);
    if (parse_arch(c, json, e) || parse_sizes(c, json, e) || parse_rope(c, json, e) || parse_window(c, json, e) ||
        parse_rest(c, json, e))
        return err_prefix(e, "%s", where);
    return 0;
}

/* ---- the linears ---- */

static const char *const modules[N_OPS] = {
    [OP_Q] = "self_attn.q_proj", [OP_K] = "self_attn.k_proj",  [OP_V] = "self_attn.v_proj",  [OP_O] = "self_attn.o_proj",
    [OP_GATE] = "mlp.gate_proj", [OP_UP] = "mlp.up_proj",      [OP_DOWN] = "mlp.down_proj",
};

const char *op_module(enum op op) { return modules[op]; }
const char *op_name(enum op op) { return strchr(modules[op], '.') + 1; }

void config_op_shape(const struct config *c, enum op op, int64_t *n_out, int64_t *n_in)
{
    int64_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    switch (op) {
    case OP_Q: *n_out = q, *n_in = c->hidden_size; break;
    case OP_K:
    case OP_V: *n_out = kv, *n_in = c->hidden_size; break;
    case OP_O: *n_out = c->hidden_size, *n_in = q; break;
    case OP_GATE:
    case OP_UP: *n_out = c->intermediate_size, *n_in = c->hidden_size; break;
    default: *n_out = c->hidden_size, *n_in = c->intermediate_size; break;
    }
}

bool config_op_bias(const struct config *c, enum op op)
{
    return op <= OP_V ? c->qkv_bias : op == OP_O ? c->o_bias : c->mlp_bias;
}

const char *linear_name(char buf[LINEAR_NAME_MAX], int64_t layer, enum op op)
{
    snprintf(buf, LINEAR_NAME_MAX, "model.layers.%lld.%s", (long long)layer, modules[op]);
    return buf;
}

bool linear_parse(const char *name, int64_t *layer, enum op *op)
{
    static const char head[] = "model.layers.";
    if (strncmp(name, head, sizeof head - 1)) return false;
    const char *p = name + sizeof head - 1;
    size_t digits = strspn(p, "0123456789");
    if (!digits || digits > 9 || (digits > 1 && *p == '0') || p[digits] != '.') return false;
    for (int i = 0; i < N_OPS; i++)
        if (!strcmp(p + digits + 1, modules[i])) {
            *layer = strtoll(p, NULL, 10);
            *op = (enum op)i;
            return true;
        }
    return false;
}

/* In f32 step by step, as modeling_rope_utils does; only pow is taken in double and rounded once. */
void rope_inv_freq(const struct rope *r, int64_t head_dim, float *inv_freq)
{
    float low = (float)r->low_freq_factor, high = (float)r->high_freq_factor, factor = (float)r->factor;
    double old = (double)r->original_max_position_embeddings;
    for (int64_t i = 0; i < head_dim / 2; i++) {
        float x = (float)(2 * i) / (float)head_dim;
        float f = 1.0f / (float)pow((float)r->theta, x);
        if (r->type == ROPE_LLAMA3) {
            float wavelen = (float)(2 * M_PI) / f;
            if (wavelen > (float)(old / r->low_freq_factor)) {
                f /= factor;
            } else if (!(wavelen < (float)(old / r->high_freq_factor))) {
                float s = ((float)old / wavelen - low) / (high - low);
                f = (1.0f - s) * f / factor + s * f;
            }
        }
        inv_freq[i] = f;
    }
}
