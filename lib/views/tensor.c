#include "views/tensor.h"

#include <assert.h>

int64_t tensor_elems(const struct tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

int64_t tensor_rows(const struct tensor *t) { return t->n_dims < 2 ? 1 : t->shape[0]; }

int64_t tensor_row_elems(const struct tensor *t)
{
    int64_t n = 1;
    for (int i = t->n_dims < 2 ? 0 : 1; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

const void *tensor_row(const struct tensor *t, int64_t r)
{
    assert(r >= 0 && r < tensor_rows(t));
    if (t->permuted_heads) {
        int64_t hd = tensor_rows(t) / t->permuted_heads, h = r / hd, i = r % hd, half = hd / 2;
        /* Hugging Face row t·hd/2 + j of a head is stored row 2j + t */
        r = h * hd + 2 * (i % half) + i / half;
    }
    return (const uint8_t *)t->data + (size_t)r * dtype_bytes(t->dtype, tensor_row_elems(t));
}

void tensor_rows_f32(const struct tensor *t, int64_t r0, int64_t n, float *dst)
{
    int64_t cols = tensor_row_elems(t);
    for (int64_t r = 0; r < n; r++)
        dtype_traits(t->dtype)->to_f32(tensor_row(t, r0 + r), dst + r * cols, cols);
}
