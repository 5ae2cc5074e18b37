#include "views/convert.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/par.h"
#include "views/gguf.h"
#include "views/safetensors.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK ((int64_t)8 << 20) /* bytes of f32 that are converted at a time */

/* ---- what is written ---- */

struct item {
    const struct tensor *src;
    enum dtype dtype;
    size_t file; /* index of the shard */
};

struct plan {
    struct item *items;
    size_t n, n_files;
    int64_t bytes;
    bool untie; /* config says tied, but a head with other values is stored */
};

/* True if every value of t survives in `to`. */
static bool fits(const struct tensor *t, enum dtype to)
{
    int64_t n = tensor_elems(t);
    float *v = mem_array((size_t)n, 4), *back = mem_array((size_t)n, 4);
    void *as = mem_array((size_t)n, 4);
    dtype_traits(t->dtype)->to_f32(t->data, v, n);
    dtype_from_f32(to, v, as, n);
    dtype_traits(to)->to_f32(as, back, n);
    bool same = !memcmp(v, back, (size_t)n * 4);
    free(v);
    free(back);
    free(as);
    return same;
}

enum dtype convert_kept_dtype(const struct checkpoint *c, const struct tensor *t)
{
    if (dtype_is_block(t->dtype)) return DT_F16;
    if (!c->is_gguf || t->n_dims != 1 || t->dtype != DT_F32) return t->dtype;
    enum dtype embed = checkpoint_find(c, "model.embed_tokens.weight")->dtype;
    if (dtype_is_block(embed)) embed = DT_F16;
    return fits(t, embed) ? embed : DT_F32;
}

/* A head stored beside the embedding it is said to be tied to: left out if equal, else the tie is cut (transformers
 * computes with the stored head in that case). */
static bool same_as_embedding(const struct checkpoint *c, const struct tensor *t)
{
    const struct tensor *embed = checkpoint_find(c, "model.embed_tokens.weight");
    return embed && embed->dtype == t->dtype && embed->n_bytes == t->n_bytes &&
           !memcmp(embed->data, t->data, t->n_bytes);
}

static int make_plan(struct plan *p, const struct checkpoint *c, const struct convert_opts *o, struct err *e)
{
    *p = (struct plan){.items = mem_new(c->n_tensors, sizeof *p->items)};
    int64_t in_file = 0;
    for (size_t i = 0; i < c->n_tensors; i++) {
        const struct tensor *t = &c->tensors[i];
        if (!checkpoint_reads(c, t->name)) continue;
        if (c->config.tied_embeddings && !c->quant && !strcmp(t->name, "lm_head.weight")) {
            if (same_as_embedding(c, t)) continue;
            p->untie = true;
        }
        enum dtype to = o->dtype == DT_COUNT ? convert_kept_dtype(c, t) : o->dtype;
        int64_t bytes = (int64_t)dtype_bytes(to, tensor_elems(t));
        if (in_file && in_file + bytes > o->shard_bytes) p->n_files++, in_file = 0;
        p->items[p->n++] = (struct item){t, to, p->n_files};
        in_file += bytes;
        p->bytes += bytes;
    }
    p->n_files++;
    return p->n ? 0 : err_set(e, "%s: no tensors to write", c->path);
}

/* ---- one tensor ---- */

struct rows {
    const struct tensor *t;
    enum dtype to;
    int64_t r0;
    uint8_t *dst;
    atomic_bool bad, overflow; /* NaN or Inf in the source; Inf only in the result */
};

static void check_finite(struct rows *j, const float *v, const float *out, int64_t n)
{
    bool bad = false, over = false;
    for (int64_t i = 0; i < n; i++) {
        bad |= !isfinite(v[i]);
        over |= isfinite(v[i]) && !isfinite(out[i]);
    }
    if (bad) atomic_store(&j->bad, true);
    if (over) atomic_store(&j->overflow, true);
}

/* Elements of long rows (a vector is one row) go through the same path: rows are cut nowhere. */
static void convert_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    struct rows *j = ctx;
    int64_t cols = tensor_row_elems(j->t);
    size_t row_bytes = dtype_bytes(j->to, cols);
    float *v = mem_array((size_t)cols, 4), *back = mem_array((size_t)cols, 4);
    for (int64_t r = begin; r < end; r++) {
        uint8_t *out = j->dst + (size_t)r * row_bytes;
        tensor_rows_f32(j->t, j->r0 + r, 1, v);
        if (j->to == j->t->dtype) tensor_copy_row(j->t, j->r0 + r, out);
        else dtype_from_f32(j->to, v, out, cols);
        dtype_traits(j->to)->to_f32(out, back, cols);
        check_finite(j, v, back, cols);
    }
    free(v);
    free(back);
}

static int write_floats(struct st_writer *w, const char *path, const struct item *it, uint8_t *buf, bool *bad,
                        struct err *e)
{
    struct rows j = {.t = it->src, .to = it->dtype, .dst = buf};
    int64_t rows = tensor_rows(it->src), cols = tensor_row_elems(it->src), step = CHUNK / 4 / (cols ? cols : 1);
    if (step < 1) step = 1;
    for (; j.r0 < rows && cols; j.r0 += step) {
        int64_t k = rows - j.r0 < step ? rows - j.r0 : step;
        par_for(k, 1, convert_rows, &j);
        if (j.overflow)
            return err_set(e, "%s: tensor %s has values beyond %s's range (bf16 and f32 hold them)", path,
                           it->src->name, dtype_traits(it->dtype)->name);
        if (st_writer_append(w, buf, dtype_bytes(it->dtype, k * cols), e)) return -1;
    }
    *bad = j.bad;
    checkpoint_drop(it->src);
    return 0;
}

/* Codes, scales and whatever else is not a float tensor of the model: bytes. */
static int write_raw(struct st_writer *w, const struct tensor *t, struct err *e)
{
    assert(!t->permuted_heads);
    if (st_writer_append(w, t->data, t->n_bytes, e)) return -1;
    checkpoint_drop(t);
    return 0;
}

/* ---- files ---- */

static size_t buffer_bytes(const struct plan *p)
{
    size_t max = (size_t)CHUNK;
    for (size_t i = 0; i < p->n; i++) {
        size_t row = (size_t)tensor_row_elems(p->items[i].src) * 4;
        if (row > max) max = row;
    }
    return max;
}

struct run {
    const struct checkpoint *c;
    const struct convert_opts *o;
    struct plan plan;
    struct convert_report *r;
    uint8_t *buf;
    size_t n_bad;
    int64_t done;
};

static int write_item(struct run *x, struct st_writer *w, const struct item *it, struct err *e)
{
    bool bad = false;
    int rc = dtype_is_float(it->dtype) && !x->c->quant ? write_floats(w, x->c->path, it, x->buf, &bad, e)
                                                       : write_raw(w, it->src, e);
    if (bad) x->r->not_finite[x->n_bad++] = (char *)(uintptr_t)it->src->name;
    x->done += (int64_t)dtype_bytes(it->dtype, tensor_elems(it->src));
    if (x->o->on_bytes) x->o->on_bytes(x->o->ctx, x->done, x->plan.bytes);
    return rc;
}

static int write_shard(void *ctx, size_t k, const char *path, json_t *names, struct err *e)
{
    struct run *x = ctx;
    const struct item *it = x->plan.items, *end = it + x->plan.n;
    while (it < end && it->file < k) it++;
    size_t n = 0;
    while (it + n < end && it[n].file == k) json_array_append_new(names, json_string(it[n++].src->name));
    struct tensor *decl = mem_new(n, sizeof *decl);
    for (size_t i = 0; i < n; i++) {
        decl[i] = *it[i].src;
        decl[i].dtype = it[i].dtype;
    }
    struct st_writer w;
    int rc = st_writer_open(&w, path, decl, n, e);
    free(decl);
    if (rc) return rc;
    for (size_t i = 0; i < n; i++)
        if (write_item(x, &w, &it[i], e)) {
            st_writer_abort(&w);
            return -1;
        }
    return st_writer_close(&w, e);
}

int convert_weights(const char *dir, size_t n_files, int64_t bytes, convert_shard_fn *shard, void *ctx, struct err *e)
{
    json_t *map = json_object();
    int rc = 0;
    for (size_t k = 0; rc == 0 && k < n_files; k++) {
        char *name = n_files == 1 ? mem_strdup("model.safetensors")
                                  : mem_printf("model-%05zu-of-%05zu.safetensors", k + 1, n_files);
        char *path = path_join(dir, name);
        json_t *names = json_array(), *it;
        size_t i;
        rc = shard(ctx, k, path, names, e);
        json_array_foreach(names, i, it) json_put(map, json_string_value(it), json_string(name));
        json_decref(names);
        free(path);
        free(name);
    }
    if (rc == 0 && n_files > 1)
        rc = json_write(dir, "model.safetensors.index.json",
                        json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map), e);
    json_decref(map);
    return rc;
}

/* The dtype key names the type of the embedding, as advice to loaders. */
static int write_config(const struct run *x, const char *dir, struct err *e)
{
    json_t *cfg = json_deep_copy(x->c->config_json);
    for (size_t i = 0; i < x->plan.n && !x->c->quant; i++) {
        const struct item *it = &x->plan.items[i];
        if (strcmp(it->src->name, "model.embed_tokens.weight")) continue;
        const char *name = it->dtype == DT_F32 ? "float32" : it->dtype == DT_F16 ? "float16" : "bfloat16";
        json_put(cfg, json_object_get(cfg, "torch_dtype") ? "torch_dtype" : "dtype", json_string(name));
    }
    if (x->plan.untie) json_put(cfg, "tie_word_embeddings", json_false());
    return json_write(dir, "config.json", cfg, e);
}

static int copy_file(const char *from_dir, const char *dir, const char *name, bool *found, struct err *e)
{
    char *from = path_join(from_dir, name), *to = path_join(dir, name), *buf = NULL;
    size_t n;
    int rc = 0;
    *found = path_exists(from);
    if (*found) rc = file_read(from, (size_t)256 << 20, &buf, &n, e);
    if (*found && rc == 0) rc = file_write(to, buf, n, e);
    free(buf);
    free(from);
    free(to);
    return rc;
}

static int copy_companions(const struct checkpoint *c, const char *dir, struct convert_report *r, struct err *e)
{
    static const char *const names[] = {"tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
                                        "chat_template.jinja", "added_tokens.json", "tokenizer.model", "vocab.json",
                                        "merges.txt"};
    bool found;
    if (copy_file(c->path, dir, "tokenizer.json", &r->tokenizer, e)) return -1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (copy_file(c->path, dir, names[i], &found, e)) return -1;
    return 0;
}

static int make_companions(const struct checkpoint *c, const char *dir, struct convert_report *r, struct err *e)
{
    struct err why;
    const struct config *g = &c->config;
    json_t *gen = json_object(), *tok = gguf_tokenizer_json(c->gguf, &why), *cfg = NULL;
    if (g->bos >= 0) json_put(gen, "bos_token_id", json_integer(g->bos));
    if (g->eos >= 0) json_put(gen, "eos_token_id", json_integer(g->eos));
    if (json_write(dir, "generation_config.json", gen, e)) {
        json_decref(tok);
        return -1;
    }
    if (tok && !(cfg = gguf_tokenizer_config_json(c->gguf, &why))) {
        json_decref(tok);
        tok = NULL;
    }
    r->tokenizer = tok != NULL;
    if (!tok) {
        snprintf(r->tokenizer_why, sizeof r->tokenizer_why, "%.*s", (int)sizeof r->tokenizer_why - 1, why.msg);
        return 0;
    }
    if (json_write(dir, "tokenizer.json", tok, e)) {
        json_decref(cfg);
        return -1;
    }
    return json_write(dir, "tokenizer_config.json", cfg, e);
}

int convert_companions(const struct checkpoint *c, const char *dir, struct convert_report *r, struct err *e)
{
    return c->is_gguf ? make_companions(c, dir, r, e) : copy_companions(c, dir, r, e);
}

int convert_folder(const struct checkpoint *c, const char *dir, const struct convert_opts *o, struct convert_report *r,
                   struct err *e)
{
    struct run x = {.c = c, .o = o, .r = r};
    struct dir_out out;
    memset(r, 0, sizeof *r);
    if (c->quant && o->dtype != DT_COUNT)
        return err_set(e, "%s: quantized: its element types can only be kept", c->path);
    if (dir_out_open(&out, dir, e)) return -1;
    int rc = make_plan(&x.plan, c, o, e);
    if (rc == 0) {
        r->not_finite = mem_new(x.plan.n + 1, sizeof *r->not_finite);
        r->bytes = x.plan.bytes;
        r->n_tensors = x.plan.n;
        r->n_files = x.plan.n_files;
        x.buf = mem_array(buffer_bytes(&x.plan), 1);
        rc = write_config(&x, out.tmp, e);
        if (rc == 0) rc = convert_companions(c, out.tmp, r, e);
        if (rc == 0) rc = convert_weights(out.tmp, x.plan.n_files, x.plan.bytes, write_shard, &x, e);
    }
    free(x.buf);
    free(x.plan.items);
    if (rc) dir_out_abort(&out);
    else rc = dir_out_close(&out, e);
    if (rc) convert_report_free(r);
    return rc;
}

void convert_report_free(struct convert_report *r)
{
    free(r->not_finite);
    memset(r, 0, sizeof *r);
}
