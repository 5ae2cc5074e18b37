#include "backend/cpu/kernels.h"

#include "backend/cpu/panels.h"

const struct kernels *kernels_of(enum isa isa)
{
#if defined(__x86_64__)
    if (isa == ISA_AVX512) return &kernels_avx512;
    if (isa >= ISA_AVX2) return &kernels_avx2;
#endif
    (void)isa;
    return &kernels_plain;
}

const struct int8_kernels *int8_kernels_of(enum isa isa)
{
#if defined(__x86_64__)
    if (isa == ISA_AVX512 && isa_has_vnni()) return &int8_vnni;
    if (isa >= ISA_AVXVNNI && isa_has_avxvnni()) return &int8_avxvnni;
    if (isa == ISA_AVXVNNI && isa_has_avxvnni_evex()) return &int8_avxvnni_evex;
    if (isa >= ISA_AVX2) return &int8_avx2;
#endif
    (void)isa;
    return &int8_plain;
}

bool dequant_ok(const struct qweight *w)
{
    int64_t g = w->fmt.group;
    switch (w->fmt.kind) {
    case CODE_FLOAT: return dtype_is_float(w->fmt.dtype);
    case CODE_INT: return (w->fmt.bits == 4 || w->fmt.bits == 8) && (g == 0 || g >= w->n_in || g % 16 == 0);
    case CODE_STRIDED: return g % 16 == 0;
    case CODE_BOOK: return w->n_in % 16 == 0 && g % 16 == 0;
    }
    return false;
}

void dequant_whole_row(const struct kernels *k, const struct qweight *w, int64_t r, float *dst)
{
    if (dequant_ok(w))
        k->dequant(w, r, 0, w->n_in, dst);
    else
        qweight_rows_f32(w, r, 1, dst);
}
