#include "output/limits.h"

#include <math.h>

static int check(const struct row *r, const char *what, const char *option, double v, double limit, int at_least,
                 struct err *e)
{
    if (isnan(limit)) return 0;
    if (isnan(v)) return err_set(e, "%s: %s is not in the records given (--%s needs it)", r->name, what, option);
    if (at_least ? v >= limit : v <= limit) return 0;
    return err_set(e, "%s: %s %.6g is %s --%s %g", r->name, what, v, at_least ? "below" : "above", option, limit);
}

int limits_check(const struct rows *rs, const struct limits *l, struct err *e)
{
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        double gib = fmax(r->disk_bytes, r->memory_bytes) / 1073741824.0; /* fmax: the one that is known */
        if (check(r, "Δ ln PPL", "max-dlnppl", r->delta.v, l->max_dlnppl, 0, e) ||
            check(r, "top-1 agreement", "min-top1", r->top1.v, l->min_top1, 1, e) ||
            check(r, "GiB of weights", "max-gib", gib, l->max_gib, 0, e) ||
            check(r, "decode tokens a second", "min-decode-tps", r->decode_tps, l->min_decode_tps, 1, e))
            return -1;
    }
    return 0;
}
