#include "base/file.h"
#include "base/mem.h"
#include "output/plot.h"
#include "output/report.h"
#include "output/roofline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GIB 1073741824.0

/* Takes script; NULL means that there is nothing to draw. */
static int draw(char *script, int height, const char *dir, const char *name, bool png, json_t *files, struct err *e)
{
    if (!script) return 0;
    const char *const ext[] = {"gp", "svg", "png"};
    int rc = 0;
    for (int i = 0; rc == 0 && i < 2 + png; i++) {
        char *file = mem_printf("%s.%s", name, ext[i]), *path = path_join(dir, file);
        rc = i == 0 ? file_write(path, script, strlen(script), e) : plot_draw(script, height, path, e);
        if (rc == 0) json_array_append_new(files, json_string_nocheck(path));
        free(file);
        free(path);
    }
    free(script);
    return rc;
}

static char *ppl_script(const struct rows *rs, int *height)
{
    struct plot_point *p = mem_new(rs->n, sizeof *p);
    double line = NAN;
    bool paired = false;
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        p[i] = (struct plot_point){r->name, r->name, r->disk_bytes / GIB, r->ppl_pm.v, NAN, NAN};
        if (isfinite(r->delta.v)) paired = true;
    }
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        /* with a reference: 95 % of the paired difference; without: of the perplexity itself */
        double se = paired ? r->delta.se : r->ppl_pm.se / r->ppl_pm.v;
        if (isfinite(se)) {
            p[i].lo = r->ppl_pm.v * exp(-1.96 * se);
            p[i].hi = r->ppl_pm.v * exp(1.96 * se);
        }
        if (r->is_ref && isnan(line)) line = r->ppl_pm.v;
    }
    char *proto = values_of(rs, 'p', "results.protocol"), *comp = values_of(rs, 'p', "results.compute");
    const json_t *text = record_input(first_of(rs, 'p'), "text");
    char *sub = mem_printf("protocol %s on %s, computed in %s; bars: 95 %% of the %s", proto,
                           text && str_at(text, "path") ? path_last(str_at(text, "path")) : "a text", comp,
                           !paired ? "perplexity" : isfinite(line) ? "paired difference to the dashed line" : "paired difference to the reference");
    struct plot_scatter s = {.title = "Perplexity against size", .subtitle = sub, .xlabel = "weights on disk, GiB",
                             .ylabel = "perplexity", .line = PLOT_LEVEL(line), .p = p, .n = rs->n};
    char *script = plot_scatter_script(&s, height);
    free(proto);
    free(comp);
    free(sub);
    free(p);
    return script;
}

static char *decode_script(const struct rows *rs, int *height)
{
    struct plot_point *p = mem_new(rs->n, sizeof *p);
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        p[i] = (struct plot_point){r->name, r->name, r->disk_bytes / GIB, r->decode_tps, r->decode_min, r->decode_max};
    }
    char *cpu = values_of(rs, 'b', "host.cpu"), *gpu = values_of(rs, 'b', "host.gpu");
    char *comp = values_of(rs, 'b', "params.compute"), *threads = values_of(rs, 'b', "params.threads");
    char *sub = mem_printf("%s, %s threads, computed in %s; median, bars: least and most of the trials",
                           *gpu ? gpu : cpu, threads, comp);
    struct plot_scatter s = {.title = "Decode speed against size", .subtitle = sub, .xlabel = "weights on disk, GiB",
                             .ylabel = "decode, tokens a second", .y_from_zero = true, .line = PLOT_NO_LINE, .p = p, .n = rs->n};
    char *script = plot_scatter_script(&s, height);
    free(cpu);
    free(gpu);
    free(comp);
    free(threads);
    free(sub);
    free(p);
    return script;
}

static char *bytes_script(const struct rows *rs, int *height)
{
    static const char *const classes[] = {"linears", "head and embedding", "other"};
    struct plot_bar *b = mem_new(rs->n, sizeof *b);
    double(*v)[3] = mem_new(rs->n, sizeof *v);
    size_t n = 0;
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        if (!isfinite(r->linears_bytes)) continue;
        v[n][0] = r->linears_bytes / GIB;
        v[n][1] = r->head_bytes / GIB;
        v[n][2] = r->other_bytes / GIB;
        b[n] = (struct plot_bar){r->name, v[n]};
        n++;
    }
    struct plot_bars bars = {"Bytes by class", "tensors as stored", "GiB", classes, 3, b, n};
    char *script = plot_bars_script(&bars, height);
    free(b);
    free(v);
    return script;
}

int report_plots(const struct rows *rs, const char *dir, bool png, json_t *files, struct err *e)
{
    int height = 0;
    if (path_make_dirs(dir, e)) return -1;
    char *script = ppl_script(rs, &height);
    if (draw(script, height, dir, "ppl", png, files, e)) return -1;
    script = decode_script(rs, &height);
    if (draw(script, height, dir, "decode", png, files, e)) return -1;
    script = bytes_script(rs, &height);
    if (draw(script, height, dir, "bytes", png, files, e)) return -1;
    for (size_t i = 0; i < rs->n; i++) {
        if (!rs->r[i].bench || !name_is_plain(rs->r[i].name)) continue;
        char *name = mem_printf("roofline-%s", rs->r[i].name);
        script = roofline_script(rs->r[i].bench, rs->r[i].name, &height);
        int rc = draw(script, height, dir, name, png, files, e);
        free(name);
        if (rc) return -1;
    }
    return 0;
}
