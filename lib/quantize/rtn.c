/* Round to nearest, byte for byte as each container's own library does it:
 *  CODE_INT      compressed-tensors 0.20: calculate_qparams in f32, scale rounded to the model's dtype, then
 *                round(clamp(x/s + z)) with the quotient and the sum each rounded to the model's dtype;
 *  CODE_STRIDED  the original experiment's quantizer, every operation rounded to f16;
 *  CODE_BOOK     bitsandbytes 0.50 CPU quantize_4bit. */
#include "quantize/choose.h"

#include <math.h>
#include <string.h>

WIDE void rtn_codes(enum dtype dtype, const float *x, int64_t n, float s, int z, int lo, int hi, int8_t *q)
{
    float flo = (float)lo, fhi = (float)hi, fz = (float)z;
    if (s == 0) { /* the scale underflowed its dtype: ±Inf is clamped, 0/0 becomes code 0 */
        for (int64_t i = 0; i < n; i++) q[i] = (int8_t)(x[i] > 0 ? hi : x[i] < 0 ? lo : 0);
    } else if (dtype == DT_F16) {
        for (int64_t i = 0; i < n; i++) {
            float v = round_f16(round_f16(x[i] / s) + fz);
            q[i] = (int8_t)(int)round_even(clampf(v, flo, fhi));
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            float v = round_bf16(round_bf16(x[i] / s) + fz);
            q[i] = (int8_t)(int)round_even(clampf(v, flo, fhi));
        }
    }
}

enum { LANES = 8 };
typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
#define SELECT(mask, a, b) ((vfloat)(((mask) & (vint)(a)) | (~(mask) & (vint)(b))))

WIDE static void min_max(const float *x, int64_t n, float *mn, float *mx)
{
    enum { CHAINS = 4 };  /* that do not wait for each other */
    float lo = 0, hi = 0; /* zero is always representable */
    vfloat vlo[CHAINS] = {{0}}, vhi[CHAINS] = {{0}}, v;
    int64_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int c = 0; c < CHAINS; c++) {
            memcpy(&v, x + i + c * LANES, sizeof v);
            vlo[c] = SELECT(v < vlo[c], v, vlo[c]);
            vhi[c] = SELECT(v > vhi[c], v, vhi[c]);
        }
    for (; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    for (int c = 1; c < CHAINS; c++) {
        vlo[0] = SELECT(vlo[c] < vlo[0], vlo[c], vlo[0]);
        vhi[0] = SELECT(vhi[c] > vhi[0], vhi[c], vhi[0]);
    }
    for (int k = 0; k < LANES; k++) {
        lo = vlo[0][k] < lo ? vlo[0][k] : lo;
        hi = vhi[0][k] > hi ? vhi[0][k] : hi;
    }
    *mn = lo;
    *mx = hi;
}

static void int_group(const struct format *f, enum dtype dtype, const float *x, int64_t n, int8_t *q, int *z,
                      float *scale)
{
    int hi = (1 << (f->bits - 1)) - 1, lo = -hi - 1;
    float mn, mx, range = (float)(hi - lo), s;
    min_max(x, n, &mn, &mx);
    *z = 0;
    if (f->symmetric) {
        s = (-mn > mx ? -mn : mx) / (range / 2);
    } else {
        s = (mx - mn) / range;
        if (s > 0) *z = (int)round_even(clampf((float)lo - mn / s, (float)lo, (float)hi));
    }
    if (s == 0) s = 0x1p-23f;
    *scale = round_to_dtype(dtype, s);
    rtn_codes(dtype, x, n, *scale, *z, lo, hi, q);
}

static void strided_group(const struct format *f, enum dtype dtype, const float *x, int64_t n, int8_t *q, int *z,
                          float *scale)
{
    (void)f, (void)dtype;
    float mn = n ? x[0] : 0, mx = mn;
    for (int64_t i = 1; i < n; i++) {
        mn = x[i] < mn ? x[i] : mn;
        mx = x[i] > mx ? x[i] : mx;
    }
    float range = round_f16(mx - mn), least = round_f16(1e-5f);
    float s = round_f16((range > least ? range : least) / 15);
    *scale = s;
    *z = (int)round_even(clampf(round_f16(-mn / s), 0, 15));
    rtn_codes(DT_F16, x, n, s, *z, 0, 15, q);
}

struct book_order book_order(const float *book)
{
    struct book_order o;
    for (int i = 0; i < 16; i++) o.order[i] = (uint8_t)i;
    for (int i = 1; i < 16; i++) /* insertion sort: stable, so the zero with the lower code comes first */
        for (int j = i; j > 0 && book[o.order[j]] < book[o.order[j - 1]]; j--) {
            uint8_t t = o.order[j];
            o.order[j] = o.order[j - 1];
            o.order[j - 1] = t;
        }
    for (int i = 0; i < 15; i++) o.bounds[i] = (book[o.order[i]] + book[o.order[i + 1]]) / 2;
    return o;
}

WIDE void book_codes(const struct book_order *o, const float *x, int64_t n, uint8_t *q)
{
    int32_t below[64];
    for (int64_t b = 0; b < n; b += 64) {
        int m = n - b < 64 ? (int)(n - b) : 64;
        for (int i = 0; i < m; i++) below[i] = 0;
        for (int j = 0; j < 15; j++) {
            float t = o->bounds[j];
            for (int i = 0; i < m; i++) below[i] += t < x[b + i];
        }
        for (int i = 0; i < m; i++) q[b + i] = o->order[below[i]];
    }
}

static void book_block(const struct format *f, const float *x, int64_t n, bool ragged, uint8_t *q, float *absmax)
{
    struct book_order o = book_order(f->book);
    float mn, a, y[64];
    min_max(x, n, &mn, &a);
    a = -mn > a ? -mn : a;
    /* the library keeps an absmax of 0 in a full block, but stores the clamped one in a ragged block */
    float safe = a > 1e-38f ? a : 1e-38f, inv = 1.0f / safe;
    *absmax = ragged ? safe : a;
    for (int64_t b = 0; b < n; b += 64) {
        int64_t m = n - b < 64 ? n - b : 64;
        for (int64_t i = 0; i < m; i++) y[i] = clampf(ragged ? x[b + i] / safe : x[b + i] * inv, -1, 1);
        book_codes(&o, y, m, q + b);
    }
}

const struct chooser rtn_chooser = {int_group, strided_group, book_block, false};

int rtn_run(const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats, struct err *e)
{
    return choose_run(&rtn_chooser, job, dst, stats, e);
}
