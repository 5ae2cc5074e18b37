/* A checkpoint, opened and checked: a Hugging Face folder (one safetensors file, or shards with an index) or a GGUF
 * file, seen through the same names. Everything is mapped, nothing copied. */
#ifndef QLAB_VIEWS_CHECKPOINT_H
#define QLAB_VIEWS_CHECKPOINT_H

#include "base/err.h"
#include "base/json.h"
#include "views/config.h"
#include "views/tensor.h"

struct gguf; /* views/gguf.h */

struct checkpoint {
    char *path;
    bool is_gguf;
    json_t *config_json; /* config.json; for GGUF an equal one made from its metadata */
    struct config config;
    bool tied;      /* head = embedding: resolved (config says tied and no lm_head is stored) */
    json_t *quant;  /* config_json's "quantization_config", borrowed; NULL for a float checkpoint */
    struct tensor *tensors; /* all, sorted by name */
    size_t n_tensors;
    char **unused; /* names of tensors nothing reads, NULL-ended; reported, not an error */
    /* private */
    struct safetensors *shards;
    size_t n_shards;
    struct gguf *gguf;
};

/* Opens and checks: config, every tensor the architecture needs present with the right shape (a quantized linear by
 * its packed tensors: shapes of those are checked by quantize/qweight.h, presence here), file names in the index plain.
 * Tied with a stored lm_head: the stored one is used (as transformers does when they differ). Not tied and no lm_head:
 * refused. Old "rotary_emb.inv_freq" tensors are skipped silently. */
int checkpoint_open(struct checkpoint *c, const char *path, struct err *e);
void checkpoint_close(struct checkpoint *c);
/* NULL if there is none of that name. */
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name);
/* Find, and require n_dims and shape (a float dtype or a block dtype). */
const struct tensor *checkpoint_need(const struct checkpoint *c, const char *name, int n_dims, const int64_t *shape,
                                     struct err *e);
/* True if NAME has any of the tensors a linear can be stored as: NAME.weight, NAME.weight_packed, … */
bool checkpoint_has_linear(const struct checkpoint *c, const char *name);
/* False for what nothing reads: the unused and the constants skipped silently. A rewritten folder leaves them out. */
bool checkpoint_reads(const struct checkpoint *c, const char *tensor);
/* Bytes of all tensors. */
int64_t checkpoint_bytes(const struct checkpoint *c);
/* Give back the resident pages of a tensor (they are read again if touched). */
void checkpoint_drop(const struct tensor *t);

#endif
