/* Integer dot products in plain C: the layout of panels.h read element by element. */
#include "backend/cpu/panels.h"

#include "base/half.h"

#include <math.h>
#include <string.h>

/* Groups of ACT_GROUP: s = max|x|/127, q = x·(127/max|x|) rounded to nearest even. A NaN makes the scale NaN. */
static void quantize(const float *x, int64_t n, int8_t *q, float *scale, int32_t *neg)
{
    for (int64_t k0 = 0; k0 < n; k0 += ACT_GROUP, scale++, neg++) {
        uint32_t top = 0; /* magnitudes in the order of their bits: NaN is the largest */
        for (int64_t k = k0; k < k0 + ACT_GROUP && k < n; k++) {
            uint32_t m = f32_bits(x[k]) & 0x7fffffff;
            top = m > top ? m : top;
        }
        float max = f32_from_bits(top), inv = 127.0f / max;
        if (!(inv < INFINITY)) inv = 0; /* 0, too small for a scale, or NaN */
        *scale = inv == 0 ? max * 0.0f : max / 127.0f;
        *neg = 0;
        for (int64_t k = k0; k < k0 + ACT_GROUP; k++) {
            q[k] = k < n && inv > 0 ? (int8_t)lrintf(x[k] * inv) : 0;
            *neg -= q[k];
        }
    }
}

static float scale_of(const struct panels *w, const uint8_t *panel, int64_t g, int r)
{
    const void *p = panel;
    int64_t i = g * PANEL_ROWS + r;
    if (w->scale_dtype == DT_F16) return f16_to_f32(((const uint16_t *)p)[i]);
    if (w->scale_dtype == DT_BF16) return bf16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

/* Activation group a of one panel: integers of row r in w[r][0 … 31]. */
static void unpack_group(const struct panels *w, const uint8_t *panel, int64_t a, int8_t out[PANEL_ROWS][ACT_GROUP])
{
    const uint8_t *lines = panel + w->codes_at + (size_t)a * act_lines(w);
    int64_t g = a * ACT_GROUP / w->group;
    for (int r = 0; r < PANEL_ROWS; r++)
        for (int k = 0; k < ACT_GROUP; k++) {
            int v;
            if (w->kind == PANEL_8) {
                v = lines[k / 4 * 64 + 4 * r + k % 4] - 128;
            } else {
                v = lines[k / 8 * 64 + 4 * r + k % 4] >> (k % 8 >= 4 ? 4 : 0) & 15;
                if (w->kind == PANEL_4T)
                    v = w->table[v] - 128;
                else
                    v -= w->zeros ? panel[w->zeros_at + (size_t)(g * PANEL_ROWS + r)] : 8;
            }
            out[r][k] = (int8_t)v;
        }
}

static void few(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, int n_tok, float *y)
{
    const uint8_t *p = w->data + (size_t)panel * w->panel_bytes;
    memset(y, 0, (size_t)n_tok * PANEL_ROWS * sizeof *y);
    for (int64_t a = 0; a < w->n_act; a++) {
        int8_t v[PANEL_ROWS][ACT_GROUP];
        unpack_group(w, p, a, v);
        for (int t = 0; t < n_tok; t++) {
            const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
            float s = x->scale[(t0 + t) * x->n_act + a];
            for (int r = 0; r < PANEL_ROWS; r++) {
                int32_t sum = 0;
                for (int k = 0; k < ACT_GROUP; k++) sum += v[r][k] * q[k];
                float f = w->one_scale ? s : scale_of(w, p, a * ACT_GROUP / w->group, r) * s;
                y[t * PANEL_ROWS + r] += (float)sum * f;
            }
        }
    }
    for (int i = 0; w->one_scale && i < n_tok * PANEL_ROWS; i++) y[i] *= scale_of(w, p, 0, i % PANEL_ROWS);
}

/* Unpacked: (n_act, 16, 32) integers of one panel; the scales as stored order. */
static void unpack(const struct panels *w, int64_t p0, uint8_t *u, float *s)
{
    const uint8_t *p = w->data + (size_t)p0 * w->panel_bytes;
    for (int64_t a = 0; a < w->n_act; a++)
        unpack_group(w, p, a, (int8_t(*)[ACT_GROUP])(void *)(u + a * PANEL_ROWS * ACT_GROUP));
    for (int64_t i = 0; i < w->n_groups * PANEL_ROWS; i++) s[i] = scale_of(w, p, i / PANEL_ROWS, (int)(i % PANEL_ROWS));
}

static void many(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y)
{
    memset(y, 0, (size_t)n_tok * PANEL_ROWS * sizeof *y);
    for (int64_t a = 0; a < w->n_act; a++) {
        const int8_t *v = (const int8_t *)u + a * PANEL_ROWS * ACT_GROUP;
        const float *sg = s + a * ACT_GROUP / w->group * PANEL_ROWS;
        for (int t = 0; t < n_tok; t++) {
            const int8_t *q = x->q + ((t0 + t) * x->n_act + a) * ACT_GROUP;
            float sx = x->scale[(t0 + t) * x->n_act + a];
            for (int r = 0; r < PANEL_ROWS; r++) {
                int32_t sum = 0;
                for (int k = 0; k < ACT_GROUP; k++) sum += v[r * ACT_GROUP + k] * q[k];
                y[t * PANEL_ROWS + r] += (float)sum * (w->one_scale ? sx : sg[r] * sx);
            }
        }
    }
    for (int i = 0; w->one_scale && i < n_tok * PANEL_ROWS; i++) y[i] *= s[i % PANEL_ROWS];
}

const struct int8_kernels int8_plain = {quantize, few, 1, 4, unpack, many};
