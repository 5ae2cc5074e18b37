#include "views/tokenizer.h"

#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ADDED_BYTES 4096

/* ---- added tokens ---- */

static int32_t find_added(const struct tokenizer *t, const char *s, size_t n)
{
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].n == n && !memcmp(t->added[i].content, s, n)) return t->added[i].id;
    return -1;
}

/* The id of a token: added ones first, as token_to_id has it. */
static int32_t find_token(const struct tokenizer *t, const char *s, size_t n)
{
    int32_t id = find_added(t, s, n);
    return id >= 0 ? id : tok_vocab_find(&t->bpe.vocab, s, n);
}

static int load_added(struct tokenizer *t, const json_t *list, struct err *e)
{
    if (!list || json_is_null(list)) return 0;
    if (!json_is_array(list)) return err_set(e, "\"added_tokens\" is not an array");
    size_t n = json_array_size(list);
    if (n > TOK_MAX_ID) return err_set(e, "\"added_tokens\" has %zu entries", n);
    t->added = mem_new(n, sizeof *t->added);
    int64_t next_id = (int64_t)t->bpe.vocab.n_str;
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(list, i);
        const char *s;
        size_t len;
        int64_t id;
        struct tok_added a = {0};
        if (tok_json_str(j, "content", &s, &len, e) || json_get_int(j, "id", true, 0, TOK_MAX_ID, 0, &id, e) ||
            json_get_bool(j, "special", false, false, &a.special, e) ||
            json_get_bool(j, "normalized", false, !a.special, &a.normalized, e) ||
            json_get_bool(j, "lstrip", false, false, &a.lstrip, e) ||
            json_get_bool(j, "rstrip", false, false, &a.rstrip, e) ||
            json_get_bool(j, "single_word", false, false, &a.single_word, e))
            return err_prefix(e, "\"added_tokens\": number %zu", i);
        if (!len) continue; /* ignored by the reference too */
        if (len > MAX_ADDED_BYTES)
            return err_set(e, "\"added_tokens\": number %zu has %zu bytes (%d at most were expected)", i, len,
                           MAX_ADDED_BYTES);
        int32_t in_vocab = tok_vocab_find(&t->bpe.vocab, s, len);
        if (in_vocab >= 0 && in_vocab != id)
            return err_set(e, "\"added_tokens\": \"%.64s\" has id %lld, but %d in \"vocab\"", s, (long long)id,
                           in_vocab);
        /* The reference numbers the others itself, in order, whatever the file says. */
        if (in_vocab < 0 && id != next_id)
            return err_set(e, "\"added_tokens\": \"%.64s\" has id %lld (the next free id, %lld, was expected)", s,
                           (long long)id, (long long)next_id);
        if (in_vocab < 0) next_id++;
        a.content = mem_new(len + 1, 1);
        memcpy(a.content, s, len);
        a.n = len;
        a.id = (int32_t)id;
        t->added[t->n_added++] = a;
    }
    return 0;
}

/* What each added token is searched as, and the two tries. */
static int index_added(struct tokenizer *t, struct err *e)
{
    struct tok_match *m = tok_match_new();
    int rc = 0;
    for (size_t i = 0; i < t->n_added && !rc; i++) {
        struct tok_added *a = &t->added[i];
        struct tok_buf b = {0};
        size_t n0 = 0;
        if (a->normalized && (rc = tok_normalize(&t->norms, m, a->content, a->n, &n0, &b, e))) {
            free(b.p);
            break;
        }
        if (!a->normalized) tok_buf_put(&b, a->content, a->n);
        tok_buf_put(&b, "", 1);
        a->pattern = b.p;
        a->n_pattern = b.n - 1;
        tok_trie_add(a->normalized ? &t->normalized : &t->raw, a->pattern, a->n_pattern, (int32_t)i);
    }
    tok_match_free(m);
    return rc;
}

/* ---- what decoding writes, by id ---- */

static int cmp_str(const void *a, const void *b)
{
    const struct tok_added *x = *(const struct tok_added *const *)a, *y = *(const struct tok_added *const *)b;
    int c = memcmp(x->content, y->content, x->n < y->n ? x->n : y->n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

static int index_pieces(struct tokenizer *t, struct err *e)
{
    const struct tok_vocab *v = &t->bpe.vocab;
    int32_t top = -1;
    for (size_t i = 0; i < v->n_str; i++)
        if (v->str[i].id > top) top = v->str[i].id;
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].id > top) top = t->added[i].id;
    t->n_piece = (size_t)(top + 1);
    t->piece = mem_new(t->n_piece, sizeof *t->piece);
    for (size_t i = 0; i < v->n_str; i++) {
        struct tok_piece *p = &t->piece[v->str[i].id];
        if (p->s) return err_set(e, "\"vocab\": two tokens have the id %d", v->str[i].id);
        *p = (struct tok_piece){.s = v->pool + v->str[i].at, .n = v->str[i].n};
    }
    t->n_vocab = (int64_t)v->n_str;

    /* Added tokens must agree with the vocabulary and among themselves. */
    const struct tok_added **by = mem_new(t->n_added, sizeof *by);
    int rc = 0;
    for (size_t i = 0; i < t->n_added; i++) by[i] = &t->added[i];
    qsort(by, t->n_added, sizeof *by, cmp_str);
    for (size_t i = 0; i + 1 < t->n_added && !rc; i++)
        if (!cmp_str(&by[i], &by[i + 1])) rc = err_set(e, "\"added_tokens\": \"%.64s\" is there twice", by[i]->content);
    free(by);
    for (size_t i = 0; i < t->n_added && !rc; i++) {
        const struct tok_added *a = &t->added[i];
        struct tok_piece *p = &t->piece[a->id];
        if (p->s && (p->n != a->n || memcmp(p->s, a->content, a->n)))
            rc = err_set(e, "\"added_tokens\": \"%.64s\" has the id %d of another token", a->content, a->id);
        if (!p->s) t->n_vocab++;
        /* Special is what reads like a special token, as decoding in the reference has it. */
        bool same = a->n_pattern == a->n && !memcmp(a->pattern, a->content, a->n);
        *p = (struct tok_piece){.s = a->pattern, .n = (uint32_t)a->n_pattern, .special = a->special && same};
    }
    return rc;
}

/* ---- post-processor ---- */

static void put_front(int32_t **v, size_t *n, int32_t id)
{
    *v = mem_grow(*v, *n + 1, sizeof **v);
    memmove(*v + 1, *v, *n * sizeof **v);
    (*v)[0] = id;
    ++*n;
}

static void put_back(int32_t **v, size_t *n, int32_t id)
{
    *v = mem_grow(*v, *n + 1, sizeof **v);
    (*v)[(*n)++] = id;
}

/* "single" of TemplateProcessing: special tokens around one Sequence A. */
static int load_template(struct tokenizer *t, const json_t *j, struct err *e)
{
    const json_t *single = json_object_get(j, "single"), *special = json_object_get(j, "special_tokens");
    struct tok_ids head = {0}, tail = {0};
    bool seen = false;
    int rc = 0;
    if (!json_is_array(single)) return err_set(e, "\"single\" is not an array");
    for (size_t i = 0; i < json_array_size(single) && !rc; i++) {
        const json_t *p = json_array_get(single, i), *seq = json_object_get(p, "Sequence"),
                     *tok = json_object_get(p, "SpecialToken");
        const char *id = json_string_value(json_object_get(seq ? seq : tok, "id"));
        if (!id) rc = err_set(e, "\"single\" has a part that is neither Sequence nor SpecialToken");
        else if (seq && (strcmp(id, "A") || seen)) rc = err_set(e, "\"single\" does not have Sequence A once");
        else if (seq) seen = true;
        else {
            const json_t *ids = json_object_get(json_object_get(special, id), "ids");
            if (!json_is_array(ids)) rc = err_set(e, "the special token \"%.64s\" has no \"ids\"", id);
            for (size_t k = 0; k < json_array_size(ids) && !rc; k++) {
                const json_t *v = json_array_get(ids, k);
                json_int_t x = json_integer_value(v);
                if (!json_is_integer(v) || x < 0 || x >= (json_int_t)t->n_piece || !t->piece[x].s)
                    rc = err_set(e, "the special token \"%.64s\" has an id that is no token's", id);
                else tok_ids_put(seen ? &tail : &head, (int32_t)x);
            }
        }
    }
    if (!rc && !seen) rc = err_set(e, "\"single\" does not have Sequence A once");
    /* A later processor of a Sequence works around what the earlier ones made. */
    for (size_t i = head.n; i > 0 && !rc; i--) put_front(&t->prefix, &t->n_prefix, head.p[i - 1]);
    for (size_t i = 0; i < tail.n && !rc; i++) put_back(&t->suffix, &t->n_suffix, tail.p[i]);
    free(head.p);
    free(tail.p);
    return rc;
}

static int load_post(struct tokenizer *t, const json_t *j, int depth, struct err *e)
{
    if (!j || json_is_null(j)) return 0;
    const char *type = tok_json_type(j, "a post-processor", e);
    if (!type) return -1;
    if (!strcmp(type, "ByteLevel")) return 0; /* about offsets only */
    if (!strcmp(type, "TemplateProcessing")) return load_template(t, j, e);
    if (strcmp(type, "Sequence"))
        return err_set(e, "the post-processor %.64s is not supported (TemplateProcessing, ByteLevel or a Sequence of "
                          "them was expected)", type);
    const json_t *v = json_object_get(j, "processors");
    if (!json_is_array(v)) return err_set(e, "\"processors\" is not an array");
    if (depth >= 8) return err_set(e, "post-processors are nested too deeply");
    for (size_t i = 0; i < json_array_size(v); i++)
        if (load_post(t, json_array_get(v, i), depth + 1, e)) return -1;
    return 0;
}

/* ---- tokenizer_config.json ---- */

/* "bos_token": a string, or an added token with its "content". */
static int64_t config_token(const struct tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    return json_is_string(v) ? find_token(t, json_string_value(v), json_string_length(v)) : -1;
}

/* add_bos_token counts for the classes that build their own template (Llama's, Qwen2's …); the generic classes take
 * tokenizer.json's template as it is. */
static void apply_config(struct tokenizer *t, const json_t *config)
{
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    const json_t *add = json_object_get(config, "add_bos_token");
    t->bos = config_token(t, config, "bos_token");
    t->eos = config_token(t, config, "eos_token");
    if (class && strcmp(class, "PreTrainedTokenizerFast") && strcmp(class, "TokenizersBackend") && t->bos >= 0) {
        bool has = t->n_prefix && t->prefix[0] == t->bos;
        if (json_is_true(add) && !has) put_front(&t->prefix, &t->n_prefix, (int32_t)t->bos);
        if (json_is_false(add) && has) memmove(t->prefix, t->prefix + 1, --t->n_prefix * sizeof *t->prefix);
    }
    if (t->bos < 0 && t->n_prefix) t->bos = t->prefix[0];
}

/* ---- loading ---- */

static int load(struct tokenizer *t, const json_t *json, const json_t *config, struct err *e)
{
    if (!json_is_object(json)) return err_set(e, "not a tokenizer.json (an object was expected)");
    if (!json_object_get(json, "model")) return err_set(e, "not a tokenizer.json (\"model\" is missing)");
    if (tok_bpe_load(&t->bpe, json_object_get(json, "model"), e)) return err_prefix(e, "\"model\"");
    if (tok_norms_load(&t->norms, json_object_get(json, "normalizer"), e)) return err_prefix(e, "\"normalizer\"");
    if (tok_steps_load(&t->steps, json_object_get(json, "pre_tokenizer"), e)) return err_prefix(e, "\"pre_tokenizer\"");
    if (tok_decs_load(&t->decs, json_object_get(json, "decoder"), e)) return err_prefix(e, "\"decoder\"");
    if (load_added(t, json_object_get(json, "added_tokens"), e) || index_added(t, e) || index_pieces(t, e)) return -1;
    if (load_post(t, json_object_get(json, "post_processor"), 0, e)) return err_prefix(e, "\"post_processor\"");
    apply_config(t, config);
    return 0;
}

struct tokenizer *tokenizer_new(const json_t *json, const json_t *config, const char *where, struct err *e)
{
    struct tokenizer *t = mem_new(1, sizeof *t);
    if (!load(t, json, config, e)) return t;
    err_prefix(e, "%s", where);
    tokenizer_free(t);
    return NULL;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t) return;
    tok_bpe_free(&t->bpe);
    tok_norms_free(&t->norms);
    tok_steps_free(&t->steps);
    tok_decs_free(&t->decs);
    for (size_t i = 0; i < t->n_added; i++) {
        free(t->added[i].content);
        free(t->added[i].pattern);
    }
    free(t->added);
    free(t->raw.v);
    free(t->normalized.v);
    free(t->prefix);
    free(t->suffix);
    free(t->piece);
    free(t);
}
