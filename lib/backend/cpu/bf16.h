/* Float weights and activations rounded to bf16 (nearest even), multiplied in pairs and summed in f32, as the instruction
 * vdpbf16ps does: for the pairs of columns k in rising order
 *   sum ← (sum + w[2k+1]·x[2k+1]) + w[2k]·x[2k]
 * A product of two bf16 is exact in f32, so each step rounds once, |error| ≤ n_in·2^-24·Σ|w·x| for the rounded operands,
 * and every implementation gives the same bits; but the instruction takes operands and results below 2^-126 for zero,
 * which other processors do not: then they may differ by n_in·2^-126 at most (if operands are below 2^127).
 *
 * A panel is 32 rows: for each pair of columns two lines of 64 bytes, line i: 16 rows 16i … 16i+15, of each the pair's
 * even, then its odd column. Columns behind n_in and rows behind the last are zeros. */
#ifndef QLAB_BACKEND_CPU_BF16_H
#define QLAB_BACKEND_CPU_BF16_H

#include "base/host.h"
#include "quantize/qweight.h"

#include <stdbool.h>
#include <stdint.h>

enum { BF16_ROWS = 32, BF16_TOKENS = 4 };

struct bf16_panels {
    int64_t n_out, n_in, n_panels, n_pairs;
    size_t panel_bytes;
    uint8_t *data; /* (n_panels, panel_bytes), 64-byte aligned; owned by whoever allocated it */
};

/* Fills in everything but data; false if the weight is not float. */
bool bf16_plan(struct bf16_panels *p, const struct qweight *w);
/* Fills p->data. Threads. */
void bf16_pack(const struct bf16_panels *p, const struct qweight *w);

/* Kernels of one instruction set. x: rows of bf16, ld elements apart, n_pairs·2 each. Both give the same bits. */
struct bf16_kernels {
    /* One panel, n_tok ≤ BF16_TOKENS: y[t·32 + row]. */
    void (*one)(const uint8_t *panel, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok, float *y);
    /* Two panels, n_tok ≤ tokens: y[t·64 + row]. May read and compute `tokens` rows of x. */
    int tokens;
    void (*two)(const uint8_t *panel, const uint8_t *next, int64_t n_pairs, const uint16_t *x, int64_t ld, int n_tok,
                float *y);
};
enum { BF16_MOST_TOKENS = 6 };

extern const struct bf16_kernels bf16_plain, bf16_avx2, bf16_avx512; /* the sums above by multiplication and addition */
extern const struct bf16_kernels bf16_dot;                           /* vdpbf16ps */
const struct bf16_kernels *bf16_kernels_of(enum isa isa);

#endif
