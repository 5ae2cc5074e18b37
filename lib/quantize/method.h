/* Methods choose codes: a table of them, apart from the formats that say what codes mean. */
#ifndef QLAB_QUANTIZE_METHOD_H
#define QLAB_QUANTIZE_METHOD_H

#include "quantize/qweight.h"

enum calib_need { CALIB_NONE, CALIB_INPUTS /* later methods: activations of the layer */ };

struct quant_job {
    const char *name;         /* of the linear, for messages */
    const struct qweight *src; /* float rows are read through qweight_rows_f32 */
    const struct format *fmt;
    enum dtype model_dtype;   /* F16 or BF16: weights are rounded to it first, scales are stored in F16 (or BF16 for a
                                 BF16 model, as the container's library does) */
};

/* Damage of the codes, over all elements of the tensor against the source; sums in double. */
struct quant_stats {
    double nmse, sqnr_db, cosine, max_abs_err, mse;
};

struct method {
    const char *name;
    enum calib_need needs;
    /* Fills dst's buffers (allocated by qbuffer_alloc for the same format and shape). Threads over rows; the bytes do
     * not depend on their number. A NaN or Inf weight is an error naming the tensor. stats may be NULL. */
    int (*run)(const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats, struct err *e);
};
const struct method *method_find(const char *name); /* "rtn", "mse"; NULL if unknown */
const struct method *method_table(size_t *n);

/* Quantize: allocates dst, runs, and measures (stats may be NULL). Free dst with qbuffer_free. */
int method_quantize(const struct method *m, const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats,
                    struct err *e);

#endif
