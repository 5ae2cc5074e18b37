/* A checkpoint written again as the canonical Hugging Face folder: config.json, model.safetensors (or shards with an
 * index), the tokenizer's files, generation_config.json. GGUF blocks are expanded, permuted rows put back in order. */
#ifndef QLAB_VIEWS_CONVERT_H
#define QLAB_VIEWS_CONVERT_H

#include "views/checkpoint.h"

/* DT_COUNT as `dtype` keeps what is there: plain elements as they are; GGUF blocks become F16, and a GGUF's one-dimensional
 * F32 tensors take the embedding's type where that loses nothing. F32, F16, BF16: every float tensor is rounded to it
 * (nearest, ties to even); a quantized checkpoint can only be kept. */
struct convert_opts {
    enum dtype dtype;
    int64_t shard_bytes; /* data of one file at most, unless a single tensor is larger */
    void (*on_bytes)(void *ctx, int64_t done, int64_t total); /* progress, may be NULL */
    void *ctx;
};

struct convert_report {
    int64_t bytes;       /* of all tensors written */
    size_t n_tensors, n_files;
    char **not_finite;   /* names of tensors with NaN or Inf, NULL-ended; borrowed from the checkpoint */
    bool tokenizer;      /* the folder has a tokenizer.json */
    char tokenizer_why[512]; /* why a GGUF's tokenizer could not be written, or "" */
};

/* Tensors nothing reads are left out, and so is a stored head equal to the embedding it is tied to. A finite value that
 * would overflow to infinity is an error naming the tensor. Nothing is left under `dir` on failure. */
int convert_folder(const struct checkpoint *c, const char *dir, const struct convert_opts *o, struct convert_report *r,
                   struct err *e);
/* The folder's other files alone (tokenizer, generation_config.json); fills tokenizer and tokenizer_why of *r. */
int convert_companions(const struct checkpoint *c, const char *dir, struct convert_report *r, struct err *e);
/* model.safetensors, or shards and their index: `shard` writes file k of n_files at `path` and puts the names of its tensors
 * into `names`. bytes: of all tensors. */
typedef int convert_shard_fn(void *ctx, size_t k, const char *path, json_t *names, struct err *e);
int convert_weights(const char *dir, size_t n_files, int64_t bytes, convert_shard_fn *shard, void *ctx, struct err *e);
/* The dtype a tensor has when nothing else is asked for. */
enum dtype convert_kept_dtype(const struct checkpoint *c, const struct tensor *t);
void convert_report_free(struct convert_report *r);

#endif
