/* Weights repacked for integer dot products, and activations quantized for them.
 *
 * Activations: int8 in groups of ACT_GROUP columns of a token, x ≈ s·q with s = max|x|/127, and the group's Σq.
 * Weights: codes u of 4 or 8 bits; the integer that is multiplied is
 *   PANEL_4    u − zero[row][group]           0 ≤ u ≤ 15, zero an integer in 0 … 15
 *   PANEL_4T   table[u]                       16 signed 8-bit values (code books)
 *   PANEL_8    u − 128                        0 ≤ u ≤ 255
 * and y[row] = Σ over activation groups a of (Σ_{k in a} integer·q[k]) · (scale[row][group of a] · s[a]).
 * The inner sum is an exact integer in every implementation; where a weight's scale is applied, to each activation group's
 * sum or to a weight group's, is the implementation's own.
 *
 * Quantized weights that are not integers times one scale for ACT_GROUP columns (the strided format, groups that are no
 * multiple of ACT_GROUP, int8 with zero points, flat blocks of odd widths) are recoded as PANEL_8: their dequantized
 * values w as integers q in −127 … 127 with a scale s ≥ max|w|/127 for every ACT_GROUP columns of a row, off by s/2 at
 * most. For two passes what that leaves, w − s·q, is kept in a second set of panels in steps of s/254.
 *
 * A panel is 16 rows: scales (n_groups, 16) of scale_dtype, for PANEL_4 with zero points u8 (n_groups, 16), and from the
 * next multiple of 64 bytes on the codes of every activation group (32 columns, zero-filled behind the last), so that a
 * product reads one stream from end to end:
 *   PANEL_8        8 lines of 64 bytes, line i: byte 4r + c is row r, column 4i + c
 *   PANEL_4, _4T   4 lines of 64 bytes, line i: byte 4r + c is row r, low nibble column 8i + c, high 8i + 4 + c
 * Rows behind the last have scale 0. */
#ifndef QLAB_BACKEND_CPU_PANELS_H
#define QLAB_BACKEND_CPU_PANELS_H

#include "backend/cpu/kernels.h"
#include "quantize/qweight.h"

#include <stdbool.h>
#include <stdint.h>

enum { PANEL_ROWS = 16, ACT_GROUP = 32 };
enum panel_kind { PANEL_4, PANEL_4T, PANEL_8 };

struct panels {
    enum panel_kind kind;
    int64_t n_out, n_in, n_panels;
    int64_t n_act;          /* activation groups a row */
    int64_t group, n_groups; /* of scales: columns each, a multiple of ACT_GROUP; the last may be short */
    bool one_scale;         /* one group is the whole row: the scale is applied to the finished sum */
    bool zeros;             /* PANEL_4: zero points are stored; else they are all 8 */
    bool recoded;           /* PANEL_8 of the weights' values */
    bool rest;              /* recoded: panels of what that leaves follow */
    uint8_t table[16];      /* PANEL_4T: integer + 128; the book's value is about factor · integer */
    float factor;
    uint8_t rest_table[16]; /* PANEL_4T: a table for what the first leaves of the book's values, */
    float rest_factor;      /* which is about factor · rest_factor · (rest_table − 128); recoded: 1/254 */
    enum dtype scale_dtype;
    size_t zeros_at, codes_at, panel_bytes; /* offsets in a panel, its size (a multiple of 64) */
    uint8_t *data;          /* (n_panels, panel_bytes), twice with a rest; 64-byte aligned; its allocator's own */
};

/* What is subtracted from the codes as the kernels multiply them (unpacked PANEL_4 with zero points: u − zero + 16). */
static inline int panel_bias(const struct panels *p) { return p->kind != PANEL_4 ? 128 : p->zeros ? 16 : 8; }
static inline size_t act_lines(const struct panels *p) { return p->kind == PANEL_8 ? 512 : 256; } /* bytes */

/* 16 floats as integers of 8 bits times one factor, with least squared error over the integers' range: book[i] is about
 * factor · (table[i] − 128). Returns the factor. */
float panels_book_table(const float *book, uint8_t table[16]);
/* The same for what that leaves of the values, by steps of its largest: at most 1/254 of that is lost. Returns a factor to
 * be multiplied by the first one. */
float panels_book_rest(const float *book, const uint8_t table[16], float factor, uint8_t rest[16]);
/* Whether something is left of the weights that a second product can take, and p with that in the place of the first: its
 * results are to be multiplied by rest_factor. */
bool panels_have_rest(const struct panels *p);
struct panels panels_rest(const struct panels *p);
/* Fills in everything but data; false for floats, which are then computed in f32. two: for two passes. */
bool panels_plan(struct panels *p, const struct qweight *w, bool two);
size_t panels_bytes(const struct panels *p);
/* Fills p->data, which has panels_bytes; k: what rows to be recoded are read by. Threads. */
void panels_pack(const struct panels *p, const struct qweight *w, const struct kernels *k);

/* n_tok quantized rows. */
struct acts {
    int64_t n_tok, n_act;
    int8_t *q;       /* (n_tok, n_act·ACT_GROUP), zeros behind n_in */
    float *scale;    /* (n_tok, n_act) */
    int32_t *neg;    /* (n_tok, n_act): −Σq */
};

/* Kernels of one instruction set. */
struct int8_kernels {
    void (*quantize)(const float *x, int64_t n, int8_t *q, float *scale, int32_t *neg);
    /* Rows of one panel for tokens t0 … t0+n_tok−1, n_tok ≤ 4, straight from the packed codes: y[t·16 + row]. */
    void (*few)(const struct panels *w, int64_t panel, const struct acts *x, int64_t t0, int n_tok, float *y);
    /* Many tokens: `block` panels from p0 on (those behind the last are zero) are unpacked once into
     * u (n_act·8·block·64 bytes) and scales s (n_groups·block·16), in an order of their own, then multiplied with up to `tokens` tokens at a
     * time: y[t·16·block + panel·16 + row], 64-byte aligned. Same results as `few`, bit for bit. x has `tokens` rows
     * of zeros behind the last; y has room for `tokens`. */
    int block, tokens; /* tokens is even */
    void (*unpack)(const struct panels *w, int64_t p0, uint8_t *u, float *s);
    void (*many)(const struct panels *w, const uint8_t *u, const float *s, const struct acts *x, int64_t t0, int n_tok,
                 float *y);
};

extern const struct int8_kernels int8_plain, int8_avx2, int8_avxvnni, int8_avxvnni_evex, int8_vnni;

#endif
