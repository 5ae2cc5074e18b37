#include "base/file.h"
#include "base/mem.h"
#include "output/report.h"

#include <csv.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char header[] =
    "started|git|architecture|format|model_sha256|disk_bytes|memory_bytes|read_bytes_per_token|bpw_read|protocol|text|"
    "text_sha256|n_scored|ppl_compute|ppl|ppl_se|delta_nll|delta_nll_se|verdict|kld|kld_se|top1|top1_se|bench_compute|"
    "device|cpu|gpu|threads|prompt_tokens|ttft_ms|prefill_tps|decode_tps";

static void num(struct table *t, double v)
{
    if (isfinite(v)) table_cell(t, "%.10g", v);
    else table_cell(t, "%s", "");
}

static void str(struct table *t, const char *s) { table_cell(t, "%s", s ? s : ""); }

static void pair(struct table *t, struct pm p)
{
    num(t, p.v);
    num(t, p.se);
}

void metrics_table(const struct rows *rs, struct table *t)
{
    table_begin(t, header);
    const json_t *model = first_of(rs, 'l');
    for (size_t i = 0; i < rs->n; i++) {
        const struct row *r = &rs->r[i];
        const json_t *any = r->ppl ? r->ppl : r->bench ? r->bench : r->quant ? r->quant : r->load ? r->load : r->say;
        const json_t *text = record_input(r->ppl, "text"), *run = r->bench ? r->bench : any;
        const char *bad = NULL, *path = str_at(text, "path");
        str(t, str_at(any, "timing.started"));
        str(t, str_at(any, "git"));
        str(t, str_at(r->load ? r->load : model, "results.architecture"));
        str(t, r->name);
        str(t, r->digest);
        num(t, r->disk_bytes);
        num(t, r->memory_bytes);
        num(t, r->read_bytes);
        num(t, r->bpw_read);
        str(t, str_at(r->ppl, "results.protocol"));
        str(t, path ? path_last(path) : NULL);
        str(t, str_at(text, "sha256"));
        num(t, num_at(r->ppl, "results.n_scored", &bad));
        str(t, str_at(r->ppl, "results.compute"));
        pair(t, r->ppl_pm);
        pair(t, r->delta);
        str(t, verdict(r));
        pair(t, r->kld);
        pair(t, r->top1);
        str(t, str_at(r->bench, "params.compute"));
        str(t, str_at(run, "params.device"));
        str(t, str_at(run, "host.cpu"));
        str(t, str_at(run, "host.gpu"));
        num(t, num_at(run, "params.threads", &bad));
        num(t, num_at(r->bench, "params.prompt_tokens", &bad));
        num(t, r->ttft_ms);
        num(t, r->prefill_tps);
        num(t, r->decode_tps);
    }
}

char *metrics_path(void)
{
    const char *env = getenv("METRICS");
    if (env && *env) return mem_strdup(env);
    char *cwd = realpath(".", NULL), *found = NULL;
    for (char *d = cwd; d && *d && !found;) {
        char *git = path_join(d, ".git");
        if (path_exists(git)) found = path_join(d, "metrics.csv");
        free(git);
        *strrchr(d, '/') = 0;
    }
    free(cwd);
    return found ? found : mem_strdup("metrics.csv");
}

/* ---- the header that is there, by libcsv ---- */

struct seen {
    const struct table *want;
    size_t n;
    bool other, done;
};

static void on_field(void *s, size_t n, void *ctx)
{
    struct seen *seen = ctx;
    if (seen->done) return;
    const char *want = seen->n < seen->want->n_cols ? seen->want->head[seen->n] : "";
    if (strlen(want) != n || (n && memcmp(want, s, n))) seen->other = true;
    seen->n++;
}

static void on_row(int c, void *ctx)
{
    (void)c;
    ((struct seen *)ctx)->done = true;
}

static int check_there(int fd, size_t size, const struct table *t, const char *path, struct err *e)
{
    char buf[4096], last;
    struct seen seen = {.want = t};
    struct csv_parser p;
    ssize_t n = pread(fd, buf, sizeof buf, 0);
    if (n < 0 || pread(fd, &last, 1, (off_t)size - 1) != 1) return err_sys(e, "%s: cannot read", path);
    if (csv_init(&p, CSV_APPEND_NULL)) return err_set(e, "%s: cannot read as CSV", path);
    csv_parse(&p, buf, (size_t)n, on_field, on_row, &seen);
    csv_free(&p);
    if (!seen.done || seen.other || seen.n != t->n_cols)
        return err_set(e, "%s: has other columns (%s, … were expected; move it away or set METRICS)", path, t->head[0]);
    if (last != '\n') return err_set(e, "%s: the last row is cut off (a newline was expected at its end)", path);
    return 0;
}

/* ---- appending ---- */

static int append(int fd, const char *path, const struct table *t, struct err *e)
{
    struct stat st;
    if (flock(fd, LOCK_EX) || fstat(fd, &st)) return err_sys(e, "%s: cannot lock", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, "%s: not a regular file", path);
    if (st.st_size && check_there(fd, (size_t)st.st_size, t, path, e)) return -1;
    char *buf = NULL;
    size_t n = 0, done = 0;
    FILE *f = open_memstream(&buf, &n);
    if (!f) return err_sys(e, "%s", path);
    if (!st.st_size) csv_row(f, t->head, t->n_cols);
    for (size_t i = 0; i < t->n_rows; i++) csv_row(f, t->cells + i * t->n_cols, t->n_cols);
    if (fclose(f)) {
        free(buf);
        return err_sys(e, "%s", path);
    }
    int rc = 0;
    while (rc == 0 && done < n) {
        ssize_t w = pwrite(fd, buf + done, n - done, st.st_size + (off_t)done);
        if (w <= 0) rc = err_sys(e, "%s: cannot write", path);
        else done += (size_t)w;
    }
    if (rc == 0 && fsync(fd)) rc = err_sys(e, "%s: cannot write", path);
    if (rc && ftruncate(fd, st.st_size)) rc = err_sys(e, "%s: cannot undo a write", path);
    free(buf);
    return rc;
}

int metrics_append(const struct rows *rs, const char *path, struct err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return err_sys(e, "%s: cannot write", path);
    struct table t;
    metrics_table(rs, &t);
    int rc = append(fd, path, &t, e);
    close(fd);
    table_free(&t);
    return rc;
}
