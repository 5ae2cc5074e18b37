/* What unit tests share: the golden vectors, hex strings, scratch folders. Failing to find something ends the test
 * program with a clear line. */
#ifndef QLAB_TESTS_GOLDEN_H
#define QLAB_TESTS_GOLDEN_H

#include "base/json.h"

#include <stddef.h>
#include <stdint.h>

/* A path below the source tree ("data/sample.txt"); the tree is $QLAB_SRC or where it was built. To be freed. */
char *test_src(const char *rel);
/* tests/golden/NAME, parsed; the caller owns it. */
json_t *golden_load(const char *name);
/* Bytes of a hex string, to be freed. */
uint8_t *golden_hex(const json_t *hex, size_t *n);
/* Member `key` of an object, which must be there. Borrowed. */
json_t *golden_get(const json_t *o, const char *key);
/* An array of numbers as doubles, to be freed. */
double *golden_nums(const json_t *array, size_t *n);

/* A fresh folder's path joined with name; the folder is made once a program and removed when it ends. The result lives
 * as long as the program. */
const char *test_tmp(const char *name);
/* Write a file, making its folder first. */
void test_write(const char *path, const void *p, size_t n);
/* A file below ../shared (or $QLAB_SHARED) if it is there, else NULL after saying that `what` is skipped. To be freed. */
char *test_shared(const char *rel, const char *what);

#endif
