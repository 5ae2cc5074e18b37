/* Random inputs for backend tests: weights of any format straight from random codes, guarded buffers, comparisons. */
#ifndef QLAB_TESTS_QRANDOM_H
#define QLAB_TESTS_QRANDOM_H

#include "base/rng.h"
#include "quantize/qweight.h"

#include <stdint.h>

/* Random codes, scales around 0.01, zero points over the whole range. extreme: codes 0 or 15 (255) only, and scales
 * that are 0, subnormal or large among others. */
void qrandom(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype, struct rng *rng,
             bool extreme);
/* The same, but every byte of codes and of packed zero points alike, and every scale (CODE_FLOAT: every weight; CODE_BOOK:
 * every absmax; strided zero points are the low four bits of `zeros`). Not with double quantization. */
void qfill(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype, uint8_t codes,
           uint8_t zeros, float scale);
/* n normal floats; every 97th ten times as large, as activations have. */
void random_floats(struct rng *rng, float *x, int64_t n);

/* n floats of NaN between guards; guard_check dies if a guard was written, then frees. */
float *guard_new(int64_t n);
void guard_check(float *p, int64_t n, const char *what);

/* Fails unless every got[i] is finite, Σ(got−want)² ≤ nmse·Σwant², and |got−want| ≤ abs + rel·|want| for each. */
void compare(const float *got, const float *want, int64_t n, double nmse, double abs, double rel, const char *what);

#endif
