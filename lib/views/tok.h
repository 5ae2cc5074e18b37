/* Parts of the tokenizer (views/tokenizer.h), shared by the tok_*.c files only.
 *
 * text → tok_added (special tokens in the raw text) → tok_normalize → tok_added (tokens with "normalized": true)
 *      → tok_split (pre-tokenizer steps, depth first, so that only one piece a step is alive) → tok_bpe → ids
 *
 * Where a text is passed with n0, n0 counts the leading bytes that stem from the very first character of the whole
 * input: Metaspace's prepend_scheme "first" asks whether a piece starts there. */
#ifndef QLAB_VIEWS_TOK_H
#define QLAB_VIEWS_TOK_H

#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tok_buf { /* growing bytes; free(p) */
    char *p;
    size_t n, cap;
};
void tok_buf_put(struct tok_buf *b, const void *p, size_t n);

struct tok_ids { /* growing ids; free(p) */
    int32_t *p;
    size_t n, cap;
};
void tok_ids_put(struct tok_ids *a, int32_t id);

/* The GPT-2 byte alphabet: bytes ↔ code points U+0021 … U+0143. */
void tok_bytes_to_chars(const char *s, size_t n, struct tok_buf *out);
int tok_char_to_byte(int32_t cp); /* −1: not of the alphabet */

/* ---- tok_regex.c: patterns with Oniguruma's meaning, matched by PCRE2 ---- */
struct tok_regex;
struct tok_match; /* match data and JIT stack, one a thread */
/* literal: the pattern is plain text. Errors name what is not supported. */
struct tok_regex *tok_regex_new(const char *pattern, size_t n, bool literal, struct err *e);
void tok_regex_free(struct tok_regex *re);
struct tok_match *tok_match_new(void);
void tok_match_free(struct tok_match *m);

/* A piece cut into segments, matches and what lies between them, in order. */
enum tok_pattern_kind { PAT_REGEX, PAT_DIGIT, PAT_SPACE, PAT_PUNCT, PAT_CHAR };
struct tok_pattern {
    enum tok_pattern_kind kind;
    struct tok_regex *re; /* owned */
    int32_t cp;           /* PAT_CHAR */
};
struct tok_segments {
    const struct tok_pattern *pat;
    struct tok_match *m;
    const char *s;
    size_t n, pos, last, match_end; /* pos: where to search; last: end of what was handed out; match_end + 1 or 0 */
    size_t hit_start, hit_end;
    bool have_hit, done;
};
void tok_segments_begin(struct tok_segments *it, const struct tok_pattern *pat, struct tok_match *m, const char *s,
                        size_t n);
/* 1: a segment [*start, *end), 0: no more, −1: error (the pattern is too expensive on this text). */
int tok_segments_next(struct tok_segments *it, size_t *start, size_t *end, bool *is_match, struct err *e);

/* ---- tok_normalize.c ---- */
enum tok_norm_kind { NORM_NFC, NORM_NFD, NORM_NFKC, NORM_NFKD, NORM_PREPEND, NORM_REPLACE, NORM_STRIP, NORM_BYTES };
struct tok_norm {
    enum tok_norm_kind kind;
    char *text; /* prepend, replacement; owned */
    size_t n_text;
    struct tok_pattern pat;
    bool left, right;
};
struct tok_norms {
    struct tok_norm *v;
    size_t n;
};
int tok_norms_load(struct tok_norms *a, const json_t *json, struct err *e);
void tok_norms_free(struct tok_norms *a);
/* s → out (replaced), *n0 kept up to date. */
int tok_normalize(const struct tok_norms *a, struct tok_match *m, const char *s, size_t n, size_t *n0,
                  struct tok_buf *out, struct err *e);

/* ---- tok_added.c: leftmost-longest search for added tokens ---- */
struct tok_added {
    char *content; /* owned */
    size_t n;
    int32_t id;
    bool special, normalized, lstrip, rstrip, single_word;
    char *pattern; /* what is searched for: content, or its normalized form; owned */
    size_t n_pattern;
};
struct tok_trie_node {
    int32_t child, next; /* first child, next sibling; 0: none */
    int32_t token;       /* index, −1: none */
    uint8_t byte;
};
struct tok_trie {
    struct tok_trie_node *v; /* v[0] is the root */
    size_t n, cap;
    int32_t first[256]; /* children of the root */
};
void tok_trie_add(struct tok_trie *t, const char *s, size_t n, int32_t token);
bool tok_is_word(int32_t c); /* \w of Rust's regular expressions */
/* Calls back for every stretch of text (token NULL) and every token found, as the reference's find_matches does:
 * stretches may be eaten by lstrip and rstrip. Stops when the callback returns non-zero, and returns that. */
int tok_added_scan(const struct tok_trie *t, const struct tok_added *added, const char *s, size_t n,
                   int (*found)(void *ctx, const struct tok_added *token, size_t start, size_t end), void *ctx);

/* ---- tok_bpe.c ---- */
struct tok_vocab { /* strings ↔ ids */
    char *pool;
    struct tok_str {
        size_t at;
        uint32_t n;
        int32_t id;
    } *str;
    size_t n_str;
    uint32_t *slot; /* hash table: index + 1 */
    size_t n_slot;  /* a power of two */
};
int32_t tok_vocab_find(const struct tok_vocab *v, const char *s, size_t n); /* −1: not there */

struct tok_bpe {
    struct tok_vocab vocab;
    struct tok_merge {
        int32_t a, b, id;
        uint32_t rank; /* UINT32_MAX: empty slot */
    } *merge;
    size_t n_merge_slot;
    int32_t byte_id[256];  /* "<0x00>" …, −1: missing */
    int32_t char_id[1024]; /* ids of the first code points, −1: missing */
    bool byte_fallback, fuse_unk, ignore_merges, has_unk;
    char *unk; /* owned */
    int32_t unk_id;
};
struct tok_bpe_work { /* memory of one encoding; free with tok_bpe_work_free */
    struct tok_symbol *sym;
    size_t cap_sym;
    struct tok_cand *heap;
    size_t n_heap, cap_heap;
};
#define TOK_MAX_ID ((1 << 24) - 1)
int tok_bpe_load(struct tok_bpe *b, const json_t *model, struct err *e);
void tok_bpe_free(struct tok_bpe *b);
int tok_bpe_encode(const struct tok_bpe *b, struct tok_bpe_work *w, const char *s, size_t n, struct tok_ids *out,
                   struct err *e);
void tok_bpe_work_free(struct tok_bpe_work *w);

/* ---- tok_split.c: pre-tokenizers as a list of steps ---- */
enum tok_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_MERGED_PREVIOUS, SPLIT_MERGED_NEXT, SPLIT_CONTIGUOUS };
enum tok_step_kind { STEP_SPLIT, STEP_PREFIX_SPACE, STEP_BYTES, STEP_METASPACE, STEP_WORDS };
enum tok_prepend { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };
struct tok_step {
    enum tok_step_kind kind;
    struct tok_pattern pat;
    enum tok_behavior behavior;
    bool invert;
    char rep[5]; /* Metaspace's replacement */
    size_t n_rep;
    enum tok_prepend prepend;
};
struct tok_steps {
    struct tok_step *v;
    size_t n;
    bool byte_level;
};
int tok_steps_load(struct tok_steps *a, const json_t *json, struct err *e);
void tok_steps_free(struct tok_steps *a);
struct tok_walk {
    const struct tok_steps *steps;
    struct tok_match *m;
    struct tok_buf *buf; /* one a step, for those that change the text */
    int (*piece)(void *ctx, const char *s, size_t n);
    void *ctx;
    struct err *e;
};
/* Hands the pieces of s, in order, to walk->piece; returns 0, or the first non-zero result. */
int tok_steps_run(struct tok_walk *w, size_t step, const char *s, size_t n, size_t n0);

/* ---- tok_decode.c ---- */
enum tok_dec_kind { DEC_BYTES, DEC_METASPACE, DEC_REPLACE, DEC_BYTE_FALLBACK, DEC_FUSE, DEC_STRIP };
struct tok_dec {
    enum tok_dec_kind kind;
    struct tok_pattern pat; /* replace */
    char *text;             /* replacement; owned */
    size_t n_text;
    int32_t cp; /* metaspace's replacement, strip's character */
    bool keep_first;
    int64_t start, stop;
};
struct tok_decs {
    struct tok_dec *v;
    size_t n;
    bool any;
};
int tok_decs_load(struct tok_decs *a, const json_t *json, struct err *e);
void tok_decs_free(struct tok_decs *a);
/* The token strings in `all`, string i ending at end[i], become one text in *out. */
int tok_decode_strings(const struct tok_decs *a, struct tok_buf *all, size_t *end, size_t n, struct tok_buf *out,
                       struct err *e);

struct tokenizer {
    struct tok_bpe bpe;
    struct tok_norms norms;
    struct tok_steps steps;
    struct tok_decs decs;
    struct tok_added *added;
    size_t n_added;
    struct tok_trie raw, normalized; /* tokens searched before and after normalization */
    int32_t *prefix, *suffix;        /* the template's ids */
    size_t n_prefix, n_suffix;
    int64_t n_vocab, bos, eos;
    /* by id: what decoding writes (a pointer into the vocabulary or an added token), NULL: no such id */
    struct tok_piece {
        const char *s;
        uint32_t n;
        bool special;
    } *piece;
    size_t n_piece;
};

/* A JSON string with its length (it may hold NULs); −1 and an error if it is missing or something else. */
int tok_json_str(const json_t *o, const char *key, const char **s, size_t *n, struct err *e);
/* {"String": …} or {"Regex": …} */
int tok_json_pattern(const json_t *o, struct tok_pattern *pat, struct err *e);
void tok_pattern_free(struct tok_pattern *pat);
/* The "type" of a component; NULL and an error if it has none. */
const char *tok_json_type(const json_t *o, const char *what, struct err *e);

#endif
