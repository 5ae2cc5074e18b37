/* The containers: how a quantized linear is stored as tensors, and what config.json says about it. One file each
 * (container_ct.c compressed-tensors, container_bnb.c bitsandbytes, container_qlab.c); container.c chooses.
 * Tensor names, dtypes, shapes and bytes: docs/formats.md. */
#ifndef QLAB_QUANTIZE_CONTAINER_H
#define QLAB_QUANTIZE_CONTAINER_H

#include "quantize/qweight.h"
#include "quantize/recipe.h"

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

#endif
