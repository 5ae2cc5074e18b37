/* A view of a tensor in a mapped file: row-major, owns nothing, valid while the checkpoint is open. */
#ifndef QLAB_VIEWS_TENSOR_H
#define QLAB_VIEWS_TENSOR_H

#include "views/dtype.h"

struct tensor {
    const char *name; /* Hugging Face name, also for tensors that come from GGUF */
    enum dtype dtype;
    int n_dims;       /* 0 … 4; 0 is one element */
    int64_t shape[4]; /* slowest first: a linear's weight is (n_out, n_in) */
    const void *data;
    size_t n_bytes;
    /* GGUF arch llama stores the rows of q_proj and k_proj permuted within each head (reference: llama.cpp's
     * convert_hf_to_gguf.py, LlamaModel.permute): stored row h·hd + 2j + t is row h·hd + t·hd/2 + j. Number of heads
     * then, else 0. Read rows through tensor_row, never through data, unless this is 0. Of a bias (1-D) the elements
     * are permuted so: read it through tensor_rows_f32 or tensor_copy_row. */
    int64_t permuted_heads;
};

int64_t tensor_elems(const struct tensor *t);
/* shape[0] and elements per row (product of the rest); a 0- or 1-dimensional tensor is one row. */
int64_t tensor_rows(const struct tensor *t);
int64_t tensor_row_elems(const struct tensor *t);
/* Bytes of row r in Hugging Face order; not of a permuted bias. */
const void *tensor_row(const struct tensor *t, int64_t r);
/* Copy the bytes of row r in Hugging Face order, of any tensor. */
void tensor_copy_row(const struct tensor *t, int64_t r, void *dst);
/* Rows r0 … r0+n−1 as f32 into dst (n, row_elems). Float and block dtypes only. */
void tensor_rows_f32(const struct tensor *t, int64_t r0, int64_t n, float *dst);

#endif
