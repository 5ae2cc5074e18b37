/* Tables, CSV, label placement, joining of records, the paired comparison and limits. */
#include "base/file.h"
#include "base/mem.h"
#include "output/limits.h"
#include "output/nlldiff.h"
#include "output/plot.h"
#include "output/report.h"
#include "output/rows.h"
#include "output/table.h"

#include <csv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/test_output.XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    struct err e;
    return path_remove_tree(dir, &e);
}

static void numbers(void **state)
{
    (void)state;
    assert_string_equal(fmt_num(-0.001, 2), "0.00");
    assert_string_equal(fmt_num(-1.005, 1), "−1.0");
    assert_string_equal(fmt_num(NAN, 1), "–");
    assert_string_equal(fmt_num(INFINITY, 1), "–");
    assert_string_equal(fmt_sig(0.0123456, 3), "0.0123");
    assert_string_equal(fmt_sig(6645.4, 4), "6645");
    assert_string_equal(fmt_sig(0, 3), "0");
    assert_string_equal(fmt_gib(1073741824.0), "1.00");
    assert_string_equal(fmt_pm(23.5857, 0.5624, 0), "23.59 ± 0.56");
    assert_string_equal(fmt_pm(0.28684, 0.01757, 1), "+0.287 ± 0.018");
    assert_string_equal(fmt_pm(-0.004, 0.0015, 1), "−0.0040 ± 0.0015");
    assert_string_equal(fmt_pm(6645, 312, 0), "6645 ± 312");
    assert_string_equal(fmt_pm(0.5, 0, 0), "0.50 ± 0.00");
    assert_string_equal(fmt_pm(0.5, NAN, 0), "0.5000");
    assert_string_equal(fmt_pm(NAN, 0.1, 1), "–");
}

static void verdicts(void **state)
{
    (void)state;
    const struct {
        struct pm d;
        const char *word;
    } cases[] = {{{0.00199, 0.00164}, "cannot-tell"}, {{0.25448, 0.01679}, "worse"}, {{-0.02, 0.005}, "better"},
                 {{0, 0}, "cannot-tell"},             {{NAN, 0.1}, NULL},            {{0.1, NAN}, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct row r = {.delta = cases[i].d};
        if (cases[i].word) assert_string_equal(verdict(&r), cases[i].word);
        else assert_null(verdict(&r));
    }
    assert_string_equal(verdict(&(struct row){.is_ref = true}), "reference");
}

/* ---- tables ---- */

static void markdown(void **state)
{
    (void)state;
    struct table t;
    char *buf;
    size_t n;
    FILE *f = open_memstream(&buf, &n);
    table_begin(&t, "name|>Δ");
    table_cell(&t, "a");
    table_cell(&t, "%.1f", 1.5);
    table_cell(&t, "longer");
    table_cell(&t, "–");
    table_markdown(&t, f);
    fclose(f);
    assert_string_equal(buf, "| name   |   Δ |\n| ------ | --: |\n| a      | 1.5 |\n| longer |   – |\n");
    free(buf);
    table_free(&t);
    char *s = md_escape("a|b\n*x* <b> [l](u) `c` \\ & $\x01");
    assert_string_equal(s, "a\\|b ⏎ \\*x\\* &lt;b&gt; \\[l\\](u) \\`c\\` \\\\ &amp; &#36; ");
    free(s);
}

struct parsed {
    char *cells[64];
    size_t n, rows;
};
static void on_cell(void *s, size_t n, void *ctx)
{
    struct parsed *p = ctx;
    assert_true(p->n < 64);
    p->cells[p->n++] = mem_strndup(s, n);
}
static void on_row(int c, void *ctx)
{
    (void)c;
    ((struct parsed *)ctx)->rows++;
}

/* Whatever a cell holds, libcsv's parser gives it back. */
static void csv_round_trip(void **state)
{
    (void)state;
    const char *cells[] = {"plain", "a,b", "say \"so\"", "two\nlines", "", " padded ", "−0,5", "\"", "x\r"};
    size_t n_cells = sizeof cells / sizeof *cells, n;
    char *buf;
    FILE *f = open_memstream(&buf, &n);
    assert_int_equal(csv_row(f, (char *const *)(uintptr_t)cells, n_cells), 0);
    assert_int_equal(csv_row(f, (char *const *)(uintptr_t)cells, n_cells), 0);
    fclose(f);
    struct csv_parser p;
    struct parsed got = {0};
    csv_init(&p, CSV_STRICT);
    assert_int_equal(csv_parse(&p, buf, n, on_cell, on_row, &got), n);
    csv_fini(&p, on_cell, on_row, &got);
    csv_free(&p);
    assert_int_equal(got.rows, 2);
    assert_int_equal(got.n, 2 * n_cells);
    for (size_t i = 0; i < got.n; i++) {
        assert_string_equal(got.cells[i], cells[i % n_cells]);
        free(got.cells[i]);
    }
    free(buf);
}

/* ---- labels ---- */

static bool boxes_meet(const struct plot_label *a, const struct plot_label *b)
{
    return a->lx < b->lx + b->w && b->lx < a->lx + a->w && a->ly < b->ly + b->h && b->ly < a->ly + a->h;
}

/* Thirteen points as close as gen2's, and all on one spot: no label covers another or leaves the picture. */
static void labels(void **state)
{
    (void)state;
    for (int spread = 0; spread < 4; spread++) {
        struct plot_label l[13];
        memset(l, 0, sizeof l);
        for (int i = 0; i < 13; i++) {
            double x = 300 + spread * 9 * ((i * 5) % 13 - 6), y = 250 + spread * 7 * ((i * 8) % 13 - 6);
            l[i] = (struct plot_label){.x = x, .y = y, .bar_top = y - 12, .bar_bottom = y + 12, .w = 30 + 12 * (i % 9), .h = 16};
        }
        plot_place_labels(l, 13, 70, 60, 830, 460, (struct plot_line){70, 300, 830, 200 + 50 * spread});
        for (int i = 0; i < 13; i++) {
            assert_true(l[i].lx >= 70 && l[i].lx + l[i].w <= 830 && l[i].ly >= 60 && l[i].ly + l[i].h <= 460);
            for (int k = 0; k < i; k++) assert_false(boxes_meet(&l[i], &l[k]));
            for (int k = 0; k < 13; k++) {
                struct plot_label mark = {.lx = l[k].x - 5, .ly = l[k].y - 5, .w = 10, .h = 10};
                assert_false(boxes_meet(&l[i], &mark));
            }
        }
    }
}

/* Where a slope runs through the place a label would take, it takes one that the slope does not touch. */
static void label_beside_a_slope(void **state)
{
    (void)state;
    const struct plot_label point = {.x = 400, .y = 250, .bar_top = 250, .bar_bottom = 250, .w = 100, .h = 16};
    struct plot_label free = point;
    plot_place_labels(&free, 1, 70, 60, 830, 460, PLOT_NO_LINE);
    for (double slope = -0.6; slope < 0.61; slope += 0.1) {
        struct plot_label l = point;
        double y0 = 250 - 370 * slope, y1 = 250 + 430 * slope; /* through the point, from x = 30 to 830 */
        plot_place_labels(&l, 1, 70, 60, 830, 460, (struct plot_line){30, y0, 830, y1});
        assert_true(fabs(l.lx - free.lx) + fabs(l.ly - free.ly) > 1);
        double a = (l.lx - 30) / 800 * (y1 - y0) + y0, b = (l.lx + l.w - 30) / 800 * (y1 - y0) + y0;
        assert_true(fmax(a, b) < l.ly || fmin(a, b) > l.ly + l.h);
    }
}

static void scripts(void **state)
{
    (void)state;
    struct plot_point p[] = {{"it's `x`", "f16", 1, 2, NAN, NAN}, {"b", "nf4", 1.5, NAN, NAN, NAN}};
    struct plot_scatter s = {.title = "t\nu", .subtitle = "", .xlabel = "x", .ylabel = "y", .line = PLOT_NO_LINE, .p = p, .n = 2};
    int height = 0;
    char *text = plot_scatter_script(&s, &height);
    assert_non_null(text);
    assert_non_null(strstr(text, "'it''s `x`'")); /* single quotes: gnuplot runs nothing in them */
    assert_non_null(strstr(text, "'t u'"));
    assert_null(strstr(text, "nan"));
    free(text);
    p[0].y = NAN;
    assert_null(plot_scatter_script(&s, &height));
}

/* ---- the paired comparison ---- */

/* NumPy 2 on the same formula: mean and standard error of the differences to all digits; the interval from 200,000
 * resamples of 20 blocks of 255 with its own generator, so within the two resampling errors (1.5e-5 and 2e-5) of 400,000 here. */
static void paired(void **state)
{
    (void)state;
    const int64_t n = 5100;
    double *a = mem_new((size_t)n, sizeof *a), *b = mem_new((size_t)n, sizeof *b);
    for (int64_t i = 0; i < n; i++) {
        a[i] = (double)(float)(3 + 2 * sin(0.7 * (double)i) + 0.5 * sin(0.013 * (double)i));
        b[i] = (double)(float)(a[i] + 0.02 + 0.3 * sin(1.1 * (double)i) + 0.1 * sin(0.02 * (double)i));
    }
    struct nll_diff d, again, swapped;
    nll_diff(&d, a, b, n, 255, 400000, 0);
    assert_int_equal(d.n_blocks, 20);
    assert_true(fabs(d.delta - 0.020911341166379407) < 1e-12);
    assert_true(fabs(d.se - 0.003131072320908195) < 1e-12);
    assert_true(fabs(d.lo - 0.01411378) < 1e-4);
    assert_true(fabs(d.hi - 0.02767905) < 1e-4);
    assert_true(fabs(d.boot_se - 0.003471633789506244) < 2e-5);
    assert_string_equal(d.word, "worse");
    nll_diff(&again, a, b, n, 255, 400000, 0);
    assert_memory_equal(&d, &again, sizeof d);
    nll_diff(&again, a, b, n, 255, 10000, 1);
    assert_true(again.lo != d.lo && fabs(again.lo - d.lo) < 5e-4);
    nll_diff(&swapped, b, a, n, 255, 10000, 0);
    assert_true(fabs(swapped.delta + d.delta) < 1e-15);
    assert_string_equal(swapped.word, "better");
    /* a short last block is weighed by its length: with one block the mean never moves */
    nll_diff(&d, a, b, n, 10000, 100, 0);
    assert_true(d.n_blocks == 1 && fabs(d.lo - d.delta) < 1e-12 && fabs(d.hi - d.delta) < 1e-12);
    for (int64_t i = 0; i < n; i++) b[i] = a[i] + 0.1 * sin(1.1 * (double)i);
    nll_diff(&d, a, b, n, 64, 10000, 0);
    assert_string_equal(d.word, "cannot-tell");
    free(a);
    free(b);
}

/* ---- joining ---- */

#define SHA(c) c c c c c c c c c c c c c c c c
#define A64 SHA("aaaa")
#define B64 SHA("bbbb")
#define T64 SHA("7777")

static char *put(const char *name, const char *text)
{
    struct err e;
    char *path = path_join(dir, name);
    assert_int_equal(file_write(path, text, strlen(text), &e), 0);
    return path;
}

static char *ppl_record(const char *name, const char *model, const char *text_sha, double ppl)
{
    char *s = mem_printf("{\"schema\":\"qlab.qppl/1\",\"tool\":\"qppl\",\"inputs\":[{\"role\":\"model\",\"path\":\"m/%s\","
                         "\"bytes\":10,\"sha256\":\"%s\"},{\"role\":\"ref\",\"path\":\"m/f16\",\"sha256\":\"" A64 "\"},"
                         "{\"role\":\"text\",\"path\":\"t.txt\",\"sha256\":\"%s\"}],\"params\":{\"ctx\":0},\"results\":"
                         "{\"protocol\":\"llamacpp\",\"ppl\":%g,\"ppl_se\":0.5,\"delta_nll\":{\"mean\":0.2,\"se\":0.01},"
                         "\"kld\":{\"mean\":0.1,\"se\":0.01},\"top1_agreement\":0.8,\"top1_se\":0.01}}",
                         name, model, text_sha, ppl);
    char *file = mem_printf("%s.json", name), *path = put(file, s);
    free(s);
    free(file);
    return path;
}

static void joins(void **state)
{
    (void)state;
    struct rows rs;
    struct err e;
    char *paths[4];
    paths[0] = put("quant.json",
                   "{\"schema\":\"qlab.qquant/1\",\"inputs\":[{\"role\":\"model\",\"path\":\"f16\",\"sha256\":\"" A64 "\"}],"
                   "\"output\":{\"path\":\"out/m/nf4/model\",\"bytes\":99,\"sha256\":\"" B64 "\",\"files\":[{\"name\":"
                   "\"model.safetensors\",\"bytes\":80},{\"name\":\"tokenizer.json\",\"bytes\":19}]},"
                   "\"results\":{\"read_bytes_per_token\":1000}}");
    paths[1] = put("load.json", "{\"schema\":\"qlab.qload/1\",\"inputs\":[{\"role\":\"model\",\"path\":\"f16\",\"sha256\":\"" A64
                                "\",\"bytes\":7}],\"results\":{\"hidden_size\":8,\"intermediate_size\":16,\"n_heads\":2,"
                                "\"n_kv_heads\":1,\"head_dim\":4,\"n_layers\":2,\"vocab_size\":32,\"tensors\":["
                                "{\"name\":\"model.layers.0.mlp.up_proj.weight_packed\",\"bytes\":5},"
                                "{\"name\":\"model.layers.0.self_attn.q_proj.bias\",\"bytes\":1},"
                                "{\"name\":\"model.layers.0.self_attn.q_norm.weight\",\"bytes\":2},"
                                "{\"name\":\"lm_head.weight\",\"bytes\":3},{\"name\":\"model.embed_tokens.weight\",\"bytes\":4}]}}");
    paths[2] = ppl_record("nf4", B64, T64, 30);
    paths[3] = ppl_record("other", A64, T64, 20);
    assert_int_equal(rows_read(&rs, paths, 3, &e), 0);
    assert_int_equal(rs.n, 2);
    assert_string_equal(rs.r[0].name, "nf4");
    assert_true(rs.r[0].disk_bytes == 80);
    /* weights read: 2 layers × 8·(2·8 + 2·4 + 3·16) + 32·8 = 1408; the row takes the architecture of its base */
    assert_true(fabs(rs.r[0].bpw_read - 8000.0 / 1408) < 1e-12);
    assert_true(rs.r[0].ppl_pm.v == 30 && rs.r[0].kld.v == 0.1 && isnan(rs.r[0].decode_tps));
    assert_true(rs.r[1].is_ref && !rs.r[0].is_ref);
    assert_true(rs.r[1].linears_bytes == 5 && rs.r[1].head_bytes == 7 && rs.r[1].other_bytes == 3);

    struct limits l = {0.2, 0.8, 1, NAN};
    rs.n = 1;
    assert_int_equal(limits_check(&rs, &l, &e), 0);
    l.max_dlnppl = 0.19;
    assert_int_equal(limits_check(&rs, &l, &e), -1);
    assert_string_equal(e.msg, "nf4: Δ ln PPL 0.2 is above --max-dlnppl 0.19");
    l = (struct limits){NAN, NAN, NAN, 1};
    assert_int_equal(limits_check(&rs, &l, &e), -1);
    assert_non_null(strstr(e.msg, "not in the records given (--min-decode-tps"));
    rs.n = 2;
    rows_free(&rs);

    assert_int_equal(rows_read(&rs, paths, 4, &e), 0);
    assert_int_equal(rs.n, 2);
    rows_free(&rs);
    free(paths[3]);
    paths[3] = ppl_record("again", B64, T64, 20);
    assert_int_equal(rows_read(&rs, paths, 4, &e), -1);
    assert_non_null(strstr(e.msg, "a second qlab.qppl/1 record of the model of row nf4"));
    free(paths[3]);
    paths[3] = ppl_record("text", A64, B64, 20);
    assert_int_equal(rows_read(&rs, paths, 4, &e), -1);
    assert_non_null(strstr(e.msg, "different texts"));
    for (int i = 0; i < 4; i++) free(paths[i]);
}

/* Values of a wrong type are an error, never a silent dash. */
static void wrong_types(void **state)
{
    (void)state;
    struct rows rs;
    struct err e;
    char *path = put("bad.json", "{\"schema\":\"qlab.qppl/1\",\"inputs\":[{\"role\":\"model\",\"path\":\"m\",\"sha256\":\"" A64
                                 "\"}],\"results\":{\"ppl\":\"12\"}}");
    assert_int_equal(rows_read(&rs, &path, 1, &e), -1);
    assert_non_null(strstr(e.msg, "\"results.ppl\" is not a number"));
    free(path);
    path = put("bad.json", "{\"schema\":\"qlab.qppl/1\",\"inputs\":[{\"role\":\"model\",\"path\":\"m\",\"sha256\":5}],\"results\":{}}");
    assert_int_equal(rows_read(&rs, &path, 1, &e), -1);
    assert_non_null(strstr(e.msg, "names no model"));
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers), cmocka_unit_test(verdicts), cmocka_unit_test(markdown), cmocka_unit_test(csv_round_trip),
        cmocka_unit_test(labels), cmocka_unit_test(label_beside_a_slope),  cmocka_unit_test(scripts),  cmocka_unit_test(paired),   cmocka_unit_test(joins),
        cmocka_unit_test(wrong_types),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
