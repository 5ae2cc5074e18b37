#include "output/sens_rec.h"

#include "base/mem.h"
#include "base/stats.h"
#include "output/rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int parse_unit(struct sens_unit *u, const json_t *o, const char *path, struct err *e)
{
    const char *bad = NULL, *name = str_at(o, "name"), *op = str_at(o, "op");
    double layer = num_at(o, "layer", &bad);
    *u = (struct sens_unit){
        .name = name,
        .op = op ? op : "",
        .layer = isfinite(layer) && layer >= 0 && layer < 1e6 ? (int64_t)layer : -1,
        .mse = num_at(o, "mse", &bad),
        .nmse = num_at(o, "nmse", &bad),
        .cosine = num_at(o, "cosine", &bad),
        .sqnr_db = num_at(o, "sqnr_db", &bad),
        .kld = num_at(o, "kld", &bad),
        .delta_nll = num_at(o, "delta_nll", &bad),
        .bytes_before = num_at(o, "bytes_before", &bad),
        .bytes_after = num_at(o, "bytes_after", &bad),
    };
    if (!name || !*name) return err_set(e, "%s: an entry of results.tensors has no name", path);
    if (bad) return err_set(e, "%s: %s: %s is not a number", path, name, bad);
    return 0;
}

int sens_rec_parse(struct sens_rec *r, json_t *json, const char *path, struct err *e)
{
    const char *bad = NULL;
    const json_t *list = json_at(json, "results.tensors");
    const char *format = str_at(json, "results.format"), *method = str_at(json, "results.method");
    bool searched = method && strcmp(method, "rtn");
    *r = (struct sens_rec){
        .json = json,
        .path = path,
        .mode = str_at(json, "results.mode"),
        .format = format ? mem_printf("%s%s%s", format, searched ? "+" : "", searched ? method : "") : NULL,
        .per = str_at(json, "results.per"),
        .model = str_at(record_input(json, "model"), "sha256"),
        .text = str_at(record_input(json, "text"), "sha256"),
        .n_tokens = num_at(json, "results.n_tokens", &bad),
        .baseline_nll = num_at(json, "results.baseline.nll", &bad),
        .all_kld = num_at(json, "results.all.kld", &bad),
        .all_delta_nll = num_at(json, "results.all.delta_nll", &bad),
        .n = json_array_size(list),
    };
    if (!r->mode || (strcmp(r->mode, "local") && strcmp(r->mode, "isolated") && strcmp(r->mode, "restore")))
        return err_set(e, "%s: results.mode is missing or unknown (local, isolated or restore was expected)", path);
    if (!r->format) return err_set(e, "%s: results.format is missing", path);
    if (!r->model) return err_set(e, "%s: no input with role model", path);
    if (bad) return err_set(e, "%s: %s is not a number", path, bad);
    if (r->n == 0) return err_set(e, "%s: results.tensors is empty or missing", path);
    r->u = mem_new(r->n, sizeof *r->u);
    for (size_t i = 0; i < r->n; i++) {
        if (parse_unit(&r->u[i], json_array_get(list, i), path, e)) return -1;
        if (!isfinite(sens_damage(r, i)))
            return err_set(e, "%s: %s: no finite %s (mode %s)", path, r->u[i].name, strcmp(r->mode, "local") ? "kld" : "nmse",
                           r->mode);
    }
    return 0;
}

void sens_rec_free(struct sens_rec *r)
{
    json_decref(r->json);
    free(r->u);
    free(r->format);
    *r = (struct sens_rec){0};
}

double sens_damage(const struct sens_rec *r, size_t i)
{
    if (!strcmp(r->mode, "local")) return r->u[i].nmse;
    return !strcmp(r->mode, "restore") ? r->all_kld - r->u[i].kld : r->u[i].kld;
}

const char *sens_damage_name(const struct sens_rec *r)
{
    return !strcmp(r->mode, "local") ? "NMSE of the linear's output"
           : !strcmp(r->mode, "restore") ? "KLD gained back, nats" : "KLD of the model's output, nats";
}

double sens_rho(const struct sens_rec *a, const struct sens_rec *b)
{
    if (!a || !b || a->n != b->n || strcmp(a->format, b->format) || strcmp(a->model, b->model)) return NAN;
    double *x = mem_new(a->n, sizeof *x), *y = mem_new(a->n, sizeof *y), rho = NAN;
    bool same = true;
    for (size_t i = 0; same && i < a->n; i++) {
        same = !strcmp(a->u[i].name, b->u[i].name); /* qsens always writes them in one order */
        x[i] = sens_damage(a, i);
        y[i] = sens_damage(b, i);
    }
    if (same) rho = stats_spearman(x, y, (int64_t)a->n);
    free(x);
    free(y);
    return rho;
}

const struct sens_rec *sens_find(const struct sens_rec *r, size_t n, const char *mode, const char *format)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(r[i].mode, mode) && (!format || !strcmp(r[i].format, format))) return &r[i];
    return NULL;
}
