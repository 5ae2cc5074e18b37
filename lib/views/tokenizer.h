/* Tokenizers from tokenizer.json: byte-level BPE (Llama-3, Qwen2.5, SmolLM2, GPT-2 pre-tokenizers) and BPE with U+2581
 * and byte fallback (Llama-2, TinyLlama, Mistral). Ids are those of Hugging Face tokenizers 0.23 (from_file on the same
 * file; transformers 5 sets some pre-tokenizers anew for some "tokenizer_class"es, which is not followed);
 * what it cannot reproduce is refused at load, by the name of the component. Supported:
 *   model           BPE: merges old and new, ignore_merges, byte_fallback, unk_token, fuse_unk
 *   added_tokens    all flags
 *   normalizer      NFC NFD NFKC NFKD Prepend Replace Strip ByteLevel Sequence
 *   pre_tokenizer   ByteLevel Metaspace Split Digits Punctuation Whitespace WhitespaceSplit Sequence
 *   post_processor  TemplateProcessing ("single"), ByteLevel, Sequence
 *   decoder         ByteLevel Metaspace Replace ByteFallback Fuse Strip Sequence
 * "truncation" and "padding" are ignored. */
#ifndef QLAB_VIEWS_TOKENIZER_H
#define QLAB_VIEWS_TOKENIZER_H

#include "base/err.h"
#include "base/json.h"

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* From a parsed tokenizer.json (borrowed only during the call). config: tokenizer_config.json's value or NULL; it names
 * BOS and EOS, and its add_bos_token overrides the template, except with the classes PreTrainedTokenizerFast and
 * TokenizersBackend or none, which take the template as it is. `where` leads errors. NULL on error. */
struct tokenizer *tokenizer_new(const json_t *json, const json_t *config, const char *where, struct err *e);
/* Of a MODEL: the folder's tokenizer.json and tokenizer_config.json, or the GGUF's metadata. */
struct tokenizer *tokenizer_of_model(const char *path, struct err *e);
void tokenizer_free(struct tokenizer *t);

/* Encode UTF-8 text. special: add the template's special tokens (BOS …) as encode(add_special_tokens=True) does.
 * Special tokens inside the text are recognised either way. Invalid UTF-8: every maximal invalid sequence becomes
 * U+FFFD first (as Python's errors="replace" does). *ids is to be freed. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool special, int32_t **ids, size_t *n_ids,
                     struct err *e);
/* Text of ids, skipping special tokens if asked; to be freed. Bytes that are not valid UTF-8 become U+FFFD. */
char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special, size_t *n_text);

int64_t tokenizer_vocab_size(const struct tokenizer *t); /* with added tokens */
const char *tokenizer_type(const struct tokenizer *t);   /* "byte-level-bpe", "bpe-byte-fallback", "bpe" */
int64_t tokenizer_bos(const struct tokenizer *t);        /* −1: none */
int64_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_adds_bos(const struct tokenizer *t);

#endif
