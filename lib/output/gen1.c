#include "output/gen1.h"

#include "base/mem.h"
#include "base/msg.h"
#include "output/mix.h"
#include "output/rows.h"
#include "output/sens.h"
#include "output/speed.h"

#include <stdlib.h>
#include <string.h>

static void inputs(struct record *r, char **paths, int n)
{
    struct err e;
    for (int i = 0; i < n; i++)
        if (record_input_file(r, "record", paths[i], &e)) die("%s", e.msg);
}

/* ---- sens ---- */

/* Is it the model the records are of? */
static void check_model(struct record *rec, const struct sens_rec *r, const char *path)
{
    struct err e;
    if (record_input_model(rec, "model", path, &e)) die("%s", e.msg);
    const char *sha = str_at(record_input(rec->root, "model"), "sha256");
    if (!sha || strcmp(sha, r->model))
        die("%s: not the model of %s (sha256 %.8s… was expected, this is %.8s…)", path, r->path, r->model, sha ? sha : "?");
}

int gen1_sens(int argc, char **argv, int version, gen1_begin *begin)
{
    const char *dir = NULL, *samples = NULL, *model = NULL;
    struct opt opts[] = {{"output", 'o', OPT_STR, &dir, "DIR", "lbl_analysis.md and plots go here (required)", NULL, 0, 0},
                         {"samples", 0, OPT_STR, &samples, "DIR", "made by qsens --samples: a scatter plot an operation", NULL, 0, 0},
                         {"model", 0, OPT_STR, &model, "MODEL", "the original that was measured: histograms of the worst linears' weights\n"
                          "with the format's code points", NULL, 0, 0},
                         {0}};
    struct tool t = {.name = "qreport", .summary = "where quantization hurts", .opts = opts, .results_version = version,
                     .usage = "sens SENS.json… -o DIR [--samples DIR] [--model MODEL]",
                     .details = "Takes qsens records of one model; several modes of one format give their rank correlations.\n"
                                "results: format, mode, worst[…], spearman{…}, files[…]; with --model weights[{name,\nlargest_over_rms, zero_share, "
                                "entropy_bits, sqnr_db}] of the worst three linears.\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    struct record rec;
    struct err e;
    if (n == 0) die_usage("no record given");
    if (!dir) die_usage("-o DIR is missing");
    begin(&rec, &t, argc, argv);
    struct sens_rec *r = mem_new((size_t)n, sizeof *r);
    for (int i = 0; i < n; i++) {
        json_t *doc = record_read(paths[i], "qsens", &e);
        if (!doc || sens_rec_parse(&r[i], doc, paths[i], &e)) die("%s", e.msg);
    }
    inputs(&rec, paths, n);
    if (model) check_model(&rec, &r[0], model);
    json_t *files = json_array();
    if (sens_report(r, (size_t)n, samples, model, dir, rec.results, files, &e)) die("%s", e.msg);
    sens_results(r, (size_t)n, rec.results);
    json_put(rec.results, "files", files);
    for (int i = 0; i < n; i++) sens_rec_free(&r[i]);
    free(r);
    return record_finish(&rec);
}

/* ---- mix ---- */

int gen1_mix(int argc, char **argv, int version, gen1_begin *begin)
{
    const char *dir = NULL;
    struct opt opts[] = {{"output", 'o', OPT_STR, &dir, "DIR", "report.md and plots go here (required)", NULL, 0, 0}, {0}};
    struct tool t = {.name = "qreport", .summary = "do mixes beat the uniform formats around them?", .opts = opts,
                     .results_version = version, .usage = "mix RECORD… RECIPE… -o DIR",
                     .details = "Takes records of qquant and qppl --ref (of mixes and uniform formats), of qsens, and the "
                                "recipe files.\nresults: budgets[{budget_bpw, bpw, recipe, portable, opens_in, predicted, delta_nll, se, "
                                "chord, below_chord, margin{mean,se},\nverdict}], uniform[…], random[…], spearman{…}, files[…]. "
                                "With qppl --nll the errors are paired.\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    struct record rec;
    struct mix m;
    struct err e;
    if (n == 0) die_usage("no record given");
    if (!dir) die_usage("-o DIR is missing");
    begin(&rec, &t, argc, argv);
    json_t *files = json_array();
    if (mix_read(&m, paths, (size_t)n, &e)) die("%s", e.msg);
    inputs(&rec, paths, n);
    if (mix_report(&m, dir, files, &e)) die("%s", e.msg);
    mix_results(&m, rec.results);
    json_put(rec.results, "files", files);
    mix_free(&m);
    return record_finish(&rec);
}

/* ---- speed ---- */

int gen1_speed(int argc, char **argv, int version, gen1_begin *begin)
{
    const char *dir = NULL;
    struct opt opts[] = {{"output", 'o', OPT_STR, &dir, "DIR", "speed.md and speed.svg go here (required)", NULL, 0, 0}, {0}};
    struct tool t = {.name = "qreport", .summary = "prefill and decode of several models, prompts and depths", .opts = opts,
                     .results_version = version, .usage = "speed BENCH.json… -o DIR",
                     .details = "Takes qbench records; the model of the first one is what the others are held against.\n"
                                "results: speed[{name, prompt_tokens, depth, compute, ttft_ms, prefill_tps, decode_tps (medians),\n"
                                "faster_ttft, faster_decode (times the first model)}], files[…].\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    struct record rec;
    struct speed s;
    struct err e;
    if (n == 0) die_usage("no record given");
    if (!dir) die_usage("-o DIR is missing");
    begin(&rec, &t, argc, argv);
    json_t **doc = mem_new((size_t)n, sizeof *doc), *files = json_array();
    for (int i = 0; i < n; i++)
        if (!(doc[i] = record_read(paths[i], "qbench", &e))) die("%s", e.msg);
    inputs(&rec, paths, n);
    if (speed_read(&s, doc, paths, (size_t)n, &e) || speed_report(&s, dir, files, &e)) die("%s", e.msg);
    json_put(rec.results, "speed", speed_json(&s));
    json_put(rec.results, "files", files);
    speed_free(&s);
    for (int i = 0; i < n; i++) json_decref(doc[i]);
    free(doc);
    return record_finish(&rec);
}
