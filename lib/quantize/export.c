#include "quantize/export.h"

#include "base/mem.h"
#include "quantize/container.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *json_lines(json_t *v)
{
    char *s = json_dumps(v, JSON_INDENT(2)), *out = mem_printf("%s\n", s);
    free(s);
    json_decref(v);
    return out;
}

/* ---- llama.cpp ---- */

static const char *ggml_type(const struct format *f)
{
    switch (f->kind) {
    case CODE_FLOAT: return f->dtype == DT_F32 ? "f32" : f->dtype == DT_F16 ? "f16" : "bf16";
    case CODE_INT: return f->bits == 8 ? "q8_0" : f->symmetric ? "q4_0" : "q4_1";
    case CODE_STRIDED: return "q4_1";
    case CODE_BOOK: return "iq4_nl";
    }
    return NULL;
}

/* One tensor's line. The name is a regular expression, which is searched for, not matched whole. */
static int ggml_line(char **out, const struct recipe_entry *it, const char *tensor, const struct format *f, enum dtype dtype,
                     struct err *e)
{
    if (f && f->kind != CODE_FLOAT && it->n_in % 32)
        return err_set(e, "llama.cpp's blocks of 32 do not divide the %lld columns of %s", (long long)it->n_in, it->name);
    char *more = mem_printf("%s^%s\\.weight=%s\n", *out, tensor, f ? ggml_type(f) : dtype == DT_BF16 ? "bf16" : "f16");
    free(*out);
    *out = more;
    return 0;
}

/* Every matrix is named, those that stay as they are too: whatever is not named, llama-quantize quantizes as it likes. */
static char *to_llama_cpp(const struct recipe *r, bool tied, enum dtype dtype, struct err *e)
{
    static const char *const names[N_OPS] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    const struct format *head = r->entries[r->n - 1].fmt;
    char *out = mem_strdup("");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        char name[64];
        if (entry_is_head(it) && tied) continue; /* one tensor for both: what decoding reads decides */
        if (it->layer >= 0) snprintf(name, sizeof name, "blk\\.%lld\\.%s", (long long)it->layer, names[it->op]);
        else snprintf(name, sizeof name, "%s", entry_is_head(it) ? "output" : "token_embd");
        rc = ggml_line(&out, it, name, entry_is_embed(it) && tied && head ? head : it->fmt, dtype, e);
    }
    if (rc == 0) return out;
    free(out);
    return NULL;
}

/* ---- GPTQModel ---- */

static const struct format *most_common(const struct recipe *r)
{
    const struct format *best = NULL;
    size_t best_n = 0;
    for (size_t i = 0; i < r->n; i++) {
        size_t n = 0;
        if (!entry_packed(&r->entries[i]) || r->entries[i].layer < 0) continue;
        for (size_t k = 0; k < r->n; k++) n += r->entries[k].layer >= 0 && r->entries[k].fmt == r->entries[i].fmt;
        if (n > best_n) {
            best = r->entries[i].fmt;
            best_n = n;
        }
    }
    return best;
}

static char *regex_of(const char *sign, const char *name)
{
    char *out = mem_array(2 * strlen(name) + 8, 1), *p = out + sprintf(out, "%s:^", sign);
    for (; *name; name++) {
        if (*name == '.') *p++ = '\\';
        *p++ = *name;
    }
    strcpy(p, "$");
    return out;
}

static json_t *gptq_args(const struct format *f)
{
    return json_pack("{s:i,s:I,s:b}", "bits", f->bits, "group_size", (json_int_t)(f->group ? f->group : -1), "sym",
                     f->symmetric);
}

static char *to_gptqmodel(const struct recipe *r, struct err *e)
{
    const struct format *base = most_common(r);
    if (!base) {
        err_set(e, "the recipe quantizes no decoder linear: nothing to export");
        return NULL;
    }
    json_t *dynamic = json_object(), *o;
    bool head = false;
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        if (entry_packed(it) && (it->fmt->kind != CODE_INT || entry_is_embed(it))) {
            err_set(e, "GPTQModel has no %s%s (%s)", it->fmt->name, entry_is_embed(it) ? " embeddings" : "", it->name);
            json_decref(dynamic);
            return NULL;
        }
        head |= entry_is_head(it) && entry_packed(it);
        if (it->layer < 0 && !entry_packed(it)) continue;
        if (entry_packed(it) && format_same(it->fmt, base)) continue;
        char *key = regex_of(entry_packed(it) ? "+" : "-", it->name);
        json_put(dynamic, key, entry_packed(it) ? gptq_args(it->fmt) : json_object());
        free(key);
    }
    o = gptq_args(base);
    json_put(o, "desc_act", json_false());
    json_put(o, "lm_head", json_boolean(head));
    json_put(o, "dynamic", dynamic);
    return json_lines(o);
}

/* ---- llm-compressor, vLLM's quantizer ---- */

static char *to_vllm(const struct recipe *r, struct err *e)
{
    if (container_of(r) != CONT_CT) {
        err_set(e, "only recipes of int4 and int8 formats (not strided) can be exported for vLLM's llm-compressor");
        return NULL;
    }
    json_t *config = ct_config(r), *groups = json_object_get(config, "config_groups"), *g;
    const char *key;
    json_object_foreach(groups, key, g) {
        json_object_del(g, "format");
    }
    json_t *modifier = json_pack("{s:O,s:O}", "ignore", json_object_get(config, "ignore"), "config_groups", groups);
    json_decref(config);
    return json_lines(json_pack("{s:{s:{s:o}}}", "default_stage", "default_modifiers", "QuantizationModifier", modifier));
}

char *recipe_export(const char *kind, const struct recipe *r, bool tied, enum dtype dtype, struct err *e)
{
    if (!strcmp(kind, "llama.cpp")) return to_llama_cpp(r, tied, dtype, e);
    if (!strcmp(kind, "gptqmodel")) return to_gptqmodel(r, e);
    if (!strcmp(kind, "vllm")) return to_vllm(r, e);
    err_set(e, "unknown program \"%s\" (llama.cpp, gptqmodel and vllm are known)", kind);
    return NULL;
}
