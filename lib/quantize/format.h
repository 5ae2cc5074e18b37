/* Weight formats: what stored codes mean. How codes are chosen is quantize/method.h's business.
 * One row a format; names are the contract's (docs/formats.md has the bytes of each container). */
#ifndef QLAB_QUANTIZE_FORMAT_H
#define QLAB_QUANTIZE_FORMAT_H

#include "base/err.h"
#include "views/dtype.h"

enum code_kind {
    CODE_FLOAT,   /* f32, f16, bf16 as they are */
    CODE_INT,     /* (q − z)·s, contiguous groups along the input axis */
    CODE_STRIDED, /* (q − z)·s, column j in group j mod 128 */
    CODE_BOOK,    /* book[q]·absmax, flat blocks of 64 over the row-major tensor */
};
enum container { CONT_PLAIN, CONT_CT /* compressed-tensors */, CONT_BNB /* bitsandbytes */, CONT_QLAB };

struct format {
    const char *name;
    enum code_kind kind;
    enum container container;
    enum dtype dtype;   /* CODE_FLOAT */
    int bits;           /* of a code: 4, 8, 16, 32 */
    int64_t group;      /* CODE_INT: columns a group, 0 = the whole row; CODE_STRIDED: number of groups (128);
                           CODE_BOOK: elements a flat block (64) */
    bool symmetric;     /* CODE_INT without zero point */
    const float *book;  /* CODE_BOOK: 16 values by code */
    bool double_quant;  /* CODE_BOOK: absmax itself in 8 bits, blocks of 256 */
};

/* By name; NULL if unknown. */
const struct format *format_find(const char *name);
/* The table, for lists in messages and loops in tests. */
const struct format *format_table(size_t *n);
/* Groups in a row of n_in columns (CODE_INT, CODE_STRIDED). A short last group counts. */
int64_t format_groups(const struct format *f, int64_t n_in);
/* Stored bytes of an (n_out, n_in) weight: codes and metadata that grow with the tensor (not shape records or code
 * tables), with the padding the container really has. */
int64_t format_bytes(const struct format *f, int64_t n_out, int64_t n_in);
/* 32-bit words n packed codes take (CODE_INT); flat blocks of a tensor (CODE_BOOK). */
int64_t format_words(const struct format *f, int64_t n);
int64_t format_blocks(const struct format *f, int64_t n_out, int64_t n_in);
/* Same codes and metadata (names aside). */
bool format_same(const struct format *a, const struct format *b);
/* Fill in f->name: the table's, or one made alike ("int8-g128", "nf4-g128-dq") that lives as long as the process. */
void format_set_name(struct format *f);
/* The code book of NF4 (else FP4). */
const float *format_book(bool nf4);

#endif
