/* Tokenizers against Hugging Face tokenizers: ids and decoded text of many small tokenizers (tok_small.json), of the
 * published ones where they are at hand (tok_vectors.json), files that must be refused, inputs of awkward length. */
#include "base/file.h"
#include "base/mem.h"
#include "golden.h"
#include "views/corpus.h"
#include "views/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct tokenizer *must_load(const json_t *json, const char *where)
{
    struct err e;
    struct tokenizer *t = tokenizer_new(json, NULL, where, &e);
    if (!t) fail_msg("%s", e.msg);
    return t;
}

static size_t encode(const struct tokenizer *t, const char *s, size_t n, bool special, int32_t **ids)
{
    struct err e;
    size_t k;
    if (tokenizer_encode(t, s, n, special, ids, &k, &e)) fail_msg("%s", e.msg);
    return k;
}

static void check_ids(const struct tokenizer *t, const char *name, const json_t *strings, const json_t *want,
                      bool special)
{
    size_t i;
    json_t *v;
    assert_int_equal(json_array_size(strings), json_array_size(want));
    json_array_foreach((json_t *)strings, i, v) {
        int32_t *ids;
        const json_t *w = json_array_get(want, i);
        size_t n = encode(t, json_string_value(v), json_string_length(v), special, &ids);
        bool same = n == json_array_size(w);
        for (size_t k = 0; k < n && same; k++) same = ids[k] == json_integer_value(json_array_get(w, k));
        if (!same) fail_msg("%s: string %zu \"%s\": other ids", name, i, json_string_value(v));
        free(ids);
    }
}

static void small_tokenizers(void **state)
{
    (void)state;
    json_t *doc = golden_load("tok_small.json"), *strings = golden_get(doc, "strings"), *set;
    size_t i, n_sets = 0;
    json_array_foreach(golden_get(doc, "sets"), i, set) {
        const char *name = json_string_value(golden_get(set, "name"));
        struct tokenizer *t = must_load(golden_get(set, "tokenizer"), name);
        json_t *ids = golden_get(set, "ids"), *decoded = golden_get(set, "decoded"), *s;
        size_t k;
        assert_int_equal(tokenizer_vocab_size(t), json_integer_value(golden_get(set, "vocab_size")));
        check_ids(t, name, strings, ids, true);
        json_array_foreach(strings, k, s) {
            const json_t *row = json_array_get(ids, k), *other;
            char key[24];
            snprintf(key, sizeof key, "%zu", k);
            other = json_object_get(decoded, key) ? json_object_get(decoded, key) : s;
            int32_t *in = mem_new(json_array_size(row), sizeof *in);
            for (size_t q = 0; q < json_array_size(row); q++)
                in[q] = (int32_t)json_integer_value(json_array_get(row, q));
            size_t n;
            char *text = tokenizer_decode(t, in, json_array_size(row), true, &n);
            if (n != json_string_length(other) || memcmp(text, json_string_value(other), n))
                fail_msg("%s: string %zu is decoded as \"%s\", not \"%s\"", name, k, text, json_string_value(other));
            free(text);
            free(in);
        }
        tokenizer_free(t);
        n_sets++;
    }
    assert_int_equal(n_sets, 21);
    json_decref(doc);
}

/* ---- published tokenizers ---- */

static json_t *read_xz(const char *path)
{
    struct err e;
    char *cmd = mem_printf("xz -dc '%s'", path), *buf = mem_new(64 << 20, 1);
    FILE *f = popen(cmd, "r");
    assert_non_null(f);
    size_t n = fread(buf, 1, 64 << 20, f);
    assert_int_equal(pclose(f), 0);
    json_t *v = json_parse(path, buf, n, &e);
    if (!v) fail_msg("%s", e.msg);
    free(buf);
    free(cmd);
    return v;
}

static struct tokenizer *load_shared(const char *name)
{
    char *rel = mem_printf("tokenizers/%s/tokenizer.json.xz", name);
    char *config_rel = mem_printf("tokenizers/%s/tokenizer_config.json", name);
    char *path = test_shared(rel, name), *config_path = path ? test_shared(config_rel, name) : NULL;
    struct tokenizer *t = NULL;
    if (path) {
        struct err e;
        json_t *json = read_xz(path), *config = config_path ? json_read(config_path, 1 << 24, &e) : NULL;
        t = tokenizer_new(json, config, path, &e);
        if (!t) fail_msg("%s", e.msg);
        json_decref(json);
        json_decref(config);
    }
    free(path);
    free(config_path);
    free(rel);
    free(config_rel);
    return t;
}

static const json_t *vector_set(const json_t *doc, const char *name)
{
    size_t i;
    json_t *set;
    json_array_foreach(golden_get(doc, "sets"), i, set)
        if (!strcmp(json_string_value(golden_get(set, "name")), name)) return set;
    fail_msg("no set %s", name);
    return NULL;
}

static void check_count(const struct tokenizer *t, const struct corpus *c, size_t n, bool special, size_t want)
{
    int32_t *ids;
    assert_int_equal(encode(t, c->text, n, special, &ids), want);
    free(ids);
}

/* The counts of the reference's notes: whole WikiText-2 test text as a file and as rows, its first characters. */
static void check_wikitext(const struct tokenizer *t, size_t file, size_t rows, size_t chars2000, size_t chars500)
{
    char *path = test_shared("text/wiki.test.raw", "WikiText-2 token counts");
    if (!path) return;
    struct err e;
    struct corpus c;
    assert_int_equal(corpus_load(&c, path, TEXT_FILE, 0, NULL, &e), 0);
    check_count(t, &c, c.n_bytes - 1, true, file);
    corpus_free(&c);
    assert_int_equal(corpus_load(&c, path, TEXT_HF_ROWS, 0, NULL, &e), 0);
    check_count(t, &c, c.n_bytes, true, rows);
    corpus_free(&c);
    assert_int_equal(corpus_load(&c, path, TEXT_HF_ROWS, 2000, NULL, &e), 0);
    check_count(t, &c, c.n_bytes, true, chars2000);
    corpus_free(&c);
    assert_int_equal(corpus_load(&c, path, TEXT_HF_ROWS, 500, NULL, &e), 0);
    check_count(t, &c, c.n_bytes, true, chars500);
    corpus_free(&c);
    free(path);
}

static void published(const char *name, int64_t bos, size_t file, size_t rows, size_t chars2000, size_t chars500)
{
    json_t *doc = golden_load("tok_vectors.json");
    struct tokenizer *t = load_shared(name);
    if (!t) {
        json_decref(doc);
        skip();
    }
    const json_t *set = vector_set(doc, name);
    assert_int_equal(tokenizer_vocab_size(t), json_integer_value(golden_get(set, "vocab_with_added")));
    assert_int_equal(tokenizer_adds_bos(t), json_array_size(golden_get(set, "template_prefix")) == 1);
    assert_int_equal(tokenizer_bos(t), bos);
    assert_string_equal(tokenizer_type(t), "byte-level-bpe");
    check_ids(t, name, golden_get(doc, "strings"), golden_get(set, "ids"), false);
    check_wikitext(t, file, rows, chars2000, chars500);
    tokenizer_free(t);
    json_decref(doc);
}

static void llama_3(void **state)
{
    (void)state;
    published("llama-3.2", 128000, 289078, 289077, 479, 122);
}

static void qwen_2(void **state)
{
    (void)state;
    published("qwen2.5", -1, 299079, 299078, 510, 129);
}

/* SmolLM2 from the default model, a folder or a GGUF: with the step that sets digits apart, or, where transformers
 * rebuilt the file, without. */
static void smollm2(void **state)
{
    (void)state;
    const char *model = getenv("QLAB_MODEL");
    if (!model || !*model) {
        printf("# skipped: SmolLM2's ids (QLAB_MODEL is not set)\n");
        skip();
    }
    struct err e;
    struct tokenizer *t = tokenizer_of_model(model, &e);
    if (!t) fail_msg("%s", e.msg);
    json_t *doc = golden_load("tok_vectors.json");
    int32_t *ids;
    bool digits = encode(t, "  42", 4, false, &ids) == 3; /* "  ", "4", "2" */
    free(ids);
    const char *name = digits ? "smollm2+digits" : "smollm2";
    check_ids(t, name, golden_get(doc, "strings"), golden_get(vector_set(doc, name), "ids"), false);
    char *path = test_shared("text/wiki.test.raw", "WikiText-2 token counts");
    if (path) {
        struct corpus c;
        assert_int_equal(corpus_load(&c, path, TEXT_FILE, 0, NULL, &e), 0);
        check_count(t, &c, c.n_bytes - 1, true, 303415);
        corpus_free(&c);
    }
    free(path);
    json_decref(doc);
    tokenizer_free(t);
}

/* ---- invalid UTF-8, configuration ---- */

#define TINY(MODEL_MORE, MORE)                                                                                         \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<s>\":3,\"\xEF\xBF\xBD\":4}," MODEL_MORE       \
    "\"merges\":[\"a b\"]}" MORE "}"

static struct tokenizer *tiny(const char *json, const char *config)
{
    struct err e;
    json_t *j = json_parse("tiny", json, strlen(json), &e), *c = NULL;
    assert_non_null(j);
    if (config) c = json_parse("config", config, strlen(config), &e);
    struct tokenizer *t = tokenizer_new(j, c, "tiny", &e);
    if (!t) fail_msg("%s", e.msg);
    json_decref(j);
    json_decref(c);
    return t;
}

/* As Python's bytes.decode(errors="replace"): one U+FFFD for each maximal subpart. */
static void invalid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n, replaced;
    } v[] = {{"\x80", 1, 1},         {"\xC3", 1, 1},         {"\xE2\x82", 2, 1},         {"\xE2\x82" "a", 3, 1},
             {"\xF0\x9F\x98", 3, 1}, {"\xED\xA0\x80", 3, 3}, {"\xC0\xAF", 2, 2},         {"\xF4\x90\x80\x80", 4, 4},
             {"\xFF\xFE", 2, 2},     {"\xE0\x80\x80", 3, 3}, {"\xF1\x80\xE2\x80", 4, 2}, {"a\xF0\x9F" "b\xC3", 5, 2}};
    struct tokenizer *t = tiny(TINY("", ""), NULL);
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        int32_t *ids;
        size_t n = encode(t, v[i].bytes, v[i].n, false, &ids), bad = 0;
        for (size_t k = 0; k < n; k++) bad += ids[k] == 4;
        if (bad != v[i].replaced) fail_msg("case %zu: %zu replacements", i, bad);
        free(ids);
    }
    tokenizer_free(t);
}

#define TEMPLATE                                                                                                       \
    ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"            \
    "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[3]}}}"

#define CLASS(NAME, BOS, ADD)                                                                                          \
    "{\"tokenizer_class\":\"" NAME "\",\"bos_token\":" BOS ",\"add_bos_token\":" ADD "}"

static void bos_override(void **state)
{
    (void)state;
    static const struct {
        const char *json, *config;
        bool adds;
        int64_t bos;
    } v[] = {
        {TINY("", TEMPLATE), NULL, true, 3},
        {TINY("", TEMPLATE), CLASS("LlamaTokenizer", "\"<s>\"", "false"), false, 3},
        {TINY("", TEMPLATE), CLASS("PreTrainedTokenizerFast", "\"<s>\"", "false"), true, 3},
        {TINY("", ""), CLASS("LlamaTokenizer", "{\"content\":\"<s>\"}", "true"), true, 3},
        {TINY("", ""), "{\"bos_token\":null}", false, -1},
    };
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        struct tokenizer *t = tiny(v[i].json, v[i].config);
        int32_t *ids;
        size_t n = encode(t, "ab", 2, true, &ids);
        assert_int_equal(tokenizer_adds_bos(t), v[i].adds);
        assert_int_equal(tokenizer_bos(t), v[i].bos);
        assert_int_equal(n, 1 + v[i].adds);
        assert_int_equal(ids[0], v[i].adds ? 3 : 2);
        assert_int_equal(ids[n - 1], 2);
        free(ids);
        tokenizer_free(t);
    }
}

/* ---- refused ---- */

#define SPLIT(PATTERN, BEHAVIOR)                                                                                       \
    TINY("", ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":" PATTERN ",\"behavior\":\"" BEHAVIOR                \
             "\",\"invert\":false}")
#define SINGLE(PARTS) TINY("", ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" PARTS "]}")
#define NORM(TYPE) TINY("", ",\"normalizer\":{\"type\":\"" TYPE "\"}")

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *json, *says;
    } v[] = {
        {"[]", "an object was expected"},
        {"{}", "\"model\" is missing"},
        {"{\"model\":3}", "not an object"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "Unigram is not supported"},
        {"{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", "\"vocab\" is not"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", "\"merges\" is not"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999999},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"x\"},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":7,\"b\":7},\"merges\":[]}}", "two tokens have the id 7"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "needs \"b\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[[\"a\",\"b\"]]}}", "needs \"ab\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", "not \"LEFT RIGHT\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "neither"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[7]}}", "neither"},
        {TINY("\"dropout\":0.1,", ""), "\"dropout\""},
        {TINY("\"continuing_subword_prefix\":\"##\",", ""), "\"continuing_subword_prefix\""},
        {TINY("\"end_of_word_suffix\":\"</w>\",", ""), "\"end_of_word_suffix\""},
        {TINY("\"byte_fallback\":1,", ""), "\"byte_fallback\""},
        {TINY("", ",\"normalizer\":{\"type\":\"Lowercase\"}"), "normalizer Lowercase"},
        {NORM("Sequence\",\"normalizers\":[{\"type\":\"BertNormalizer\"}],\"\":\""), "BertNormalizer"},
        {TINY("", ",\"normalizer\":[]"), "\"type\""},
        {TINY("", ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}"), "BertPreTokenizer"},
        {SPLIT("{\"Regex\":\"(\"}", "Isolated"), "not valid"},
        {SPLIT("{\"Regex\":\"\\\\w\"}", "Isolated"), "\\w"},
        {SPLIT("{\"Regex\":\"[a&&b]\"}", "Isolated"), "intersection"},
        {SPLIT("{\"Regex\":\"a\"}", "Sideways"), "Sideways"},
        {SPLIT("7", "Isolated"), "\"pattern\""},
        {TINY("", ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}"), "one character"},
        {TINY("", ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"x\"}"),
         "prepend_scheme"},
        {TINY("", ",\"post_processor\":{\"type\":\"BertProcessing\"}"), "BertProcessing"},
        {SINGLE("{\"Sequence\":{\"id\":\"B\"}}"), "Sequence A"},
        {SINGLE("{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                "\"special_tokens\":{\"x\":{\"ids\":[99]}},\"\":["),
         "no token's"},
        {TINY("", ",\"decoder\":{\"type\":\"WordPiece\"}"), "WordPiece"},
        {TINY("", ",\"added_tokens\":3"), "\"added_tokens\""},
        {TINY("", ",\"added_tokens\":[{\"content\":\"x\"}]"), "\"id\""},
        {TINY("", ",\"added_tokens\":[{\"id\":9,\"content\":\"x\"}]"), "next free id, 5"},
        {TINY("", ",\"added_tokens\":[{\"id\":1,\"content\":\"a\"}]"), "but 0 in"},
        {TINY("", ",\"added_tokens\":[{\"id\":0,\"content\":\"a\"},{\"id\":0,\"content\":\"a\"}]"), "twice"},
    };
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) {
        struct err e = {""};
        json_t *j = json_parse("bad", v[i].json, strlen(v[i].json), &e);
        if (!j) fail_msg("case %zu: %s", i, e.msg);
        struct tokenizer *t = tokenizer_new(j, NULL, "dir/tokenizer.json", &e);
        if (t) fail_msg("case %zu was taken: %s", i, v[i].json);
        if (strncmp(e.msg, "dir/tokenizer.json: ", 20) || !strstr(e.msg, v[i].says) || strchr(e.msg, '\n'))
            fail_msg("case %zu: \"%s\" does not say %s", i, e.msg, v[i].says);
        json_decref(j);
    }
}

static void missing_file(void **state)
{
    (void)state;
    struct err e;
    const char *dir = test_tmp("model");
    char *config = path_join(dir, "config.json");
    test_write(config, "{}", 2);
    assert_null(tokenizer_of_model(dir, &e));
    assert_non_null(strstr(e.msg, "model/tokenizer.json: missing"));
    char *path = path_join(dir, "tokenizer.json");
    test_write(path, "{\"model\":", 9);
    assert_null(tokenizer_of_model(dir, &e));
    assert_non_null(strstr(e.msg, "not valid JSON"));
    test_write(path, TINY("", ""), strlen(TINY("", "")));
    struct tokenizer *t = tokenizer_of_model(dir, &e);
    assert_non_null(t);
    tokenizer_free(t);
    free(config);
    free(path);
}

/* An unknown character without a usable "unk_token" fails only where it occurs. */
static void unknown_token(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t = tiny(TINY("\"unk_token\":\"<none>\",", ""), NULL);
    int32_t *ids;
    size_t n;
    assert_int_equal(encode(t, "abba", 4, false, &ids), 3);
    free(ids);
    assert_int_equal(tokenizer_encode(t, "abc", 3, false, &ids, &n, &e), -1);
    assert_non_null(strstr(e.msg, "<none>"));
    assert_null(ids);
    tokenizer_free(t);
}

/* A pattern that backtracks without end is stopped with an error. */
static void expensive_pattern(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t = tiny(SPLIT("{\"Regex\":\"(?:(?:a|aa)+)+[cd]\"}", "Isolated"), NULL);
    char s[61];
    memset(s, 'a', sizeof s);
    int32_t *ids;
    size_t n;
    assert_int_equal(tokenizer_encode(t, s, sizeof s, false, &ids, &n, &e), -1);
    assert_non_null(strstr(e.msg, "regular expression failed"));
    tokenizer_free(t);
}

/* ---- long inputs: quadratic work would take hours here ---- */

static void long_inputs(void **state)
{
    (void)state;
    static const struct {
        const char *unit;
        size_t times;
    } v[] = {{"a", 1000000},     {" ", 1000000},  {"\n", 1000000},                {"ab", 500000},
             {"!", 1000000},     {" x", 300000},  {"\xCC\x81\xCC\x96", 200000}, {"<", 500000},
             {"\r\n ", 300000}, {"\xE2\x96\x81", 300000}};
    json_t *doc = golden_load("tok_small.json"), *set;
    size_t i;
    json_array_foreach(golden_get(doc, "sets"), i, set) {
        const char *name = json_string_value(golden_get(set, "name"));
        if (strcmp(name, "llama-2") && strcmp(name, "llama-3") && strcmp(name, "qwen2") && strcmp(name, "digits"))
            continue;
        struct tokenizer *t = must_load(golden_get(set, "tokenizer"), name);
        for (size_t k = 0; k < sizeof v / sizeof v[0]; k++) {
            size_t u = strlen(v[k].unit), n = u * v[k].times, back;
            char *s = mem_new(n + 1, 1);
            for (size_t q = 0; q < n; q++) s[q] = v[k].unit[q % u];
            int32_t *ids;
            size_t count = encode(t, s, n, false, &ids);
            char *text = tokenizer_decode(t, ids, count, false, &back);
            /* What was put in comes out, save for normalization and the spaces that U+2581 stands for. */
            if (v[k].unit[0] != '\xCC' && v[k].unit[0] != '\xE2' && (back != n || memcmp(text, s, n)))
                fail_msg("%s: %zu times \"%s\" does not come back", name, v[k].times, v[k].unit);
            free(text);
            free(ids);
            free(s);
        }
        tokenizer_free(t);
    }
    json_decref(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_tokenizers),  cmocka_unit_test(llama_3),      cmocka_unit_test(qwen_2),
        cmocka_unit_test(smollm2),           cmocka_unit_test(invalid_utf8), cmocka_unit_test(bos_override),
        cmocka_unit_test(refused),           cmocka_unit_test(missing_file), cmocka_unit_test(unknown_token),
        cmocka_unit_test(expensive_pattern), cmocka_unit_test(long_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
