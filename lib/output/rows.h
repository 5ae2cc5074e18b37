/* Joining records: what qload, qquant, qppl and qbench said about one model folder becomes one row. The key is the
 * digest of the model (sha256 of the input with role "model"; for qquant of its "output"). */
#ifndef QLAB_OUTPUT_ROWS_H
#define QLAB_OUTPUT_ROWS_H

#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>

/* A number with its standard error; NaN where a record does not tell. */
struct pm {
    double v, se;
};

/* One configuration. Records are borrowed from struct rows; NULL where none was given. */
struct row {
    char *name;           /* owned: the model folder's name, or its parent's where the folder is called "model" */
    const char *digest;   /* of the model */
    char *dir;            /* owned: folder of the record that made the row */
    size_t first;         /* index of the first record given for it: rows stand in this order */
    const json_t *quant, *load, *ppl, *bench, *say; /* say: the qbench record with a generated text */
    double disk_bytes;    /* its safetensors or GGUF files */
    double memory_bytes;  /* of the weights, as loaded by qbench */
    double read_bytes;    /* that decoding one token reads */
    double bpw_read;      /* bits a weight over the weights that decoding one token reads */
    double linears_bytes, head_bytes, other_bytes; /* by class; NaN without a qload --tensors record */
    double ttft_ms, prefill_tps, decode_tps, decode_min, decode_max; /* medians; decode_* extremes of the trials */
    struct pm ppl_pm, delta, kld, top1;
    struct pm int8_kld; /* of computing in int8 instead of as ppl does, on the same weights */
    const char *generated;
    bool is_ref;          /* the others are compared with it: its own difference is zero by definition */
};

struct rows {
    struct row *r;
    size_t n;
    json_t **records; /* owned */
    char **paths;     /* owned */
    size_t n_records;
};

/* Read the records and join them, in the order given. Errors: not a record, another schema version, a figure of the
 * wrong type, two records of one tool for one model, perplexities of different texts or protocols. */
int rows_read(struct rows *rs, char **paths, size_t n, struct err *e);
void rows_free(struct rows *rs);
/* The rows as data: [{"name", "sha256", "disk_bytes", …}], null where unknown. */
json_t *rows_json(const struct rows *rs);
/* "worse", "better", "cannot-tell" (95 %: |v| > 1.96 se), "reference", or NULL where the difference is unknown. */
const char *verdict(const struct row *r);

/* Dotted path into a record: the member, or NULL if any part is missing or null. */
const json_t *json_at(const json_t *o, const char *path);
/* A number there, NaN if missing; a wrong type notes the path in *bad (the first one stays). */
double num_at(const json_t *o, const char *path, const char **bad);
const char *str_at(const json_t *o, const char *path); /* NULL if missing or not a string */
/* The input with this role, or NULL. */
const json_t *record_input(const json_t *rec, const char *role);
/* Folder part of a path, in a new string ("." if none); the last part, borrowed. */
char *path_dir(const char *path);
const char *path_last(const char *path);
/* What a model's folder is called: "out/m/int4-g64/model" → "int4-g64", "/tmp/mine/" → "mine". New string. */
char *row_name(const char *path);

#endif
