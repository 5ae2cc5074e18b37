/* Byte pair encoding: of all adjacent pairs that have a merge the one of lowest rank is joined, the leftmost first
 * among equals, until none is left. A heap of candidates keeps it at O(n log n); a candidate is stale when the pair at
 * its place has become another. */
#include "base/hash.h"
#include "base/mem.h"
#include "views/tok.h"
#include "views/utf8.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tok_symbol {
    int32_t id; /* −1: joined to the symbol on its left */
    int32_t prev, next;
};

struct tok_cand {
    uint64_t key; /* rank << 32 | position: the order in which they are taken */
    int32_t id;   /* what the pair becomes */
};

/* ---- vocabulary ---- */

static size_t slots_for(size_t n)
{
    size_t k = 16;
    while (k < n * 2) k *= 2;
    return k;
}

int32_t tok_vocab_find(const struct tok_vocab *v, const char *s, size_t n)
{
    if (!v->n_slot) return -1;
    for (size_t i = fnv1a(s, n) & (v->n_slot - 1); v->slot[i]; i = (i + 1) & (v->n_slot - 1)) {
        const struct tok_str *t = &v->str[v->slot[i] - 1];
        if (t->n == n && !memcmp(v->pool + t->at, s, n)) return t->id;
    }
    return -1;
}

static int load_vocab(struct tok_vocab *v, const json_t *vocab, struct err *e)
{
    const char *key;
    json_t *value;
    size_t bytes = 0, at = 0;
    if (!json_is_object(vocab)) return err_set(e, "\"vocab\" is not an object of token: id");
    json_object_foreach((json_t *)vocab, key, value) bytes += strlen(key);
    size_t n = json_object_size(vocab);
    if (n > TOK_MAX_ID) return err_set(e, "\"vocab\" has %zu tokens (%d at most were expected)", n, TOK_MAX_ID);
    v->str = mem_new(n, sizeof *v->str);
    v->pool = mem_new(bytes + 1, 1);
    v->n_slot = slots_for(n);
    v->slot = mem_new(v->n_slot, sizeof *v->slot);
    json_object_foreach((json_t *)vocab, key, value) {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > TOK_MAX_ID)
            return err_set(e, "\"vocab\": the id of \"%.64s\" is not an integer from 0 to %d", key, TOK_MAX_ID);
        size_t len = strlen(key);
        memcpy(v->pool + at, key, len);
        v->str[v->n_str] = (struct tok_str){.at = at, .n = (uint32_t)len, .id = (int32_t)id};
        at += len;
        size_t i = fnv1a(key, len) & (v->n_slot - 1);
        while (v->slot[i]) i = (i + 1) & (v->n_slot - 1);
        v->slot[i] = (uint32_t)++v->n_str;
    }
    return 0;
}

/* ---- merges ---- */

static size_t pair_slot(const struct tok_bpe *b, int32_t x, int32_t y)
{
    uint64_t h = ((uint64_t)(uint32_t)x << 32 | (uint32_t)y) * 0x9E3779B97F4A7C15u;
    size_t i = (size_t)(h >> 32) & (b->n_merge_slot - 1);
    while (b->merge[i].rank != UINT32_MAX && (b->merge[i].a != x || b->merge[i].b != y))
        i = (i + 1) & (b->n_merge_slot - 1);
    return i;
}

static const struct tok_merge *find_merge(const struct tok_bpe *b, int32_t x, int32_t y)
{
    const struct tok_merge *m = &b->merge[pair_slot(b, x, y)];
    return m->rank == UINT32_MAX ? NULL : m;
}

/* ["a b", …] or [["a", "b"], …] */
static int merge_parts(const json_t *m, size_t i, const char *part[2], size_t len[2], struct err *e)
{
    if (json_is_string(m)) {
        const char *s = json_string_value(m), *gap = strchr(s, ' ');
        size_t n = json_string_length(m);
        if (!gap || strlen(s) != n || strchr(gap + 1, ' '))
            return err_set(e, "\"merges\": number %zu is not \"LEFT RIGHT\"", i);
        part[0] = s;
        len[0] = (size_t)(gap - s);
        part[1] = gap + 1;
        len[1] = n - len[0] - 1;
        return 0;
    }
    if (!json_is_array(m) || json_array_size(m) != 2 || !json_is_string(json_array_get(m, 0)) ||
        !json_is_string(json_array_get(m, 1)))
        return err_set(e, "\"merges\": number %zu is neither \"LEFT RIGHT\" nor [\"LEFT\", \"RIGHT\"]", i);
    for (size_t k = 0; k < 2; k++) {
        part[k] = json_string_value(json_array_get(m, k));
        len[k] = json_string_length(json_array_get(m, k));
    }
    return 0;
}

static int load_merges(struct tok_bpe *b, const json_t *merges, struct err *e)
{
    if (!json_is_array(merges)) return err_set(e, "\"merges\" is not an array");
    size_t n = json_array_size(merges);
    if (n > (1u << 26)) return err_set(e, "\"merges\" has %zu entries (%u at most were expected)", n, 1u << 26);
    b->n_merge_slot = slots_for(n);
    b->merge = mem_array(b->n_merge_slot, sizeof *b->merge);
    for (size_t i = 0; i < b->n_merge_slot; i++) b->merge[i] = (struct tok_merge){.rank = UINT32_MAX};
    struct tok_buf joined = {0};
    uint32_t rank = 0;
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const json_t *m = json_array_get(merges, i);
        const char *part[2];
        size_t len[2];
        /* The old form may carry the first line of a merges.txt. */
        if (json_is_string(m) && !strncmp(json_string_value(m), "#version", 8)) continue;
        if ((rc = merge_parts(m, i, part, len, e))) break;
        int32_t x = tok_vocab_find(&b->vocab, part[0], len[0]), y = tok_vocab_find(&b->vocab, part[1], len[1]);
        joined.n = 0;
        tok_buf_put(&joined, part[0], len[0]);
        tok_buf_put(&joined, part[1], len[1]);
        int32_t id = tok_vocab_find(&b->vocab, joined.p, joined.n);
        if (x < 0 || y < 0 || id < 0) {
            int k = x < 0 ? 0 : y < 0 ? 1 : 2;
            rc = err_set(e, "\"merges\": number %zu needs \"%.*s\", which is not in \"vocab\"", i,
                         (int)(k == 2 ? joined.n < 64 ? joined.n : 64 : len[k] < 64 ? len[k] : 64),
                         k == 2 ? joined.p : part[k]);
            break;
        }
        struct tok_merge *slot = &b->merge[pair_slot(b, x, y)]; /* of two equal ones the later counts */
        *slot = (struct tok_merge){.a = x, .b = y, .id = id, .rank = rank};
        rank++;
    }
    free(joined.p);
    return rc;
}

/* ---- model ---- */

int tok_bpe_load(struct tok_bpe *b, const json_t *model, struct err *e)
{
    static const char *const empty_only[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *s;
    double dropout;
    if (!json_is_object(model)) return err_set(e, "it is not an object");
    if (json_get_str(model, "type", false, "BPE", &s, e)) return -1;
    if (strcmp(s, "BPE")) return err_set(e, "the model type %.64s is not supported (BPE was expected)", s);
    if (json_get_num(model, "dropout", false, 0, &dropout, e)) return -1;
    if (dropout != 0) return err_set(e, "\"dropout\" is not supported (null was expected)");
    for (size_t i = 0; i < 2; i++) {
        if (json_get_str(model, empty_only[i], false, "", &s, e)) return -1;
        if (*s) return err_set(e, "\"%s\" is not supported (null or \"\" was expected)", empty_only[i]);
    }
    if (json_get_bool(model, "byte_fallback", false, false, &b->byte_fallback, e) ||
        json_get_bool(model, "fuse_unk", false, false, &b->fuse_unk, e) ||
        json_get_bool(model, "ignore_merges", false, false, &b->ignore_merges, e) ||
        json_get_str(model, "unk_token", false, NULL, &s, e))
        return -1;
    b->has_unk = s != NULL;
    b->unk = s ? mem_strdup(s) : NULL;
    if (load_vocab(&b->vocab, json_object_get(model, "vocab"), e) ||
        load_merges(b, json_object_get(model, "merges"), e))
        return -1;
    b->unk_id = b->unk ? tok_vocab_find(&b->vocab, b->unk, strlen(b->unk)) : -1;
    char t[16];
    for (int i = 0; i < 256; i++) {
        snprintf(t, sizeof t, "<0x%02X>", i);
        b->byte_id[i] = tok_vocab_find(&b->vocab, t, 6);
    }
    for (int32_t c = 0; c < 1024; c++) b->char_id[c] = tok_vocab_find(&b->vocab, t, utf8_put(c, t));
    return 0;
}

void tok_bpe_free(struct tok_bpe *b)
{
    free(b->vocab.pool);
    free(b->vocab.str);
    free(b->vocab.slot);
    free(b->merge);
    free(b->unk);
    memset(b, 0, sizeof *b);
}

void tok_bpe_work_free(struct tok_bpe_work *w)
{
    free(w->sym);
    free(w->heap);
    memset(w, 0, sizeof *w);
}

/* ---- encoding ---- */

static void add_symbol(struct tok_bpe_work *w, size_t *n, int32_t id)
{
    w->sym[*n] = (struct tok_symbol){.id = id, .prev = (int32_t)*n - 1, .next = (int32_t)*n + 1};
    ++*n;
}

/* The first symbols: characters, or their bytes, or unknown. Returns 0, or −1 for an unknown that has no id. An
 * unknown that waits to be fused is written before the next known character, but after byte tokens in between, as the
 * reference does it. */
static int first_symbols(const struct tok_bpe *b, struct tok_bpe_work *w, const char *s, size_t n, size_t *n_sym)
{
    size_t k = 0, len;
    bool unk = false;
    for (size_t i = 0; i < n; i += len) {
        int32_t c = utf8_next(s + i, n - i, &len);
        int32_t id = c >= 0 && c < 1024 ? b->char_id[c] : tok_vocab_find(&b->vocab, s + i, len);
        if (id >= 0) {
            if (unk) add_symbol(w, &k, b->unk_id);
            unk = false;
            add_symbol(w, &k, id);
            continue;
        }
        bool bytes = b->byte_fallback;
        for (size_t j = 0; j < len && bytes; j++) bytes = b->byte_id[(uint8_t)s[i + j]] >= 0;
        if (bytes) {
            for (size_t j = 0; j < len; j++) add_symbol(w, &k, b->byte_id[(uint8_t)s[i + j]]);
            continue;
        }
        if (!b->has_unk) continue; /* dropped, as the reference does */
        if (b->unk_id < 0) return -1;
        if (unk && !b->fuse_unk) add_symbol(w, &k, b->unk_id);
        unk = true;
    }
    if (unk) add_symbol(w, &k, b->unk_id);
    if (k) w->sym[k - 1].next = -1;
    *n_sym = k;
    return 0;
}

static void sift_down(struct tok_cand *h, size_t n, size_t i)
{
    struct tok_cand c = h[i];
    for (size_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && h[k + 1].key < h[k].key) k++;
        if (h[k].key >= c.key) break;
        h[i] = h[k];
    }
    h[i] = c;
}

static void heap_push(struct tok_bpe_work *w, struct tok_cand c)
{
    if (w->n_heap == w->cap_heap) {
        w->cap_heap = w->cap_heap * 2 + 64;
        w->heap = mem_grow(w->heap, w->cap_heap, sizeof *w->heap);
    }
    size_t i = w->n_heap++;
    for (size_t up; i && w->heap[up = (i - 1) / 2].key > c.key; i = up) w->heap[i] = w->heap[up];
    w->heap[i] = c;
}

static void push_pair(const struct tok_bpe *b, struct tok_bpe_work *w, int32_t left)
{
    const struct tok_merge *m = find_merge(b, w->sym[left].id, w->sym[w->sym[left].next].id);
    if (m) heap_push(w, (struct tok_cand){.key = (uint64_t)m->rank << 32 | (uint32_t)left, .id = m->id});
}

static void merge_all(const struct tok_bpe *b, struct tok_bpe_work *w, size_t n)
{
    struct tok_symbol *sym = w->sym;
    w->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++) push_pair(b, w, (int32_t)i);
    while (w->n_heap) {
        struct tok_cand top = w->heap[0];
        w->heap[0] = w->heap[--w->n_heap];
        if (w->n_heap) sift_down(w->heap, w->n_heap, 0);
        int32_t at = (int32_t)(top.key & 0xFFFFFFFFu), right = sym[at].next;
        if (sym[at].id < 0 || right < 0) continue;
        const struct tok_merge *m = find_merge(b, sym[at].id, sym[right].id);
        if (!m || m->id != top.id) continue;
        sym[at].id = top.id;
        sym[at].next = sym[right].next;
        sym[right].id = -1;
        if (sym[at].next >= 0) sym[sym[at].next].prev = at;
        if (sym[at].prev >= 0) push_pair(b, w, sym[at].prev);
        if (sym[at].next >= 0) push_pair(b, w, at);
    }
}

int tok_bpe_encode(const struct tok_bpe *b, struct tok_bpe_work *w, const char *s, size_t n, struct tok_ids *out,
                   struct err *e)
{
    int32_t whole;
    if (!n) return 0;
    if (b->ignore_merges && (whole = tok_vocab_find(&b->vocab, s, n)) >= 0) {
        tok_ids_put(out, whole);
        return 0;
    }
    if (n > INT32_MAX) return err_set(e, "a piece of %zu bytes is too long to encode", n);
    if (n > w->cap_sym) {
        w->cap_sym = n + n / 2;
        free(w->sym);
        w->sym = mem_array(w->cap_sym, sizeof *w->sym);
    }
    size_t k;
    if (first_symbols(b, w, s, n, &k))
        return err_set(e, "the text has a character that is not in the vocabulary, and neither is "
                          "\"unk_token\" \"%.64s\"", b->unk);
    if (!k) return 0;
    merge_all(b, w, k);
    for (int32_t i = 0; i >= 0; i = w->sym[i].next) tok_ids_put(out, w->sym[i].id);
    return 0;
}
