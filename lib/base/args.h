/* Command lines of the tools: a table of options gives parsing, --help with live defaults, and the record's params. */
#ifndef QLAB_BASE_ARGS_H
#define QLAB_BASE_ARGS_H

#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

enum opt_type {
    OPT_FLAG,   /* bool: no argument */
    OPT_INT,    /* int64_t, within lo … hi */
    OPT_NUM,    /* double, finite, within lo … hi */
    OPT_STR,    /* const char *, NULL = not given */
    OPT_CHOICE, /* const char *, one of `choices` ("a|b|c") */
    OPT_INTS,   /* struct int_list: comma separated, each within lo … hi */
};

struct int_list {
    int n;
    int64_t v[32];
};

struct opt {
    const char *name; /* long name; NULL ends the table */
    char letter;      /* 0: none */
    enum opt_type type;
    void *value;         /* holds the default, gets the value */
    const char *arg;     /* how the argument is named in --help */
    const char *help;    /* one line or several ('\n') */
    const char *choices; /* OPT_CHOICE */
    double lo, hi;       /* OPT_INT, OPT_NUM, OPT_INTS; both 0: no limit but the type's */
};

#define COMPUTE_NAMES "f32|f16|bf16|int8|int8x2|auto"

/* The options all six tools have. */
struct common_opts {
    int64_t threads; /* 0: all cores this process may use */
    const char *device, *compute;
    int64_t seed;
    bool quiet;
};

struct tool {
    const char *name, *summary; /* "qppl", "perplexity of a model by a named protocol" */
    const char *usage;          /* "MODEL --text FILE [options]" */
    const char *details;        /* after the options in --help: examples, fields of results */
    int results_version;        /* rises when numbers can change */
    const char *compute_dflt;   /* "f32" or "auto" */
    struct opt *opts;           /* the tool's own, ended by name == NULL */
    struct common_opts common;
};

/* Parse; handles --help and --version (prints, exits 0) and usage errors (exit 2). Returns the operands as a NULL-ended
 * array inside argv, their number in *n. Also sets threads (par) and quiet (msg). Options may stand anywhere; "--" ends
 * them. */
char **args_parse(struct tool *t, int argc, char **argv, int *n);
/* Whether the option that fills this `value` was given, be it with its default. */
bool args_given(const void *value);
/* argv as it was given, before args_parse moved operands; NULL before it. */
char **args_as_given(void);
/* Every option in force, as the record's params: {"name": value, …} with dashes turned into underscores. */
json_t *args_params(const struct tool *t);

#endif
