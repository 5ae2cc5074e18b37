#include "quantize/qweight.h"

#include "base/file.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/wide.h"
#include "quantize/container.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

static int part_check(const struct tensor *t, enum dtype dtype, int n_dims, const int64_t *shape, struct err *e)
{
    if (!t) return err_set(e, "missing");
    if (dtype == DT_COUNT ? !dtype_is_float(t->dtype) : t->dtype != dtype)
        return err_set(e, "dtype %s (%s was expected)", dtype_traits(t->dtype)->name,
                       dtype == DT_COUNT ? "F16, BF16 or F32" : dtype_traits(dtype)->name);
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = t->shape[i] == shape[i];
    if (!same) {
        char want[64] = "";
        for (int i = 0; i < n_dims; i++)
            snprintf(want + strlen(want), sizeof want - strlen(want), "%s%lld", i ? ", " : "", (long long)shape[i]);
        return err_set(e, "another shape than its scheme implies ([%s] was expected)", want);
    }
    if ((uintptr_t)t->data % dtype_traits(t->dtype)->block_bytes)
        return err_set(e, "not aligned to its element size in the file");
    return 0;
}

const struct tensor *part_need(const struct checkpoint *c, const char *name, const char *suffix, enum dtype dtype,
                               int n_dims, const int64_t *shape, struct err *e)
{
    char *full = mem_printf("%s%s", name, suffix);
    const struct tensor *t = checkpoint_find(c, full);
    if (part_check(t, dtype, n_dims, shape, e)) {
        err_prefix(e, "%s: tensor %s", c->path, full);
        t = NULL;
    }
    free(full);
    return t;
}

int float_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e)
{
    char *full = mem_printf("%s.weight", name);
    int64_t shape[2] = {w->n_out, w->n_in};
    const struct tensor *t = checkpoint_need(c, full, 2, shape, e);
    free(full);
    if (!t) return -1;
    if (dtype_is_float(t->dtype) && (uintptr_t)t->data % dtype_traits(t->dtype)->block_bytes)
        return err_set(e, "%s: tensor %s is not aligned to its element size in the file", c->path, t->name);
    w->fmt = (struct format){.kind = CODE_FLOAT, .container = CONT_PLAIN, .dtype = t->dtype};
    w->fmt.bits = (int)(dtype_traits(t->dtype)->block_bytes * 8 / (size_t)dtype_traits(t->dtype)->block_elems);
    w->out_dtype = dtype_is_float(t->dtype) ? t->dtype : DT_F32;
    w->src = t;
    w->codes = t->data;
    return 0;
}

int qweight_open(struct qweight *w, const struct checkpoint *c, const char *name, int64_t n_out, int64_t n_in,
                 struct err *e)
{
    memset(w, 0, sizeof *w);
    w->n_out = n_out;
    w->n_in = n_in;
    assert(n_out > 0 && n_in > 0);
    if (c->tied && !strcmp(name, "lm_head")) name = "model.embed_tokens";

    bool packed = false;
    if (c->quant) {
        const char *method;
        if (json_get_str(c->quant, "quant_method", true, NULL, &method, e))
            return err_prefix(e, "%s: quantization_config", c->path);
        int rc;
        if (!strcmp(method, "compressed-tensors"))
            rc = ct_open(w, c, name, &packed, e);
        else if (!strcmp(method, "bitsandbytes"))
            rc = bnb_open(w, c, name, &packed, e);
        else if (!strcmp(method, "qlab"))
            rc = qlab_open(w, c, name, &packed, e);
        else
            return err_set(e, "%s: quant_method \"%s\" is not supported (compressed-tensors, bitsandbytes and qlab are)",
                           c->path, method);
        if (rc) return -1;
    }
    if (!packed && float_open(w, c, name, e)) return -1;
    format_set_name(&w->fmt);
    w->bytes = format_bytes(&w->fmt, n_out, n_in);
    if (w->fmt.kind == CODE_INT && w->scale_dtype == DT_F32) w->bytes += 2 * n_out * format_groups(&w->fmt, n_in);
    return 0;
}

/* ---- reading: written for clarity; the decoders state the layouts ---- */

static inline float round_to(enum dtype t, float v)
{
    if (t == DT_F16) return f16_to_f32(f32_to_f16(v));
    if (t == DT_BF16) return bf16_to_f32(f32_to_bf16(v));
    return v;
}

static inline float load(enum dtype t, const void *p, int64_t i)
{
    if (t == DT_F16) return f16_to_f32(((const uint16_t *)p)[i]);
    if (t == DT_BF16) return bf16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

/*  word k/8 (4 bits): |k+7|k+6|k+5|k+4|k+3|k+2|k+1| k |, highest bits left: a byte has two codes, the first one low */
WIDE static void unpack_codes(const uint32_t *words, int bits, int64_t k0, int64_t n, int8_t *q)
{
    const uint8_t *bytes = (const uint8_t *)words;
    if (bits == 8)
        for (int64_t i = 0; i < n; i++) q[i] = (int8_t)(bytes[k0 + i] - 128);
    else
        for (int64_t i = 0; i < (n + 1) / 2; i++) { /* k0 is even; one more than n at most */
            q[2 * i] = (int8_t)((bytes[k0 / 2 + i] & 15) - 8);
            q[2 * i + 1] = (int8_t)((bytes[k0 / 2 + i] >> 4) - 8);
        }
}

/* (q − z)·s with one rounding */
WIDE static void scale_codes(enum dtype t, const int8_t *q, int64_t n, int z, float s, float *dst)
{
    if (t == DT_F16)
        for (int64_t i = 0; i < n; i++) dst[i] = f16_to_f32(f32_to_f16((float)(q[i] - z) * s));
    else if (t == DT_BF16)
        for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(f32_to_bf16((float)(q[i] - z) * s));
    else
        for (int64_t i = 0; i < n; i++) dst[i] = (float)(q[i] - z) * s;
}

/* Stored zero point z of group g in row r (CODE_INT). */
static int int_zero(const struct qweight *w, int64_t r, int64_t g)
{
    int bits = w->fmt.bits, per = 32 / bits;
    if (!w->zero) return 0;
    uint32_t word = ((const uint32_t *)w->zero)[r / per * format_groups(&w->fmt, w->n_in) + g];
    return (int)(word >> bits * (r % per) & ((1u << bits) - 1)) - (1 << (bits - 1));
}

static void int_row(const struct qweight *w, int64_t r, float *dst)
{
    enum { AT_ONCE = 256 };
    int bits = w->fmt.bits;
    int64_t groups = format_groups(&w->fmt, w->n_in), size = w->fmt.group ? w->fmt.group : w->n_in;
    const uint32_t *words = (const uint32_t *)w->codes + r * format_words(&w->fmt, w->n_in);
    int8_t q[AT_ONCE + 2];
    for (int64_t g = 0; g < groups; g++) {
        float s = load(w->scale_dtype, w->scale, r * groups + g);
        int z = int_zero(w, r, g);
        int64_t end = (g + 1) * size < w->n_in ? (g + 1) * size : w->n_in;
        for (int64_t k = g * size; k < end; k += AT_ONCE) {
            int64_t n = end - k < AT_ONCE ? end - k : AT_ONCE, odd = k % 2;
            unpack_codes(words, bits, k - odd, n + odd, q);
            scale_codes(w->out_dtype, q + odd, n, z, s, dst + k);
        }
    }
}

/*  byte k/2: |k|k+1|, even column in the high nibble; column k in group k mod 128; each operation rounded to f16 */
static void strided_row(const struct qweight *w, int64_t r, float *dst)
{
    const uint8_t *codes = (const uint8_t *)w->codes + r * ((w->n_in + 1) / 2);
    for (int64_t k = 0; k < w->n_in; k++) {
        int64_t g = r * w->fmt.group + k % w->fmt.group;
        int q = codes[k / 2] >> (k % 2 ? 0 : 4) & 15;
        float d = round_to(DT_F16, (float)q - load(DT_F16, w->zero, g));
        dst[k] = round_to(w->out_dtype, round_to(DT_F16, d * load(DT_F16, w->scale, g)));
    }
}

float qweight_absmax(const struct qweight *w, int64_t block)
{
    if (!w->fmt.double_quant) return ((const float *)w->absmax)[block];
    float v = w->nested_map[((const uint8_t *)w->absmax)[block]] * w->nested_absmax[block / 256];
    return v + w->nested_offset;
}

/*  byte i/2: |i|i+1|, even flat element in the high nibble; flat blocks run across rows */
static void book_rows(const struct qweight *w, int64_t r0, int64_t n, float *dst)
{
    const uint8_t *codes = w->codes;
    int64_t first = r0 * w->n_in, end = (r0 + n) * w->n_in, block = -1;
    float absmax = 0;
    for (int64_t i = first; i < end; i++) {
        if (i / w->fmt.group != block) {
            block = i / w->fmt.group;
            absmax = qweight_absmax(w, block);
        }
        dst[i - first] = round_to(w->out_dtype, w->book[codes[i / 2] >> (i % 2 ? 0 : 4) & 15] * absmax);
    }
}

void qweight_rows_f32(const struct qweight *w, int64_t r0, int64_t n, float *dst)
{
    assert(r0 >= 0 && n >= 0 && r0 + n <= w->n_out);
    switch (w->fmt.kind) {
    case CODE_FLOAT:
        if (w->src) {
            tensor_rows_f32(w->src, r0, n, dst);
        } else {
            const uint8_t *p = (const uint8_t *)w->codes + (size_t)r0 * dtype_bytes(w->fmt.dtype, w->n_in);
            dtype_traits(w->fmt.dtype)->to_f32(p, dst, n * w->n_in);
        }
        break;
    case CODE_INT:
        for (int64_t r = 0; r < n; r++) int_row(w, r0 + r, dst + r * w->n_in);
        break;
    case CODE_STRIDED:
        for (int64_t r = 0; r < n; r++) strided_row(w, r0 + r, dst + r * w->n_in);
        break;
    case CODE_BOOK: book_rows(w, r0, n, dst); break;
    }
}

void qweight_rows_scaled(const struct qweight *w, int64_t r0, int64_t n, const float *x, float *dst)
{
    assert(r0 >= 0 && n >= 0 && r0 + n <= w->n_out);
    for (int64_t i = 0; i < n * w->n_in; i++) {
        int64_t r = r0 + i / w->n_in, k = i % w->n_in, g;
        float s = 1, z = 0;
        switch (w->fmt.kind) {
        case CODE_FLOAT: break;
        case CODE_INT:
            g = w->fmt.group ? k / w->fmt.group : 0;
            s = load(w->scale_dtype, w->scale, r * format_groups(&w->fmt, w->n_in) + g);
            z = (float)int_zero(w, r, g);
            break;
        case CODE_STRIDED:
            s = load(DT_F16, w->scale, r * w->fmt.group + k % w->fmt.group);
            z = load(DT_F16, w->zero, r * w->fmt.group + k % w->fmt.group);
            break;
        case CODE_BOOK: s = qweight_absmax(w, (r0 * w->n_in + i) / w->fmt.group); break;
        }
        dst[i] = s != 0 ? x[i] / s + z : 0;
    }
}

/* ---- parts ---- */

struct sizes {
    size_t codes, scale, zero, absmax, nested;
};

static struct sizes part_sizes(const struct format *f, int64_t n_out, int64_t n_in, enum dtype scale_dtype)
{
    struct sizes s = {0};
    int64_t g, blocks;
    switch (f->kind) {
    case CODE_FLOAT: s.codes = (size_t)n_out * dtype_bytes(f->dtype, n_in); break;
    case CODE_INT:
        g = format_groups(f, n_in);
        s.codes = 4 * (size_t)n_out * (size_t)format_words(f, n_in);
        s.scale = dtype_bytes(scale_dtype, n_out * g);
        s.zero = f->symmetric ? 0 : 4 * (size_t)format_words(f, n_out) * (size_t)g;
        break;
    case CODE_STRIDED:
        s.codes = (size_t)n_out * (size_t)((n_in + 1) / 2);
        s.scale = s.zero = 2 * (size_t)n_out * (size_t)f->group;
        break;
    case CODE_BOOK:
        blocks = format_blocks(f, n_out, n_in);
        s.codes = (size_t)((n_out * n_in + 1) / 2);
        s.absmax = (size_t)blocks * (f->double_quant ? 1 : 4);
        s.nested = f->double_quant ? 4 * (size_t)((blocks + 255) / 256) : 0;
        break;
    }
    return s;
}

void qweight_drop(const struct qweight *w)
{
    if (w->in_memory) return;
    if (w->src) {
        file_map_drop(w->src->data, w->src->n_bytes);
        return;
    }
    struct sizes s = part_sizes(&w->fmt, w->n_out, w->n_in, w->scale_dtype);
    file_map_drop(w->codes, s.codes);
    if (w->scale) file_map_drop(w->scale, s.scale);
    if (w->zero) file_map_drop(w->zero, s.zero);
    if (w->absmax) file_map_drop(w->absmax, s.absmax);
    if (w->nested_absmax) file_map_drop(w->nested_absmax, s.nested);
}

static void *zeroed(size_t n) { return n ? memset(mem_array(n, 1), 0, n) : NULL; }

void qbuffer_alloc(struct qbuffer *b, const struct format *f, int64_t n_out, int64_t n_in, enum dtype model_dtype)
{
    memset(b, 0, sizeof *b);
    struct sizes s = part_sizes(f, n_out, n_in, model_dtype);
    b->codes = zeroed(s.codes);
    b->scale = zeroed(s.scale);
    b->zero = zeroed(s.zero);
    b->absmax = zeroed(s.absmax);
    b->nested_absmax = zeroed(s.nested);
    if (s.nested) b->nested_map = mem_new(256, sizeof *b->nested_map);
    b->w = (struct qweight){
        .fmt = *f, .n_out = n_out, .n_in = n_in,
        .out_dtype = f->kind == CODE_FLOAT ? f->dtype : f->kind == CODE_STRIDED ? DT_F16 : model_dtype,
        .codes = b->codes, .scale = b->scale, .zero = b->zero, .absmax = b->absmax,
        .scale_dtype = f->kind == CODE_STRIDED ? DT_F16 : model_dtype,
        .book = f->book, .nested_absmax = b->nested_absmax, .nested_map = b->nested_map,
        .in_memory = true, .bytes = format_bytes(f, n_out, n_in),
    };
}

void qbuffer_free(struct qbuffer *b)
{
    free(b->codes);
    free(b->scale);
    free(b->zero);
    free(b->absmax);
    free(b->nested_absmax);
    free(b->nested_map);
    memset(b, 0, sizeof *b);
}
