/* A linear's (or embedding's) weight as it is stored, float or quantized: views of the tensors and how to read them. */
#ifndef QLAB_QUANTIZE_QWEIGHT_H
#define QLAB_QUANTIZE_QWEIGHT_H

#include "quantize/format.h"
#include "views/checkpoint.h"

/* A view: owns nothing, valid while the checkpoint is open. Layouts, all row-major:
 *  CODE_FLOAT    codes: (n_out, n_in) of fmt.dtype; a GGUF block tensor is opened as CODE_FLOAT with fmt.dtype its
 *                block dtype and is read through qweight_rows_f32 only.
 *  CODE_INT      codes: u32 words (n_out, ceil(n_in·bits/32)), element k of a row in bits bits·k… (compressed-tensors
 *                pack-quantized), stored value u = q + 2^(bits−1);
 *                scale: f16/bf16/f32 (n_out, groups);
 *                zero: NULL if symmetric, else u32 words (ceil(n_out·bits/32), groups): word [r][g] holds rows
 *                (32/bits)·r … of group g, lowest row in the low bits, stored value z + 2^(bits−1).
 *  CODE_STRIDED  codes: u8 (n_out, ceil(n_in/2)), even column in the high nibble; scale, zero: f16 (n_out, 128).
 *  CODE_BOOK     codes: u8 ceil(n_out·n_in/2), even flat element in the high nibble; absmax: f32 (blocks) or, if
 *                double_quant, u8 (blocks) with nested_absmax f32 (ceil(blocks/256)), nested_map f32[256] and offset.
 * A dequantized value is exactly what the container's own library gives: rounded once to out_dtype. */
struct qweight {
    struct format fmt; /* by value: a folder made elsewhere may have a group size no row of the table has */
    int64_t n_out, n_in;
    enum dtype out_dtype; /* F16, BF16 or F32 */
    const struct tensor *src; /* CODE_FLOAT from a checkpoint; NULL in a qbuffer, whose floats are at `codes` */
    const void *codes;
    const void *scale;
    enum dtype scale_dtype;
    const void *zero;
    const void *absmax;
    const float *book, *nested_absmax, *nested_map;
    float nested_offset;
    bool in_memory; /* parts lie in a qbuffer, not in a mapped file: qweight_drop leaves them alone */
    int64_t bytes;  /* stored bytes of all parts */
};

/* Open NAME ("model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens") with shape (n_out, n_in) in whatever form
 * the checkpoint has it; every part's dtype and shape is checked against the scheme that quantization_config names for
 * it (compressed-tensors: by transformers' precedence: ignore, exact name, regex in alphabetical order, class name).
 * "lm_head" of a tied checkpoint is its embedding. */
int qweight_open(struct qweight *w, const struct checkpoint *c, const char *name, int64_t n_out, int64_t n_in,
                 struct err *e);
/* Rows r0 … r0+n−1 dequantized to f32 into dst (n, n_in). Thread-safe. The reference: written for clarity. */
void qweight_rows_f32(const struct qweight *w, int64_t r0, int64_t n, float *dst);
/* x (n, n_in), float values of rows r0 …, as the rounding sees them: x/scale + zero point, on the codes' axis (CODE_INT:
 * −2^(bits−1) …, CODE_STRIDED: 0 … 15), x/absmax as it is read (CODE_BOOK); 0 where the scale is 0. Floats are copied. */
void qweight_rows_scaled(const struct qweight *w, int64_t r0, int64_t n, const float *x, float *dst);
/* CODE_BOOK: what the values of a flat block are scaled by. */
float qweight_absmax(const struct qweight *w, int64_t block);
/* Give back the mapped pages of all parts. */
void qweight_drop(const struct qweight *w);

/* The parts in memory, as method_quantize makes them: one buffer holding every part, in the layouts above. */
struct qbuffer {
    struct qweight w; /* points into the buffers */
    void *codes, *scale, *zero, *absmax, *nested_absmax;
    float *nested_map;
};
void qbuffer_alloc(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype model_dtype);
void qbuffer_free(struct qbuffer *b);

#endif
