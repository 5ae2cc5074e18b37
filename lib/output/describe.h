/* What a checkpoint is, as the results of qload. */
#ifndef QLAB_OUTPUT_DESCRIBE_H
#define QLAB_OUTPUT_DESCRIBE_H

#include "base/json.h"
#include "views/checkpoint.h"

/* Puts architecture, sizes, rope, weights_bytes, dtypes, n_tensors, unused_tensors, quantization, and with `tensors`
 * the list of all, into r. Every weight is opened on the way, so that packed parts are checked too: an error names the
 * first that is not what its scheme says. */
int describe_checkpoint(json_t *r, const struct checkpoint *c, bool tensors, struct err *e);

#endif
