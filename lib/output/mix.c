#include "output/mix.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/stats.h"
#include "output/nlldiff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_MAX ((size_t)256 << 20)

static bool is(const char *a, const char *b) { return a && b && !strcmp(a, b); }

/* ---- joining ---- */

static int add_quant(struct mix *m, const json_t *doc, const char *path, struct err *e)
{
    const char *bad = NULL, *digest = str_at(doc, "output.sha256"), *format = str_at(doc, "params.format");
    if (!digest) return 0; /* a plan (the float base): sizes alone, nothing was written */
    for (size_t i = 0; i < m->n; i++)
        if (is(m->r[i].digest, digest)) return err_set(e, "%s: the same folder as %s", path, m->r[i].quant_path);
    m->r = mem_grow(m->r, m->n + 1, sizeof *m->r);
    struct mix_row *r = &m->r[m->n++];
    const char *where = str_at(doc, "output.path"), *method = str_at(doc, "params.method");
    bool plain = format && !str_at(doc, "params.embed") && !str_at(doc, "params.head") && (!method || is(method, "rtn"));
    *r = (struct mix_row){.name = plain ? mem_strdup(format) : row_name(where ? where : path),
                          .digest = digest,
                          .quant = doc,
                          .quant_path = path,
                          .uniform = format != NULL && !str_at(doc, "params.recipe"),
                          .transformers = is(str_at(doc, "results.portable.transformers"), "yes"),
                          .vllm = is(str_at(doc, "results.portable.vllm"), "expected"),
                          .bpw = num_at(doc, "results.bpw", &bad)};
    r->budget_bpw = r->predicted = r->chord = r->neighbours = r->below = NAN;
    r->delta = r->kld = r->margin = (struct pm){NAN, NAN};
    if (bad || !isfinite(r->bpw)) return err_set(e, "%s: results.bpw is missing or not a number", path);
    return 0;
}

static int add_ppl(struct mix *m, const json_t *doc, const char *path, struct err *e)
{
    const char *bad = NULL, *digest = str_at(record_input(doc, "model"), "sha256");
    struct mix_row *r = NULL;
    for (size_t i = 0; i < m->n; i++)
        if (is(m->r[i].digest, digest)) r = &m->r[i];
    if (!r) return err_set(e, "%s: perplexity of a model no qquant record given here wrote", path);
    if (r->ppl) return err_set(e, "%s: a second perplexity of the model in %s", path, r->ppl_path);
    r->ppl = doc;
    r->ppl_path = path;
    r->delta = (struct pm){num_at(doc, "results.delta_nll.mean", &bad), num_at(doc, "results.delta_nll.se", &bad)};
    r->kld = (struct pm){num_at(doc, "results.kld.mean", &bad), num_at(doc, "results.kld.se", &bad)};
    if (bad) return err_set(e, "%s: %s is not a number", path, bad);
    if (!isfinite(r->delta.v) || !isfinite(r->delta.se))
        return err_set(e, "%s: no results.delta_nll (a qppl record made with --ref was expected)", path);
    if (!str_at(doc, "params.nll")) return 0;
    char *file = NULL;
    if (nll_read(doc, path, &r->nll, &r->n_nll, &file, e)) return -1;
    free(file);
    return 0;
}

static double number_or_bpw(const json_t *plan)
{
    const char *bad = NULL;
    const json_t *b = json_at(plan, "budget");
    if (json_is_number(b)) return json_number_value(b);
    double v = num_at(plan, "budget.bpw", &bad), bytes = num_at(plan, "bytes", &bad);
    return isfinite(v) ? v : num_at(plan, "budget_bytes", &bad) / bytes * num_at(plan, "bpw", &bad);
}

/* Recipes belong to folders by the digest of the file qquant read. */
static void add_plans(struct mix *m)
{
    for (size_t i = 0; i < m->n; i++) {
        struct mix_row *r = &m->r[i];
        const char *bad = NULL, *sha = str_at(record_input(r->quant, "recipe"), "sha256");
        for (size_t k = 0; sha && k < m->n_docs; k++)
            if (!json_object_get(m->docs[k], "schema") && !strcmp(m->sha[k], sha)) r->plan = json_at(m->docs[k], "plan");
        if (!json_is_object(r->plan)) {
            r->plan = NULL;
            continue;
        }
        r->random = json_at(r->plan, "random") != NULL;
        r->predicted = num_at(r->plan, "predicted", &bad);
        r->budget_bpw = r->random ? NAN : number_or_bpw(r->plan);
    }
}

/* Uniform formats are predicted as plan.jq would: the sum of what each linear costs alone. */
static void predict_uniform(struct mix *m)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct sens_rec *s = m->r[i].uniform ? sens_find(m->sens, m->n_sens, "isolated", m->r[i].name) : NULL;
        if (!s || (s->per && strcmp(s->per, "tensor"))) continue;
        m->r[i].predicted = 0;
        for (size_t k = 0; k < s->n; k++) m->r[i].predicted += fmax(sens_damage(s, k), 0);
    }
}

static int check_agree(const struct mix *m, struct err *e)
{
    static const char *const keys[] = {"params.protocol", "params.ctx", "params.stride", "params.chars", "params.max_windows",
                                       "results.n_scored"};
    for (int random = 0; random < 2; random++) {
        const struct mix_row *first = NULL;
        for (size_t i = 0; i < m->n; i++) {
            const struct mix_row *r = &m->r[i];
            if (!r->ppl || r->random != random) continue;
            if (!first) first = r;
            for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
                const json_t *a = json_at(first->ppl, keys[k]), *b = json_at(r->ppl, keys[k]);
                if (a != b && !(a && b && json_equal(a, b)))
                    return err_set(e, "%s and %s differ in %s (one text, measured one way, was expected)", first->ppl_path,
                                   r->ppl_path, keys[k]);
            }
            static const char *const roles[] = {"text", "ref"};
            for (int k = 0; k < 2; k++)
                if (!is(str_at(record_input(first->ppl, roles[k]), "sha256"), str_at(record_input(r->ppl, roles[k]), "sha256")))
                    return err_set(e, "%s and %s are of different %s", first->ppl_path, r->ppl_path,
                                   k ? "reference models" : "texts");
        }
    }
    return 0;
}

/* ---- chords ---- */

/* Standard error of d − (w·a + (1−w)·b): from the tokens where they are known, else as if the three were independent,
 * which is more than it is, since they read one text. */
static double error_of(const struct mix_row *d, const struct mix_row *a, const struct mix_row *b, double w, bool *paired)
{
    *paired = d->nll && a->nll && b->nll && d->n_nll == a->n_nll && d->n_nll == b->n_nll && d->n_nll > 1;
    if (!*paired) return sqrt(d->delta.se * d->delta.se + w * w * a->delta.se * a->delta.se +
                              (1 - w) * (1 - w) * b->delta.se * b->delta.se);
    double *line = mem_new((size_t)d->n_nll, sizeof *line);
    for (int64_t i = 0; i < d->n_nll; i++) line[i] = w * a->nll[i] + (1 - w) * b->nll[i];
    double se = stats_paired(line, d->nll, d->n_nll).se;
    free(line);
    return se;
}

static double on_line(const struct mix_row *a, const struct mix_row *b, double bpw, double *w)
{
    *w = b->bpw > a->bpw ? (b->bpw - bpw) / (b->bpw - a->bpw) : 1;
    return *w * a->delta.v + (1 - *w) * b->delta.v;
}

static void chords(struct mix *m)
{
    static char name[] = "f16";
    m->reference = (struct mix_row){.name = name, .bpw = 16};
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (!r->uniform || !r->ppl) continue;
        if (!strcmp(r->name, "int4-g64")) m->lo = r;
        if (!strcmp(r->name, "int8-row")) m->hi = r;
    }
    for (size_t i = 0; i < m->n; i++) {
        struct mix_row *r = &m->r[i];
        double w;
        if (r->uniform || r->random || !r->ppl) continue;
        for (size_t k = 0; k < m->n; k++) {
            const struct mix_row *u = &m->r[k];
            if (!u->uniform || !u->ppl) continue;
            if (u->bpw <= r->bpw && (!r->left || u->bpw > r->left->bpw)) r->left = u;
            if (u->bpw >= r->bpw && (!r->right || u->bpw < r->right->bpw)) r->right = u;
        }
        if (!r->right && r->bpw <= 16) r->right = &m->reference;
        if (r->left && r->right) r->neighbours = on_line(r->left, r->right, r->bpw, &w);
        const struct mix_row *a = m->lo, *b = m->hi;
        if (!a || !b || r->bpw < a->bpw || r->bpw > b->bpw) a = r->left, b = r->right;
        if (!a || !b) continue;
        r->chord = on_line(a, b, r->bpw, &w);
        r->below = r->chord > 0 ? 1 - r->delta.v / r->chord : NAN;
        r->margin = (struct pm){r->chord - r->delta.v, error_of(r, a, b, w, &r->paired)};
    }
}

const char *mix_verdict(const struct mix_row *r)
{
    if (!isfinite(r->margin.v)) return NULL;
    return r->margin.v > 0 && r->margin.v > 1.96 * r->margin.se ? "accepted" : "rejected";
}

/* ---- correlations ---- */

static const struct sens_rec *most_modes(const struct mix *m, const char **format)
{
    static const char *const modes[] = {"local", "isolated", "restore"};
    const struct sens_rec *best = NULL;
    int most = 0;
    for (size_t i = 0; i < m->n_sens; i++) {
        int have = 0;
        for (int k = 0; k < 3; k++) have += sens_find(m->sens, m->n_sens, modes[k], m->sens[i].format) != NULL;
        if (have > most) most = have, best = &m->sens[i];
    }
    *format = best ? best->format : NULL;
    return best;
}

static void correlations(struct mix *m)
{
    const char *format;
    most_modes(m, &format);
    const struct sens_rec *l = sens_find(m->sens, m->n_sens, "local", format),
                          *i = sens_find(m->sens, m->n_sens, "isolated", format),
                          *s = sens_find(m->sens, m->n_sens, "restore", format);
    m->rho_local_isolated = sens_rho(l, i);
    m->rho_local_restore = sens_rho(l, s);
    m->rho_isolated_restore = sens_rho(i, s);
    double *x = mem_new(m->n, sizeof *x), *y = mem_new(m->n, sizeof *y), *z = mem_new(m->n, sizeof *z);
    size_t n_random = 0;
    for (size_t k = 0; k < m->n; k++) n_random += m->r[k].random && m->r[k].ppl;
    m->over_random = n_random >= 3;
    for (size_t k = 0; k < m->n; k++) {
        const struct mix_row *r = &m->r[k];
        if (!r->ppl || !isfinite(r->predicted) || r->random != m->over_random) continue;
        x[m->n_predicted] = r->predicted;
        y[m->n_predicted] = r->delta.v;
        z[m->n_predicted++] = r->kld.v;
    }
    m->rho_predicted = stats_spearman(x, y, (int64_t)m->n_predicted);
    m->rho_predicted_kld = stats_spearman(x, z, (int64_t)m->n_predicted);
    free(x);
    free(y);
    free(z);
}

/* ---- all of it ---- */

static int by_bpw(const void *a, const void *b)
{
    const struct mix_row *x = a, *y = b;
    return x->bpw < y->bpw ? -1 : x->bpw > y->bpw ? 1 : strcmp(x->name, y->name);
}

static int add_docs(struct mix *m, char **paths, const char *kind, struct err *e)
{
    for (size_t i = 0; i < m->n_docs; i++) {
        if (!is(str_at(m->docs[i], "schema"), kind)) continue;
        if (!strcmp(kind, "qlab.qquant/1")) {
            if (add_quant(m, m->docs[i], paths[i], e)) return -1;
        } else if (!strcmp(kind, "qlab.qppl/1")) {
            if (add_ppl(m, m->docs[i], paths[i], e)) return -1;
        } else if (sens_rec_parse(&m->sens[m->n_sens++], json_incref(m->docs[i]), paths[i], e)) {
            return -1;
        }
    }
    return 0;
}

int mix_read(struct mix *m, char **paths, size_t n, struct err *e)
{
    *m = (struct mix){.docs = mem_new(n, sizeof(json_t *)), .sha = mem_new(n, sizeof *m->sha)};
    m->sens = mem_new(n, sizeof *m->sens);
    for (size_t i = 0; i < n; i++, m->n_docs++) {
        if (!(m->docs[i] = json_read(paths[i], RECORD_MAX, e))) return -1;
        const char *schema = str_at(m->docs[i], "schema");
        bool recipe = json_is_object(m->docs[i]) && !schema &&
                      (json_object_get(m->docs[i], "rules") || json_object_get(m->docs[i], "default"));
        if (!recipe && !is(schema, "qlab.qquant/1") && !is(schema, "qlab.qppl/1") && !is(schema, "qlab.qsens/1"))
            return err_set(e, "%s: %s (a record of qquant, qppl or qsens, or a recipe, was expected)", paths[i],
                           schema ? schema : "not a qlab record");
        if (sha256_file(paths[i], m->sha[i], NULL, e)) return -1;
    }
    if (add_docs(m, paths, "qlab.qquant/1", e) || add_docs(m, paths, "qlab.qppl/1", e) ||
        add_docs(m, paths, "qlab.qsens/1", e))
        return -1;
    add_plans(m);
    predict_uniform(m);
    if (m->n) qsort(m->r, m->n, sizeof *m->r, by_bpw);
    if (check_agree(m, e)) return -1;
    chords(m);
    correlations(m);
    size_t n_mixes = 0;
    for (size_t i = 0; i < m->n; i++) n_mixes += !m->r[i].uniform && !m->r[i].random && m->r[i].ppl;
    if (!n_mixes) return err_set(e, "no mix among the records (qquant and qppl records of one made by a recipe were expected)");
    return 0;
}

void mix_free(struct mix *m)
{
    for (size_t i = 0; i < m->n; i++) {
        free(m->r[i].name);
        free(m->r[i].nll);
    }
    for (size_t i = 0; i < m->n_sens; i++) sens_rec_free(&m->sens[i]);
    for (size_t i = 0; i < m->n_docs; i++) json_decref(m->docs[i]);
    free(m->r);
    free(m->sens);
    free(m->docs);
    free(m->sha);
    *m = (struct mix){0};
}

static json_t *pm_json(struct pm v) { return json_pack("{s:o,s:o}", "mean", json_num(v.v), "se", json_num(v.se)); }

static json_t *row_json(const struct mix_row *r)
{
    json_t *o = json_pack("{s:s,s:o,s:o,s:o,s:o,s:o}", "recipe", r->name, "bpw", json_num(r->bpw), "predicted",
                          json_num(r->predicted), "delta_nll", json_num(r->delta.v), "se", json_num(r->delta.se), "kld",
                          pm_json(r->kld));
    json_put(o, "portable", json_boolean(r->transformers));
    json_t *where = json_array();
    if (r->transformers) json_array_append_new(where, json_string("transformers"));
    if (r->vllm) json_array_append_new(where, json_string("vllm"));
    json_put(o, "opens_in", where);
    return o;
}

static json_t *mix_json(const struct mix_row *r)
{
    json_t *o = row_json(r);
    json_put(o, "budget_bpw", json_num(r->budget_bpw));
    json_put(o, "chord", json_num(r->chord));
    json_put(o, "below_chord", json_num(r->below));
    json_put(o, "margin", pm_json(r->margin));
    json_put(o, "margin_se_paired", json_boolean(r->paired));
    json_put(o, "neighbours", r->left && r->right ? json_pack("{s:s,s:s,s:o}", "below", r->left->name, "above", r->right->name,
                                                              "chord", json_num(r->neighbours)) : json_null());
    json_put(o, "verdict", json_string(mix_verdict(r) ? mix_verdict(r) : "no-chord"));
    return o;
}

void mix_results(const struct mix *m, json_t *results)
{
    json_t *budgets = json_array(), *uniform = json_array(), *random = json_array();
    for (size_t i = 0; i < m->n; i++) {
        const struct mix_row *r = &m->r[i];
        if (!r->ppl) continue;
        if (r->uniform) json_array_append_new(uniform, row_json(r));
        else if (r->random) json_array_append_new(random, row_json(r));
        else json_array_append_new(budgets, mix_json(r));
    }
    json_put(results, "budgets", budgets);
    json_put(results, "uniform", uniform);
    json_put(results, "random", random);
    json_put(results, "spearman",
             json_pack("{s:o,s:o,s:o,s:o,s:o}", "local_isolated", json_num(m->rho_local_isolated), "local_restore",
                       json_num(m->rho_local_restore), "isolated_restore", json_num(m->rho_isolated_restore),
                       "predicted_measured", json_num(m->rho_predicted), "predicted_measured_kld",
                       json_num(m->rho_predicted_kld)));
}
