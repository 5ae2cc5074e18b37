/* The measured text as a protocol wants it, in tokens; and the guard against measuring on calibration text. */
#ifndef QLAB_EVAL_TEXT_H
#define QLAB_EVAL_TEXT_H

#include "eval/protocol.h"
#include "views/corpus.h"
#include "views/tokenizer.h"

struct eval_text {
    int32_t *ids; /* owned */
    int64_t n_ids;
    int64_t n_bytes, n_chars; /* of the text that was encoded */
};
/* Load, cut to max_chars code points (0: all; PROTO_SEED: SEED_CHARS unless given), drop one final newline
 * (PROTO_LLAMACPP, as llama.cpp does), encode once with the tokenizer's special tokens. Every id is checked against
 * vocab_size (rows of the embedding). Invalid UTF-8 becomes U+FFFD, with a warning. */
int eval_text_load(struct eval_text *t, const struct tokenizer *tok, const char *path, enum text_form form,
                   enum protocol p, int64_t max_chars, int64_t vocab_size, struct err *e);
void eval_text_free(struct eval_text *t);
enum text_form text_form_of(const char *name);
#define TEXT_FORM_NAMES "file|hf-rows"

/* Number of different runs of `n` tokens that a and b share. */
int64_t shared_ngrams(const int32_t *a, int64_t na, const int32_t *b, int64_t nb, int64_t n);
#define LEAK_NGRAM 32

#endif
