#include "quantize/format.h"

#include "base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* bitsandbytes functional.py get_4bit_type: the values by code, in f32. */
static const float nf4_book[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};
/* Sign in bit 3, magnitudes 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4; code 8 is a second zero. */
static const float fp4_book[16] = {
    0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f, 0.1666666716337204f, 0.25f,
    0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f, -0.3333333432674408f, -0.5f, -0.1666666716337204f,
    -0.25f,
};

#define FLOAT(n, t, b) {.name = n, .kind = CODE_FLOAT, .container = CONT_PLAIN, .dtype = t, .bits = b}
#define INT(n, b, g, s) {.name = n, .kind = CODE_INT, .container = CONT_CT, .bits = b, .group = g, .symmetric = s}
#define BOOK(n, v, dq) \
    {.name = n, .kind = CODE_BOOK, .container = CONT_BNB, .bits = 4, .group = 64, .book = v, .double_quant = dq}

static const struct format table[] = {
    FLOAT("f32", DT_F32, 32),
    FLOAT("bf16", DT_BF16, 16),
    FLOAT("f16", DT_F16, 16),
    INT("int8-row", 8, 0, true),
    INT("int4-row", 4, 0, false),
    INT("int4-row-sym", 4, 0, true),
    INT("int4-g32", 4, 32, false),
    INT("int4-g32-sym", 4, 32, true),
    INT("int4-g64", 4, 64, false),
    INT("int4-g64-sym", 4, 64, true),
    INT("int4-g128", 4, 128, false),
    INT("int4-g128-sym", 4, 128, true),
    INT("int4-g256", 4, 256, false),
    INT("int4-g256-sym", 4, 256, true),
    {.name = "int4-strided128", .kind = CODE_STRIDED, .container = CONT_QLAB, .bits = 4, .group = 128},
    BOOK("nf4", nf4_book, false),
    BOOK("nf4-dq", nf4_book, true),
    BOOK("fp4", fp4_book, false),
};
enum { N_FORMATS = sizeof table / sizeof *table };

const struct format *format_table(size_t *n)
{
    *n = N_FORMATS;
    return table;
}

const struct format *format_find(const char *name)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (!strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

bool format_same(const struct format *a, const struct format *b)
{
    return a->kind == b->kind && a->bits == b->bits && a->group == b->group && a->symmetric == b->symmetric &&
           a->double_quant == b->double_quant && a->book == b->book && (a->kind != CODE_FLOAT || a->dtype == b->dtype);
}

/* Names made for formats no row of the table has: few, short, and kept for good, so that struct format can be copied. */
static const char *intern(const char *s)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char **names;
    static size_t n;
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < n && strcmp(names[i], s)) i++;
    if (i == n) {
        names = mem_grow(names, n + 1, sizeof *names);
        names[n++] = mem_strdup(s);
    }
    const char *name = names[i];
    pthread_mutex_unlock(&lock);
    return name;
}

void format_set_name(struct format *f)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (format_same(f, &table[i])) {
            f->name = table[i].name;
            return;
        }
    char buf[64], group[32] = "row";
    if (f->group) snprintf(group, sizeof group, "%s%lld", f->kind == CODE_STRIDED ? "strided" : "g", (long long)f->group);
    switch (f->kind) {
    case CODE_FLOAT: snprintf(buf, sizeof buf, "%s", dtype_traits(f->dtype)->name); break;
    case CODE_INT:
        /* 8 bits are symmetric by default, 4 bits are not: as in the table */
        snprintf(buf, sizeof buf, "int%d-%s%s", f->bits, group,
                 f->bits == 8 ? (f->symmetric ? "" : "-asym") : (f->symmetric ? "-sym" : ""));
        break;
    case CODE_STRIDED: snprintf(buf, sizeof buf, "int%d-%s", f->bits, group); break;
    case CODE_BOOK:
        snprintf(buf, sizeof buf, "%s%s%s%s", f->book == nf4_book ? "nf4" : "fp4", f->group == 64 ? "" : "-",
                 f->group == 64 ? "" : group, f->double_quant ? "-dq" : "");
        break;
    }
    f->name = intern(buf);
}

const float *format_book(bool nf4) { return nf4 ? nf4_book : fp4_book; }

int64_t format_groups(const struct format *f, int64_t n_in)
{
    if (f->kind == CODE_STRIDED) return f->group;
    assert(f->kind == CODE_INT);
    return f->group ? (n_in + f->group - 1) / f->group : 1;
}

int64_t format_blocks(const struct format *f, int64_t n_out, int64_t n_in)
{
    assert(f->kind == CODE_BOOK);
    return (n_out * n_in + f->group - 1) / f->group;
}

int64_t format_words(const struct format *f, int64_t n) { return (n * f->bits + 31) / 32; }

int64_t format_bytes(const struct format *f, int64_t n_out, int64_t n_in)
{
    int64_t g, blocks;
    switch (f->kind) {
    case CODE_FLOAT: return n_out * (int64_t)dtype_bytes(f->dtype, n_in);
    case CODE_INT:
        g = format_groups(f, n_in);
        return 4 * n_out * format_words(f, n_in) + 2 * n_out * g + (f->symmetric ? 0 : 4 * format_words(f, n_out) * g);
    case CODE_STRIDED: return n_out * ((n_in + 1) / 2) + 4 * n_out * f->group;
    case CODE_BOOK:
        blocks = format_blocks(f, n_out, n_in);
        return (n_out * n_in + 1) / 2 + (f->double_quant ? blocks + 4 * ((blocks + 255) / 256) : 4 * blocks);
    }
    return 0;
}
