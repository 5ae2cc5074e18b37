#include "views/tensor.h"

#include <assert.h>
#include <string.h>

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

/* Hugging Face row t·hd/2 + j of a head is stored as its row 2j + t. */
static int64_t stored_row(int64_t r, int64_t n, int64_t heads)
{
    int64_t hd = n / heads, h = r / hd, i = r % hd, half = hd / 2;
    return h * hd + 2 * (i % half) + i / half;
}

const void *tensor_row(const struct tensor *t, int64_t r)
{
    assert(r >= 0 && r < tensor_rows(t));
    assert(!t->permuted_heads || t->n_dims >= 2);
    if (t->permuted_heads) r = stored_row(r, tensor_rows(t), t->permuted_heads);
    return (const uint8_t *)t->data + (size_t)r * dtype_bytes(t->dtype, tensor_row_elems(t));
}

static bool permuted_bias(const struct tensor *t) { return t->permuted_heads && t->n_dims < 2; }

void tensor_copy_row(const struct tensor *t, int64_t r, void *dst)
{
    int64_t n = tensor_row_elems(t);
    size_t size = dtype_traits(t->dtype)->block_bytes; /* a permuted bias has plain elements */
    if (permuted_bias(t))
        for (int64_t i = 0; i < n; i++)
            memcpy((uint8_t *)dst + (size_t)i * size,
                   (const uint8_t *)t->data + (size_t)stored_row(i, n, t->permuted_heads) * size, size);
    else
        memcpy(dst, tensor_row(t, r), dtype_bytes(t->dtype, n));
}

void tensor_rows_f32(const struct tensor *t, int64_t r0, int64_t n, float *dst)
{
    int64_t cols = tensor_row_elems(t);
    const struct dtype_traits *d = dtype_traits(t->dtype);
    if (permuted_bias(t) && n > 0)
        for (int64_t i = 0; i < cols; i++)
            d->to_f32((const uint8_t *)t->data + (size_t)stored_row(i, cols, t->permuted_heads) * d->block_bytes,
                      dst + i, 1);
    else
        for (int64_t r = 0; r < n; r++) d->to_f32(tensor_row(t, r0 + r), dst + r * cols, cols);
}
