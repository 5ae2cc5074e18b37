/* What a method that works group by group provides, and the driver that does the rest: rows over threads, rounding to
 * the model's dtype, refusal of NaN and Inf, packing, double quantization of absmax. Private to the methods. */
#ifndef QLAB_QUANTIZE_CHOOSE_H
#define QLAB_QUANTIZE_CHOOSE_H

#include "base/half.h"
#include "base/wide.h"
#include "quantize/method.h"

/* One group of n weights x, already rounded to the model's dtype, finite. Codes q are signed for CODE_INT
 * (−2^(b−1) … 2^(b−1)−1) and 0 … 15 for CODE_STRIDED; *scale has the precision of `dtype`; *z is on the codes' scale. */
typedef void choose_int_fn(const struct format *f, enum dtype dtype, const float *x, int64_t n, int8_t *q, int *z,
                           float *scale);
/* One flat block of CODE_BOOK; ragged: the short last one of a tensor. */
typedef void choose_book_fn(const struct format *f, const float *x, int64_t n, bool ragged, uint8_t *q, float *absmax);

struct chooser {
    choose_int_fn *int_group, *strided_group;
    choose_book_fn *book_block;
    bool recode; /* with double quantization: codes are chosen again for the restored absmax */
};
/* stats may be NULL */
int choose_run(const struct chooser *c, const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats,
               struct err *e);

extern const struct chooser rtn_chooser;
int rtn_run(const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats, struct err *e);
int mse_run(const struct quant_job *job, struct qbuffer *dst, struct quant_stats *stats, struct err *e);

/* rtn.c: pieces mse.c starts from. Codes of a group for a given scale and zero point, as the library rounds them. */
void rtn_codes(enum dtype dtype, const float *x, int64_t n, float s, int z, int lo, int hi, int8_t *q);
/* The thresholds between neighbouring book values, and the codes in rising order of value: code = order[number of
 * bounds below x]. Exact midpoints take the lower value. */
struct book_order {
    float bounds[15];
    uint8_t order[16];
};
struct book_order book_order(const float *book);
void book_codes(const struct book_order *o, const float *x, int64_t n, uint8_t *q);

/* nested.c: double quantization of n absmax values, in place of the library's quantize_blockwise: offset = mean,
 * blocks of 256. codes u8 (n), nested f32 (ceil(n/256)), map f32[256]. absmax is overwritten by the restored values. */
void nested_quantize(float *absmax, int64_t n, uint8_t *codes, float *nested, float map[256], float *offset);
/* bitsandbytes' signed dynamic map (create_dynamic_map). */
void nested_map(float map[256]);

/* Half to even, for |v| < 2^22. */
static inline float round_even(float v) { return (v + 12582912.0f) - 12582912.0f; }

static inline float clampf(float v, float lo, float hi)
{
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

static inline float round_to_dtype(enum dtype t, float v)
{
    return t == DT_F16 ? round_f16(v) : t == DT_BF16 ? round_bf16(v) : v;
}

#endif
