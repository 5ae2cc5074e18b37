#include "backend/cpu/bf16.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/par.h"

#include <stdlib.h>
#include <string.h>

const struct bf16_kernels *bf16_kernels_of(enum isa isa)
{
#if defined(__x86_64__)
    if (isa == ISA_AVX512) return isa_has_bf16() ? &bf16_dot : &bf16_avx512;
    if (isa >= ISA_AVX2) return &bf16_avx2;
#endif
    (void)isa;
    return &bf16_plain;
}

bool bf16_plan(struct bf16_panels *p, const struct qweight *w)
{
    if (w->fmt.kind != CODE_FLOAT || !dtype_is_float(w->fmt.dtype)) return false;
    *p = (struct bf16_panels){.n_out = w->n_out, .n_in = w->n_in};
    p->n_panels = (w->n_out + BF16_ROWS - 1) / BF16_ROWS;
    p->n_pairs = (w->n_in + 1) / 2;
    p->panel_bytes = (size_t)p->n_pairs * BF16_ROWS * 4;
    return true;
}

struct pack_job {
    const struct bf16_panels *p;
    const struct qweight *w;
};

static void pack_panels(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack_job *j = ctx;
    const struct bf16_panels *p = j->p;
    float *row = mem_array((size_t)p->n_in, sizeof *row);
    for (int64_t i = begin; i < end; i++) {
        uint16_t *to = (uint16_t *)(void *)(p->data + (size_t)i * p->panel_bytes);
        memset(to, 0, p->panel_bytes);
        for (int64_t r = 0; r < BF16_ROWS && i * BF16_ROWS + r < p->n_out; r++) {
            qweight_rows_f32(j->w, i * BF16_ROWS + r, 1, row);
            for (int64_t k = 0; k < p->n_in; k++) to[(k / 2 * BF16_ROWS + r) * 2 + k % 2] = f32_to_bf16(row[k]);
        }
    }
    free(row);
}

void bf16_pack(const struct bf16_panels *p, const struct qweight *w)
{
    par_for(p->n_panels, 1, pack_panels, &(struct pack_job){p, w});
}
