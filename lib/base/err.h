/* Errors of calls that touch files or parse: such a call returns 0 or -1 and fills a struct err with one line for a
 * person, "PATH: what is wrong (what was expected)", without the tool's name and without a newline. */
#ifndef QLAB_BASE_ERR_H
#define QLAB_BASE_ERR_H

struct err {
    char msg[768];
};

/* Write the message and return -1, so that a caller can `return err_set(e, …)`. e may be NULL. */
int err_set(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same, with ": " and strerror(errno) appended. */
int err_sys(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Put "PREFIX: " in front of the message already there; returns -1. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Add to its end; returns -1. */
int err_suffix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
