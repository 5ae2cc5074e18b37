#include "backend/cuda/weight.h"

#include "backend/cpu/panels.h"
#include "backend/nibbles.h"
#include "base/mem.h"
#include "base/par.h"

#include <assert.h>
#include <string.h>

enum plane { CODES, SCALES, ZEROS, NESTED, MAP, N_PLANES };

static int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static enum cuda_float float_of(enum dtype t) { return t == DT_F16 ? CUF_F16 : t == DT_BF16 ? CUF_BF16 : CUF_F32; }
static int64_t size_of(enum cuda_float t) { return t == CUF_F32 ? 4 : t == CUF_DQ ? 1 : 2; }

/* Rows of a plane and their bytes. Flat planes have rows of 256 elements, the last one short. */
struct shape {
    int64_t rows, row_bytes, bytes;
};

static struct shape plane_shape(const struct cuda_weight *p, enum plane k)
{
    int64_t row = 0, rows = p->n_out, flat = 0;
    bool grouped = p->kind == CUW_INT4 || p->kind == CUW_INT8 || p->kind == CUW_STRIDED;
    switch (k) {
    case CODES: row = p->row_bytes; break;
    case SCALES:
        if (grouped) row = p->n_groups * size_of(p->scale);
        if (p->kind == CUW_BOOK) flat = p->n_groups * size_of(p->scale), row = 256 * size_of(p->scale);
        break;
    case ZEROS:
        if (p->zeros_at) row = p->n_groups * (p->kind == CUW_STRIDED ? 2 : 1);
        break;
    case NESTED:
        if (p->scale == CUF_DQ) flat = 4 * div_up(p->n_groups, 256), row = 4 * 256;
        break;
    case MAP:
        if (p->scale == CUF_DQ) flat = row = 4 * 256;
        break;
    case N_PLANES: break;
    }
    if (!row) return (struct shape){0};
    if (flat) return (struct shape){div_up(flat, row), row, flat};
    return (struct shape){rows, row, rows * row};
}

static const size_t *plane_at(const struct cuda_weight *p, enum plane k)
{
    const size_t *at[] = {&p->codes_at, &p->scales_at, &p->zeros_at, &p->nested_at, &p->map_at};
    return at[k];
}

/* Whether integer products can be formed: every chunk of 32 columns lies in one group, and the kernels' division by a
 * multiplication is exact, for which index · divisor must stay below 2^31. */
static bool int8_form(struct cuda_weight *p, bool zeros)
{
    int64_t chunks = div_up(p->n_in, CUW_CHUNK);
    if (p->kind == CUW_INT4 || (p->kind == CUW_INT8 && !zeros)) {
        if (!p->one_scale && p->group % CUW_CHUNK) return false;
    } else if (p->kind == CUW_BOOK) {
        if (p->n_in % CUW_CHUNK || p->group % CUW_CHUNK) return false;
        chunks *= p->n_out;
    } else {
        return false;
    }
    int64_t per = p->one_scale ? chunks : p->group / CUW_CHUNK;
    if (chunks > INT32_MAX / per) return false;
    p->group_div = (uint32_t)(((1ll << 31) + per - 1) / per);
    return true;
}

int cuda_weight_plan(struct cuda_weight *p, const struct qweight *w, struct err *e)
{
    int64_t n_out = w->n_out, n_in = w->n_in, chunks = div_up(n_in, CUW_CHUNK);
    *p = (struct cuda_weight){.n_out = n_out, .n_in = n_in, .type = float_of(w->out_dtype)};
    if (n_in > CUDA_MAX_COLUMNS || n_out > INT32_MAX / 2)
        return err_set(e, "%lld rows of %lld columns: more than the CUDA kernels index (at most %d rows of %d)",
                       (long long)n_out, (long long)n_in, INT32_MAX / 2, CUDA_MAX_COLUMNS);
    bool zeros = false;
    switch (w->fmt.kind) {
    case CODE_FLOAT:
        if (!dtype_is_float(w->fmt.dtype))
            return err_set(e, "%s blocks are not read by the CUDA kernels (F32, F16 or BF16 was expected)",
                           dtype_traits(w->fmt.dtype)->name);
        p->kind = CUW_FLOAT;
        p->type = float_of(w->fmt.dtype);
        p->row_bytes = n_in * size_of(p->type);
        break;
    case CODE_INT:
        assert(w->fmt.bits == 4 || w->fmt.bits == 8);
        p->kind = w->fmt.bits == 4 ? CUW_INT4 : CUW_INT8;
        p->row_bytes = chunks * (w->fmt.bits == 4 ? 16 : 32);
        p->scale = float_of(w->scale_dtype);
        p->n_groups = format_groups(&w->fmt, n_in);
        p->one_scale = p->n_groups == 1;
        p->group = p->one_scale ? n_in : w->fmt.group;
        zeros = w->zero != NULL;
        break;
    case CODE_STRIDED:
        p->kind = CUW_STRIDED;
        p->row_bytes = chunks * 16;
        p->scale = CUF_F16;
        p->group = p->n_groups = w->fmt.group;
        if (p->group != 128)
            return err_set(e, "int4-strided%lld is not read by the CUDA kernels (int4-strided128 was expected)",
                           (long long)p->group);
        zeros = true;
        break;
    case CODE_BOOK:
        p->kind = CUW_BOOK;
        p->row_bytes = chunks * 16;
        p->scale = w->fmt.double_quant ? CUF_DQ : CUF_F32;
        p->offset = w->nested_offset;
        p->group = w->fmt.group;
        p->n_groups = format_blocks(&w->fmt, n_out, n_in);
        memcpy(p->book, w->book, sizeof p->book);
        uint8_t table[16], rest[16];
        p->factor = panels_book_table(w->book, table);
        p->rest_factor = panels_book_rest(w->book, table, p->factor, rest);
        for (int i = 0; i < 16; i++) {
            p->table[i] = (int8_t)(table[i] - 128);
            p->rest_table[i] = (int8_t)(rest[i] - 128);
        }
        break;
    }
    p->row_bytes = div_up(p->row_bytes, 16) * 16;
    p->int8_ok = int8_form(p, zeros);
    p->zeros_at = zeros; /* any value but 0 for now */
    for (int k = 0; k < N_PLANES; k++) {
        struct shape s = plane_shape(p, (enum plane)k);
        if (!s.bytes) continue;
        *(size_t *)plane_at(p, (enum plane)k) = p->bytes;
        p->bytes += (size_t)div_up(s.bytes, CUW_ALIGN) * CUW_ALIGN;
        p->read_bytes += (size_t)s.bytes;
    }
    return 0;
}

bool cuda_weight_next(const struct cuda_weight *p, struct cuda_piece *it, size_t size)
{
    assert(size >= CUDA_PIECE_MIN);
    it->r0 += it->n;
    struct shape s = plane_shape(p, (enum plane)it->plane);
    while (it->r0 >= s.rows) {
        if (++it->plane == N_PLANES) return false;
        it->r0 = 0;
        s = plane_shape(p, (enum plane)it->plane);
    }
    int64_t fit = (int64_t)size / s.row_bytes, left = s.rows - it->r0;
    it->n = left < fit ? left : fit;
    size_t from = (size_t)(it->r0 * s.row_bytes), to = (size_t)((it->r0 + it->n) * s.row_bytes);
    if (to > (size_t)s.bytes) to = (size_t)s.bytes;
    it->at = *plane_at(p, (enum plane)it->plane) + from;
    it->bytes = to - from;
    return true;
}

/* ---- packing ---- */

static uint32_t swap_nibbles(uint32_t w) { return (w & 0x0f0f0f0fu) << 4 | (w >> 4 & 0x0f0f0f0fu); }

/* A row whose n nibbles start at nibble `first` of src, high ones first or not, to words of natural order. Nibbles
 * behind the last are 0. */
static uint32_t natural_word(const uint8_t *src, int64_t first, int64_t n, bool high_first, int64_t word)
{
    uint32_t v = 0;
    int64_t k = 8 * word, have = n - k;
    if (have <= 0) return 0;
    const uint8_t *from = src + (first + k) / 2;
    if ((first + k) % 2 == 0) {
        int64_t bytes = have < 8 ? (have + 1) / 2 : 4;
        memcpy(&v, from, (size_t)bytes);
        if (high_first) v = swap_nibbles(v);
    } else {
        for (int64_t j = 0; j < 8 && j < have; j++) {
            int64_t i = first + k + j;
            v |= (uint32_t)(src[i / 2] >> ((i % 2 == 0) == high_first ? 4 : 0) & 15) << 4 * j;
        }
    }
    return have < 8 ? v & ((1u << 4 * have) - 1) : v;
}

static void pack_codes(const struct cuda_weight *p, const struct qweight *w, int64_t r, uint8_t *dst)
{
    int64_t n = p->n_in, words = p->row_bytes / 4;
    uint32_t *to = (uint32_t *)(void *)dst;
    const uint8_t *src = w->codes;
    switch (p->kind) {
    case CUW_FLOAT: {
        size_t row = (size_t)(n * size_of(p->type));
        memset(dst + row, 0, (size_t)p->row_bytes - row);
        if (w->src)
            tensor_copy_row(w->src, r, dst);
        else
            memcpy(dst, src + (size_t)r * row, row);
        break;
    }
    case CUW_INT4:
        src += r * format_words(&w->fmt, n) * 4;
        for (int64_t i = 0; i < words; i++) to[i] = pair_nibbles(natural_word(src, 0, n, false, i));
        break;
    case CUW_STRIDED:
        src += r * ((n + 1) / 2);
        for (int64_t i = 0; i < words; i++) to[i] = pair_nibbles(natural_word(src, 0, n, true, i));
        break;
    case CUW_BOOK:
        for (int64_t i = 0; i < words; i++) to[i] = natural_word(src, r * n, n, true, i);
        break;
    case CUW_INT8:
        src += r * format_words(&w->fmt, n) * 4;
        for (int64_t i = 0; i < words; i++) { /* word i of the row goes behind its even neighbours in the chunk */
            uint32_t v = 0x80808080u;
            int64_t have = n - 4 * i;
            if (have > 0) memcpy(&v, src + 4 * i, have < 4 ? (size_t)have : 4);
            to[i / 8 * 8 + i % 2 * 4 + i % 8 / 2] = v ^ 0x80808080u;
        }
        break;
    }
}

/* Zero points of one row: codes and zero points are stored alike, so q − z is the difference of what is packed. */
static void pack_zeros(const struct cuda_weight *p, const struct qweight *w, int64_t r, uint8_t *dst)
{
    int64_t bits = w->fmt.bits, per = 32 / bits, n = p->n_groups;
    if (p->kind == CUW_STRIDED) {
        memcpy(dst, (const uint8_t *)w->zero + r * n * 2, (size_t)n * 2);
        return;
    }
    for (int64_t g = 0; g < n; g++) {
        uint32_t z = ((const uint32_t *)w->zero)[r / per * n + g] >> bits * (r % per) & ((1u << bits) - 1);
        dst[g] = (uint8_t)(p->kind == CUW_INT4 ? z : z ^ 0x80);
    }
}

struct pack_job {
    const struct cuda_weight *p;
    const struct qweight *w;
    const struct cuda_piece *it;
    uint8_t *dst;
};

static void pack_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack_job *j = ctx;
    struct shape s = plane_shape(j->p, (enum plane)j->it->plane);
    for (int64_t i = begin; i < end; i++) {
        int64_t r = j->it->r0 + i, left = s.bytes - r * s.row_bytes;
        size_t bytes = (size_t)(left < s.row_bytes ? left : s.row_bytes);
        uint8_t *to = j->dst + i * s.row_bytes;
        const void *from = NULL;
        switch ((enum plane)j->it->plane) {
        case CODES: pack_codes(j->p, j->w, r, to); break;
        case ZEROS: pack_zeros(j->p, j->w, r, to); break;
        case SCALES: from = j->p->kind == CUW_BOOK ? j->w->absmax : j->w->scale; break;
        case NESTED: from = j->w->nested_absmax; break;
        case MAP: from = j->w->nested_map; break;
        case N_PLANES: break;
        }
        if (from) memcpy(to, (const uint8_t *)from + r * s.row_bytes, bytes);
    }
}

void cuda_weight_pack(const struct cuda_weight *p, const struct qweight *w, const struct cuda_piece *it, void *dst)
{
    par_for(it->n, 8, pack_rows, &(struct pack_job){p, w, it, dst});
}
