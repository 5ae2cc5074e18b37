/* config.json of a Llama-shaped checkpoint. Key names, defaults and the resolution of the two RoPE styles follow
 * transformers (docs/formats.md); architectures: LlamaForCausalLM, MistralForCausalLM (without sliding window),
 * Qwen2ForCausalLM, Qwen3ForCausalLM. Anything else is refused by name. */
#ifndef QLAB_VIEWS_CONFIG_H
#define QLAB_VIEWS_CONFIG_H

#include "base/err.h"
#include "base/json.h"

enum arch { ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3 };
enum rope_type { ROPE_DEFAULT, ROPE_LLAMA3 };

struct rope {
    enum rope_type type;
    double theta;
    double factor, low_freq_factor, high_freq_factor; /* llama3 */
    int64_t original_max_position_embeddings;         /* llama3 */
};

struct config {
    enum arch arch;
    const char *architecture; /* "LlamaForCausalLM"; static */
    const char *model_type;   /* "llama"; static */
    int64_t hidden_size, intermediate_size, n_layers, n_heads, n_kv_heads, head_dim, vocab_size;
    int64_t max_position_embeddings;
    double rms_norm_eps;
    bool tied_embeddings; /* as config.json says; checkpoint.h resolves it against the stored tensors */
    bool qkv_bias, o_bias, mlp_bias, qk_norm;
    struct rope rope;
    int64_t bos, eos; /* −1: none; the first of a list */
};

/* `where` leads the error messages. Absurd values (0 heads, heads not a multiple of kv heads, odd head_dim, sizes above
 * 2^31) are errors. */
int config_parse(struct config *c, const json_t *json, const char *where, struct err *e);

/* The seven linear layers of a decoder layer. */
enum op { OP_Q, OP_K, OP_V, OP_O, OP_GATE, OP_UP, OP_DOWN, N_OPS };
const char *op_name(enum op op);   /* "q_proj" */
const char *op_module(enum op op); /* "self_attn.q_proj" */
void config_op_shape(const struct config *c, enum op op, int64_t *n_out, int64_t *n_in);
bool config_op_bias(const struct config *c, enum op op);
/* "model.layers.L.self_attn.q_proj" into buf (64 bytes suffice); returns buf. */
#define LINEAR_NAME_MAX 64
const char *linear_name(char buf[LINEAR_NAME_MAX], int64_t layer, enum op op);
/* The inverse; false if name is not a decoder linear's. */
bool linear_parse(const char *name, int64_t *layer, enum op *op);

/* inv_freq[head_dim/2], in f32 as transformers computes it (≤ 3 ulp: torch rounds pow differently), llama3 scaling
 * applied. */
void rope_inv_freq(const struct rope *r, int64_t head_dim, float *inv_freq);

#endif
