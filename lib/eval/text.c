#include "eval/text.h"

#include "base/mem.h"
#include "base/msg.h"

#include <stdlib.h>
#include <string.h>

enum text_form text_form_of(const char *name) { return strcmp(name, "hf-rows") ? TEXT_FILE : TEXT_HF_ROWS; }

int eval_text_load(struct eval_text *t, const struct tokenizer *tok, const char *path, enum text_form form,
                   enum protocol p, int64_t max_chars, int64_t vocab_size, struct err *e)
{
    memset(t, 0, sizeof *t);
    if (p == PROTO_SEED && max_chars == 0) max_chars = SEED_CHARS;
    struct corpus c;
    int64_t n_invalid = 0;
    if (corpus_load(&c, path, form, max_chars, &n_invalid, e)) return -1;
    if (n_invalid)
        msg_warn("%s: %lld invalid UTF-8 sequences read as U+FFFD", path, (long long)n_invalid);
    if (p == PROTO_LLAMACPP && c.n_bytes && c.text[c.n_bytes - 1] == '\n') {
        c.n_bytes--;
        c.n_chars--;
    }
    size_t n;
    int rc = tokenizer_encode(tok, c.text, c.n_bytes, true, &t->ids, &n, e);
    t->n_ids = (int64_t)n;
    t->n_bytes = (int64_t)c.n_bytes;
    t->n_chars = c.n_chars;
    corpus_free(&c);
    if (rc) return err_prefix(e, "%s", path);
    for (int64_t i = 0; i < t->n_ids; i++)
        if (t->ids[i] < 0 || t->ids[i] >= vocab_size) {
            err_set(e, "%s: token id %d is beyond the model's vocabulary of %lld (tokenizer of another model?)", path,
                    t->ids[i], (long long)vocab_size);
            eval_text_free(t);
            return -1;
        }
    return 0;
}

void eval_text_free(struct eval_text *t)
{
    free(t->ids);
    memset(t, 0, sizeof *t);
}

/* Positions of a's n-grams sorted by content, then binary search for each of b's. */
struct grams {
    const int32_t *ids;
    int64_t n;
};
static struct grams sorting; /* qsort has no context argument in C11; used by one thread */

static int compare_at(const int32_t *a, const int32_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int by_content(const void *a, const void *b)
{
    return compare_at(sorting.ids + *(const int64_t *)a, sorting.ids + *(const int64_t *)b, sorting.n);
}

static int64_t *sorted_unique(const int32_t *ids, int64_t n_ids, int64_t n, int64_t *count)
{
    int64_t m = n_ids - n + 1, k = 0;
    int64_t *at = mem_new((size_t)m, sizeof *at);
    for (int64_t i = 0; i < m; i++) at[i] = i;
    sorting = (struct grams){ids, n};
    qsort(at, (size_t)m, sizeof *at, by_content);
    for (int64_t i = 0; i < m; i++)
        if (k == 0 || compare_at(ids + at[k - 1], ids + at[i], n)) at[k++] = at[i];
    *count = k;
    return at;
}

int64_t shared_ngrams(const int32_t *a, int64_t na, const int32_t *b, int64_t nb, int64_t n)
{
    if (na < n || nb < n) return 0;
    int64_t ka, kb, shared = 0;
    int64_t *pa = sorted_unique(a, na, n, &ka), *pb = sorted_unique(b, nb, n, &kb);
    for (int64_t i = 0, j = 0; i < ka && j < kb;) {
        int c = compare_at(a + pa[i], b + pb[j], n);
        shared += c == 0;
        i += c <= 0;
        j += c >= 0;
    }
    free(pa);
    free(pb);
    return shared;
}
