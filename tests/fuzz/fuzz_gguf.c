/* The GGUF parser on any bytes, and on accepted files all that is made of them: config.json, Hugging Face tensors,
 * tokenizer.json. Every tensor lies inside the file; blocks and permuted rows can be read to the last. */
#include "views/gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void use(json_t *v, const struct err *e)
{
    if (!v && !*e->msg) abort();
    json_decref(v);
}

static void read_tensors(const struct gguf *g)
{
    struct tensor *t;
    size_t n;
    struct err e;
    if (gguf_hf_tensors(g, &t, &n, &e)) return;
    for (size_t i = 0; i < n; i++) {
        int64_t rows = t[i].n_dims > 1 ? t[i].shape[0] : 1, cols = tensor_elems(&t[i]) / (rows ? rows : 1);
        if (rows > 0 && cols > 0 && cols < 65536) {
            float *f = malloc((size_t)cols * sizeof *f);
            tensor_rows_f32(&t[i], rows - 1, 1, f);
            free(f);
        }
        free((char *)t[i].name);
    }
    free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct gguf g;
    struct err e;
    if (gguf_parse(&g, "fuzz", data, n, &e)) {
        if (strncmp(e.msg, "fuzz: ", 6)) abort();
        return 0;
    }
    for (size_t i = 0; i < g.n_tensors; i++) {
        const struct tensor *t = &g.tensors[i];
        const uint8_t *p = t->data;
        if (t->n_bytes != dtype_bytes(t->dtype, tensor_elems(t))) abort();
        if (t->n_bytes && (p < data || t->n_bytes > n - (size_t)(p - data))) abort();
    }
    *e.msg = 0;
    use(gguf_config_json(&g, &e), &e);
    *e.msg = 0;
    use(gguf_tokenizer_json(&g, &e), &e);
    *e.msg = 0;
    use(gguf_tokenizer_config_json(&g, &e), &e);
    read_tensors(&g);
    gguf_close(&g);
    return 0;
}
