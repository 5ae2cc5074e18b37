#include "eval/comparison.h"

#include "base/stats.h"

#include <math.h>

bool comparison_put(json_t *o, struct ppl_result *p)
{
    struct mean_se kld = stats_mean(p->kld, p->n), d = stats_paired(p->nll, p->nll_ref, p->n);
    double agree = (double)p->n_top1 / (double)p->n, sq = 0;
    for (int64_t i = 0; i < p->n; i++) sq += p->delta_p[i] * p->delta_p[i];
    json_t *k = json_object(), *delta = json_object();
    json_put(k, "mean", json_num(kld.mean));
    json_put(k, "se", json_num(kld.se));
    stats_sort(p->kld, p->n);
    static const struct {
        const char *key;
        double q;
    } at[] = {{"median", .5}, {"p90", .9}, {"p99", .99}, {"p999", .999}, {"max", 1}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        json_put(k, at[i].key, json_num(stats_quantile_sorted(p->kld, p->n, at[i].q)));
    json_put(o, "kld", k);
    json_put(o, "top1_agreement", json_num(agree));
    json_put(o, "top1_se", json_num(p->n > 1 ? sqrt(agree * (1 - agree) / (double)(p->n - 1)) : 0));
    json_put(o, "delta_p_rms", json_num(sqrt(sq / (double)p->n)));
    json_put(delta, "mean", json_num(d.mean));
    json_put(delta, "se", json_num(d.se));
    json_put(o, "delta_nll", delta);
    return isfinite(kld.mean);
}

json_t *comparison_of_compute(const struct ppl_job *job, const struct checkpoint *c, const char *device, const char *compute,
                              const struct windows *first, const float *rows, struct err *e)
{
    struct backend be;
    struct model m;
    struct ppl_result r;
    struct ref_states states = {.rows = rows};
    json_t *o = NULL;
    if (backend_open(&be, device, compute, !c->quant, e)) return NULL;
    if (model_load(&m, &be, c, e)) {
        backend_close(&be);
        return NULL;
    }
    struct ppl_job other = {.model = &m, .ref = job->model, .states = &states, .tokens = job->tokens, .windows = first,
                            .bos = job->bos};
    if (ppl_run(&other, &r, e) == 0) {
        o = json_object();
        json_put(o, "compute", json_string(compute_name(be.compute)));
        json_put(o, "n_windows", json_integer(first->n));
        json_put(o, "n_scored", json_integer(r.n));
        if (!comparison_put(o, &r)) {
            err_set(e, "compute %s: KLD is not finite", compute_name(be.compute));
            json_decref(o);
            o = NULL;
        }
        ppl_result_free(&r);
    }
    model_free(&m);
    backend_close(&be);
    return o;
}
