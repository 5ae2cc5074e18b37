/* safetensors: u64 n, n bytes of JSON header, data (https://github.com/huggingface/safetensors, README "Format").
 * Refused: what safetensors 0.8 refuses (header length beyond the file or 100 MB, holes, overlap, offsets that do not
 * match dtype × shape, overflow, trailing bytes, unknown dtypes) and duplicate names. */
#ifndef QLAB_VIEWS_SAFETENSORS_H
#define QLAB_VIEWS_SAFETENSORS_H

#include "base/err.h"
#include "base/file.h"
#include "views/tensor.h"

struct safetensors {
    struct file_map map;
    struct tensor *tensors; /* sorted by name; names owned */
    size_t n_tensors;
    /* Files of other writers may leave a tensor at an address its element type cannot have (no padding, odd sizes in
     * between): such a tensor's data is copied here, and freed with the rest. */
    void **copies;
    size_t n_copies;
};
int safetensors_open(struct safetensors *s, const char *path, struct err *e);
void safetensors_close(struct safetensors *s);
/* The parser alone, on bytes in memory (fuzzing); `where` names them in errors. tensors[].data point into p. */
int safetensors_parse(struct safetensors *s, const char *where, const void *p, size_t n, struct err *e);

/* Streaming writer: declare every tensor (name, dtype, n_dims, shape; data ignored) in the order of writing, then
 * append their bytes in that order. In the file wider element types come first, so that every tensor is aligned to its
 * elements whatever the order of writing. The header is padded with spaces to a multiple of 8; "__metadata__" is
 * {"format": "pt"}. The file's digest goes into the cache (base/hash.h) while the file goes to the disk. */
struct st_writer {
    struct file_out out;
    struct tensor *decl; /* owned, with names */
    int64_t *pos;        /* of each declared tensor in the file */
    size_t n, at;        /* declared; tensor being written */
    size_t left;         /* bytes still missing of tensor `at` */
};
int st_writer_open(struct st_writer *w, const char *path, const struct tensor *decl, size_t n, struct err *e);
int st_writer_append(struct st_writer *w, const void *p, size_t n_bytes, struct err *e);
int st_writer_close(struct st_writer *w, struct err *e); /* fails if bytes are missing */
void st_writer_abort(struct st_writer *w);

#endif
