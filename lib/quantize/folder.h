/* A float checkpoint written again as a quantized Hugging Face folder: first planned (names, shapes, bytes), then
 * written tensor by tensor: in memory are the codes of the one at work and of those that wait for the disk. */
#ifndef QLAB_QUANTIZE_FOLDER_H
#define QLAB_QUANTIZE_FOLDER_H

#include "quantize/container.h"

struct folder_item {
    const char *name;                  /* module (quantized) or tensor; borrowed */
    const struct recipe_entry *entry;  /* NULL: `src` is copied, converted to `dtype` if need be */
    const struct tensor *src;
    enum dtype dtype;
    struct tensor parts[CONTAINER_PARTS]; /* what is written; names owned, no data */
    size_t n_parts;
    int64_t bytes;
    size_t file;               /* index of the shard */
    struct quant_stats stats;  /* once written; entry only */
};

struct folder {
    const struct checkpoint *src;
    struct recipe *recipe;     /* borrowed; a head that stays tied loses its format */
    enum dtype model_dtype;    /* what weights are rounded to before they are quantized, and config.json's dtype */
    bool tied;                 /* of the folder: config.json's tie_word_embeddings */
    bool plain;                /* one float dtype for everything: the norms too */
    struct folder_item *items; /* in order of writing: by name */
    size_t n, n_files;
    int64_t bytes;
    bool written;
    int64_t done; /* source bytes dealt with, for progress */
};

/* Refuses an already quantized source. The checkpoint and the recipe must outlive the folder. shard_bytes: data of one
 * file at most, unless a single module is larger. */
int folder_plan(struct folder *f, const struct checkpoint *src, struct recipe *r, int64_t shard_bytes, struct err *e);
/* Writes under `dir`, which appears only when complete. on_bytes (may be NULL) is told source bytes done and in all.
 * *tokenizer_why: why a GGUF's tokenizer could not be written, or "". */
int folder_write(struct folder *f, const char *dir, void (*on_bytes)(void *ctx, int64_t done, int64_t total), void *ctx,
                 char tokenizer_why[512], struct err *e);
/* qquant's results: tensors, bytes_before, …, portable. Before writing, errors are null. Caller owns. */
json_t *folder_results(const struct folder *f);
/* container_portable, and the dtypes of what is not packed. Caller owns. */
json_t *folder_portable(const struct folder *f);
void folder_free(struct folder *f);

#endif
