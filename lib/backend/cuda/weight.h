/* How weights lie in device memory, and how they get there. Plain C: sizes are known and bytes are packed on the host,
 * with or without a GPU or a toolkit; cuda/ reads the layout.
 *
 * A weight is one block of `bytes` bytes: planes, each from a multiple of 256 bytes on, in this order:
 *   codes   (n_out, row_bytes), row_bytes a multiple of 16, zeros behind the last column
 *   scales  CUW_INT: (n_out, n_groups) of `scale`; CUW_STRIDED: f16 (n_out, 128); CUW_BOOK: flat blocks, f32, or u8
 *           (double_quant) followed by the planes nested f32 (ceil(blocks/256)) and map f32 (256)
 *   zeros   CUW_INT: i8 (n_out, n_groups), absent if symmetric; CUW_STRIDED: f16 (n_out, 128)
 * Codes come in chunks of 32 columns; column k of a row is in chunk k/32. Words are little-endian, t = 0 … 3:
 *   4 bits, 16 bytes a chunk: word t has columns 8t … 8t+7.
 *           CUW_INT, CUW_STRIDED  byte c: low nibble column 8t+c, high nibble column 8t+4+c; stored u = q + 8
 *                  | 7 3 | 6 2 | 5 1 | 4 0 |   (highest bits left), so that & 0x0f0f0f0f gives four bytes to multiply
 *           CUW_BOOK              nibble j: column 8t+j
 *                  | 7 6 5 4 | 3 2 1 0 |       so that 16 bits select four bytes in a byte permute
 *   8 bits, 32 bytes a chunk: word t has columns 8t … 8t+3, word 4+t columns 8t+4 … 8t+7; stored q as i8
 *   floats: as they are, row-major, rows padded
 * Quantized activations (matmul.h) have the order of the 8-bit chunk: word t of a packed chunk meets t and 4+t. */
#ifndef QLAB_BACKEND_CUDA_WEIGHT_H
#define QLAB_BACKEND_CUDA_WEIGHT_H

#include "quantize/qweight.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CUW_CHUNK = 32, CUW_ALIGN = 256 };
enum cuda_kind { CUW_FLOAT, CUW_INT4, CUW_INT8, CUW_STRIDED, CUW_BOOK };
enum cuda_float { CUF_F32, CUF_F16, CUF_BF16, CUF_DQ /* scale only: double-quantized absmax */ };

/* Everything a kernel needs; plain data, passed to kernels by value. */
struct cuda_weight {
    enum cuda_kind kind;
    enum cuda_float type;  /* CUW_FLOAT: of the elements; else what dequantized values are rounded to (out_dtype) */
    enum cuda_float scale; /* type of the scales */
    int64_t n_out, n_in;
    int64_t row_bytes;
    int64_t group, n_groups; /* CUW_INT*: columns a group, groups a row; CUW_STRIDED: 128, 128; CUW_BOOK: elements a
                                flat block, blocks of the tensor */
    /* Integer dot products (compute int8) are possible: as lib/backend/cpu/panels.h, same integers, same scales. */
    bool int8_ok;
    bool one_scale;    /* CUW_INT*: one group is the row */
    uint32_t group_div; /* int8_ok: the group of chunk i (of the row; of the tensor for CUW_BOOK) is
                           (2·i·group_div) >> 32, exact for every i there is */
    size_t codes_at, scales_at, zeros_at, nested_at, map_at; /* offsets; zeros_at 0: all zero points are 0 */
    size_t bytes;      /* of device memory, multiple of CUW_ALIGN */
    size_t read_bytes; /* of them one matmul over all rows reads: bytes without padding between planes */
    float offset;      /* CUF_DQ: absmax = map[u8]·nested[block/256] + offset */
    float book[16];    /* CUW_BOOK: values by code */
    int8_t table[16];  /* CUW_BOOK: integers by code, value ≈ factor·integer */
    float factor;
    int8_t rest_table[16]; /* CUW_BOOK: for what the first table leaves, value ≈ … + factor·rest_factor·integer */
    float rest_factor;
    const uint8_t *data; /* device pointer, CUW_ALIGN-aligned; set by the owner */
};

/* Fills in everything but data. Fails on GGUF blocks (model/load.c expands them) and on sizes beyond what kernels
 * index. Reads no codes: only fmt, shape, dtypes, book, zero's being there, and nested_offset. */
int cuda_weight_plan(struct cuda_weight *p, const struct qweight *w, struct err *e);

/* Packing in pieces, each a run of bytes of the device block:
 *   struct cuda_piece it = {0};
 *   while (cuda_weight_next(p, &it, size)) { cuda_weight_pack(p, w, &it, host); copy host to data + it.at, it.bytes; }
 * Pieces hold whole rows and at most `size` bytes, which must be at least CUDA_PIECE_MIN. Bytes between planes are in
 * no piece. Packing uses threads (par_for). */
enum { CUDA_PIECE_MIN = 1 << 20, CUDA_MAX_COLUMNS = 1 << 18 };
struct cuda_piece {
    size_t at, bytes;
    int plane;      /* private: codes, scales, zeros, nested, map */
    int64_t r0, n;  /* private: rows of the plane */
};
bool cuda_weight_next(const struct cuda_weight *p, struct cuda_piece *it, size_t size);
void cuda_weight_pack(const struct cuda_weight *p, const struct qweight *w, const struct cuda_piece *it, void *dst);

#endif
