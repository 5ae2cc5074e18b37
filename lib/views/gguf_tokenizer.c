/* The tokenizer in a GGUF's metadata as a tokenizer.json. The metadata names the text splitting ("pre") instead of
 * describing it, so the published tokenizers' own components are written here for each name. */
#include "base/mem.h"
#include "views/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS "tokenizer.ggml.tokens"
#define TYPES "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"

enum token_type { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5 };

#define SPLIT_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SPLIT_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"

static const struct pre {
    const char *name;
    const char *split; /* regular expression before the byte mapping; NULL: GPT-2's, which ByteLevel has built in */
    bool digits;       /* every digit alone first */
    bool ignore_merges, nfc, adds_bos;
} pres[] = {
    {"llama-bpe", SPLIT_HEAD "\\p{N}{1,3}" SPLIT_TAIL, false, true, false, true},
    {"llama3", SPLIT_HEAD "\\p{N}{1,3}" SPLIT_TAIL, false, true, false, true},
    {"llama-v3", SPLIT_HEAD "\\p{N}{1,3}" SPLIT_TAIL, false, true, false, true},
    {"qwen2", SPLIT_HEAD "\\p{N}" SPLIT_TAIL, false, false, true, false},
    {"smollm", NULL, true, false, false, false},
    {"gpt-2", NULL, false, false, false, false},
};

static const char *path_of(const struct gguf *g) { return g->map.path ? g->map.path : "GGUF"; }

static const struct pre *get_pre(const struct gguf *g, struct err *e)
{
    char *model = NULL, *name = NULL;
    const struct pre *found = NULL;
    if (gguf_get_str(g, "tokenizer.ggml.model", true, &model, e)) return NULL;
    if (strcmp(model, "gpt2")) {
        err_set(e, "%s: tokenizer model %s is not supported (gpt2, byte-level BPE, is)", path_of(g), model);
    } else if (gguf_get_str(g, "tokenizer.ggml.pre", true, &name, e) == 0) {
        for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
            if (!strcmp(pres[i].name, name)) found = &pres[i];
        if (!found)
            err_set(e, "%s: pre-tokenizer %s is not supported (llama-bpe, qwen2, smollm and gpt-2 are)", path_of(g),
                    name);
    }
    free(model);
    free(name);
    return found;
}

static json_t *byte_level(bool trim, bool regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", trim,
                     "use_regex", regex);
}

static json_t *pre_tokenizer(const struct pre *p)
{
    if (!p->split && !p->digits) return byte_level(true, true);
    json_t *first = p->digits ? json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1)
                              : json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", p->split,
                                          "behavior", "Isolated", "invert", 0);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", first, byte_level(true, p->digits));
}

/* ---- vocabulary ---- */

static int put_tokens(const struct gguf *g, json_t *vocab, json_t *added, struct err *e)
{
    size_t n, n_types;
    if (gguf_get_array(g, TOKENS, GGUF_STRINGS, true, &n, e) || gguf_get_array(g, TYPES, GGUF_INTS, true, &n_types, e))
        return -1;
    if (n != n_types || n == 0 || n > INT32_MAX)
        return err_set(e, "%s: %zu tokens and %zu token types (equal numbers were expected)", path_of(g), n, n_types);
    for (size_t i = 0; i < n; i++) {
        const char *s;
        size_t len;
        gguf_array_str(g, TOKENS, i, &s, &len);
        int64_t type = gguf_array_int(g, TYPES, i);
        if (type == TOKEN_UNUSED) continue; /* padding of the embedding: no text ever gives it */
        if (type != TOKEN_NORMAL && type != TOKEN_CONTROL && type != TOKEN_USER)
            return err_set(e, "%s: token %zu is of type %" PRId64 " (1, 3, 4 or 5 was expected in a gpt2 vocabulary)",
                           path_of(g), i, type);
        json_t *text = memchr(s, 0, len) || !len ? NULL : json_stringn(s, len); /* NULL also if not UTF-8 */
        if (!text) return err_set(e, "%s: token %zu is not a text in UTF-8", path_of(g), i);
        if (json_object_get(vocab, json_string_value(text))) {
            err_set(e, "%s: token %zu, %s, is there twice", path_of(g), i, json_string_value(text));
            json_decref(text);
            return -1;
        }
        json_put(vocab, json_string_value(text), json_integer((json_int_t)i));
        if (type == TOKEN_NORMAL) {
            json_decref(text);
            continue;
        }
        json_array_append_new(added, json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i, "content",
                                               text, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                               "special", type == TOKEN_CONTROL));
    }
    return 0;
}

static int put_merges(const struct gguf *g, json_t *merges, struct err *e)
{
    size_t n;
    if (gguf_get_array(g, MERGES, GGUF_STRINGS, true, &n, e)) return -1;
    for (size_t i = 0; i < n; i++) {
        const char *s;
        size_t len;
        gguf_array_str(g, MERGES, i, &s, &len);
        const char *space = memchr(s, ' ', len);
        bool ok = space && space > s && space + 1 < s + len && !memchr(space + 1, ' ', (size_t)(s + len - space) - 1) &&
                  !memchr(s, 0, len);
        json_t *text = ok ? json_stringn(s, len) : NULL;
        if (!text) return err_set(e, "%s: merge %zu is not two texts with one space between", path_of(g), i);
        json_array_append_new(merges, text);
    }
    return 0;
}

/* ---- special tokens ---- */

/* The text of the token whose id stands under key: NULL without an error if the key is missing. To be freed. */
static int special_text(const struct gguf *g, const char *key, char **text, int64_t *id, struct err *e)
{
    size_t n, len;
    const char *s;
    *text = NULL;
    if (gguf_get_int(g, key, false, -1, id, e) || gguf_get_array(g, TOKENS, GGUF_STRINGS, true, &n, e)) return -1;
    if (*id == -1) return 0;
    if (*id < 0 || *id >= (int64_t)n)
        return err_set(e, "%s: %s is %" PRId64 " (there are %zu tokens)", path_of(g), key, *id, n);
    gguf_array_str(g, TOKENS, (size_t)*id, &s, &len);
    json_t *utf8 = len && !memchr(s, 0, len) ? json_stringn(s, len) : NULL;
    json_decref(utf8);
    if (!utf8) return err_set(e, "%s: token %" PRId64 " is not a text in UTF-8", path_of(g), *id);
    *text = mem_strndup(s, len);
    return 0;
}

static json_t *part(const char *kind, const char *id, int type)
{
    return json_pack("{s:{s:s, s:i}}", kind, "id", id, "type_id", type);
}

/* What encode() adds around a text: BOS before, EOS behind, as the metadata or the kind's default says. */
static json_t *post_processor(const struct gguf *g, const struct pre *p, struct err *e)
{
    bool add[2];
    static const char *const keys[2] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"};
    if (gguf_get_bool(g, "tokenizer.ggml.add_bos_token", false, p->adds_bos, &add[0], e) ||
        gguf_get_bool(g, "tokenizer.ggml.add_eos_token", false, false, &add[1], e))
        return NULL;
    if (!add[0] && !add[1]) return byte_level(false, false);
    json_t *single = json_array(), *pair = json_array(), *specials = json_object();
    json_array_append_new(single, part("Sequence", "A", 0));
    json_array_append_new(pair, part("Sequence", "A", 0));
    json_array_append_new(pair, part("Sequence", "B", 1));
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        int64_t id;
        if (!add[i]) continue;
        if (special_text(g, keys[i], &text, &id, e) ||
            (!text && err_set(e, "%s: %s is missing (the tokenizer adds that token)", path_of(g), keys[i]))) {
            json_decref(single);
            json_decref(pair);
            json_decref(specials);
            return NULL;
        }
        json_array_insert_new(single, i ? json_array_size(single) : 0, part("SpecialToken", text, 0));
        json_array_insert_new(pair, i ? json_array_size(pair) - 1 : 0, part("SpecialToken", text, 0));
        json_array_insert_new(pair, i ? json_array_size(pair) : json_array_size(pair) - 1,
                              part("SpecialToken", text, 1));
        json_put(specials, text, json_pack("{s:s, s:[I], s:[s]}", "id", text, "ids", (json_int_t)id, "tokens", text));
        free(text);
    }
    json_t *plate = json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair", pair,
                              "special_tokens", specials);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "processors", byte_level(false, false), plate);
}

json_t *gguf_tokenizer_json(const struct gguf *g, struct err *e)
{
    const struct pre *p = get_pre(g, e);
    json_t *post = p ? post_processor(g, p, e) : NULL;
    if (!post) return NULL;
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array();
    int rc = put_tokens(g, vocab, added, e);
    if (rc == 0) rc = put_merges(g, merges, e);
    json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                              "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                              "byte_fallback", 0, "ignore_merges", p->ignore_merges, "vocab", vocab, "merges", merges);
    json_t *normalizer = p->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    json_t *t = json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                          "added_tokens", added, "normalizer", normalizer, "pre_tokenizer", pre_tokenizer(p),
                          "post_processor", post, "decoder", byte_level(true, true), "model", model);
    if (rc) {
        json_decref(t);
        return NULL;
    }
    return t;
}

json_t *gguf_tokenizer_config_json(const struct gguf *g, struct err *e)
{
    static const char *const keys[][2] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                          {"eos_token", "tokenizer.ggml.eos_token_id"},
                                          {"pad_token", "tokenizer.ggml.padding_token_id"}};
    json_t *c = json_object();
    int rc = 0;
    json_put(c, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    json_put(c, "clean_up_tokenization_spaces", json_false());
    for (size_t i = 0; i < sizeof keys / sizeof *keys && rc == 0; i++) {
        char *text;
        int64_t id;
        rc = special_text(g, keys[i][1], &text, &id, e);
        if (text) json_put(c, keys[i][0], json_string(text));
        free(text);
    }
    char *chat = NULL;
    if (rc == 0) rc = gguf_get_str(g, "tokenizer.chat_template", false, &chat, e);
    if (chat) json_put(c, "chat_template", json_string(chat));
    free(chat);
    if (rc) {
        json_decref(c);
        return NULL;
    }
    return c;
}
