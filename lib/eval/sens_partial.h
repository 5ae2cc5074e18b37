/* Sensitivities on their way to a record: as JSON, and as a file of finished units that lets a stopped run go on.
 *
 * The file is JSON lines: {"schema": "qlab.qsens.partial/1", "fingerprint": {…}}, then a line a finished unit with its
 * sums (17 digits, so that a resumed run prints the same record). It is appended to, so a killed run leaves whole lines
 * and at most one torn one, which is cut off. */
#ifndef QLAB_EVAL_SENS_PARTIAL_H
#define QLAB_EVAL_SENS_PARTIAL_H

#include "eval/sensitivity.h"

#include <stdio.h>

struct sens_partial {
    char *path;
    FILE *f;             /* NULL until there is something to write */
    json_t *fingerprint; /* what the numbers depend on */
    int64_t n_found;     /* units the file already had */
};

/* An existing file must carry an equal fingerprint: its units become `done` entries of r. Anything else is an error that
 * names what differs, and the file stays as it is; so is a file that another process is writing. A missing or empty file
 * is made with the first unit. Steals fingerprint. */
int sens_partial_open(struct sens_partial *p, const char *path, json_t *fingerprint, struct sens_result *r, struct err *e);
/* Append a finished unit; it is with the kernel on return. */
int sens_partial_add(struct sens_partial *p, const struct sens_entry *en, struct err *e);
int sens_partial_close(struct sens_partial *p, struct err *e);

/* An entry of the record's tensors[]. */
json_t *sens_entry_json(const struct sens_entry *en, const struct sens_opts *o);

#endif
