/* Validates JSON against the part of JSON Schema 2020-12 that docs/schema uses, so that the tests need no library for it:
 *   schema_check SCHEMA.json [FILE…]      (no FILE: stdin, which must hold exactly one value)
 * Prints each violation as "FILE: /pointer: what is wrong"; exit 0 valid, 1 invalid, 2 the schema itself is wrong.
 * Keywords: type required properties additionalProperties items minItems enum const minimum maximum minLength $ref $defs
 * and annotations. A keyword it does not know is an error: a schema must not promise what nobody checks. */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SCHEMA ((size_t)4 << 20)
#define MAX_INPUT ((size_t)256 << 20)
#define MAX_FILES 8

struct schema_file {
    char *path;
    json_t *root;
};
static struct schema_file files[MAX_FILES];
static int n_files;

/* Where validation stands: the value's JSON pointer, the file of the schema in force, and how often it failed. */
struct check {
    const char *input;
    char pointer[1024];
    const struct schema_file *file;
    int n_bad, depth;
};

_Noreturn static void bad_schema(const struct schema_file *f, const char *what, const char *which)
{
    fprintf(stderr, "schema_check: %s: %s: %s\n", f->path, which, what);
    exit(2);
}

static const struct schema_file *schema_open(const char *path)
{
    for (int i = 0; i < n_files; i++)
        if (!strcmp(files[i].path, path)) return &files[i];
    struct err e;
    json_t *root = n_files < MAX_FILES ? json_read(path, MAX_SCHEMA, &e) : NULL;
    if (!root || !json_is_object(root)) {
        fprintf(stderr, "schema_check: %s\n", root ? path : e.msg);
        exit(2);
    }
    files[n_files] = (struct schema_file){mem_strdup(path), root};
    return &files[n_files++];
}

static void complain(struct check *c, const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", c->input, *c->pointer ? c->pointer : "/", what);
    c->n_bad++;
}

static bool has_type(const json_t *v, const char *type)
{
    if (!strcmp(type, "object")) return json_is_object(v);
    if (!strcmp(type, "array")) return json_is_array(v);
    if (!strcmp(type, "string")) return json_is_string(v);
    if (!strcmp(type, "boolean")) return json_is_boolean(v);
    if (!strcmp(type, "null")) return json_is_null(v);
    if (!strcmp(type, "number")) return json_is_number(v);
    if (!strcmp(type, "integer")) return json_is_integer(v) || (json_is_real(v) && fmod(json_real_value(v), 1) == 0);
    return false;
}

static void validate(struct check *c, const json_t *schema, const json_t *v);

/* One step down: validate with the pointer grown by "/part". */
static void descend(struct check *c, const json_t *schema, const json_t *v, const char *part)
{
    size_t n = strlen(c->pointer);
    snprintf(c->pointer + n, sizeof c->pointer - n, "/%s", part);
    validate(c, schema, v);
    c->pointer[n] = 0;
}

/* "#/$defs/NAME", "FILE.json" (beside the referring schema) or "FILE.json#/$defs/NAME". */
static void follow(struct check *c, const char *ref, const json_t *v)
{
    const struct schema_file *back = c->file, *to = back;
    const char *hash = strchr(ref, '#'), *slash = strrchr(back->path, '/');
    size_t n_file = hash ? (size_t)(hash - ref) : strlen(ref);
    if (n_file) {
        char *path = mem_printf("%.*s%.*s", slash ? (int)(slash - back->path + 1) : 0, back->path, (int)n_file, ref);
        to = schema_open(path);
        free(path);
    }
    const json_t *schema = to->root;
    if (hash) {
        if (strncmp(hash, "#/$defs/", 8)) bad_schema(back, "only #/$defs/NAME is supported", ref);
        schema = json_object_get(json_object_get(to->root, "$defs"), hash + 8);
        if (!schema) bad_schema(back, "no such definition", ref);
    }
    if (++c->depth > 64) bad_schema(back, "references go round", ref);
    c->file = to;
    validate(c, schema, v);
    c->file = back;
    c->depth--;
}

static void check_type(struct check *c, const json_t *want, const json_t *v)
{
    bool ok = json_is_string(want) && has_type(v, json_string_value(want));
    size_t i;
    const json_t *t;
    if (json_is_array(want)) json_array_foreach(want, i, t) ok = ok || has_type(v, json_string_value(t));
    if (ok) return;
    char *s = json_dumps(want, JSON_ENCODE_ANY), *got = json_dumps(v, JSON_ENCODE_ANY), msg[256];
    snprintf(msg, sizeof msg, "%.60s is not of type %s", got, s);
    complain(c, msg);
    free(s);
    free(got);
}

static void check_object(struct check *c, const json_t *schema, const json_t *v)
{
    const json_t *required = json_object_get(schema, "required"), *props = json_object_get(schema, "properties"),
                 *others = json_object_get(schema, "additionalProperties"), *name, *member;
    size_t i;
    char msg[256];
    json_array_foreach(required, i, name)
    {
        if (json_object_get(v, json_string_value(name))) continue;
        snprintf(msg, sizeof msg, "\"%s\" is missing", json_string_value(name));
        complain(c, msg);
    }
    const char *key;
    json_object_foreach((json_t *)v, key, member)
    {
        const json_t *sub = json_object_get(props, key);
        if (!sub && json_is_false(others)) {
            snprintf(msg, sizeof msg, "\"%.100s\" is not expected", key);
            complain(c, msg);
        }
        if (!sub) sub = others;
        if (json_is_object(sub)) descend(c, sub, member, key);
    }
}

static void check_number(struct check *c, const json_t *schema, double x)
{
    const json_t *lo = json_object_get(schema, "minimum"), *hi = json_object_get(schema, "maximum");
    char msg[128];
    if (lo && !(x >= json_number_value(lo))) {
        snprintf(msg, sizeof msg, "%.12g is below %.12g", x, json_number_value(lo));
        complain(c, msg);
    }
    if (hi && !(x <= json_number_value(hi))) {
        snprintf(msg, sizeof msg, "%.12g is above %.12g", x, json_number_value(hi));
        complain(c, msg);
    }
}

static void check_keywords(const struct check *c, const json_t *schema)
{
    static const char *known[] = {"type",    "required", "properties", "additionalProperties", "items",       "minItems",
                                  "enum",    "const",    "minimum",    "maximum",              "minLength",   "$ref",
                                  "$schema", "$id",      "$defs",      "title",                "description", "$comment"};
    const char *key;
    const json_t *unused;
    json_object_foreach((json_t *)schema, key, unused)
    {
        bool ok = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) ok = ok || !strcmp(key, known[i]);
        if (!ok) bad_schema(c->file, "keyword not supported", key);
    }
}

static void validate(struct check *c, const json_t *schema, const json_t *v)
{
    if (!json_is_object(schema)) bad_schema(c->file, "a schema must be an object", c->pointer);
    check_keywords(c, schema);
    const json_t *w;
    size_t i;
    if ((w = json_object_get(schema, "$ref"))) follow(c, json_string_value(w), v);
    if ((w = json_object_get(schema, "type"))) check_type(c, w, v);
    if ((w = json_object_get(schema, "const")) && !json_equal(w, v)) complain(c, "not the constant that was expected");
    if ((w = json_object_get(schema, "enum"))) {
        bool ok = false;
        const json_t *one;
        json_array_foreach(w, i, one) ok = ok || json_equal(one, v);
        if (!ok) complain(c, "not one of the values that were expected");
    }
    if (json_is_object(v)) check_object(c, schema, v);
    if (json_is_number(v)) check_number(c, schema, json_number_value(v));
    if ((w = json_object_get(schema, "minLength")) && json_is_string(v) &&
        json_string_length(v) < (size_t)json_integer_value(w))
        complain(c, "string too short");
    if (json_is_array(v)) {
        const json_t *items = json_object_get(schema, "items"), *one;
        char part[32];
        if ((w = json_object_get(schema, "minItems")) && json_array_size(v) < (size_t)json_integer_value(w))
            complain(c, "too few items");
        if (items) json_array_foreach(v, i, one)
            {
                snprintf(part, sizeof part, "%zu", i);
                descend(c, items, one, part);
            }
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: schema_check SCHEMA.json [FILE…]\n");
        return 2;
    }
    const struct schema_file *schema = schema_open(argv[1]);
    int n_bad = 0;
    for (int i = argc > 2 ? 2 : 1; i < argc; i++) {
        struct check c = {.input = argc > 2 ? argv[i] : "stdin", .file = schema};
        struct err e;
        json_t *v;
        if (argc > 2) {
            v = json_read(argv[i], MAX_INPUT, &e);
        } else {
            json_error_t je;
            v = json_loadf(stdin, JSON_REJECT_DUPLICATES, &je);
            if (!v) err_set(&e, "stdin: line %d: %s", je.line, je.text);
        }
        if (!v) {
            fprintf(stderr, "%s\n", e.msg);
            n_bad++;
            continue;
        }
        validate(&c, schema->root, v);
        n_bad += c.n_bad;
        json_decref(v);
    }
    for (int i = 0; i < n_files; i++) {
        free(files[i].path);
        json_decref(files[i].root);
    }
    return n_bad != 0;
}
