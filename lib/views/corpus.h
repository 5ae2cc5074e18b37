/* The text that is measured. */
#ifndef QLAB_VIEWS_CORPUS_H
#define QLAB_VIEWS_CORPUS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum text_form { TEXT_FILE, TEXT_HF_ROWS };

struct corpus {
    char *text;
    size_t n_bytes;
    int64_t n_chars; /* Unicode code points (of the text after invalid sequences became U+FFFD) */
};
/* Read a text file (UTF-8; invalid sequences become U+FFFD, counted in *n_invalid if not NULL).
 * TEXT_HF_ROWS: "\n\n".join(rows) where a line that is blank after strip is "" and any other keeps its "\n", as the
 * Hugging Face wikitext rows are joined. max_chars > 0 keeps only that many code points. */
int corpus_load(struct corpus *c, const char *path, enum text_form form, int64_t max_chars, int64_t *n_invalid,
                struct err *e);
void corpus_free(struct corpus *c);

#endif
