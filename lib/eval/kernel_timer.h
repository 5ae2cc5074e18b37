/* A backend around a backend: every op calls the inner one and notes time, bytes and operations. Nothing in the inner
 * backend changes, and the numbers it computes are the same. */
#ifndef QLAB_EVAL_KERNEL_TIMER_H
#define QLAB_EVAL_KERNEL_TIMER_H

#include "backend/backend.h"
#include "base/json.h"
#include "eval/peak.h"

/* Sums of one kind of call. Bytes: what the op must read and write once (weights, activations, cache), not what a cache
 * saves or a kernel reads twice. Operations: additions and multiplications; exp, rsqrt and divisions count as one. */
struct kernel_row {
    char phase[16], op[16], format[64]; /* format: of the weights, "a+b" for jobs of several; "" for other ops */
    enum compute compute; /* of the products */
    int64_t calls;
    double seconds, bytes, ops;
};

struct kernel_timer {
    struct backend be;     /* give this one to the model */
    struct backend_ops ops; /* what inner has */
    struct backend *inner;
    struct kernel_row *rows;
    size_t n;
    char phase[16];
};

/* inner must outlive it; closing or freeing it leaves inner open. */
void kernel_timer_open(struct kernel_timer *t, struct backend *inner);
/* Calls from here on count under this name ("prefill", "decode"). */
void kernel_timer_phase(struct kernel_timer *t, const char *phase);
/* What the kernels are held against, measured in the same process. */
struct roofs {
    double read_bytes_per_s; /* 0: unknown */
    const struct peaks *peaks; /* NULL: unknown */
};
/* [{"phase", "op", "format"|null, "calls", "ms", "bytes", "ops", "bytes_per_s", "ops_per_s", "bandwidth_fraction"|null,
 * "peak_fraction"|null, "peak"|null}], dearest first. bandwidth_fraction is above 1 where caches serve an op; the peak is
 * named as in peaks_json, and null with its fraction for ops that compute nothing. */
json_t *kernel_timer_json(const struct kernel_timer *t, const struct roofs *roofs);
void kernel_timer_close(struct kernel_timer *t);

#endif
