#include "views/corpus.h"

#include "base/file.h"
#include "base/mem.h"
#include "views/utf8.h"

#include <stdlib.h>
#include <string.h>

/* Python's str.strip() leaves nothing: White_Space and the four separators U+001C … U+001F. */
static bool is_blank(const char *s, size_t n)
{
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        int32_t c = utf8_next(s + i, n - i, &len);
        if (!utf8_is_space(c) && !(c >= 0x1C && c <= 0x1F)) return false;
    }
    return true;
}

static char *join_rows(const char *s, size_t n, size_t *n_out)
{
    size_t rows = 0;
    for (size_t i = 0; i < n; i++) rows += s[i] == '\n';
    char *out = mem_new(n + 2 * rows + 3, 1);
    size_t o = 0;
    for (size_t i = 0, end; i < n; i = end) {
        const char *nl = memchr(s + i, '\n', n - i);
        end = nl ? (size_t)(nl - s) + 1 : n;
        if (i) {
            memcpy(out + o, "\n\n", 2);
            o += 2;
        }
        if (is_blank(s + i, end - i)) continue;
        memcpy(out + o, s + i, end - i);
        o += end - i;
    }
    out[o] = 0;
    *n_out = o;
    return out;
}

int corpus_load(struct corpus *c, const char *path, enum text_form form, int64_t max_chars, int64_t *n_invalid,
                struct err *e)
{
    memset(c, 0, sizeof *c);
    struct file_map m;
    if (file_map_open(&m, path, e)) return -1;
    char *text = utf8_replace_invalid((const char *)m.data, m.size, &c->n_bytes, n_invalid);
    file_map_close(&m);
    if (form == TEXT_HF_ROWS) {
        char *rows = join_rows(text, c->n_bytes, &c->n_bytes);
        free(text);
        text = rows;
    }
    c->n_chars = utf8_count(text, c->n_bytes);
    if (max_chars > 0 && c->n_chars > max_chars) {
        size_t i = 0, len;
        for (int64_t k = 0; k < max_chars; k++, i += len) utf8_next(text + i, c->n_bytes - i, &len);
        text[i] = 0;
        c->n_bytes = i;
        c->n_chars = max_chars;
    }
    c->text = text;
    return 0;
}

void corpus_free(struct corpus *c)
{
    free(c->text);
    memset(c, 0, sizeof *c);
}
