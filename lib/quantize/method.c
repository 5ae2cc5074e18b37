#include "quantize/method.h"

#include "base/mem.h"
#include "base/par.h"
#include "quantize/choose.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct method table[] = {
    {"rtn", CALIB_NONE, rtn_run},
    {"mse", CALIB_NONE, mse_run},
};

const struct method *method_table(size_t *n)
{
    *n = sizeof table / sizeof *table;
    return table;
}

const struct method *method_find(const char *name)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

/* ---- damage ---- */

struct sums {
    double xx, yy, xy, dd, max;
};

struct measure {
    const struct qweight *a, *b;
    struct sums *part; /* by chunk of rows: the total does not depend on the threads */
};
enum { CHUNK = 16 };

/* Four lanes of sums, each over every fourth column, the first one also over what is left. */
typedef double vdouble __attribute__((vector_size(32)));
typedef int64_t vlong __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) void add_four(const float *x, const float *y, vdouble sum[4], vdouble *max)
{
    vdouble a = {x[0], x[1], x[2], x[3]}, b = {y[0], y[1], y[2], y[3]}, d = a - b; /* one instruction each */
    sum[0] += a * a, sum[1] += b * b, sum[2] += a * b, sum[3] += d * d;
    d = (vdouble)((vlong)d & INT64_MAX);
    vlong more = d > *max;
    *max = (vdouble)((more & (vlong)d) | (~more & (vlong)*max));
}

WIDE static void add_row(struct sums *s, const float *x, const float *y, int64_t n)
{
    vdouble sum[4] = {{0}}, max[4] = {{0}}; /* four of the latter: none waits for the one before it */
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int u = 0; u < 4; u++) add_four(x + i + 4 * u, y + i + 4 * u, sum, &max[u]);
    for (; i + 4 <= n; i += 4) add_four(x + i, y + i, sum, &max[0]);
    for (; i < n; i++) {
        double a = x[i], b = y[i], d = a - b;
        sum[0][0] += a * a, sum[1][0] += b * b, sum[2][0] += a * b, sum[3][0] += d * d;
        max[0][0] = fabs(d) > max[0][0] ? fabs(d) : max[0][0];
    }
    for (int k = 0; k < 4; k++) {
        s->xx += sum[0][k], s->yy += sum[1][k], s->xy += sum[2][k], s->dd += sum[3][k];
        for (int u = 0; u < 4; u++) s->max = max[u][k] > s->max ? max[u][k] : s->max;
    }
}

/* Rows r … r+n−1, whose source is x: (n, n_in); y: (n_in) is overwritten. */
static void add_rows(struct measure *m, int64_t r, int64_t n, const float *x, float *y)
{
    for (int64_t i = 0; i < n; i++) {
        qweight_rows_f32(m->b, r + i, 1, y);
        add_row(&m->part[(r + i) / CHUNK], x + i * m->a->n_in, y, m->a->n_in);
    }
}

/* From a multiple of CHUNK on. */
static void measure_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    struct measure *m = ctx;
    int64_t n_in = m->a->n_in;
    float *x = mem_array((size_t)n_in * 2, sizeof *x), *y = x + n_in;
    for (int64_t r = begin; r < end; r++) {
        qweight_rows_f32(m->a, r, 1, x);
        add_rows(m, r, 1, x, y);
    }
    free(x);
}

static struct quant_stats total(const struct measure *m)
{
    const struct qweight *a = m->a;
    struct sums t = {0};
    for (int64_t i = 0; i < (a->n_out + CHUNK - 1) / CHUNK; i++) {
        t.xx += m->part[i].xx, t.yy += m->part[i].yy, t.xy += m->part[i].xy, t.dd += m->part[i].dd;
        t.max = m->part[i].max > t.max ? m->part[i].max : t.max;
    }
    struct quant_stats s = {
        .nmse = t.dd == 0 ? 0 : t.dd / t.xx,
        .sqnr_db = 10 * log10(t.xx / t.dd),
        .cosine = t.dd == 0 ? 1 : t.xy / sqrt(t.xx * t.yy),
        .max_abs_err = t.max,
        .mse = t.dd / ((double)a->n_out * (double)a->n_in),
    };
    return s;
}

/* ---- the driver of group-wise methods ---- */

/* Rows a thread takes at a time, a multiple of those whose zero points share a word: few enough that a thread whose
 * processor also writes files is not waited for. */
enum { ITEM_ROWS = 32 };

struct driver {
    const struct chooser *c;
    const struct quant_job *job;
    struct qbuffer *dst;
    int64_t grain;  /* rows from one that starts a block to the next: coded, and measured, while they are in the cache */
    float *absmax;  /* CODE_BOOK: f32 (blocks) */
    bool recode;    /* CODE_BOOK second pass: absmax is given */
    struct measure *measure; /* NULL: not now */
    struct mine {
        float *x, *group; /* (grain, n_in), (n_in): columns of a group, then the row as it is read back */
        uint8_t *q;       /* (grain, n_in) */
        int64_t row; /* first bad row the thread met, or -1 */
        int64_t col;
        float value;
        bool scale;
        char pad[19];
    } *mine; /* by thread */
};
_Static_assert(sizeof(struct mine) == 64, "a cache line each");

/* Rounds to t in place; nonzero if a value was not finite before or is not after (65520 and more in f16). */
WIDE static uint32_t round_floats(enum dtype t, float *x, int64_t n)
{
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong |= (f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    if (t == DT_F16)
        for (int64_t i = 0; i < n; i++) {
            x[i] = round_f16(x[i]);
            wrong |= (f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
        }
    else if (t == DT_BF16)
        for (int64_t i = 0; i < n; i++) {
            x[i] = round_bf16(x[i]);
            wrong |= (f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
        }
    return wrong;
}

/* What the codes are made from. */
static enum dtype source_dtype(const struct driver *d)
{
    const struct format *f = d->job->fmt;
    return f->kind == CODE_FLOAT ? f->dtype : f->kind == CODE_STRIDED ? DT_F16 : d->job->model_dtype;
}

/* The memory's answer to the rows after these comes while these are coded: a row is often a page, behind which no
 * processor looks by itself. */
static void fetch_rows(const struct qweight *src, int64_t r, int64_t n)
{
    for (int64_t end = r + n < src->n_out ? r + n : src->n_out; src->src && r < end; r++) {
        const char *p = tensor_row(src->src, r), *q = p + dtype_bytes(src->src->dtype, src->n_in);
        for (; p < q; p += 64) __builtin_prefetch(p);
    }
}

/* Rows of the source, rounded to that dtype; false at a value that is not finite. */
static bool source_rows(struct driver *d, int64_t r, int64_t n, float *x, int thread)
{
    const struct qweight *src = d->job->src;
    enum dtype t = source_dtype(d);
    qweight_rows_f32(src, r, n, x);
    if (!round_floats(src->out_dtype == t ? DT_F32 : t, x, n * src->n_in)) return true;
    qweight_rows_f32(src, r, n, x);
    for (int64_t i = 0; i < n * src->n_in; i++) {
        if (isfinite(x[i]) && isfinite(round_to_dtype(t, x[i]))) continue;
        d->mine[thread].row = r + i / src->n_in;
        d->mine[thread].col = i % src->n_in;
        d->mine[thread].value = x[i];
        break;
    }
    return false;
}

static bool scale_ok(struct driver *d, int64_t r, float s, int thread)
{
    if (isfinite(s)) return true;
    d->mine[thread].row = r;
    d->mine[thread].scale = true;
    return false;
}

static void put_half(void *p, int64_t i, enum dtype t, float v)
{
    ((uint16_t *)p)[i] = t == DT_BF16 ? f32_to_bf16(v) : f32_to_f16(v);
}

/* n codes from low bits to high, as unsigned ones; what is left of the last word is zero. */
WIDE static void pack_codes(const int8_t *q, int64_t n, int bits, uint32_t *words)
{
    uint8_t *bytes = (uint8_t *)words;
    if (n > 0) words[(n * bits - 1) / 32] = 0;
    if (bits == 8)
        for (int64_t i = 0; i < n; i++) bytes[i] = (uint8_t)(q[i] + 128);
    else
        for (int64_t i = 0; i < n / 2; i++) bytes[i] = (uint8_t)((q[2 * i] + 8) | (q[2 * i + 1] + 8) << 4);
    if (bits == 4 && n % 2) bytes[n / 2] = (uint8_t)(q[n - 1] + 8);
}

static bool int_row(struct driver *d, int64_t r, const float *x, int8_t *q, int thread)
{
    const struct format *f = d->job->fmt;
    int64_t n_in = d->job->src->n_in, groups = format_groups(f, n_in), size = f->group ? f->group : n_in;
    int bits = f->bits, per = 32 / bits, off = 1 << (bits - 1), z;
    float s;
    for (int64_t g = 0; g < groups; g++) {
        int64_t k = g * size, n = n_in - k < size ? n_in - k : size;
        d->c->int_group(f, d->job->model_dtype, x + k, n, q + k, &z, &s);
        if (!scale_ok(d, r, s, thread)) return false;
        put_half(d->dst->scale, r * groups + g, d->job->model_dtype, s);
        if (!f->symmetric) ((uint32_t *)d->dst->zero)[r / per * groups + g] |= (uint32_t)(z + off) << bits * (r % per);
    }
    pack_codes(q, n_in, bits, (uint32_t *)d->dst->codes + r * format_words(f, n_in));
    return true;
}

static bool strided_row(struct driver *d, int64_t r, const float *x, float *group, int8_t *q, int thread)
{
    const struct format *f = d->job->fmt;
    int64_t n_in = d->job->src->n_in;
    uint8_t *codes = (uint8_t *)d->dst->codes + r * ((n_in + 1) / 2);
    for (int64_t g = 0; g < f->group; g++) {
        int64_t n = 0;
        for (int64_t k = g; k < n_in; k += f->group) group[n++] = x[k];
        int z;
        float s;
        d->c->strided_group(f, DT_F16, group, n, q, &z, &s);
        if (!scale_ok(d, r, s, thread)) return false;
        put_half(d->dst->scale, r * f->group + g, DT_F16, s);
        put_half(d->dst->zero, r * f->group + g, DT_F16, (float)z);
        for (int64_t k = g, i = 0; k < n_in; k += f->group, i++) codes[k / 2] |= (uint8_t)(q[i] << (k % 2 ? 0 : 4));
    }
    return true;
}

/* Rows r … r+n−1, whose first element starts a block. */
static void book_rows(struct driver *d, int64_t r, int64_t n, const float *x, uint8_t *q)
{
    const struct format *f = d->job->fmt;
    int64_t n_in = d->job->src->n_in, first = r * n_in, count = n * n_in;
    bool last = r + n == d->job->src->n_out;
    struct book_order o = book_order(f->book);
    for (int64_t i = 0; i < count; i += f->group) {
        int64_t m = count - i < f->group ? count - i : f->group, block = (first + i) / f->group;
        if (!d->recode) {
            d->c->book_block(f, x + i, m, last && m < f->group, q + i, &d->absmax[block]);
            continue;
        }
        float a = d->absmax[block], y[64];
        for (int64_t b = 0; b < m; b += 64) {
            int64_t k = m - b < 64 ? m - b : 64;
            for (int64_t j = 0; j < k; j++) y[j] = a != 0 ? x[i + b + j] / a : 0;
            book_codes(&o, y, k, q + i + b);
        }
    }
    uint8_t *codes = (uint8_t *)d->dst->codes + first / 2, pad = 0;
    book_codes(&o, &(float){0}, 1, &pad); /* an odd count ends with the code of a zero */
    for (int64_t i = 0; i < count; i += 2) codes[i / 2] = (uint8_t)(q[i] << 4 | (i + 1 < count ? q[i + 1] : pad));
}

/* Items come in any order: a thread leaves undone only what lies behind the first bad row it has met. */
static void some_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    struct driver *d = ctx;
    const struct format *f = d->job->fmt;
    int64_t n_in = d->job->src->n_in;
    struct mine *m = &d->mine[thread];
    bool rounded = d->job->src->out_dtype != source_dtype(d);
    if (!m->x) {
        m->x = mem_array((size_t)(d->grain * n_in), sizeof *m->x);
        m->group = mem_array((size_t)n_in, sizeof *m->group);
        m->q = mem_array((size_t)(d->grain * n_in), 1);
    }
    for (int64_t r = begin; r < end && (m->row < 0 || r < m->row); r += d->grain) {
        int64_t n = end - r < d->grain ? end - r : d->grain;
        bool ok = source_rows(d, r, n, m->x, thread);
        fetch_rows(d->job->src, r + n, d->grain);
        if (ok && f->kind == CODE_BOOK) book_rows(d, r, n, m->x, m->q);
        if (ok && f->kind == CODE_FLOAT)
            dtype_from_f32(f->dtype, m->x, (uint8_t *)d->dst->codes + (size_t)r * dtype_bytes(f->dtype, n_in), n * n_in);
        for (int64_t i = 0; ok && i < n; i++) {
            if (f->kind == CODE_INT) ok = int_row(d, r + i, m->x + i * n_in, (int8_t *)m->q, thread);
            if (f->kind == CODE_STRIDED) ok = strided_row(d, r + i, m->x + i * n_in, m->group, (int8_t *)m->q, thread);
        }
        if (!ok || !d->measure) continue;
        if (rounded) qweight_rows_f32(d->job->src, r, n, m->x);
        add_rows(d->measure, r, n, m->x, m->group);
    }
}

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

static int check_bad(const struct driver *d, struct err *e)
{
    int first = -1;
    for (int t = 0; t < par_threads(); t++)
        if (d->mine[t].row >= 0 && (first < 0 || d->mine[t].row < d->mine[first].row)) first = t;
    if (first < 0) return 0;
    long long row = d->mine[first].row, col = d->mine[first].col;
    float v = d->mine[first].value;
    if (d->mine[first].scale)
        return err_set(e, "tensor %s: row %lld is too large for a scale in its dtype", d->job->name, row);
    if (isfinite(v))
        return err_set(e, "tensor %s: %g at row %lld, column %lld does not fit its dtype", d->job->name, (double)v, row, col);
    return err_set(e, "tensor %s: %s at row %lld, column %lld (finite weights were expected)", d->job->name,
                   isnan(v) ? "NaN" : "Inf", row, col);
}

int choose_run(const struct chooser *c, const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats,
               struct err *e)
{
    struct driver d = {.c = c, .job = job, .dst = dst, .grain = 1};
    const struct format *f = job->fmt;
    int64_t n_out = job->src->n_out, blocks = 0;
    if (f->kind == CODE_BOOK) {
        d.grain = f->group / gcd(job->src->n_in, f->group);
        blocks = format_blocks(f, n_out, job->src->n_in);
        d.absmax = f->double_quant ? mem_array((size_t)blocks, sizeof *d.absmax) : dst->absmax;
    }
    d.mine = mem_new((size_t)par_threads(), sizeof *d.mine);
    for (int t = 0; t < par_threads(); t++) d.mine[t].row = -1;
    int64_t item = (ITEM_ROWS + d.grain - 1) / d.grain * d.grain;
    assert(item % CHUNK == 0);
    struct measure m = {job->src, &dst->w, stats ? mem_new((size_t)((n_out + CHUNK - 1) / CHUNK), sizeof *m.part) : NULL};
    if (stats && !f->double_quant) d.measure = &m;
    par_for_dynamic(n_out, item, some_rows, &d);
    int rc = check_bad(&d, e);
    if (rc == 0 && f->double_quant) {
        nested_quantize(d.absmax, blocks, dst->absmax, dst->nested_absmax, dst->nested_map, &dst->w.nested_offset);
        d.recode = c->recode;
        if (d.recode) par_for_dynamic(n_out, item, some_rows, &d);
        if (stats) par_for_dynamic(n_out, CHUNK, measure_rows, &m);
    }
    if (rc == 0 && stats) *stats = total(&m);
    free(m.part);
    if (f->double_quant) free(d.absmax);
    for (int t = 0; t < par_threads(); t++) {
        free(d.mine[t].x);
        free(d.mine[t].group);
        free(d.mine[t].q);
    }
    free(d.mine);
    return rc;
}

int method_quantize(const struct method *m, const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats,
                    struct err *e)
{
    qbuffer_alloc(dst, job->fmt, job->src->n_out, job->src->n_in, job->model_dtype);
    if (m->run(job, dst, stats, e)) {
        qbuffer_free(dst);
        return -1;
    }
    return 0;
}
