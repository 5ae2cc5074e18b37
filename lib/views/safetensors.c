#include "views/safetensors.h"

#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* File:  | u64 n | n bytes of JSON, spaces at its end | data … |
 *        0       8                                 8+n
 * data_offsets count from 8+n; together the tensors cover the data without holes or overlap. */
#define HEADER_MAX 100000000u /* safetensors' own limit */

/* ---- reading ---- */

static int find_dtype(const char *st_name, enum dtype *t)
{
    for (int i = 0; i < DT_COUNT; i++) {
        const char *s = dtype_traits((enum dtype)i)->st_name;
        if (s && !strcmp(s, st_name)) {
            *t = (enum dtype)i;
            return 0;
        }
    }
    return -1;
}

static int get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) return -1;
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

/* One entry of the header. data begins at `data`, of n_data bytes. */
static int parse_entry(struct tensor *t, uint64_t *begin, const char *where, const char *name, const json_t *o,
                       const uint8_t *data, uint64_t n_data, struct err *e)
{
    const json_t *shape = json_object_get(o, "shape"), *off = json_object_get(o, "data_offsets");
    const char *dt = json_string_value(json_object_get(o, "dtype"));
    if (!json_is_object(o)) return err_set(e, "%s: tensor %s is not described by an object", where, name);
    if (!dt) return err_set(e, "%s: tensor %s has no \"dtype\"", where, name);
    if (find_dtype(dt, &t->dtype))
        return err_set(e, "%s: tensor %s has dtype \"%s\" (F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL are read)", where,
                       name, dt);
    if (!json_is_array(shape)) return err_set(e, "%s: tensor %s has no \"shape\"", where, name);
    if (json_array_size(shape) > 4)
        return err_set(e, "%s: tensor %s has %zu dimensions (at most 4 were expected)", where, name,
                       json_array_size(shape));
    t->n_dims = (int)json_array_size(shape);
    uint64_t elems = 1, bytes, end;
    bool fits = true, empty = false;
    for (int i = 0; i < t->n_dims; i++) {
        uint64_t d;
        if (get_u64(json_array_get(shape, (size_t)i), &d))
            return err_set(e, "%s: tensor %s: the shape is not a list of sizes", where, name);
        t->shape[i] = (int64_t)d;
        empty |= d == 0;
        fits = fits && !__builtin_mul_overflow(elems, d, &elems);
    }
    fits = fits && !__builtin_mul_overflow(elems, (uint64_t)dtype_traits(t->dtype)->block_bytes, &bytes);
    if (!fits || (!empty && bytes > INT64_MAX))
        return err_set(e, "%s: tensor %s: the shape's product overflows", where, name);
    if (!json_is_array(off) || json_array_size(off) != 2 || get_u64(json_array_get(off, 0), begin) ||
        get_u64(json_array_get(off, 1), &end))
        return err_set(e, "%s: tensor %s: \"data_offsets\" is not a pair of positions", where, name);
    if (*begin > end) return err_set(e, "%s: tensor %s ends before it begins", where, name);
    if (end > n_data)
        return err_set(e, "%s: tensor %s ends at byte %llu of the data, which has %llu (file cut short?)", where, name,
                       (unsigned long long)end, (unsigned long long)n_data);
    if (end - *begin != bytes)
        return err_set(e, "%s: tensor %s has %llu bytes (its dtype and shape make %llu)", where, name,
                       (unsigned long long)(end - *begin), (unsigned long long)bytes);
    t->data = data + *begin;
    t->n_bytes = (size_t)bytes;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* Empty tensors before the one that starts at the same byte. */
static int by_place(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    const uint8_t *p = x->data, *q = y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static int check_cover(const struct safetensors *s, const char *where, const uint8_t *data, size_t n_data,
                       struct err *e)
{
    size_t at = 0;
    for (size_t i = 0; i < s->n_tensors; i++) {
        const struct tensor *t = &s->tensors[i];
        size_t begin = (size_t)((const uint8_t *)t->data - data);
        if (begin > at)
            return err_set(e, "%s: a hole of %zu bytes before tensor %s (tensors must cover the data)", where,
                           begin - at, t->name);
        if (begin < at) return err_set(e, "%s: tensor %s overlaps the one before it", where, t->name);
        at += t->n_bytes;
    }
    if (at != n_data) return err_set(e, "%s: %zu bytes after the last tensor", where, n_data - at);
    return 0;
}

static void copy_unaligned(struct safetensors *s)
{
    for (size_t i = 0; i < s->n_tensors; i++) {
        struct tensor *t = &s->tensors[i];
        if (!t->n_bytes || (uintptr_t)t->data % dtype_traits(t->dtype)->block_bytes == 0) continue;
        void *p = mem_array(t->n_bytes, 1);
        memcpy(p, t->data, t->n_bytes);
        s->copies = mem_grow(s->copies, s->n_copies + 1, sizeof *s->copies);
        s->copies[s->n_copies++] = p;
        t->data = p;
    }
}

static int parse_header(struct safetensors *s, const char *where, const json_t *root, const uint8_t *data,
                        size_t n_data, struct err *e)
{
    if (!json_is_object(root)) return err_set(e, "%s: the header is not a JSON object", where);
    s->tensors = mem_new(json_object_size(root), sizeof *s->tensors);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)root, key, v)
    {
        if (!strcmp(key, "__metadata__")) {
            const char *k;
            json_t *m;
            if (!json_is_null(v) && !json_is_object(v))
                return err_set(e, "%s: \"__metadata__\" is not an object of strings", where);
            json_object_foreach(v, k, m)
                if (!json_is_string(m)) return err_set(e, "%s: \"__metadata__\": \"%s\" is not a string", where, k);
            continue;
        }
        struct tensor *t = &s->tensors[s->n_tensors];
        uint64_t begin;
        if (parse_entry(t, &begin, where, key, v, data, n_data, e)) return -1;
        t->name = mem_strdup(key);
        s->n_tensors++;
    }
    if (s->n_tensors) qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_place);
    if (check_cover(s, where, data, n_data, e)) return -1;
    if (s->n_tensors) qsort(s->tensors, s->n_tensors, sizeof *s->tensors, by_name);
    copy_unaligned(s);
    return 0;
}

int safetensors_parse(struct safetensors *s, const char *where, const void *p, size_t n, struct err *e)
{
    memset(s, 0, sizeof *s);
    const uint8_t *b = p;
    uint64_t len = 0;
    if (n < 8) return err_set(e, "%s: %zu bytes, too short for safetensors (8 and a header were expected)", where, n);
    for (int i = 7; i >= 0; i--) len = len << 8 | b[i];
    if (len > n - 8)
        return err_set(e, "%s: header of %llu bytes in a file of %zu (not safetensors, or cut short)", where,
                       (unsigned long long)len, n);
    if (len < 2 || len > HEADER_MAX)
        return err_set(e, "%s: header of %llu bytes (2 to %u were expected)", where, (unsigned long long)len,
                       HEADER_MAX);
    json_t *root = json_parse(where, (const char *)b + 8, (size_t)len, e);
    if (!root) return -1;
    int rc = parse_header(s, where, root, b + 8 + len, n - 8 - (size_t)len, e);
    json_decref(root);
    if (rc) safetensors_close(s);
    return rc;
}

int safetensors_open(struct safetensors *s, const char *path, struct err *e)
{
    struct file_map map;
    if (file_map_open(&map, path, e)) {
        memset(s, 0, sizeof *s);
        return -1;
    }
    int rc = safetensors_parse(s, path, map.data, map.size, e);
    if (rc) file_map_close(&map);
    else s->map = map;
    return rc;
}

void safetensors_close(struct safetensors *s)
{
    for (size_t i = 0; i < s->n_tensors; i++) free((char *)(uintptr_t)s->tensors[i].name);
    for (size_t i = 0; i < s->n_copies; i++) free(s->copies[i]);
    free(s->tensors);
    free(s->copies);
    file_map_close(&s->map);
    memset(s, 0, sizeof *s);
}

/* ---- writing ---- */

/* Positions relative to the data's start: wide elements first, declared order among equals. *total: bytes of data. */
static void lay_out(struct st_writer *w, size_t *order, size_t *total)
{
    size_t at = 0, k = 0;
    for (size_t width = 8; width; width /= 2)
        for (size_t i = 0; i < w->n; i++) {
            if (dtype_traits(w->decl[i].dtype)->block_bytes != width) continue;
            w->pos[i] = (int64_t)at;
            order[k++] = i;
            at += w->decl[i].n_bytes;
        }
    assert(k == w->n);
    *total = at;
}

static char *header_text(const struct st_writer *w, const size_t *order)
{
    json_t *root = json_object();
    json_put(root, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (size_t k = 0; k < w->n; k++) {
        const struct tensor *t = &w->decl[order[k]];
        int64_t begin = w->pos[order[k]];
        json_t *shape = json_array();
        for (int i = 0; i < t->n_dims; i++) json_array_append_new(shape, json_integer(t->shape[i]));
        json_put(root, t->name, json_pack("{s:s,s:o,s:[I,I]}", "dtype", dtype_traits(t->dtype)->st_name, "shape", shape,
                                          "data_offsets", (json_int_t)begin, (json_int_t)(begin + (int64_t)t->n_bytes)));
    }
    char *s = json_text(root, 0);
    json_decref(root);
    if (!s) return NULL;
    size_t n = strlen(s), padded = (n + 7) / 8 * 8;
    s = mem_grow(s, padded + 1, 1);
    memset(s + n, ' ', padded - n);
    s[padded] = 0;
    return s;
}

/* Go to the first tensor from `at` on that has bytes to come. */
static int next_tensor(struct st_writer *w, struct err *e)
{
    while (w->at < w->n && w->decl[w->at].n_bytes == 0) w->at++;
    if (w->at == w->n) return 0;
    w->left = w->decl[w->at].n_bytes;
    if (fseeko(w->out.f, (off_t)w->pos[w->at], SEEK_SET)) return err_sys(e, "%s: cannot write", w->out.path);
    return 0;
}

int st_writer_open(struct st_writer *w, const char *path, const struct tensor *decl, size_t n, struct err *e)
{
    memset(w, 0, sizeof *w);
    w->out.slot = -1;
    w->decl = mem_new(n, sizeof *w->decl);
    w->pos = mem_new(n, sizeof *w->pos);
    size_t *order = mem_new(n, sizeof *order), total;
    for (w->n = 0; w->n < n; w->n++) {
        struct tensor *t = &w->decl[w->n];
        *t = decl[w->n];
        assert(dtype_traits(t->dtype)->st_name);
        t->name = mem_strdup(t->name);
        t->n_bytes = dtype_bytes(t->dtype, tensor_elems(t));
    }
    lay_out(w, order, &total);
    char *head = header_text(w, order);
    free(order);
    int rc = head ? file_out_open(&w->out, path, e) : err_set(e, "%s: a tensor name is not UTF-8", path);
    if (rc == 0) {
        w->out.beside = sha256_keep; /* whoever writes a checkpoint is asked for its digest next */
        uint64_t len = strlen(head);
        uint8_t le[8];
        for (int i = 0; i < 8; i++) le[i] = (uint8_t)(len >> (8 * i));
        for (size_t i = 0; i < n; i++) w->pos[i] += (int64_t)(8 + len);
        rc = file_out_write(&w->out, le, 8, e) || file_out_write(&w->out, head, len, e) || next_tensor(w, e) ? -1 : 0;
    }
    free(head);
    if (rc) st_writer_abort(w);
    return rc;
}

int st_writer_append(struct st_writer *w, const void *p, size_t n_bytes, struct err *e)
{
    const uint8_t *b = p;
    while (n_bytes) {
        if (w->at == w->n) return err_set(e, "%s: %zu bytes more than the declared tensors have", w->out.path, n_bytes);
        size_t k = n_bytes < w->left ? n_bytes : w->left;
        if (file_out_write(&w->out, b, k, e)) return -1;
        b += k;
        n_bytes -= k;
        w->left -= k;
        if (w->left) continue;
        w->at++;
        if (next_tensor(w, e)) return -1;
    }
    return 0;
}

static void writer_free(struct st_writer *w)
{
    for (size_t i = 0; w->decl && i < w->n; i++) free((char *)(uintptr_t)w->decl[i].name);
    free(w->decl);
    free(w->pos);
    w->decl = NULL;
    w->pos = NULL;
    w->n = w->at = w->left = 0;
}

int st_writer_close(struct st_writer *w, struct err *e)
{
    if (w->at < w->n) {
        err_set(e, "%s: tensor %s misses %zu bytes", w->out.path, w->decl[w->at].name, w->left);
        st_writer_abort(w);
        return -1;
    }
    writer_free(w);
    return file_out_close(&w->out, e);
}

void st_writer_abort(struct st_writer *w)
{
    if (w->out.path) file_out_abort(&w->out);
    writer_free(w);
}
