/* The weights of tiny's "bigram" kind, tensor by tensor. */
#ifndef QLAB_TESTS_TINY_BIGRAM_H
#define QLAB_TESTS_TINY_BIGRAM_H

#include "tiny.h"

struct bigram; /* the table and the codes */
struct bigram *bigram_new(const struct tiny *t, struct err *e);
void bigram_free(struct bigram *b);
/* All n elements of tensor `name`. */
void bigram_fill(const struct bigram *b, const char *name, float *out, int64_t n);

#endif
