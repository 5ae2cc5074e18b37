#include "backend/cpu/panels.h"

#include "backend/nibbles.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/par.h"
#include "base/wide.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float panels_book_table(const float *book, uint8_t table[16])
{
    double best = INFINITY;
    float factor = 0;
    for (int step = 0; step <= 2540; step++) {
        double a = 64 + 0.025 * step, qb = 0, qq = 0, err = 0;
        int q[16];
        for (int i = 0; i < 16; i++) {
            q[i] = (int)lrint(book[i] * a);
            if (q[i] > 127 || q[i] < -128) q[i] = q[i] > 0 ? 127 : -128;
            qb += q[i] * (double)book[i];
            qq += (double)q[i] * q[i];
        }
        double f = qq > 0 ? qb / qq : 0;
        for (int i = 0; i < 16; i++) err += (f * q[i] - book[i]) * (f * q[i] - book[i]);
        if (!(err < best)) continue;
        best = err;
        factor = (float)f;
        for (int i = 0; i < 16; i++) table[i] = (uint8_t)(q[i] + 128);
    }
    return factor;
}

float panels_book_rest(const float *book, const uint8_t table[16], float factor, uint8_t rest[16])
{
    float left[16], max = 0;
    for (int i = 0; i < 16; i++) {
        left[i] = book[i] - factor * (float)(table[i] - 128);
        max = fmaxf(max, fabsf(left[i]));
    }
    for (int i = 0; i < 16; i++) rest[i] = (uint8_t)(128 + (max > 0 ? (int)lrintf(left[i] / max * 127) : 0));
    return factor != 0 ? max / 127 / factor : 0;
}

bool panels_have_rest(const struct panels *p) { return p->kind == PANEL_4T || p->rest; }

struct panels panels_rest(const struct panels *p)
{
    struct panels r = *p;
    memcpy(r.table, p->rest_table, sizeof r.table);
    if (p->rest) r.data += (size_t)p->n_panels * p->panel_bytes;
    return r;
}

size_t panels_bytes(const struct panels *p) { return (size_t)p->n_panels * p->panel_bytes * (p->rest ? 2 : 1); }

bool panels_plan(struct panels *p, const struct qweight *w, bool two)
{
    int64_t g = w->fmt.group, n_in = w->n_in;
    bool whole = g == 0 || g >= n_in;
    *p = (struct panels){.n_out = w->n_out, .n_in = n_in, .scale_dtype = w->scale_dtype};
    if (w->fmt.kind == CODE_FLOAT) return false;
    if (w->fmt.kind == CODE_INT && (w->fmt.bits == 4 || !w->zero) && (whole || g % ACT_GROUP == 0)) {
        p->kind = w->fmt.bits == 4 ? PANEL_4 : PANEL_8;
        p->zeros = w->zero != NULL;
        if (whole) g = n_in;
    } else if (w->fmt.kind == CODE_BOOK && n_in % ACT_GROUP == 0 && g % ACT_GROUP == 0) {
        p->kind = PANEL_4T;
        p->scale_dtype = DT_F32;
        p->factor = panels_book_table(w->book, p->table);
        p->rest_factor = panels_book_rest(w->book, p->table, p->factor, p->rest_table);
        if (n_in % g) g = ACT_GROUP; /* blocks cross rows: a scale for every activation group */
    } else {
        p->kind = PANEL_8;
        p->recoded = true;
        p->rest = two;
        p->rest_factor = 1.0f / 254;
        p->scale_dtype = w->out_dtype == DT_F16 ? DT_F16 : DT_F32;
        g = ACT_GROUP;
    }
    p->n_panels = (w->n_out + PANEL_ROWS - 1) / PANEL_ROWS;
    p->n_act = (n_in + ACT_GROUP - 1) / ACT_GROUP;
    p->one_scale = g >= n_in;
    p->group = p->one_scale ? p->n_act * ACT_GROUP : g;
    p->n_groups = (n_in + p->group - 1) / p->group;
    p->zeros_at = (size_t)p->n_groups * PANEL_ROWS * (p->scale_dtype == DT_F32 ? 4 : 2);
    p->codes_at = p->zeros_at + (p->zeros ? (size_t)p->n_groups * PANEL_ROWS : 0);
    p->codes_at = (p->codes_at + 63) / 64 * 64;
    p->panel_bytes = p->codes_at + (size_t)p->n_act * act_lines(p);
    return true;
}

/* The codes of one row into its place in every line. codes: the row's first byte; n bytes belong to it. */
static void pack_row(const struct panels *p, const uint8_t *codes, int64_t n, bool high_first, uint8_t *dst)
{
    int64_t lines = p->n_act * (int64_t)(act_lines(p) / 64);
    for (int64_t i = 0; i < lines; i++) {
        uint32_t w = 0;
        int64_t have = n - 4 * i;
        if (have > 0) memcpy(&w, codes + 4 * i, have < 4 ? (size_t)have : 4);
        if (p->kind != PANEL_8) {
            if (high_first) w = (w & 0x0f0f0f0fu) << 4 | (w >> 4 & 0x0f0f0f0fu);
            w = pair_nibbles(w);
        }
        memcpy(dst + 64 * i, &w, 4);
    }
}

static void pack_scales(const struct panels *p, const struct qweight *w, int64_t r, int in_panel, uint8_t *panel)
{
    for (int64_t g = 0; g < p->n_groups; g++) {
        int64_t to = g * PANEL_ROWS + in_panel;
        if (p->kind == PANEL_4T) {
            ((float *)(void *)panel)[to] = p->factor * qweight_absmax(w, (r * p->n_in + g * p->group) / w->fmt.group);
        } else if (p->scale_dtype == DT_F32) {
            ((float *)(void *)panel)[to] = ((const float *)w->scale)[r * p->n_groups + g];
        } else {
            ((uint16_t *)(void *)panel)[to] = ((const uint16_t *)w->scale)[r * p->n_groups + g];
        }
        if (p->zeros)
            panel[p->zeros_at + (size_t)to] =
                (uint8_t)(((const uint32_t *)w->zero)[r / 8 * p->n_groups + g] >> 4 * (r % 8) & 15);
    }
}

/* A scale for n values: at least max|w|/127. In f16 it is no smaller than the steps of f16 values themselves. */
static float scale_for(const float *w, int64_t n, enum dtype dtype, void *stored)
{
    uint32_t top = 0; /* magnitudes in the order of their bits: NaN is the largest */
    for (int64_t k = 0; k < n; k++) {
        uint32_t m = f32_bits(w[k]) & 0x7fffffff;
        top = m > top ? m : top;
    }
    float max = f32_from_bits(top), s = max / 127;
    if (!isfinite(max)) s = NAN;
    if (dtype == DT_F16) {
        uint16_t h = f32_to_f16(s);
        if (f16_to_f32(h) * 127 < max) h++;
        memcpy(stored, &h, sizeof h);
        return f16_to_f32(h);
    }
    if (s * 127 < max) s = nextafterf(s, INFINITY);
    memcpy(stored, &s, sizeof s);
    return s;
}

/* w as u = 128 + w/s rounded; what that leaves replaces it. */
WIDE static void recode(float *w, int64_t n, float s, uint8_t *u)
{
    if (!(s > 0)) { /* nothing there, or NaN, which the scale hands on */
        memset(w, 0, (size_t)n * sizeof *w);
        memset(u, 128, (size_t)n);
        return;
    }
    for (int64_t k = 0; k < n; k++) {
        float q = rintf(w[k] / s);
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        w[k] -= s * q;
        u[k] = (uint8_t)(128 + (int)q);
    }
}

/* Row r of w in integers. row: scratch for n_act·ACT_GROUP floats, u: for as many bytes. */
static void pack_recoded(const struct panels *p, const struct qweight *w, const struct kernels *k, int64_t r, int in_panel,
                         uint8_t *panel, float *row, uint8_t *u)
{
    size_t size = p->scale_dtype == DT_F16 ? 2 : 4, second = (size_t)p->n_panels * p->panel_bytes;
    int64_t n = p->n_act * ACT_GROUP;
    dequant_whole_row(k, w, r, row);
    memset(row + p->n_in, 0, (size_t)(n - p->n_in) * sizeof *row);
    for (int pass = 0, n_passes = p->rest ? 2 : 1; pass < n_passes; pass++) {
        for (int64_t a = 0; a < p->n_act; a++) {
            uint8_t *at = panel + (size_t)(a * PANEL_ROWS + in_panel) * size;
            float s;
            if (pass == 0) {
                s = scale_for(row + a * ACT_GROUP, ACT_GROUP, p->scale_dtype, at);
            } else {
                memcpy(at + second, at, size);
                s = p->scale_dtype == DT_F16 ? f16_to_f32(*(uint16_t *)(void *)at) : *(float *)(void *)at;
                s *= p->rest_factor;
            }
            recode(row + a * ACT_GROUP, ACT_GROUP, s, u + a * ACT_GROUP);
        }
        pack_row(p, u, n, false, panel + (pass ? second : 0) + p->codes_at + 4 * in_panel);
    }
}

struct pack_job {
    const struct panels *p;
    const struct qweight *w;
    const struct kernels *k;
};

static void pack_panels(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack_job *j = ctx;
    const struct panels *p = j->p;
    const struct qweight *w = j->w;
    int64_t row_bytes = w->fmt.kind == CODE_BOOK ? p->n_in / 2 : (p->n_in * w->fmt.bits + 31) / 32 * 4;
    float *values = p->recoded ? mem_array((size_t)(p->n_act * ACT_GROUP), sizeof *values + 1) : NULL;
    for (int64_t i = begin; i < end; i++) {
        uint8_t *panel = p->data + (size_t)i * p->panel_bytes;
        if (i == p->n_panels - 1) {
            memset(panel, 0, p->panel_bytes);
            if (p->rest) memset(panel + (size_t)p->n_panels * p->panel_bytes, 0, p->panel_bytes);
        }
        for (int r = 0; r < PANEL_ROWS && i * PANEL_ROWS + r < p->n_out; r++) {
            int64_t row = i * PANEL_ROWS + r;
            if (p->recoded) {
                pack_recoded(p, w, j->k, row, r, panel, values, (uint8_t *)(values + p->n_act * ACT_GROUP));
                continue;
            }
            pack_row(p, (const uint8_t *)w->codes + row * row_bytes, row_bytes, w->fmt.kind == CODE_BOOK,
                     panel + p->codes_at + 4 * r);
            pack_scales(p, w, row, r, panel);
        }
    }
    free(values);
}

void panels_pack(const struct panels *p, const struct qweight *w, const struct kernels *k)
{
    par_for(p->n_panels, 1, pack_panels, &(struct pack_job){p, w, k});
}
