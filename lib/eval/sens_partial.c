#include "eval/sens_partial.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define SCHEMA "qlab.qsens.partial/1"
#define BEGINNING "{\"schema\":\"" SCHEMA "\""
#define MAX_FILE ((size_t)64 << 20)

/* ---- JSON ---- */

static json_t *sums_json(const struct sens_metrics *s)
{
    return json_pack("{s:I,s:f,s:f,s:f,s:f}", "n", (json_int_t)s->n, "err2", s->err2, "ref2", s->ref2, "quant2",
                     s->quant2, "dot", s->dot);
}

static int sums_read(struct sens_metrics *s, const json_t *o, struct err *e)
{
    if (!json_is_object(o)) return err_set(e, "sums are missing");
    return json_get_int(o, "n", true, 0, INT64_MAX / 2, 0, &s->n, e) || json_get_num(o, "err2", true, 0, &s->err2, e) ||
                   json_get_num(o, "ref2", true, 0, &s->ref2, e) || json_get_num(o, "quant2", true, 0, &s->quant2, e) ||
                   json_get_num(o, "dot", true, 0, &s->dot, e)
               ? -1
               : 0;
}

json_t *sens_entry_json(const struct sens_entry *en, const struct sens_opts *o)
{
    json_t *v = json_object();
    json_put(v, "name", json_string(en->name));
    json_put(v, "layer", en->layer < 0 ? json_null() : json_integer(en->layer));
    json_put(v, "op", en->op < 0 ? json_null() : json_string(op_name((enum op)en->op)));
    if (en->n_out) json_put(v, "shape", json_pack("[I,I]", (json_int_t)en->n_out, (json_int_t)en->n_in));
    json_put(v, "mse", json_num(sens_mse(&en->local)));
    json_put(v, "nmse", json_num(sens_nmse(&en->local)));
    json_put(v, "cosine", json_num(sens_cosine(&en->local)));
    json_put(v, "sqnr_db", json_num(sens_sqnr_db(&en->local)));
    if (o->seed_preset) {
        json_put(v, "seed_mse", json_num(sens_mse(&en->seed)));
        json_put(v, "seed_cosine", json_num(sens_cosine(&en->seed)));
    }
    bool output = o->mode != SENS_LOCAL;
    json_put(v, "kld", output ? json_num(en->kld) : json_null());
    json_put(v, "delta_nll", output ? json_num(en->delta_nll) : json_null());
    json_put(v, "bytes_before", json_integer(en->bytes_before));
    json_put(v, "bytes_after", json_integer(en->bytes_after));
    return v;
}

/* ---- reading ---- */

static struct sens_entry *entry_named(struct sens_result *r, const char *name)
{
    for (int64_t i = 0; i < r->n; i++)
        if (!strcmp(r->entries[i].name, name)) return &r->entries[i];
    return NULL;
}

static int read_unit(struct sens_result *r, const json_t *v, struct err *e)
{
    const char *name;
    if (json_get_str(v, "name", true, NULL, &name, e)) return -1;
    struct sens_entry *en = entry_named(r, name);
    if (!en) return err_set(e, "\"%s\" is no unit of this run", name);
    if (en->done) return err_set(e, "\"%s\" is there twice", name);
    if (sums_read(&en->local, json_object_get(v, "local"), e) || sums_read(&en->seed, json_object_get(v, "seed"), e) ||
        json_get_num(v, "kld", true, 0, &en->kld, e) || json_get_num(v, "delta_nll", true, 0, &en->delta_nll, e) ||
        json_get_int(v, "bytes_before", true, 1, INT64_MAX / 2, 0, &en->bytes_before, e) ||
        json_get_int(v, "bytes_after", true, 1, INT64_MAX / 2, 0, &en->bytes_after, e))
        return err_prefix(e, "%s", name);
    en->done = true;
    return 0;
}

static int read_header(const struct sens_partial *p, const json_t *v, struct err *e)
{
    const char *schema = json_string_value(json_object_get(v, "schema")), *key;
    const json_t *had = json_object_get(v, "fingerprint");
    json_t *want;
    if (!schema || strcmp(schema, SCHEMA) || !json_is_object(had))
        return err_set(e, "not a file of unfinished sensitivities (schema %s was expected)", SCHEMA);
    json_object_foreach(p->fingerprint, key, want) {
        if (json_equal(json_object_get(had, key), want)) continue;
        char *a = json_text(json_object_get(had, key), 0), *b = json_text(want, 0);
        err_set(e, "made by another run: its %s is %s (%s was expected); remove it or name another", key,
                a ? a : "missing", b);
        free(a);
        free(b);
        return -1;
    }
    return 0;
}

/* Reads the whole lines; *good is where they end. */
static int read_lines(struct sens_partial *p, const char *text, size_t n, struct sens_result *r, size_t *good,
                      struct err *e)
{
    int64_t line = 0;
    for (const char *nl; *good < n && (nl = memchr(text + *good, '\n', n - *good)); *good = (size_t)(nl + 1 - text)) {
        const char *at = text + *good;
        line++;
        char *where = mem_printf(line == 1 ? "%s" : "%s: line %lld", p->path, (long long)line);
        json_t *v = json_parse(where, at, (size_t)(nl - at), e);
        free(where);
        if (!v) return -1;
        int rc = line == 1 ? read_header(p, v, e) : read_unit(r, v, e);
        json_decref(v);
        if (rc) return err_prefix(e, line == 1 ? "%s" : "%s: line %lld", p->path, (long long)line);
        if (line > 1) p->n_found++;
    }
    return 0;
}

static int take(struct sens_partial *p, const char *mode, struct err *e)
{
    p->f = fopen(p->path, mode);
    if (!p->f) return err_sys(e, "%s", p->path);
    if (flock(fileno(p->f), LOCK_EX | LOCK_NB) == 0) return 0;
    err_set(e, "%s: in use by another process", p->path);
    fclose(p->f);
    p->f = NULL;
    return -1;
}

/* Whether a file can be made there: it is only made after the first unit's work. */
static int check_folder(const char *path, struct err *e)
{
    char *dir = mem_strdup(path), *slash = strrchr(dir, '/');
    if (slash) slash[slash == dir] = 0;
    int rc = access(slash ? dir : ".", W_OK | X_OK);
    if (rc) err_sys(e, "%s", path);
    free(dir);
    return rc ? -1 : 0;
}

int sens_partial_open(struct sens_partial *p, const char *path, json_t *fingerprint, struct sens_result *r, struct err *e)
{
    *p = (struct sens_partial){.path = mem_strdup(path), .fingerprint = fingerprint};
    if (!path_exists(path)) return check_folder(path, e);
    if (path_is_dir(path)) return err_set(e, "%s: is a folder (a file was expected)", path);
    char *text;
    size_t n, good = 0;
    if (take(p, "r+", e)) return -1;
    int rc = file_read(path, MAX_FILE, &text, &n, e);
    if (rc == 0) {
        rc = read_lines(p, text, n, r, &good, e);
        /* A torn first line is the beginning of a header of ours, or the file is somebody else's. */
        size_t same = n < sizeof BEGINNING - 1 ? n : sizeof BEGINNING - 1;
        if (rc == 0 && good == 0 && memcmp(text, BEGINNING, same))
            rc = err_set(e, "%s: not a file of unfinished sensitivities (schema %s was expected)", path, SCHEMA);
        free(text);
    }
    if (rc == 0 && (ftruncate(fileno(p->f), (off_t)good) || fseek(p->f, (long)good, SEEK_SET)))
        rc = err_sys(e, "%s", path);
    if (rc || good == 0) { /* in use, not ours, or empty: made anew with the first unit */
        fclose(p->f);
        p->f = NULL;
    }
    return rc;
}

/* ---- writing ---- */

static int put_line(struct sens_partial *p, json_t *v, struct err *e)
{
    char *s = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(17));
    int bad = !s || fputs(s, p->f) < 0 || fputc('\n', p->f) < 0 || fflush(p->f);
    if (bad) err_sys(e, "%s", p->path);
    free(s);
    json_decref(v);
    return bad ? -1 : 0;
}

int sens_partial_add(struct sens_partial *p, const struct sens_entry *en, struct err *e)
{
    if (!p->f) {
        if (take(p, "a", e)) return -1;
        if (put_line(p, json_pack("{s:s,s:O}", "schema", SCHEMA, "fingerprint", p->fingerprint), e)) return -1;
    }
    json_t *v = json_object();
    json_put(v, "name", json_string(en->name));
    json_put(v, "local", sums_json(&en->local));
    json_put(v, "seed", sums_json(&en->seed));
    json_put(v, "kld", json_real(en->kld));
    json_put(v, "delta_nll", json_real(en->delta_nll));
    json_put(v, "bytes_before", json_integer(en->bytes_before));
    json_put(v, "bytes_after", json_integer(en->bytes_after));
    return put_line(p, v, e);
}

int sens_partial_close(struct sens_partial *p, struct err *e)
{
    int bad = p->f && (fflush(p->f) || fsync(fileno(p->f)));
    if (bad) err_sys(e, "%s", p->path);
    if (p->f && fclose(p->f) && !bad) {
        err_sys(e, "%s", p->path);
        bad = 1;
    }
    free(p->path);
    json_decref(p->fingerprint);
    memset(p, 0, sizeof *p);
    return bad ? -1 : 0;
}
