/* JSON by jansson, plus the few readers that hostile input wants: every getter says what was expected and where. */
#ifndef QLAB_BASE_JSON_H
#define QLAB_BASE_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Parse n bytes / a file (at most max bytes); the error names `where` (the path) and the line. Duplicate keys are
 * refused; integers beyond 64 bits become reals. The caller owns the result. */
json_t *json_parse(const char *where, const char *text, size_t n, struct err *e);
json_t *json_read(const char *path, size_t max, struct err *e);

/* Members of an object. Missing or null gives the default (or an error with required); another type is an error.
 * Numbers: an integer getter takes 3 and 3.0; range is inclusive. *_str borrows from o. */
int json_get_int(const json_t *o, const char *key, bool required, int64_t lo, int64_t hi, int64_t dflt, int64_t *out,
                 struct err *e);
int json_get_num(const json_t *o, const char *key, bool required, double dflt, double *out, struct err *e);
int json_get_bool(const json_t *o, const char *key, bool required, bool dflt, bool *out, struct err *e);
int json_get_str(const json_t *o, const char *key, bool required, const char *dflt, const char **out, struct err *e);

/* A finite number, or null. */
json_t *json_num(double v);
/* Set a key to a new reference (steals v). */
void json_put(json_t *o, const char *key, json_t *v);
/* Text as in records: compact, keys in insertion order, reals with 12 significant digits. free() the result. */
char *json_text(const json_t *v, size_t flags);
/* DIR/NAME: indented, reals with 17 digits, as checkpoints have it. Takes v. */
int json_write(const char *dir, const char *name, json_t *v, struct err *e);
/* JSON has no NaN, so a number that must be finite is put with this: it notes the key in *bad when v is not, and the
 * tool fails on it before it prints. */
void json_put_headline(json_t *o, const char *key, double v, const char **bad);

#endif
