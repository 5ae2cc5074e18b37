/* `qreport check`: limits that every row has to keep. */
#ifndef QLAB_OUTPUT_LIMITS_H
#define QLAB_OUTPUT_LIMITS_H

#include "output/rows.h"

struct limits {
    double max_dlnppl, min_top1, max_gib, min_decode_tps; /* NaN: no limit */
};

/* The first limit that a row breaks, or whose figure its records do not tell, is an error: "ROW: Δ ln PPL +0.31 is above
 * --max-dlnppl 0.1". GiB are those of the weights, the larger of disk and memory. */
int limits_check(const struct rows *rs, const struct limits *l, struct err *e);

#endif
