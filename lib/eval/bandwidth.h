/* How fast this process can read memory: the ceiling of decoding. */
#ifndef QLAB_EVAL_BANDWIDTH_H
#define QLAB_EVAL_BANDWIDTH_H

#include <stddef.h>
#include <stdint.h>

struct region {
    const void *p;
    size_t n;
};

/* Sums all regions with all threads, over and over for at least `seconds` and three passes after one that is not timed
 * (it faults pages in); bytes per second of the median pass. The bytes of a pass must be far more than the caches hold,
 * or a cache is measured. */
double bandwidth_read(const struct region *r, size_t n, double seconds);
/* The same on a buffer of its own of n_bytes, mapped for the purpose and given back. 0 if it cannot be had. */
double bandwidth_read_anonymous(size_t n_bytes, double seconds);

#endif
