#include "views/gguf.h"

#include "base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The file, all little-endian:
 *
 * | "GGUF" | version u32 = 3 | n_tensors u64 | n_kv u64 |
 *  0        4                 8               16      24
 * n_kv times       | key: string | type u32 | value |
 * n_tensors times  | name: string | n_dims u32 | ne u64[n_dims] | ggml_type u32 | offset u64 |
 * zeros up to a multiple of general.alignment, then the data; offsets count from there.
 * string = | length u64 | bytes |; array = | element type u32 | n u64 | elements |.
 * ne[0] is the fastest dimension: a weight of n_out rows and n_in columns has ne = {n_in, n_out}. */

enum kv_type { KV_U8, KV_I8, KV_U16, KV_I16, KV_U32, KV_I32, KV_F32, KV_BOOL, KV_STR, KV_ARR, KV_U64, KV_I64, KV_F64 };
#define N_KV_TYPES 13
static const uint8_t scalar_bytes[N_KV_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const char *const type_names[N_KV_TYPES] = {"u8",  "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                   "bool", "string", "array", "u64", "i64", "f64"};

struct str {
    const char *p;
    size_t n;
};

struct gguf_kv {
    char *key;
    enum kv_type type;
    enum kv_type elem;   /* of an array; else the type itself */
    size_t n;            /* elements; 1 for a scalar */
    const uint8_t *data; /* first scalar or element, not aligned */
    struct str *strs;    /* strings: n of them, owned; they point into the file */
};

/* ---- a reader that cannot leave its bytes ---- */

struct reader {
    const char *where;
    const uint8_t *p;
    size_t n, at;
    struct err *e;
};

/* The next n bytes, or NULL with an error. */
static const uint8_t *take(struct reader *r, size_t n, const char *what)
{
    if (n > r->n - r->at) {
        err_set(r->e, "%s: ends inside %s (%zu bytes at %zu, but the file has %zu)", r->where, what, n, r->at, r->n);
        return NULL;
    }
    const uint8_t *p = r->p + r->at;
    r->at += n;
    return p;
}

static int take_u32(struct reader *r, uint32_t *v, const char *what)
{
    const uint8_t *p = take(r, 4, what);
    if (!p) return -1;
    memcpy(v, p, 4);
    return 0;
}

static int take_u64(struct reader *r, uint64_t *v, const char *what)
{
    const uint8_t *p = take(r, 8, what);
    if (!p) return -1;
    memcpy(v, p, 8);
    return 0;
}

static int take_str(struct reader *r, struct str *s, const char *what)
{
    uint64_t n;
    if (take_u64(r, &n, what)) return -1;
    if (n > r->n - r->at)
        return err_set(r->e, "%s: a string of %" PRIu64 " bytes in %s (only %zu are left in the file)", r->where, n,
                       what, r->n - r->at);
    s->n = (size_t)n;
    s->p = (const char *)take(r, s->n, what);
    return s->p ? 0 : -1;
}

/* A name: not empty, at most max bytes, no NUL inside. To be freed. */
static char *take_name(struct reader *r, size_t max, const char *what)
{
    struct str s = {0};
    if (take_str(r, &s, what)) return NULL;
    if (!s.n || s.n > max || memchr(s.p, 0, s.n)) {
        err_set(r->e, "%s: %s of %zu bytes (1 to %zu without NUL were expected)", r->where, what, s.n, max);
        return NULL;
    }
    return mem_strndup(s.p, s.n);
}

/* ---- metadata ---- */

static int parse_elements(struct reader *r, struct gguf_kv *kv)
{
    if (kv->elem == KV_STR) {
        kv->strs = mem_new(kv->n, sizeof *kv->strs);
        for (size_t i = 0; i < kv->n; i++)
            if (take_str(r, &kv->strs[i], kv->key)) return -1;
        return 0;
    }
    size_t bytes;
    if (!size_mul(kv->n, scalar_bytes[kv->elem], &bytes)) bytes = SIZE_MAX;
    kv->data = take(r, bytes, kv->key);
    if (!kv->data) return -1;
    if (kv->elem == KV_BOOL)
        for (size_t i = 0; i < kv->n; i++)
            if (kv->data[i] > 1) return err_set(r->e, "%s: key %s: %u is not a bool", r->where, kv->key, kv->data[i]);
    return 0;
}

static int parse_kv(struct reader *r, struct gguf_kv *kv)
{
    uint32_t type;
    kv->key = take_name(r, 65535, "a metadata key");
    if (!kv->key || take_u32(r, &type, kv->key)) return -1;
    if (type >= N_KV_TYPES) return err_set(r->e, "%s: key %s has unknown type %u", r->where, kv->key, type);
    kv->type = kv->elem = (enum kv_type)type;
    kv->n = 1;
    if (type == KV_ARR) {
        uint32_t elem;
        uint64_t n;
        if (take_u32(r, &elem, kv->key) || take_u64(r, &n, kv->key)) return -1;
        if (elem >= N_KV_TYPES || elem == KV_ARR)
            return err_set(r->e, "%s: key %s is an array of %s (numbers, bools or strings were expected)", r->where,
                           kv->key, elem == KV_ARR ? "arrays" : "an unknown type");
        /* Each element takes at least this much of the file, so a lie about n cannot make us allocate more. */
        size_t least = elem == KV_STR ? 8 : scalar_bytes[elem];
        if (n > (r->n - r->at) / least)
            return err_set(r->e, "%s: key %s is an array of %" PRIu64 " elements (only %zu bytes are left in the file)",
                           r->where, kv->key, n, r->n - r->at);
        kv->elem = (enum kv_type)elem;
        kv->n = (size_t)n;
    }
    return parse_elements(r, kv);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct gguf_kv *)a)->key, ((const struct gguf_kv *)b)->key);
}

static int parse_metadata(struct reader *r, struct gguf *g, uint64_t n)
{
    /* key of one byte, type, value of one byte */
    if (n > (r->n - r->at) / (8 + 1 + 4 + 1))
        return err_set(r->e, "%s: says it has %" PRIu64 " metadata keys (more than its size can hold)", r->where, n);
    g->kv = mem_new((size_t)n, sizeof *g->kv);
    for (; g->n_kv < n; g->n_kv++)
        if (parse_kv(r, &g->kv[g->n_kv])) {
            g->n_kv++; /* so that gguf_close frees what the failed one has */
            return -1;
        }
    qsort(g->kv, g->n_kv, sizeof *g->kv, by_key);
    for (size_t i = 1; i < g->n_kv; i++)
        if (!strcmp(g->kv[i - 1].key, g->kv[i].key))
            return err_set(r->e, "%s: metadata key %s is there twice", r->where, g->kv[i].key);
    return 0;
}

/* ---- tensors ---- */

static int find_dtype(uint32_t ggml_type, enum dtype *out)
{
    for (int t = 0; t < DT_COUNT; t++)
        if (ggml_type <= INT32_MAX && dtype_traits((enum dtype)t)->ggml_type == (int)ggml_type) {
            *out = (enum dtype)t;
            return 0;
        }
    return -1;
}

static const char *foreign_type(uint32_t ggml_type)
{
    static const char *const names[] = {
        [4] = "Q4_2",     [5] = "Q4_3",    [9] = "Q8_1",   [10] = "Q2_K",   [11] = "Q3_K",   [15] = "Q8_K",
        [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS", [19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S",
        [22] = "IQ2_S",   [23] = "IQ4_XS", [24] = "I8",    [25] = "I16",    [26] = "I32",    [27] = "I64",
        [28] = "F64",     [29] = "IQ1_M",  [34] = "TQ1_0", [35] = "TQ2_0",  [39] = "MXFP4",
    };
    return ggml_type < sizeof names / sizeof *names && names[ggml_type] ? names[ggml_type] : "unknown";
}

/* ne as stored, fastest first, becomes shape, slowest first; checks that the bytes can be counted. */
static int parse_shape(struct reader *r, struct tensor *t, uint32_t n_dims)
{
    uint64_t ne[4];
    for (uint32_t d = 0; d < n_dims; d++)
        if (take_u64(r, &ne[d], t->name)) return -1;
    size_t elems = 1;
    for (uint32_t d = 0; d < n_dims; d++) {
        if (ne[d] == 0 || ne[d] > INT64_MAX || !size_mul(elems, (size_t)ne[d], &elems) || elems > INT64_MAX / 8)
            return err_set(r->e, "%s: tensor %s: dimension %u is %" PRIu64 " (an element count that fits was expected)",
                           r->where, t->name, d, ne[d]);
        t->shape[n_dims - 1 - d] = (int64_t)ne[d];
    }
    t->n_dims = (int)n_dims;
    return 0;
}

/* The tensor's data must start at byte `expected` after the data start: as in llama.cpp, no gaps and no overlap. */
static int parse_tensor(struct reader *r, struct tensor *t, size_t expected, uint64_t *offset)
{
    uint32_t n_dims, type;
    t->name = take_name(r, 63, "a tensor name");
    if (!t->name || take_u32(r, &n_dims, t->name)) return -1;
    if (n_dims < 1 || n_dims > 4)
        return err_set(r->e, "%s: tensor %s has %u dimensions (1 to 4 were expected)", r->where, t->name, n_dims);
    if (parse_shape(r, t, n_dims) || take_u32(r, &type, t->name) || take_u64(r, offset, t->name)) return -1;
    if (find_dtype(type, &t->dtype))
        return err_set(r->e,
                       "%s: tensor %s has type %u, %s (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or "
                       "Q6_K was expected)",
                       r->where, t->name, type, foreign_type(type));
    const struct dtype_traits *d = dtype_traits(t->dtype);
    if (t->shape[n_dims - 1] % d->block_elems)
        return err_set(r->e, "%s: tensor %s: rows of %" PRId64 " elements are not whole %s blocks of %" PRId64,
                       r->where, t->name, t->shape[n_dims - 1], d->name, d->block_elems);
    t->n_bytes = dtype_bytes(t->dtype, tensor_elems(t));
    if (*offset != expected)
        return err_set(r->e, "%s: tensor %s starts at %" PRIu64 " (%zu was expected: tensors follow each other)",
                       r->where, t->name, *offset, expected);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct tensor *const *)a)->name, (*(const struct tensor *const *)b)->name);
}

static int check_unique(struct reader *r, const struct gguf *g)
{
    const struct tensor **sorted = mem_new(g->n_tensors, sizeof *sorted);
    for (size_t i = 0; i < g->n_tensors; i++) sorted[i] = &g->tensors[i];
    qsort(sorted, g->n_tensors, sizeof *sorted, by_name);
    int rc = 0;
    for (size_t i = 1; i < g->n_tensors && rc == 0; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            rc = err_set(r->e, "%s: tensor %s is there twice", r->where, sorted[i]->name);
    free(sorted);
    return rc;
}

static bool pad_up(size_t n, size_t align, size_t *out)
{
    if (!size_add(n, align - 1, out)) return false;
    *out &= ~(align - 1);
    return true;
}

static int parse_tensors(struct reader *r, struct gguf *g, uint64_t n, size_t align)
{
    /* name of one byte, one dimension, type, offset */
    if (n > (r->n - r->at) / (8 + 1 + 4 + 8 + 4 + 8))
        return err_set(r->e, "%s: says it has %" PRIu64 " tensors (more than its size can hold)", r->where, n);
    g->tensors = mem_new((size_t)n, sizeof *g->tensors);
    size_t *ends = mem_new((size_t)n, sizeof *ends), expected = 0;
    int rc = 0;
    while (rc == 0 && g->n_tensors < n) {
        struct tensor *t = &g->tensors[g->n_tensors++];
        uint64_t offset;
        rc = parse_tensor(r, t, expected, &offset);
        if (rc == 0 && (!size_add(expected, t->n_bytes, &ends[g->n_tensors - 1]) ||
                        !pad_up(ends[g->n_tensors - 1], align, &expected)))
            rc = err_set(r->e, "%s: tensor %s: its size overflows", r->where, t->name);
    }
    size_t start;
    if (rc == 0) rc = check_unique(r, g);
    if (rc == 0 && !pad_up(r->at, align, &start)) rc = err_set(r->e, "%s: its size overflows", r->where);
    if (rc == 0 && n && start > r->n) rc = err_set(r->e, "%s: ends before its tensors' data", r->where);
    for (size_t i = 0; i < g->n_tensors && rc == 0; i++) {
        struct tensor *t = &g->tensors[i];
        if (ends[i] > r->n - start)
            rc = err_set(r->e, "%s: ends inside tensor %s (%zu bytes were expected, the file has %zu)", r->where,
                         t->name, start + ends[i], r->n);
        t->data = r->p + start + ends[i] - t->n_bytes;
    }
    if (rc == 0 && n && r->n - start > expected)
        rc = err_set(r->e, "%s: has %zu bytes after its last tensor", r->where, r->n - start - expected);
    free(ends);
    return rc;
}

/* ---- the whole file ---- */

static int parse(struct reader *r, struct gguf *g)
{
    const uint8_t *magic = take(r, 4, "the magic number");
    if (!magic) return -1;
    if (memcmp(magic, "GGUF", 4))
        return err_set(r->e, "%s: starts with %02x %02x %02x %02x (\"GGUF\" was expected)", r->where, magic[0],
                       magic[1], magic[2], magic[3]);
    uint32_t version;
    uint64_t n_tensors, n_kv;
    if (take_u32(r, &version, "the version")) return -1;
    if (version != 3)
        return err_set(r->e, "%s: GGUF version %u%s (version 3 was expected)", r->where, version,
                       version == 3u << 24 ? ", a big-endian file" : "");
    if (take_u64(r, &n_tensors, "the header") || take_u64(r, &n_kv, "the header")) return -1;
    if (parse_metadata(r, g, n_kv)) return -1;
    int64_t align;
    if (gguf_get_int(g, "general.alignment", false, 32, &align, r->e)) return err_prefix(r->e, "%s", r->where);
    if (align < 1 || align > 1 << 20 || (align & (align - 1)))
        return err_set(r->e, "%s: general.alignment is %" PRId64 " (a power of two up to 2^20 was expected)", r->where,
                       align);
    return parse_tensors(r, g, n_tensors, (size_t)align);
}

int gguf_parse(struct gguf *g, const char *where, const void *p, size_t n, struct err *e)
{
    memset(g, 0, sizeof *g);
    struct reader r = {.where = where, .p = p, .n = n, .e = e};
    if (parse(&r, g)) {
        gguf_close(g);
        return -1;
    }
    return 0;
}

int gguf_open(struct gguf *g, const char *path, struct err *e)
{
    struct file_map map;
    memset(g, 0, sizeof *g);
    if (file_map_open(&map, path, e)) return -1;
    if (gguf_parse(g, path, map.data, map.size, e)) {
        file_map_close(&map);
        return -1;
    }
    g->map = map;
    return 0;
}

void gguf_close(struct gguf *g)
{
    for (size_t i = 0; i < g->n_kv; i++) {
        free(g->kv[i].key);
        free(g->kv[i].strs);
    }
    for (size_t i = 0; i < g->n_tensors; i++) free((char *)(uintptr_t)g->tensors[i].name);
    free(g->kv);
    free(g->tensors);
    if (g->map.path) file_map_close(&g->map);
    memset(g, 0, sizeof *g);
}

/* ---- getters ---- */

static const struct gguf_kv *find(const struct gguf *g, const char *key)
{
    struct gguf_kv k = {.key = (char *)(uintptr_t)key};
    return g->n_kv ? bsearch(&k, g->kv, g->n_kv, sizeof k, by_key) : NULL;
}

static int bad(const struct gguf *g, const char *key, const struct gguf_kv *kv, const char *expected, struct err *e)
{
    const char *where = g->map.path ? g->map.path : "", *sep = *where ? ": " : "";
    if (!kv) return err_set(e, "%s%smetadata key %s is missing (%s was expected)", where, sep, key, expected);
    return err_set(e, "%s%smetadata key %s is %s%s%s (%s was expected)", where, sep, key,
                   kv->type == KV_ARR ? "an array of " : "", kv->n == 0 ? "no " : "", type_names[kv->elem], expected);
}

/* Element i as an integer; false if the type is not an integer or the value does not fit. */
static bool int_at(const struct gguf_kv *kv, size_t i, int64_t *out)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v;
    if (kv->elem == KV_STR || kv->elem == KV_F32 || kv->elem == KV_F64 || kv->elem == KV_BOOL) return false;
    memcpy(&v, kv->data + i * scalar_bytes[kv->elem], scalar_bytes[kv->elem]);
    switch (kv->elem) {
    case KV_U8: *out = v.u8; break;
    case KV_I8: *out = v.i8; break;
    case KV_U16: *out = v.u16; break;
    case KV_I16: *out = v.i16; break;
    case KV_U32: *out = v.u32; break;
    case KV_I32: *out = v.i32; break;
    case KV_U64:
        if (v.u64 > INT64_MAX) return false;
        *out = (int64_t)v.u64;
        break;
    default: *out = v.i64;
    }
    return true;
}

int gguf_get_int(const struct gguf *g, const char *key, bool required, int64_t dflt, int64_t *out, struct err *e)
{
    const struct gguf_kv *kv = find(g, key);
    *out = dflt;
    if (!kv) return required ? bad(g, key, kv, "an integer", e) : 0;
    if (kv->type == KV_ARR || !int_at(kv, 0, out)) return bad(g, key, kv, "an integer that fits 63 bits", e);
    return 0;
}

int gguf_get_num(const struct gguf *g, const char *key, bool required, double dflt, double *out, struct err *e)
{
    const struct gguf_kv *kv = find(g, key);
    *out = dflt;
    if (!kv) return required ? bad(g, key, kv, "a number", e) : 0;
    if (kv->type == KV_F32) {
        float f;
        memcpy(&f, kv->data, 4);
        *out = f;
    } else if (kv->type == KV_F64) {
        memcpy(out, kv->data, 8);
    } else {
        int64_t i;
        if (kv->type == KV_ARR || !int_at(kv, 0, &i)) return bad(g, key, kv, "a number", e);
        *out = (double)i;
    }
    if (isfinite(*out)) return 0;
    *out = dflt;
    return bad(g, key, kv, "a finite number", e);
}

int gguf_get_bool(const struct gguf *g, const char *key, bool required, bool dflt, bool *out, struct err *e)
{
    const struct gguf_kv *kv = find(g, key);
    *out = dflt;
    if (!kv) return required ? bad(g, key, kv, "a bool", e) : 0;
    if (kv->type != KV_BOOL) return bad(g, key, kv, "a bool", e);
    *out = kv->data[0];
    return 0;
}

int gguf_get_str(const struct gguf *g, const char *key, bool required, char **out, struct err *e)
{
    const struct gguf_kv *kv = find(g, key);
    *out = NULL;
    if (!kv) return required ? bad(g, key, kv, "a string", e) : 0;
    if (kv->type != KV_STR || memchr(kv->strs->p, 0, kv->strs->n)) return bad(g, key, kv, "a string without NUL", e);
    *out = mem_strndup(kv->strs->p, kv->strs->n);
    return 0;
}

int gguf_get_array(const struct gguf *g, const char *key, enum gguf_elem elem, bool required, size_t *n, struct err *e)
{
    const struct gguf_kv *kv = find(g, key);
    const char *expected = elem == GGUF_STRINGS ? "an array of strings" : "an array of integers";
    *n = 0;
    if (!kv) return required ? bad(g, key, kv, expected, e) : 0;
    bool ok = kv->type == KV_ARR && (kv->elem == KV_STR) == (elem == GGUF_STRINGS);
    for (size_t i = 0; ok && elem == GGUF_INTS && i < kv->n; i++) {
        int64_t v;
        ok = int_at(kv, i, &v);
    }
    if (!ok) return bad(g, key, kv, expected, e);
    *n = kv->n;
    return 0;
}

void gguf_array_str(const struct gguf *g, const char *key, size_t i, const char **s, size_t *len)
{
    const struct gguf_kv *kv = find(g, key);
    *s = kv->strs[i].p;
    *len = kv->strs[i].n;
}

int64_t gguf_array_int(const struct gguf *g, const char *key, size_t i)
{
    int64_t v = 0;
    int_at(find(g, key), i, &v);
    return v;
}
