#include "output/rows.h"

#include "base/mem.h"
#include "base/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading records ---- */

const json_t *json_at(const json_t *o, const char *path)
{
    char key[64];
    while (o && *path) {
        size_t n = strcspn(path, ".");
        if (n >= sizeof key) return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        o = json_object_get(o, key);
        path += n + (path[n] == '.');
    }
    return json_is_null(o) ? NULL : o;
}

double num_at(const json_t *o, const char *path, const char **bad)
{
    const json_t *v = json_at(o, path);
    if (!v) return NAN;
    if (json_is_number(v) && isfinite(json_number_value(v))) return json_number_value(v);
    if (!*bad) *bad = path;
    return NAN;
}

const char *str_at(const json_t *o, const char *path) { return json_string_value(json_at(o, path)); }

const json_t *record_input(const json_t *rec, const char *role)
{
    const json_t *a = json_object_get(rec, "inputs");
    for (size_t i = 0; i < json_array_size(a); i++) {
        const char *r = str_at(json_array_get(a, i), "role");
        if (r && !strcmp(r, role)) return json_array_get(a, i);
    }
    return NULL;
}

char *path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return mem_strdup(".");
    return mem_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

const char *path_last(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *row_name(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    char *p = mem_strndup(path, n);
    char *dir = path_dir(p);
    char *name = mem_strdup(!strcmp(path_last(p), "model") && strcmp(dir, ".") ? path_last(dir) : path_last(p));
    free(dir);
    free(p);
    return name;
}

/* ---- joining ---- */

/* The schema was checked when the record was read. */
static bool is_of(const json_t *rec, const char *tool)
{
    const char *schema = str_at(rec, "schema");
    size_t n = strlen(tool);
    return !strncmp(schema + 5, tool, n) && schema[5 + n] == '/';
}

/* What a record is about: the folder qquant wrote, or the model it read. A --plan record is about a folder only if the
 * plan leaves every byte as it is. */
static const json_t *subject(const json_t *rec, const char *path, struct err *e)
{
    const json_t *m = NULL;
    if (is_of(rec, "qquant")) {
        m = json_at(rec, "output");
        const char *bad = NULL;
        double before = num_at(rec, "results.bytes_before", &bad), after = num_at(rec, "results.bytes_after", &bad);
        if (!m && before == after) m = record_input(rec, "model");
        if (!m) {
            err_set(e, "%s: a plan, not a folder (a qquant record with \"output\" was expected)", path);
            return NULL;
        }
    } else {
        m = record_input(rec, "model");
    }
    const char *digest = str_at(m, "sha256");
    if (!digest || strlen(digest) != 64 || !str_at(m, "path")) {
        err_set(e, "%s: names no model (path and sha256 of an input with role \"model\" were expected)", path);
        return NULL;
    }
    return m;
}

static const json_t **slot(struct row *r, const json_t *rec)
{
    if (is_of(rec, "qquant")) return &r->quant;
    if (is_of(rec, "qload")) return &r->load;
    if (is_of(rec, "qppl")) return &r->ppl;
    return json_at(rec, "results.generated") ? &r->say : &r->bench;
}

static struct row *row_add(struct rows *rs, const json_t *m, const char *path, size_t index)
{
    rs->r = mem_grow(rs->r, rs->n + 1, sizeof *rs->r);
    struct row *r = &rs->r[rs->n++];
    memset(r, 0, sizeof *r);
    r->name = row_name(str_at(m, "path"));
    r->digest = str_at(m, "sha256");
    r->dir = path_dir(path);
    r->first = index;
    return r;
}

/* One model can stand behind two rows (two recipes that come out the same), each with records in its own folder; then
 * the row made from the same folder is meant. */
static int join(struct rows *rs, size_t index, struct err *e)
{
    const json_t *rec = rs->records[index];
    const char *path = rs->paths[index];
    const json_t *m = subject(rec, path, e);
    if (!m) return -1;
    bool quant = is_of(rec, "qquant");
    struct row *free_row = NULL, *same_dir = NULL, *taken = NULL;
    char *dir = path_dir(path);
    for (size_t i = 0; i < rs->n; i++) {
        struct row *r = &rs->r[i];
        if (strcmp(r->digest, str_at(m, "sha256"))) continue;
        bool here = !strcmp(r->dir, dir);
        if (quant && !here) continue;
        if (*slot(r, rec)) {
            taken = r;
            if (here) break;
            continue;
        }
        if (here && !same_dir) same_dir = r;
        if (!free_row) free_row = r;
    }
    free(dir);
    struct row *r = same_dir ? same_dir : free_row;
    if (!r && taken)
        return err_set(e, "%s: a second %s record of the model of row %s", path, str_at(rec, "schema"), taken->name);
    if (!r) r = row_add(rs, m, path, index);
    *slot(r, rec) = rec;
    if (index < r->first) r->first = index;
    return 0;
}

/* Perplexities may stand in one table only if they were measured on one text by one protocol. */
static int same_protocol(const struct rows *rs, struct err *e)
{
    const char *const keys[] = {"protocol", "text_form", "ctx", "stride", "chars", "max_windows"};
    const struct row *first = NULL;
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        if (!r->ppl) continue;
        if (!first) {
            first = r;
            continue;
        }
        const char *a = str_at(record_input(first->ppl, "text"), "sha256");
        const char *b = str_at(record_input(r->ppl, "text"), "sha256");
        if (!a || !b || strcmp(a, b))
            return err_set(e, "the perplexities of %s and %s are of different texts (one text was expected)",
                           first->name, r->name);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const json_t *pa = json_object_get(json_object_get(first->ppl, "params"), keys[k]);
            const json_t *pb = json_object_get(json_object_get(r->ppl, "params"), keys[k]);
            if (pa != pb && !json_equal(pa, pb))
                return err_set(e, "the perplexities of %s and %s differ in \"%s\" (one protocol was expected)",
                               first->name, r->name, keys[k]);
        }
    }
    return 0;
}

/* ---- figures ---- */

static double weight_files_bytes(const json_t *m)
{
    const json_t *files = json_at(m, "files");
    const char *bad = NULL;
    if (!files) return num_at(m, "bytes", &bad);
    double sum = 0;
    for (size_t i = 0; i < json_array_size(files); i++) {
        const json_t *f = json_array_get(files, i);
        const char *name = str_at(f, "name");
        size_t n = name ? strlen(name) : 0;
        if (n > 12 && !strcmp(name + n - 12, ".safetensors")) sum += num_at(f, "bytes", &bad);
    }
    return sum;
}

/* Weights that decoding one token reads: the decoder's linears and the head (which is the embedding where they are
 * tied); norms and biases are left out, they are below 0.1 %. */
static double read_weights(const json_t *load, const char **bad)
{
    const json_t *r = json_at(load, "results");
    double hidden = num_at(r, "hidden_size", bad), ff = num_at(r, "intermediate_size", bad);
    double q = num_at(r, "n_heads", bad) * num_at(r, "head_dim", bad);
    double kv = num_at(r, "n_kv_heads", bad) * num_at(r, "head_dim", bad);
    return num_at(r, "n_layers", bad) * hidden * (2 * q + 2 * kv + 3 * ff) + num_at(r, "vocab_size", bad) * hidden;
}

/* "model.layers.3.mlp.up_proj.weight_packed" is a part of a decoder linear. */
static bool is_linear(const char *name)
{
    const char *p = strstr(name, "_proj.");
    return p && !strncmp(name, "model.layers.", 13) && strncmp(p, "_proj.bias", 10);
}

static void classes(struct row *r, const char **bad)
{
    const json_t *t = json_at(r->load, "results.tensors");
    r->linears_bytes = r->head_bytes = r->other_bytes = NAN;
    if (!json_is_array(t)) return;
    r->linears_bytes = r->head_bytes = r->other_bytes = 0;
    for (size_t i = 0; i < json_array_size(t); i++) {
        const char *name = str_at(json_array_get(t, i), "name");
        double b = num_at(json_array_get(t, i), "bytes", bad);
        if (!name) continue;
        if (is_linear(name)) r->linears_bytes += b;
        else if (!strncmp(name, "lm_head.", 8) || !strncmp(name, "model.embed_tokens.", 19)) r->head_bytes += b;
        else r->other_bytes += b;
    }
}

/* The qload record that knows the architecture: the row's own, or that of the model it was made from. */
static const json_t *architecture(const struct rows *rs, const struct row *r)
{
    if (r->load) return r->load;
    const char *base = str_at(record_input(r->quant, "model"), "sha256");
    for (size_t i = 0; base && i < rs->n; i++)
        if (rs->r[i].load && !strcmp(rs->r[i].digest, base)) return rs->r[i].load;
    return NULL;
}

static struct pm pm_at(const json_t *rec, const char *v, const char *se, const char **bad)
{
    return (struct pm){num_at(rec, v, bad), num_at(rec, se, bad)};
}

static int figures(const struct rows *rs, struct row *r, struct err *e)
{
    const char *bad = NULL;
    const json_t *m = r->quant ? json_at(r->quant, "output") : NULL;
    const json_t *any[] = {r->load, r->ppl, r->bench, r->say, r->quant};
    for (size_t i = 0; !m && i < sizeof any / sizeof *any; i++) m = any[i] ? record_input(any[i], "model") : NULL;
    r->disk_bytes = weight_files_bytes(m);
    const json_t *timed = r->bench ? r->bench : r->say;
    r->memory_bytes = num_at(timed, "results.memory.weights_bytes", &bad);
    r->read_bytes = num_at(r->quant, "results.read_bytes_per_token", &bad);
    if (isnan(r->read_bytes)) r->read_bytes = num_at(timed, "results.bandwidth.decode_bytes_per_token", &bad);
    r->bpw_read = 8 * r->read_bytes / read_weights(architecture(rs, r), &bad);
    classes(r, &bad);
    r->ttft_ms = num_at(r->bench, "results.ttft_ms.p50", &bad);
    r->prefill_tps = num_at(r->bench, "results.prefill_tps.p50", &bad);
    r->decode_tps = num_at(r->bench, "results.decode_tps.p50", &bad);
    r->decode_min = num_at(r->bench, "results.decode_tps.min", &bad);
    r->decode_max = r->decode_tps;
    const json_t *samples = json_at(r->bench, "results.decode_tps.samples");
    for (size_t i = 0; i < json_array_size(samples); i++)
        r->decode_max = fmax(r->decode_max, json_number_value(json_array_get(samples, i)));
    r->ppl_pm = pm_at(r->ppl, "results.ppl", "results.ppl_se", &bad);
    r->delta = pm_at(r->ppl, "results.delta_nll.mean", "results.delta_nll.se", &bad);
    r->kld = pm_at(r->ppl, "results.kld.mean", "results.kld.se", &bad);
    r->int8_kld = (struct pm){NAN, NAN};
    const char *also = str_at(r->ppl, "results.also.compute");
    if (also && !strcmp(also, "int8")) r->int8_kld = pm_at(r->ppl, "results.also.kld.mean", "results.also.kld.se", &bad);
    r->top1 = pm_at(r->ppl, "results.top1_agreement", "results.top1_se", &bad);
    r->generated = str_at(r->say, "results.generated.text");
    if (bad) return err_set(e, "row %s: \"%s\" is not a number", r->name, bad);
    return 0;
}

const char *verdict(const struct row *r)
{
    struct pm d = r->delta;
    if (r->is_ref) return "reference";
    if (!isfinite(d.v) || !isfinite(d.se)) return NULL;
    return d.v > 1.96 * d.se ? "worse" : d.v < -1.96 * d.se ? "better" : "cannot-tell";
}

/* The row whose model the others name as their --ref. */
static void mark_reference(struct rows *rs)
{
    for (size_t i = 0; i < rs->n; i++) {
        const char *ref = str_at(record_input(rs->r[i].ppl, "ref"), "sha256");
        for (size_t k = 0; ref && k < rs->n; k++)
            if (!strcmp(rs->r[k].digest, ref)) rs->r[k].is_ref = true;
    }
}

/* ---- all together ---- */

static int by_first(const void *a, const void *b)
{
    size_t x = ((const struct row *)a)->first, y = ((const struct row *)b)->first;
    return (x > y) - (x < y);
}

int rows_read(struct rows *rs, char **paths, size_t n, struct err *e)
{
    memset(rs, 0, sizeof *rs);
    rs->records = mem_new(n, sizeof *rs->records);
    rs->paths = mem_new(n, sizeof *rs->paths);
    for (size_t i = 0; i < n; i++) {
        json_t *rec = record_read(paths[i], "qload|qquant|qppl|qbench", e);
        if (!rec) goto fail;
        rs->records[rs->n_records] = rec;
        rs->paths[rs->n_records++] = mem_strdup(paths[i]);
    }
    /* qquant records make the rows first, so that each of two equal folders has its own. */
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++)
            if (is_of(rs->records[i], "qquant") == (pass == 0) && join(rs, i, e))
                goto fail;
    if (rs->n) qsort(rs->r, rs->n, sizeof *rs->r, by_first);
    if (same_protocol(rs, e)) goto fail;
    for (size_t i = 0; i < rs->n; i++)
        if (figures(rs, &rs->r[i], e)) goto fail;
    mark_reference(rs);
    return 0;
fail:
    rows_free(rs);
    return -1;
}

void rows_free(struct rows *rs)
{
    for (size_t i = 0; i < rs->n; i++) {
        free(rs->r[i].name);
        free(rs->r[i].dir);
    }
    for (size_t i = 0; i < rs->n_records; i++) {
        json_decref(rs->records[i]);
        free(rs->paths[i]);
    }
    free(rs->r);
    free(rs->records);
    free(rs->paths);
    memset(rs, 0, sizeof *rs);
}

static json_t *pm_json(struct pm p)
{
    return json_pack("{s:o,s:o}", "mean", json_num(p.v), "se", json_num(p.se));
}

static json_t *bytes_json(double v) { return isfinite(v) ? json_integer((json_int_t)v) : json_null(); }
static json_t *str_json(const char *s) { return s ? json_string(s) : json_null(); }

json_t *rows_json(const struct rows *rs)
{
    json_t *a = json_array();
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        json_t *o = json_object();
        json_put(o, "name", str_json(r->name));
        json_put(o, "sha256", str_json(r->digest));
        json_put(o, "disk_bytes", bytes_json(r->disk_bytes));
        json_put(o, "memory_bytes", bytes_json(r->memory_bytes));
        json_put(o, "read_bytes_per_token", bytes_json(r->read_bytes));
        json_put(o, "bpw_read", json_num(r->bpw_read));
        json_put(o, "linears_bytes", bytes_json(r->linears_bytes));
        json_put(o, "head_embedding_bytes", bytes_json(r->head_bytes));
        json_put(o, "other_bytes", bytes_json(r->other_bytes));
        json_put(o, "ttft_ms", json_num(r->ttft_ms));
        json_put(o, "prefill_tps", json_num(r->prefill_tps));
        json_put(o, "decode_tps", json_num(r->decode_tps));
        json_put(o, "ppl", pm_json(r->ppl_pm));
        json_put(o, "delta_nll", pm_json(r->delta));
        json_put(o, "verdict", str_json(verdict(r)));
        json_put(o, "kld", pm_json(r->kld));
        json_put(o, "int8_kld", pm_json(r->int8_kld));
        json_put(o, "top1_agreement", pm_json(r->top1));
        json_put(o, "generated", str_json(r->generated));
        json_array_append_new(a, o);
    }
    return a;
}
