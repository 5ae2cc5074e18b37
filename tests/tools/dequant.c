/* dequant MODEL OUT.safetensors: every linear, the embedding and the head as dequantized weights, in the dtype they have
 * for a reader. For comparisons with other libraries (tests/golden/check_portable.py). */
#include "base/args.h"
#include "base/mem.h"
#include "base/msg.h"
#include "quantize/recipe.h"
#include "views/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void write_weight(struct st_writer *w, const struct qweight *q)
{
    struct err e;
    float *row = mem_array((size_t)q->n_in, 4);
    void *out = mem_array((size_t)q->n_in, 4);
    for (int64_t r = 0; r < q->n_out; r++) {
        qweight_rows_f32(q, r, 1, row);
        dtype_from_f32(q->out_dtype, row, out, q->n_in);
        if (st_writer_append(w, out, dtype_bytes(q->out_dtype, q->n_in), &e)) die("%s", e.msg);
    }
    qweight_drop(q);
    free(row);
    free(out);
}

int main(int argc, char **argv)
{
    struct opt opts[] = {{0}};
    struct tool tool = {.name = "dequant", .summary = "dequantized weights", .usage = "MODEL OUT.safetensors",
                        .details = "", .compute_dflt = "f32", .opts = opts};
    int n;
    char **arg = args_parse(&tool, argc, argv, &n);
    struct checkpoint c;
    struct recipe r;
    struct st_writer w;
    struct err e;
    if (n != 2) die_usage("MODEL and OUT.safetensors were expected");
    if (checkpoint_open(&c, arg[0], &e)) die("%s", e.msg);
    json_t *keep = json_object(); /* a recipe only for its list of names */
    if (recipe_resolve(&r, keep, NULL, NULL, NULL, &c.config, &e)) die("%s", e.msg);
    json_decref(keep);
    if (c.tied) r.n--;
    struct tensor *decl = mem_new(r.n, sizeof *decl);
    struct qweight *q = mem_new(r.n, sizeof *q);
    for (size_t i = 0; i < r.n; i++) {
        const struct recipe_entry *it = &r.entries[i];
        if (qweight_open(&q[i], &c, it->name, it->n_out, it->n_in, &e)) die("%s", e.msg);
        decl[i] = (struct tensor){.name = mem_printf("%s.weight", it->name), .dtype = q[i].out_dtype, .n_dims = 2,
                                  .shape = {it->n_out, it->n_in}};
    }
    if (st_writer_open(&w, arg[1], decl, r.n, &e)) die("%s", e.msg);
    for (size_t i = 0; i < r.n; i++) write_weight(&w, &q[i]);
    if (st_writer_close(&w, &e)) die("%s", e.msg);
    for (size_t i = 0; i < r.n; i++) free((char *)(uintptr_t)decl[i].name);
    free(decl);
    free(q);
    recipe_free(&r);
    checkpoint_close(&c);
    return 0;
}
