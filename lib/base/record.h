/* The one JSON record a tool prints (contract: schema, tool, version, host, inputs, params, results, timing). */
#ifndef QLAB_BASE_RECORD_H
#define QLAB_BASE_RECORD_H

#include "base/args.h"

struct record {
    json_t *root, *inputs, *results, *timing; /* results and timing are filled by the tool */
    const char *not_finite;                   /* for json_put_headline: the first headline number that is not finite */
    double t0;
};

/* Starts the clock; params are taken from the options as parsed. */
void record_begin(struct record *r, const struct tool *t, int argc, char **argv);
/* {"role", "path", "bytes", "sha256"} of one file. */
int record_input_file(struct record *r, const char *role, const char *path, struct err *e);
/* Of a MODEL: a .gguf file as above, a folder as {"role", "path", "bytes", "sha256", "files": [{name,bytes,sha256}]}
 * over config.json, generation_config.json, tokenizer.json, tokenizer_config.json, *.safetensors and the index that
 * are there, sorted by name; its sha256 is that of the lines "SHA256  NAME\n" over config.json and *.safetensors only
 * (what the numbers depend on; the key that joins records of one model). */
int record_input_model(struct record *r, const char *role, const char *path, struct err *e);
/* The sha256 of the i-th input given so far; borrowed. */
const char *record_input_digest(const struct record *r, size_t i);
/* The same description of a folder as a value: used by qquant for what it wrote ("output"). NULL on error. */
json_t *record_describe_model(const char *path, struct err *e);
/* Set a params member after parsing, e.g. the compute kind that "auto" became. */
void record_param(struct record *r, const char *key, json_t *v);
/* Print the record on stdout, one line, and flush: a full disk or a closed pipe is an error, as is not_finite.
 * Frees the record. */
int record_print(struct record *r, struct err *e);
/* To be called at the end of main: record_print or die. Returns 0. */
int record_finish(struct record *r);

/* Read a record another tool printed, checking "schema" against "qlab.TOOL/1" for one of the tools in `tools`
 * ("qppl|qbench"). NULL on error. */
json_t *record_read(const char *path, const char *tools, struct err *e);

#endif
