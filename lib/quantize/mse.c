/* Least squared error: for every group the scale (and zero point) that loses least, found by a search. The result is
 * never worse than rtn's, group by group: rtn's own choice is one of the candidates, and the last comparison is made on
 * the values that a reader will see.
 *
 * For given codes the best scale is known: s = Σxq/Σqq, with error Σxx − (Σxq)²/Σqq. So a grid of scales is tried
 * (clipping more and more of the group's extremes), each judged by the error that its codes allow, and the best are
 * refined by taking turns: best scale for the codes, best codes for the scale. Symmetric groups try both signs of the
 * scale, because −8 … 7 reaches one step further on one side. Sums run over 8 lanes in a fixed order, so that
 * vectorized or not they are the same. */
#include "quantize/choose.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define LANES 8
#define STEPS 32     /* scales tried: from STEP_FIRST times the scale that clips nothing, each STEP times the last */
#define STEP 0.96f   /* down to 0.30: groups with one far outlier are best clipped hard */
#define STEP_FIRST 1.06f
#define ROUNDS 4

/* Eight lanes as one value; the compiler maps them to whatever the processor has. */
typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef double vdouble __attribute__((vector_size(8 * LANES)));
#define SELECT(mask, a, b) ((vfloat)(((mask) & (vint)(a)) | (~(mask) & (vint)(b))))

/* The nearest codes of 8 weights for quotients v, as floats. */
#define CODES(v, lo, hi)                            \
    do {                                            \
        v = SELECT(v < (lo), (vfloat){0} + (lo), v); \
        v = SELECT(v > (hi), (vfloat){0} + (hi), v); \
        v = (v + 12582912.0f) - 12582912.0f;        \
    } while (0)

/* 8 weights from x + i, zeros beyond n: a zero has code 0 and adds nothing to any sum. */
#define LOAD(v, x, i, n)                                                                       \
    do {                                                                                       \
        v = (vfloat){0};                                                                       \
        memcpy(&v, (x) + (i), (n) - (i) < LANES ? (size_t)((n) - (i)) * sizeof(float) : sizeof v); \
    } while (0)

static float sum_lanes(const float *a) { return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])); }

/* Σxq and Σqq of the nearest codes within lo … hi (lo ≤ 0 ≤ hi) for the scale 1/inv. */
WIDE static void try_scale(const float *x, int64_t n, float inv, float lo, float hi, float *sxq, float *sqq)
{
    vfloat a = {0}, b = {0}, v, q;
    for (int64_t i = 0; i < n; i += LANES) {
        if (n - i >= LANES) memcpy(&v, x + i, sizeof v);
        else LOAD(v, x, i, n);
        q = v * inv;
        CODES(q, lo, hi);
        a += v * q;
        b += q * q;
    }
    float lanes[LANES];
    memcpy(lanes, &a, sizeof a);
    *sxq = sum_lanes(lanes);
    memcpy(lanes, &b, sizeof b);
    *sqq = sum_lanes(lanes);
}

/* Squared error of the nearest codes for scale s, as a reader dequantizes them: code·s rounded to dtype. */
WIDE static double try_exact(enum dtype dtype, const float *x, int64_t n, float s, float lo, float hi)
{
    vdouble sum = {0};
    vfloat v, q;
    for (int64_t i = 0; i < n; i += LANES) {
        if (n - i >= LANES) memcpy(&v, x + i, sizeof v);
        else LOAD(v, x, i, n);
        q = v / s;
        CODES(q, lo, hi);
        q *= s;
        float lanes[LANES];
        memcpy(lanes, &q, sizeof q);
        if (dtype == DT_F16)
            for (int k = 0; k < LANES; k++) lanes[k] = round_f16(lanes[k]);
        else if (dtype == DT_BF16)
            for (int k = 0; k < LANES; k++) lanes[k] = round_bf16(lanes[k]);
        memcpy(&q, lanes, sizeof q);
        vdouble d = __builtin_convertvector(v, vdouble) - __builtin_convertvector(q, vdouble);
        sum += d * d;
    }
    double lanes[LANES];
    memcpy(lanes, &sum, sizeof sum);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* Squared error of given codes. */
static double int_error(enum dtype dtype, const float *x, int64_t n, const int8_t *q, int z, float s)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)round_to_dtype(dtype, (float)(q[i] - z) * s);
        sum += d * d;
    }
    return sum;
}

struct best {
    double err;
    float s;
    int z;
};

static void nearest_codes(const float *x, int64_t n, float s, int z, int lo, int hi, int8_t *q)
{
    float flo = (float)(lo - z), fhi = (float)(hi - z);
    for (int64_t i = 0; i < n; i++) q[i] = (int8_t)((int)round_even(clampf(x[i] / s, flo, fhi)) + z);
}

/* Over the grid of scales, every `stride`th: the largest (Σxq)²/Σqq, which is how much of Σxx the codes can explain, and
 * the scale they want in *s. */
static double search_grid(const float *x, int64_t n, float base, int stride, float lo, float hi, float *s)
{
    double gain = 0;
    float sxq, sqq, p = STEP_FIRST;
    for (int i = 0; i < STEPS && base != 0 && isfinite(base); i++, p *= STEP) {
        if (i % stride) continue;
        float inv = 1.0f / (base * p);
        if (!isfinite(inv)) break;
        try_scale(x, n, inv, lo, hi, &sxq, &sqq);
        if (sqq == 0 || !((double)sxq * sxq / sqq > gain)) continue;
        gain = (double)sxq * sxq / sqq;
        *s = sxq / sqq;
    }
    return gain;
}

/* One zero point and sign: search the scale, refine, keep what beats *best. */
static void search_scale(enum dtype dtype, const float *x, int64_t n, float base, int z, int lo, int hi,
                         struct best *best)
{
    float flo = (float)(lo - z), fhi = (float)(hi - z), sxq, sqq, s = 0;
    if (search_grid(x, n, base, 1, flo, fhi, &s) == 0) return;
    for (int i = 0; i < ROUNDS; i++) {
        s = round_to_dtype(dtype, s);
        if (s == 0 || !isfinite(s)) return;
        double err = try_exact(dtype, x, n, s, flo, fhi);
        if (err < best->err) *best = (struct best){err, s, z};
        try_scale(x, n, 1.0f / s, flo, fhi, &sxq, &sqq);
        if (sqq == 0 || round_to_dtype(dtype, sxq / sqq) == s) return;
        s = sxq / sqq;
    }
}

/* The scale that clips nothing for codes lo − z … hi − z; either side may have no codes at all. */
static float unclipped(float mn, float mx, int z, int lo, int hi)
{
    float up = hi > z ? mx / (float)(hi - z) : 0, down = lo < z ? mn / (float)(lo - z) : 0;
    return up > down ? up : down;
}

static void search_int(choose_int_fn *rtn, const struct format *f, bool symmetric, int lo, int hi, enum dtype dtype,
                       const float *x, int64_t n, int8_t *q, int *z, float *scale)
{
    rtn(f, dtype, x, n, q, z, scale);
    if (n == 0 || !isfinite(*scale)) return;
    struct best best = {int_error(dtype, x, n, q, *z, *scale), *scale, *z}, rtn_best = best;
    if (best.err == 0) return;
    float mn = 0, mx = 0;
    for (int64_t i = 0; i < n; i++) {
        mn = x[i] < mn ? x[i] : mn;
        mx = x[i] > mx ? x[i] : mx;
    }
    if (symmetric) {
        search_scale(dtype, x, n, unclipped(mn, mx, 0, lo, hi), 0, lo, hi, &best);
        search_scale(dtype, x, n, -unclipped(-mx, -mn, 0, lo, hi), 0, lo, hi, &best);
    } else {
        /* Zero points near rtn's: clipping one side moves the best one by a step or two. A coarse grid picks two. */
        int first = *z, second = *z;
        double gain1 = -1, gain2 = -1;
        for (int t = *z - 3; t <= *z + 3; t++) {
            if (t < lo || t > hi) continue;
            float s;
            double gain = search_grid(x, n, unclipped(mn, mx, t, lo, hi), 4, (float)(lo - t), (float)(hi - t), &s);
            if (gain > gain1) second = first, gain2 = gain1, first = t, gain1 = gain;
            else if (gain > gain2) second = t, gain2 = gain;
        }
        search_scale(dtype, x, n, unclipped(mn, mx, first, lo, hi), first, lo, hi, &best);
        search_scale(dtype, x, n, unclipped(mn, mx, second, lo, hi), second, lo, hi, &best);
    }
    if (!(best.err < rtn_best.err)) {
        rtn(f, dtype, x, n, q, z, scale);
        return;
    }
    *z = best.z;
    *scale = best.s;
    nearest_codes(x, n, best.s, best.z, lo, hi, q);
}

static void int_group(const struct format *f, enum dtype dtype, const float *x, int64_t n, int8_t *q, int *z,
                      float *scale)
{
    int hi = (1 << (f->bits - 1)) - 1;
    search_int(rtn_chooser.int_group, f, f->symmetric, -hi - 1, hi, dtype, x, n, q, z, scale);
}

static void strided_group(const struct format *f, enum dtype dtype, const float *x, int64_t n, int8_t *q, int *z,
                          float *scale)
{
    search_int(rtn_chooser.strided_group, f, false, 0, 15, dtype, x, n, q, z, scale);
}

/* ---- code books ---- */

/* Σx·v and Σv·v of the nearest book values v for absmax 1/inv; n ≤ 64. */
WIDE static void try_absmax(const float *book, const struct book_order *o, const float *x, int64_t n, float inv, float *sxv,
                       float *svv)
{
    float y[64] = {0}, v[64] = {0}, z[64] = {0};
    memcpy(z, x, (size_t)n * sizeof *z);
    for (int i = 0; i < 64; i++) {
        y[i] = z[i] * inv;
        v[i] = book[o->order[0]];
    }
    for (int j = 0; j < 15; j++) {
        float t = o->bounds[j], step = book[o->order[j + 1]] - book[o->order[j]];
        for (int i = 0; i < 64; i++) v[i] += y[i] > t ? step : 0;
    }
    float a[LANES] = {0}, b[LANES] = {0};
    for (int i = 0; i < 64; i += LANES)
        for (int k = 0; k < LANES; k++) {
            float vk = i + k < n ? v[i + k] : 0;
            a[k] += z[i + k] * vk;
            b[k] += vk * vk;
        }
    *sxv = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
    *svv = ((b[0] + b[1]) + (b[2] + b[3])) + ((b[4] + b[5]) + (b[6] + b[7]));
}

static double book_error(const float *book, const float *x, int64_t n, const uint8_t *q, float absmax)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)(book[q[i]] * absmax);
        sum += d * d;
    }
    return sum;
}

static void nearest_book(const struct book_order *o, const float *x, int64_t n, float absmax, uint8_t *q)
{
    float y[64];
    for (int64_t i = 0; i < n; i++) y[i] = x[i] / absmax;
    book_codes(o, y, n, q);
}

static void book_block(const struct format *f, const float *x, int64_t n, bool ragged, uint8_t *q, float *absmax)
{
    assert(n <= 64);
    rtn_chooser.book_block(f, x, n, ragged, q, absmax);
    double best = book_error(f->book, x, n, q, *absmax);
    if (best == 0) return;
    struct book_order o = book_order(f->book);
    uint8_t try[64];
    float p = STEP_FIRST, base = *absmax, a = 0, sxv, svv;
    double gain = 0;
    for (int i = 0; i < STEPS; i++, p *= STEP) {
        float inv = 1.0f / (base * p);
        if (!isfinite(inv)) break;
        try_absmax(f->book, &o, x, n, inv, &sxv, &svv);
        if (svv == 0 || !((double)sxv * sxv / svv > gain)) continue;
        gain = (double)sxv * sxv / svv;
        a = sxv / svv;
    }
    for (int i = 0; i < ROUNDS && a > 0 && isfinite(a); i++) {
        nearest_book(&o, x, n, a, try);
        double err = book_error(f->book, x, n, try, a);
        if (err < best) {
            best = err;
            *absmax = a;
            memcpy(q, try, (size_t)n);
        }
        try_absmax(f->book, &o, x, n, 1.0f / a, &sxv, &svv);
        if (svv == 0 || sxv / svv == a) break;
        a = sxv / svv;
    }
}

int mse_run(const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats, struct err *e)
{
    static const struct chooser c = {int_group, strided_group, book_block, true};
    return choose_run(&c, job, dst, stats, e);
}
