/* GGUF v3 (ggml's docs/gguf.md): metadata, tensors, and what is needed to see a GGUF as a Hugging Face checkpoint. */
#ifndef QLAB_VIEWS_GGUF_H
#define QLAB_VIEWS_GGUF_H

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "views/tensor.h"

struct gguf_kv; /* one metadata value */

struct gguf {
    struct file_map map;
    struct gguf_kv *kv;
    size_t n_kv;
    struct tensor *tensors; /* GGUF names, in file order; shape already slowest-first */
    size_t n_tensors;
};
int gguf_open(struct gguf *g, const char *path, struct err *e);
int gguf_parse(struct gguf *g, const char *where, const void *p, size_t n, struct err *e); /* fuzzing */
void gguf_close(struct gguf *g);

/* Metadata getters: −1 and an error naming the key when required and missing, or of another type. */
int gguf_get_int(const struct gguf *g, const char *key, bool required, int64_t dflt, int64_t *out, struct err *e);
int gguf_get_num(const struct gguf *g, const char *key, bool required, double dflt, double *out, struct err *e);
int gguf_get_bool(const struct gguf *g, const char *key, bool required, bool dflt, bool *out, struct err *e);
/* Not NUL-terminated in the file: a new string, to be freed; NULL if missing and not required. */
int gguf_get_str(const struct gguf *g, const char *key, bool required, char **out, struct err *e);
/* Array of strings / integers: check and count, then element i < n (string as pointer + length into the map). */
enum gguf_elem { GGUF_STRINGS, GGUF_INTS };
int gguf_get_array(const struct gguf *g, const char *key, enum gguf_elem elem, bool required, size_t *n, struct err *e);
void gguf_array_str(const struct gguf *g, const char *key, size_t i, const char **s, size_t *len);
int64_t gguf_array_int(const struct gguf *g, const char *key, size_t i);

/* An equal config.json: arch llama and qwen2; a rope_freqs tensor is turned back into llama3 parameters, verified
 * against every entry, else refused. Caller owns. */
json_t *gguf_config_json(const struct gguf *g, struct err *e);
/* The tensors under Hugging Face names, permuted_heads set for arch llama's q and k, rope_freqs left out. Array and
 * names are to be freed by the caller (names individually). */
int gguf_hf_tensors(const struct gguf *g, struct tensor **out, size_t *n, struct err *e);
/* tokenizer.json of an equal tokenizer ("gpt2" models with pre llama-bpe, qwen2, smollm, gpt-2), for the tokenizer
 * reader and for converted folders. NULL with an error if the GGUF has none or one of another kind. Caller owns. */
json_t *gguf_tokenizer_json(const struct gguf *g, struct err *e);
/* tokenizer_config.json beside it: special tokens by text, chat template. Caller owns. */
json_t *gguf_tokenizer_config_json(const struct gguf *g, struct err *e);

#endif
