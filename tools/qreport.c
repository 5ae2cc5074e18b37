/* qreport: tables, comparisons and limits from the records of the other tools. */
#include "base/json.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/record.h"
#include "output/gen1.h"
#include "output/limits.h"
#include "output/nlldiff.h"
#include "output/report.h"
#include "output/rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RESULTS_VERSION 3

static int given_argc;
static char **given_argv;

/* record_begin with the command line as it was given. */
static void begin(struct record *r, const struct tool *t, int argc, char **argv)
{
    json_t *a = json_array();
    record_begin(r, t, argc, argv);
    for (int i = 0; i < given_argc; i++) {
        json_t *s = json_string(given_argv[i]);
        json_array_append_new(a, s ? s : json_string_nocheck(given_argv[i]));
    }
    json_put(r->root, "argv", a);
}

static void inputs(struct record *r, char **paths, int n)
{
    struct err e;
    for (int i = 0; i < n; i++)
        if (record_input_file(r, "record", paths[i], &e)) die("%s", e.msg);
}

static void read_rows(struct rows *rs, char **paths, int n)
{
    struct err e;
    if (n == 0) die_usage("no record given");
    if (rows_read(rs, paths, (size_t)n, &e)) die("%s", e.msg);
}

/* ---- table ---- */

static int cmd_table(int argc, char **argv)
{
    struct report_files want = {0};
    struct opt opts[] = {
        {"md", 0, OPT_STR, &want.md, "FILE", "write the report as Markdown", NULL, 0, 0},
        {"csv", 0, OPT_STR, &want.csv, "FILE", "write the rows as CSV", NULL, 0, 0},
        {"plot", 0, OPT_STR, &want.plot, "DIR", "draw ppl.svg, decode.svg and bytes.svg by gnuplot, and\nroofline-NAME.svg of qbench records with --kernels", NULL, 0, 0},
        {"png", 0, OPT_FLAG, &want.png, NULL, "plots as PNG too", NULL, 0, 0},
        {0},
    };
    struct tool t = {.name = "qreport", .summary = "one row a configuration", .opts = opts,
                     .results_version = RESULTS_VERSION,
                     .usage = "table RECORD… [--md FILE] [--csv FILE] [--plot DIR [--png]]",
                     .details = "Records of qload, qquant, qppl and qbench are joined by the digest of the model they are "
                                "about.\nresults: rows[{name, disk_bytes, bpw_read, decode_tps, ppl{mean,se}, "
                                "delta_nll{mean,se}, verdict, …}], files[…].\nWith SAVE_EVAL_RESULTS set, the rows are "
                                "also appended to metrics.csv (METRICS= moves it).\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    struct record rec;
    struct rows rs;
    struct err e;
    if (want.png && !want.plot) die_usage("--png needs --plot");
    begin(&rec, &t, argc, argv);
    read_rows(&rs, paths, n);
    inputs(&rec, paths, n);
    json_t *files = json_array();
    if (report_write(&rs, &want, files, &e)) die("%s", e.msg);
    const char *save = getenv("SAVE_EVAL_RESULTS");
    if (save && *save) {
        char *path = metrics_path();
        if (metrics_append(&rs, path, &e)) die("%s", e.msg);
        json_array_append_new(files, json_string_nocheck(path));
        free(path);
    }
    json_put(rec.results, "rows", rows_json(&rs));
    json_put(rec.results, "files", files);
    rows_free(&rs);
    return record_finish(&rec);
}

/* ---- diff ---- */

static json_t *diff_side(const json_t *rec, const char *path, const char *file)
{
    const json_t *ppl = json_at(rec, "results.ppl"), *sha = json_at(record_input(rec, "model"), "sha256");
    json_t *o = json_pack("{s:s,s:s}", "record", path, "nll", file);
    json_put(o, "model_sha256", sha ? json_incref((json_t *)(uintptr_t)sha) : json_null());
    json_put(o, "ppl", ppl ? json_incref((json_t *)(uintptr_t)ppl) : json_null());
    return o;
}

static int cmd_diff(int argc, char **argv)
{
    int64_t resamples = 10000, block = 0;
    struct opt opts[] = {
        {"resamples", 0, OPT_INT, &resamples, "N", "of the block bootstrap", NULL, 100, 1e7},
        {"block", 0, OPT_INT, &block, "N", "tokens a block; 0: what a window scores, or 64 where windows are few", NULL, 0,
         1e9},
        {0},
    };
    struct tool t = {.name = "qreport", .summary = "two perplexities, token by token", .opts = opts,
                     .results_version = RESULTS_VERSION, .usage = "diff A.json B.json",
                     .details = "A and B are qppl records made with --nll on one text by one protocol.\nresults: "
                                "delta_nll{mean,se} (B − A = ln PPL of B − ln PPL of A, paired), interval[lo,hi] (95 %, "
                                "block bootstrap),\nboot_se, n, block, n_blocks, resamples, verdict "
                                "(B is worse, better, cannot-tell).\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    if (n != 2) die_usage("two qppl records were expected, %d given", n);
    struct record out;
    struct err e;
    json_t *rec[2], *rows = json_array();
    double *v[2];
    int64_t count[2];
    char *file[2];
    begin(&out, &t, argc, argv);
    inputs(&out, paths, n);
    for (int i = 0; i < 2; i++)
        if (!(rec[i] = record_read(paths[i], "qppl", &e))) die("%s", e.msg);
    if (nll_comparable(rec[0], paths[0], rec[1], paths[1], &e)) die("%s", e.msg);
    for (int i = 0; i < 2; i++) {
        if (nll_read(rec[i], paths[i], &v[i], &count[i], &file[i], &e)) die("%s", e.msg);
        if (record_input_file(&out, "nll", file[i], &e)) die("%s", e.msg);
        json_array_append_new(rows, diff_side(rec[i], paths[i], file[i]));
    }
    struct nll_diff d;
    if (!block) block = nll_block(rec[0], count[0]);
    nll_diff(&d, v[0], v[1], count[0], block, resamples, (uint64_t)t.common.seed);
    json_put(out.results, "delta_nll", json_pack("{s:o,s:o}", "mean", json_num(d.delta), "se", json_num(d.se)));
    json_put(out.results, "interval", json_pack("[o,o]", json_num(d.lo), json_num(d.hi)));
    json_put(out.results, "boot_se", json_num(d.boot_se));
    json_put(out.results, "n", json_integer(d.n));
    json_put(out.results, "block", json_integer(d.block));
    json_put(out.results, "n_blocks", json_integer(d.n_blocks));
    json_put(out.results, "resamples", json_integer(resamples));
    json_put(out.results, "verdict", json_string(d.word));
    json_put(out.results, "rows", rows);
    json_put(out.results, "files", json_array());
    msg_stage("ln PPL %s − ln PPL %s = %+.5f ± %.5f, 95 %% interval %+.5f to %+.5f (%lld blocks of %lld): %s", paths[1],
              paths[0], d.delta, d.se, d.lo, d.hi, (long long)d.n_blocks, (long long)d.block, d.word);
    for (int i = 0; i < 2; i++) {
        json_decref(rec[i]);
        free(v[i]);
        free(file[i]);
    }
    return record_finish(&out);
}

/* ---- check ---- */

static int cmd_check(int argc, char **argv)
{
    struct limits l = {NAN, NAN, NAN, NAN};
    struct opt opts[] = {
        {"max-dlnppl", 0, OPT_NUM, &l.max_dlnppl, "X", "Δ ln PPL against the reference, at most", NULL, 0, 0},
        {"min-top1", 0, OPT_NUM, &l.min_top1, "X", "agreement on the likeliest token, at least (0 to 1)", NULL, 0, 1},
        {"max-gib", 0, OPT_NUM, &l.max_gib, "X", "GiB of weights, disk and memory, at most", NULL, 0, 1e9},
        {"min-decode-tps", 0, OPT_NUM, &l.min_decode_tps, "X", "decoded tokens a second, at least", NULL, 0, 1e12},
        {0},
    };
    struct tool t = {.name = "qreport", .summary = "do all rows keep these limits?", .opts = opts,
                     .results_version = RESULTS_VERSION, .usage = "check LIMITS… RECORD…",
                     .details = "Exit 1 and one line naming the limit if a row breaks one, or if its records do not tell "
                                "the figure.\nresults: rows[…], files[].\n"};
    int n;
    char **paths = args_parse(&t, argc, argv, &n);
    if (isnan(l.max_dlnppl) && isnan(l.min_top1) && isnan(l.max_gib) && isnan(l.min_decode_tps))
        die_usage("no limit given");
    struct record rec;
    struct rows rs;
    struct err e;
    begin(&rec, &t, argc, argv);
    read_rows(&rs, paths, n);
    inputs(&rec, paths, n);
    if (limits_check(&rs, &l, &e)) die("%s", e.msg);
    json_put(rec.results, "rows", rows_json(&rs));
    json_put(rec.results, "files", json_array());
    rows_free(&rs);
    return record_finish(&rec);
}

/* ---- sens, mix, speed ---- */

static int cmd_sens(int argc, char **argv) { return gen1_sens(argc, argv, RESULTS_VERSION, begin); }
static int cmd_mix(int argc, char **argv) { return gen1_mix(argc, argv, RESULTS_VERSION, begin); }
static int cmd_speed(int argc, char **argv) { return gen1_speed(argc, argv, RESULTS_VERSION, begin); }

/* ---- dispatch ---- */

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"table", cmd_table, "one row a configuration: Markdown, CSV, plots"},
    {"sens", cmd_sens, "where quantization hurts: lbl_analysis.md and plots"},
    {"mix", cmd_mix, "do mixes beat the straight line between uniform formats?"},
    {"speed", cmd_speed, "prefill and decode at several prompts and depths: speed.md and a plot"},
    {"diff", cmd_diff, "two qppl records, token by token: worse, better, cannot-tell"},
    {"check", cmd_check, "exit 1 if a limit is broken"},
};

int main(int argc, char **argv)
{
    /* The command is the first argument that is no option; it takes the tool's name's place, so that options before it
     * (-q, --seed=1) are the command's too. */
    int at = 1;
    while (at < argc && argv[at][0] == '-') at++;
    for (size_t i = 0; at < argc && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[at], commands[i].name)) continue;
        given_argc = argc;
        given_argv = argv;
        char **args = mem_new((size_t)argc, sizeof *args);
        for (int k = 1, n = 1; k < argc; k++)
            if (k != at) args[n++] = argv[k];
        args[0] = argv[at];
        return commands[i].run(argc - 1, args);
    }
    char *details = mem_strdup("Commands (qreport COMMAND --help tells more):\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char *more = mem_printf("%s  %-8s %s\n", details, commands[i].name, commands[i].help);
        free(details);
        details = more;
    }
    struct tool t = {.name = "qreport", .summary = "tables, comparisons and limits from records",
                     .usage = "COMMAND RECORD… [options]", .details = details, .results_version = RESULTS_VERSION};
    int n;
    char **rest = args_parse(&t, argc, argv, &n);
    if (n == 0) die_usage("no command given");
    die_usage("%s: unknown command, or not the first argument that is no option", rest[0]);
}
