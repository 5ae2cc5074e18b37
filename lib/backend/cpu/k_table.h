/* Kernel source: the table of one instruction set, filled with the kernels compiled for it. */
#include "backend/cpu/k_attention.h"
#include "backend/cpu/k_bf16.h"
#include "backend/cpu/k_dequant.h"
#include "backend/cpu/k_dot.h"
#include "backend/cpu/k_elementwise.h"
#include "backend/cpu/k_gemm.h"
#include "backend/cpu/k_logits.h"

const struct kernels KERNEL(kernels) = {
    .dot_rows = ROWS,
    .dot = dot_f32,
    .dot_stream = {stream_f32, stream_f16, stream_bf16},
    GEMM
    .dequant = dequant_row,
    .rmsnorm = rmsnorm_row,
    .rope = rope_row,
    .swiglu = swiglu_row,
    .add = add_row,
    .to_f16 = to_f16_row,
    .attn_chunk = attn_chunk_rows,
    .attn_merge = attn_merge_row,
    .top = top_row,
    .slice_sum = slice_sum_row,
    .slice_kld = slice_kld_row,
};
