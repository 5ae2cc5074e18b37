#include "output/nlldiff.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/stats.h"
#include "output/rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void nll_diff(struct nll_diff *d, const double *a, const double *b, int64_t n, int64_t block, int64_t resamples,
              uint64_t seed)
{
    struct mean_se m = stats_paired(b, a, n);
    int64_t n_blocks = (n + block - 1) / block;
    double *sum = mem_new((size_t)n_blocks, sizeof *sum), *means = mem_new((size_t)resamples, sizeof *means);
    for (int64_t i = 0; i < n; i++) sum[i / block] += b[i] - a[i];
    struct rng rng = {seed};
    for (int64_t k = 0; k < resamples; k++) {
        double s = 0;
        int64_t count = 0;
        for (int64_t j = 0; j < n_blocks; j++) {
            int64_t pick = rng_below(&rng, n_blocks);
            s += sum[pick];
            count += pick == n_blocks - 1 ? n - pick * block : block; /* the last block may be short */
        }
        means[k] = s / (double)count;
    }
    struct mean_se boot = stats_mean(means, resamples);
    stats_sort(means, resamples);
    *d = (struct nll_diff){n, m.mean, m.se, block, n_blocks, stats_quantile_sorted(means, resamples, 0.025),
                           stats_quantile_sorted(means, resamples, 0.975), boot.sd, "cannot-tell"};
    if (d->lo > 0) d->word = "worse";
    if (d->hi < 0) d->word = "better";
    free(sum);
    free(means);
}

int64_t nll_block(const json_t *rec, int64_t n)
{
    const char *bad = NULL;
    double windows = num_at(rec, "results.n_windows", &bad);
    if (windows >= 10 && windows <= (double)n && n % (int64_t)windows == 0) return n / (int64_t)windows;
    return n >= 640 ? 64 : n >= 10 ? n / 10 : 1;
}

/* ---- reading ---- */

static char *find_nll(const json_t *rec, const char *path, struct err *e)
{
    const char *name = str_at(rec, "params.nll");
    if (!name || !*name) {
        err_set(e, "%s: names no per-token file (a qppl record made with --nll was expected)", path);
        return NULL;
    }
    char *dir = path_dir(path);
    char *tries[] = {mem_strdup(name), path_join(dir, name), path_join(dir, path_last(name))};
    char *found = NULL;
    for (int i = 0; i < 3; i++) {
        if (!found && path_exists(tries[i])) found = tries[i];
        else free(tries[i]);
    }
    free(dir);
    if (!found) err_set(e, "%s: its per-token file %s is not there, nor beside the record", path, name);
    return found;
}

static int check_digest(const json_t *rec, const char *path, const char *file, const char *buf, size_t n, struct err *e)
{
    const json_t *outputs = json_object_get(rec, "outputs");
    for (size_t i = 0; i < json_array_size(outputs); i++) {
        const json_t *o = json_array_get(outputs, i);
        const char *role = str_at(o, "role"), *want = str_at(o, "sha256");
        char have[65];
        if (!role || strcmp(role, "nll") || !want) continue;
        sha256_hex(buf, n, have);
        if (strcmp(want, have)) return err_set(e, "%s: not the file that %s was written with (sha256 differs)", file, path);
    }
    return 0;
}

int nll_read(const json_t *rec, const char *path, double **v, int64_t *n, char **file, struct err *e)
{
    const char *bad = NULL, *protocol = str_at(rec, "results.protocol");
    double scored = num_at(rec, "results.n_scored", &bad), mean = num_at(rec, "results.nll", &bad);
    char *buf = NULL;
    size_t size;
    *v = NULL;
    *n = 0;
    if (!(*file = find_nll(rec, path, e))) return -1;
    if (!(scored >= 2 && scored < 1e12) || isnan(mean)) {
        err_set(e, "%s: results.n_scored and results.nll are missing (two tokens or more were expected)", path);
        goto fail;
    }
    if (file_read(*file, (size_t)4 << 30, &buf, &size, e)) goto fail;
    if (size != (size_t)scored * 4) {
        err_set(e, "%s: %zu bytes (%.0f were expected: n_scored of %s times 4)", *file, size, scored * 4, path);
        goto fail;
    }
    if (check_digest(rec, path, *file, buf, size, e)) goto fail;
    *n = (int64_t)scored;
    *v = mem_array((size_t)*n, sizeof **v);
    double sum = 0;
    for (int64_t i = 0; i < *n; i++) {
        float x;
        memcpy(&x, buf + 4 * i, 4);
        if (!isfinite(x)) {
            err_set(e, "%s: value %lld is not finite", *file, (long long)i);
            goto fail;
        }
        (*v)[i] = x;
        sum += x;
    }
    /* The sliding protocol weighs its first window by one token more than it scores; the others are plain means. */
    double tol = (protocol && !strcmp(protocol, "hf-sliding") ? 1e-2 : 1e-5) * fmax(1, fabs(mean));
    if (!(fabs(sum / (double)*n - mean) <= tol)) {
        err_set(e, "%s: its mean is %.6f, %s says %.6f", *file, sum / (double)*n, path, mean);
        goto fail;
    }
    free(buf);
    return 0;
fail:
    free(buf);
    free(*v);
    free(*file);
    *v = NULL;
    *file = NULL;
    return -1;
}

int nll_comparable(const json_t *a, const char *path_a, const json_t *b, const char *path_b, struct err *e)
{
    const char *const keys[] = {"protocol", "text_form", "ctx", "stride", "chars", "max_windows"};
    const char *ta = str_at(record_input(a, "text"), "sha256"), *tb = str_at(record_input(b, "text"), "sha256");
    if (!ta || !tb || strcmp(ta, tb)) return err_set(e, "%s and %s are of different texts", path_a, path_b);
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const json_t *pa = json_object_get(json_object_get(a, "params"), keys[k]);
        const json_t *pb = json_object_get(json_object_get(b, "params"), keys[k]);
        if (pa != pb && !json_equal(pa, pb)) return err_set(e, "%s and %s differ in \"%s\"", path_a, path_b, keys[k]);
    }
    const char *bad = NULL;
    double na = num_at(a, "results.n_tokens", &bad), nb = num_at(b, "results.n_tokens", &bad);
    double sa = num_at(a, "results.n_scored", &bad), sb = num_at(b, "results.n_scored", &bad);
    if (na != nb || sa != sb)
        return err_set(e, "%s scores %.0f of %.0f tokens, %s %.0f of %.0f (the same tokens were expected)", path_a, sa, na,
                       path_b, sb, nb);
    return 0;
}
