/* The containers: how a quantized linear is stored as tensors, and what config.json says about it. One file each
 * (container_ct.c compressed-tensors, container_bnb.c bitsandbytes, container_qlab.c); container.c chooses.
 * Tensor names, dtypes, shapes and bytes: docs/formats.md. */
#ifndef QLAB_QUANTIZE_CONTAINER_H
#define QLAB_QUANTIZE_CONTAINER_H

#include "quantize/qweight.h"
#include "quantize/recipe.h"
#include "views/safetensors.h"

/* ---- reading: fill w's parts (fmt, codes, scale, …) from the checkpoint; n_out, n_in are set already ---- */

/* NAME.weight as a float or GGUF block tensor. */
int float_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e);
/* *packed = false when quantization_config leaves NAME alone: it is a float then. */
int ct_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e);
int bnb_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e);
int qlab_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e);
/* The parts of a format of each family, for qlab_open too (the qlab container keeps their names). */
int ct_parts_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e);
int bnb_parts_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e);

/* Find NAME + suffix and require dtype (DT_COUNT: any float), shape and alignment. */
const struct tensor *part_need(const struct checkpoint *c, const char *name, const char *suffix, enum dtype dtype,
                               int n_dims, const int64_t *shape, struct err *e);

/* ---- writing ---- */

#define CONTAINER_PARTS 6
/* The tensors NAME becomes: declarations without data, names to be freed. Returns how many. */
size_t container_declare(struct tensor parts[CONTAINER_PARTS], const char *name, const struct format *f, int64_t n_out,
                         int64_t n_in, enum dtype model_dtype);
/* Bytes of those tensors: what a linear takes on disk, shape records and code tables included. */
int64_t container_bytes(const struct format *f, int64_t n_out, int64_t n_in, enum dtype model_dtype);
/* Their contents, in the order of the declarations. */
int container_append(struct st_writer *w, const struct qbuffer *b, struct err *e);
/* Each family's part of the two above; part_declare fills one declaration. */
size_t ct_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in,
                  enum dtype model_dtype);
size_t bnb_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in,
                   enum dtype model_dtype);
size_t strided_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in);
int ct_append(struct st_writer *w, const struct qbuffer *b, struct err *e);
int bnb_append(struct st_writer *w, const struct qbuffer *b, struct err *e);
int strided_append(struct st_writer *w, const struct qbuffer *b, struct err *e);
void part_declare(struct tensor *t, const char *name, const char *suffix, enum dtype dtype, int n_dims, int64_t d0,
                  int64_t d1);

/* ---- config.json's "quantization_config" for what a recipe makes; an entry without format, or with a float one, is
 * not packed ---- */

enum container container_of(const struct recipe *r); /* CONT_PLAIN if nothing is packed */
json_t *container_config(const struct recipe *r, enum dtype model_dtype); /* NULL for CONT_PLAIN; caller owns */
json_t *ct_config(const struct recipe *r);
json_t *bnb_config(const struct recipe *r, enum dtype model_dtype);
json_t *qlab_config(const struct recipe *r);
bool entry_packed(const struct recipe_entry *it);
bool entry_is_head(const struct recipe_entry *it);
bool entry_is_embed(const struct recipe_entry *it);

/* {"transformers": "yes|dequantize|no", "vllm": "expected|no", "why": text or null}: which programs open the folder
 * (docs/formats.md has the observations behind each rule). */
json_t *container_portable(const struct recipe *r);

#endif
