/* `qreport speed`: prefill and decode of several models side by side, from qbench records. */
#ifndef QLAB_OUTPUT_SPEED_H
#define QLAB_OUTPUT_SPEED_H

#include "base/err.h"
#include "base/json.h"

#include <stddef.h>
#include <stdint.h>

/* A median and the range of its trials. */
struct speed_value {
    double mid, lo, hi;
};

/* One model, prompt and depth. */
struct speed_row {
    const char *name, *compute, *path; /* path: of the record; borrowed */
    int64_t prompt, depth;
    struct speed_value ttft_ms, prefill_tps, decode_tps;
    double fraction;       /* of the read bandwidth that decoding takes; NaN but in a record's first run */
    double faster_ttft, faster_decode; /* than the first model given, same prompt and depth; NaN where it has none */
};

struct speed {
    struct speed_row *r; /* by model in the order given, then by prompt, then by depth */
    size_t n;
    char **names;        /* of the models, owned */
    size_t n_names;
};

/* recs and paths are borrowed and must outlive s. */
int speed_read(struct speed *s, json_t *const *recs, char *const *paths, size_t n, struct err *e);
void speed_free(struct speed *s);
/* DIR/speed.md and speed.svg, appended to files. */
int speed_report(const struct speed *s, const char *dir, json_t *files, struct err *e);
/* The rows as data; caller owns. */
json_t *speed_json(const struct speed *s);

#endif
