/* Records of qsens as reports read them. */
#ifndef QLAB_OUTPUT_SENS_REC_H
#define QLAB_OUTPUT_SENS_REC_H

#include "base/err.h"
#include "base/json.h"

#include <stddef.h>
#include <stdint.h>

/* One linear (or operation, or layer); numbers are NaN where the record has null. Strings are borrowed. */
struct sens_unit {
    const char *name, *op; /* op: "" for a layer */
    int64_t layer;         /* −1 for an operation */
    double mse, nmse, cosine, sqnr_db, kld, delta_nll, bytes_before, bytes_after;
};

struct sens_rec {
    json_t *json; /* owned */
    const char *path, *mode, *per;
    char *format;             /* owned; as qsens -f takes it: FORMAT+METHOD where codes were not rounded to nearest */
    const char *model, *text; /* digests */
    double n_tokens, baseline_nll, all_kld, all_delta_nll;
    struct sens_unit *u;
    size_t n;
};

/* Takes json, a record of schema qlab.qsens/1 read from path (borrowed). */
int sens_rec_parse(struct sens_rec *r, json_t *json, const char *path, struct err *e);
void sens_rec_free(struct sens_rec *r);

/* What a unit costs by this record's mode: NMSE of its output (local), KLD of the model (isolated), the KLD that goes away
 * when it is restored (restore). */
double sens_damage(const struct sens_rec *r, size_t i);
const char *sens_damage_name(const struct sens_rec *r);
/* Spearman's rank correlation between the damages of two records of one model and format; NaN if they are not, or if
 * their units differ. */
double sens_rho(const struct sens_rec *a, const struct sens_rec *b);
/* The first record of this mode and format (NULL: any); NULL if there is none. */
const struct sens_rec *sens_find(const struct sens_rec *r, size_t n, const char *mode, const char *format);

#endif
