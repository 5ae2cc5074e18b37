/* Element types of stored tensors: one traits row each. Byte order is little-endian throughout; a big-endian host is
 * refused at compile time (dtype.c). */
#ifndef QLAB_VIEWS_DTYPE_H
#define QLAB_VIEWS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DT_F64, DT_F32, DT_F16, DT_BF16, DT_I64, DT_I32, DT_I16, DT_I8, DT_U8, DT_BOOL,
    /* GGUF blocks (ggml-common.h): a row is a whole number of blocks */
    DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1, DT_Q4_K, DT_Q5_K, DT_Q6_K,
    DT_COUNT
};

struct dtype_traits {
    const char *name;     /* as users write and records show it: "F16", "Q4_K" */
    const char *st_name;  /* in safetensors headers, NULL if it cannot stand there */
    int ggml_type;        /* in GGUF, −1 if it cannot stand there */
    int64_t block_elems;  /* 1 for plain elements */
    size_t block_bytes;
    /* n elements (a multiple of block_elems) to f32, exactly where f32 can hold them; NULL for integers and F64. */
    void (*to_f32)(const void *src, float *dst, int64_t n);
};

const struct dtype_traits *dtype_traits(enum dtype t);
bool dtype_is_float(enum dtype t); /* F32, F16, BF16 */
bool dtype_is_block(enum dtype t); /* GGUF blocks */
/* Bytes of n elements; n must be a multiple of block_elems. */
size_t dtype_bytes(enum dtype t, int64_t n);
/* Write n floats as F32, F16 or BF16 (round to nearest even). */
void dtype_from_f32(enum dtype t, const float *src, void *dst, int64_t n);

#endif
