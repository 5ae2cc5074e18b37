#include "base/record.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/host.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/version.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static json_t *any_string(const char *s)
{
    json_t *v = json_string(s);
    return v ? v : json_string_nocheck(s);
}

void record_begin(struct record *r, const struct tool *t, int argc, char **argv)
{
    memset(r, 0, sizeof *r);
    r->t0 = clock_s();
    r->root = json_object();
    char schema[64], when[32];
    snprintf(schema, sizeof schema, "qlab.%s/1", t->name);
    json_put(r->root, "schema", json_string(schema));
    json_put(r->root, "tool", json_string(t->name));
    json_put(r->root, "version", json_string(QLAB_VERSION));
    json_put(r->root, "results_version", json_integer(t->results_version));
    json_put(r->root, "git", json_string(version_git()));
    json_t *a = json_array();
    if (args_as_given()) argv = args_as_given();
    for (int i = 0; i < argc; i++) json_array_append_new(a, any_string(argv[i]));
    json_put(r->root, "argv", a);
    json_put(r->root, "host", host_json());
    json_put(r->root, "inputs", r->inputs = json_array());
    json_put(r->root, "params", args_params(t));
    json_put(r->root, "results", r->results = json_object());
    json_put(r->root, "timing", r->timing = json_object());
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_put(r->timing, "started", json_string(when));
}

static json_t *describe_file(const char *path, struct err *e)
{
    char hex[65];
    int64_t bytes;
    if (sha256_file(path, hex, &bytes, e)) return NULL;
    json_t *o = json_object();
    json_put(o, "path", any_string(path));
    json_put(o, "bytes", json_integer(bytes));
    json_put(o, "sha256", json_string(hex));
    return o;
}

static bool matters(const char *name, bool *numbers)
{
    size_t n = strlen(name);
    bool st = n > 12 && !strcmp(name + n - 12, ".safetensors");
    *numbers = st || !strcmp(name, "config.json");
    const char *others[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                            "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!strcmp(name, others[i])) return true;
    return *numbers;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

json_t *record_describe_model(const char *path, struct err *e)
{
    if (!path_is_dir(path)) return describe_file(path, e);
    DIR *d = opendir(path);
    if (!d) {
        err_sys(e, "%s", path);
        return NULL;
    }
    char **names = NULL;
    size_t n = 0;
    bool numbers;
    for (struct dirent *it; (it = readdir(d));)
        if (matters(it->d_name, &numbers)) {
            names = mem_grow(names, n + 1, sizeof *names);
            names[n++] = mem_strdup(it->d_name);
        }
    closedir(d);
    if (n) qsort(names, n, sizeof *names, by_name);
    json_t *o = json_object(), *files = json_array();
    char *lines = mem_strdup("");
    int64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        char *p = path_join(path, names[i]), hex[65];
        int64_t bytes;
        int rc = sha256_file(p, hex, &bytes, e);
        free(p);
        if (rc) {
            json_decref(o);
            o = NULL;
            break;
        }
        json_array_append_new(files, json_pack("{s:o,s:I,s:s}", "name", any_string(names[i]), "bytes",
                                               (json_int_t)bytes, "sha256", hex));
        matters(names[i], &numbers);
        total += bytes;
        if (!numbers) continue;
        char *more = mem_printf("%s%s  %s\n", lines, hex, names[i]);
        free(lines);
        lines = more;
    }
    if (o) {
        char hex[65];
        sha256_hex(lines, strlen(lines), hex);
        json_put(o, "path", any_string(path));
        json_put(o, "bytes", json_integer(total));
        json_put(o, "sha256", json_string(hex));
        json_put(o, "files", files);
    } else {
        json_decref(files);
    }
    free(lines);
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
    return o;
}

static int add_input(struct record *r, const char *role, json_t *o)
{
    if (!o) return -1;
    json_t *with = json_object();
    json_put(with, "role", json_string(role));
    json_object_update(with, o);
    json_decref(o);
    json_array_append_new(r->inputs, with);
    return 0;
}

int record_input_file(struct record *r, const char *role, const char *path, struct err *e)
{
    return add_input(r, role, describe_file(path, e));
}

int record_input_model(struct record *r, const char *role, const char *path, struct err *e)
{
    return add_input(r, role, record_describe_model(path, e));
}

const char *record_input_digest(const struct record *r, size_t i)
{
    return json_string_value(json_object_get(json_array_get(r->inputs, i), "sha256"));
}

void record_param(struct record *r, const char *key, json_t *v) { json_put(json_object_get(r->root, "params"), key, v); }

int record_print(struct record *r, struct err *e)
{
    int rc = 0;
    if (r->not_finite) {
        rc = err_set(e, "%s is not finite: no result", r->not_finite);
    } else {
        json_put(r->timing, "wall_s", json_real(clock_s() - r->t0));
        char *s = json_text(r->root, 0);
        if (!s) rc = err_set(e, "cannot write the record as JSON");
        else if (puts(s) < 0 || fflush(stdout)) rc = err_sys(e, "stdout: cannot write the record");
        else if (fclose(stdout)) rc = err_sys(e, "stdout: cannot close");
        free(s);
    }
    json_decref(r->root);
    memset(r, 0, sizeof *r);
    return rc;
}

int record_finish(struct record *r)
{
    struct err e;
    if (record_print(r, &e)) die("%s", e.msg);
    return 0;
}

json_t *record_read(const char *path, const char *tools, struct err *e)
{
    json_t *v = json_read(path, (size_t)256 << 20, e);
    if (!v) return NULL;
    const char *schema = json_string_value(json_object_get(v, "schema"));
    bool ok = false;
    char want[64];
    for (const char *p = tools; schema && p && !ok; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL) {
        snprintf(want, sizeof want, "qlab.%.*s/1", (int)strcspn(p, "|"), p);
        ok = !strcmp(schema, want);
    }
    if (ok && json_is_object(json_object_get(v, "results"))) return v;
    if (schema)
        err_set(e, "%s: record of schema %s (version 1 of %s was expected)", path, schema, tools);
    else
        err_set(e, "%s: not a qlab record (no \"schema\")", path);
    json_decref(v);
    return NULL;
}
