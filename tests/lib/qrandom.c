#include "qrandom.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/msg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64 };
static const uint32_t guard_bits = 0x7fdeadbe; /* a NaN */

static void put_scale(void *p, int64_t i, enum dtype t, float v)
{
    if (t == DT_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = t == DT_F16 ? f32_to_f16(v) : f32_to_bf16(v);
}

static float random_scale(struct rng *rng, bool extreme)
{
    static const float odd[] = {0, 6e-8f, 3e-5f, 1e-7f, 20.0f};
    if (extreme && rng_below(rng, 4) == 0) return odd[rng_below(rng, 5)];
    return (float)(0.002 + 0.02 * rng_uniform(rng));
}

static void random_bytes(struct rng *rng, void *p, size_t n, bool extreme)
{
    uint8_t *b = p;
    for (size_t i = 0; i < n; i++) {
        uint64_t r = rng_next(rng);
        b[i] = extreme ? (uint8_t)((r & 1 ? 0xf0 : 0) | (r & 2 ? 0x0f : 0)) : (uint8_t)(r >> 11);
    }
}

static int64_t groups_of(const struct format *f, int64_t n_in)
{
    return f->kind == CODE_STRIDED ? f->group : f->group ? (n_in + f->group - 1) / f->group : 1;
}

void qrandom(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype, struct rng *rng,
             bool extreme)
{
    qbuffer_alloc(b, f, n_out, n_in, dtype);
    int64_t per = 32 / f->bits, groups = groups_of(f, n_in), blocks;
    switch (f->kind) {
    case CODE_FLOAT:
        for (int64_t i = 0; i < n_out * n_in; i++) put_scale(b->codes, i, f->dtype, (float)(0.05 * rng_normal(rng)));
        return;
    case CODE_INT:
        random_bytes(rng, b->codes, (size_t)(n_out * ((n_in + per - 1) / per)) * 4, extreme);
        for (int64_t i = 0; i < n_out * groups; i++) put_scale(b->scale, i, dtype, random_scale(rng, extreme));
        if (b->zero) random_bytes(rng, b->zero, (size_t)((n_out + per - 1) / per * groups) * 4, extreme);
        return;
    case CODE_STRIDED:
        random_bytes(rng, b->codes, (size_t)(n_out * ((n_in + 1) / 2)), extreme);
        for (int64_t i = 0; i < n_out * groups; i++) {
            put_scale(b->scale, i, DT_F16, random_scale(rng, extreme));
            put_scale(b->zero, i, DT_F16, (float)(16 * rng_uniform(rng) - 0.5)); /* not an integer */
        }
        return;
    case CODE_BOOK:
        blocks = (n_out * n_in + f->group - 1) / f->group;
        random_bytes(rng, b->codes, (size_t)((n_out * n_in + 1) / 2), extreme);
        if (f->double_quant) {
            random_bytes(rng, b->absmax, (size_t)blocks, false);
            for (int64_t i = 0; i < (blocks + 255) / 256; i++)
                ((float *)b->nested_absmax)[i] = (float)(0.01 + 0.01 * rng_uniform(rng));
            for (int i = 0; i < 256; i++) b->nested_map[i] = (float)((i - 127.5) / 128);
            b->w.nested_map = b->nested_map;
            b->w.nested_offset = 0.031f;
        } else {
            for (int64_t i = 0; i < blocks; i++) ((float *)b->absmax)[i] = 8 * random_scale(rng, extreme);
        }
    }
}

void qfill(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype dtype, uint8_t codes,
           uint8_t zeros, float scale)
{
    qbuffer_alloc(b, f, n_out, n_in, dtype);
    int64_t per = f->bits ? 32 / f->bits : 1, groups = groups_of(f, n_in);
    switch (f->kind) {
    case CODE_FLOAT:
        for (int64_t i = 0; i < n_out * n_in; i++) put_scale(b->codes, i, f->dtype, scale);
        return;
    case CODE_INT:
        memset(b->codes, codes, (size_t)(n_out * ((n_in + per - 1) / per)) * 4);
        if (b->zero) memset(b->zero, zeros, (size_t)((n_out + per - 1) / per * groups) * 4);
        break;
    case CODE_STRIDED:
        memset(b->codes, codes, (size_t)(n_out * ((n_in + 1) / 2)));
        for (int64_t i = 0; i < n_out * groups; i++) put_scale(b->zero, i, DT_F16, (float)(zeros & 15));
        break;
    case CODE_BOOK:
        memset(b->codes, codes, (size_t)((n_out * n_in + 1) / 2));
        for (int64_t i = 0; i < (n_out * n_in + f->group - 1) / f->group; i++) ((float *)b->absmax)[i] = scale;
        return;
    }
    for (int64_t i = 0; i < n_out * groups; i++) put_scale(b->scale, i, f->kind == CODE_STRIDED ? DT_F16 : dtype, scale);
}

void random_floats(struct rng *rng, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = (float)(rng_normal(rng) * (i % 97 == 5 ? 10 : 1));
}

float *guard_new(int64_t n)
{
    float *p = mem_array((size_t)(n + 2 * GUARD), sizeof *p);
    for (int64_t i = 0; i < n + 2 * GUARD; i++) memcpy(p + i, &guard_bits, 4);
    return p + GUARD;
}

void guard_check(float *p, int64_t n, const char *what)
{
    for (int64_t i = 0; i < GUARD; i++)
        if (memcmp(p - 1 - i, &guard_bits, 4) || memcmp(p + n + i, &guard_bits, 4))
            die("%s: wrote outside its output, %lld elements off", what, (long long)i + 1);
    free(p - GUARD);
}

void compare(const float *got, const float *want, int64_t n, double nmse, double abs, double rel, const char *what)
{
    double err = 0, ref = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) die("%s: element %lld of %lld is not finite", what, (long long)i, (long long)n);
        double d = (double)got[i] - want[i];
        if (!(fabs(d) <= abs + rel * fabs(want[i])))
            die("%s: element %lld of %lld is %.9g, %.9g was expected", what, (long long)i, (long long)n, got[i], want[i]);
        err += d * d;
        ref += (double)want[i] * want[i];
    }
    if (!(err <= nmse * ref)) die("%s: NMSE %.3g (at most %.3g was expected)", what, err / ref, nmse);
}
