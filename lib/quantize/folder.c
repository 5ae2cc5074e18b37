#include "quantize/folder.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/par.h"
#include "base/wide.h"
#include "quantize/writequeue.h"
#include "views/convert.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK ((int64_t)8 << 20) /* bytes of f32 that are converted at a time */

/* ---- planning ---- */

static struct recipe_entry *embed_entry(const struct recipe *r) { return &r->entries[r->n - 2]; }
static struct recipe_entry *head_entry(const struct recipe *r) { return &r->entries[r->n - 1]; }

/* The float dtype everything gets, if the recipe says nothing but that. */
static bool one_float(const struct recipe *r, enum dtype *dtype)
{
    const struct format *f = r->entries[0].fmt;
    if (!f || f->kind != CODE_FLOAT) return false;
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        if (it->fmt ? it->fmt != f : it->layer >= 0) return false;
    }
    *dtype = f->dtype;
    return true;
}

/* The entry whose weight this tensor is, if it gets a format. */
static const struct recipe_entry *entry_of(const struct recipe *r, const char *tensor)
{
    static const char tail[] = ".weight";
    size_t n = strlen(tensor);
    if (n < sizeof tail || strcmp(tensor + n - (sizeof tail - 1), tail)) return NULL;
    n -= sizeof tail - 1;
    for (size_t i = 0; i < r->n; i++)
        if (!strncmp(r->entries[i].name, tensor, n) && !r->entries[i].name[n])
            return r->entries[i].fmt ? &r->entries[i] : NULL;
    return NULL;
}

static void add_entry(struct folder *f, const struct recipe_entry *it)
{
    struct folder_item *x = &f->items[f->n++];
    *x = (struct folder_item){.name = it->name, .entry = it};
    x->n_parts = container_declare(x->parts, it->name, it->fmt, it->n_out, it->n_in, f->model_dtype);
    x->bytes = container_bytes(it->fmt, it->n_out, it->n_in, f->model_dtype);
}

static void add_copy(struct folder *f, const struct tensor *t, enum dtype dtype)
{
    struct folder_item *x = &f->items[f->n++];
    *x = (struct folder_item){.name = t->name, .src = t, .dtype = dtype, .n_parts = 1, .parts = {*t}};
    x->parts[0].name = mem_strdup(t->name);
    x->parts[0].dtype = dtype;
    x->parts[0].permuted_heads = 0;
    x->parts[0].n_bytes = dtype_bytes(dtype, tensor_elems(t));
    x->bytes = (int64_t)x->parts[0].n_bytes;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct folder_item *)a)->name, ((const struct folder_item *)b)->name);
}

static void resolve_tie(struct folder *f)
{
    struct recipe_entry *embed = embed_entry(f->recipe), *head = head_entry(f->recipe);
    f->tied = f->src->tied;
    if (!f->tied || !head->fmt) return;
    if (embed->fmt && format_same(embed->fmt, head->fmt) && embed->method == head->method) head->fmt = NULL;
    else f->tied = false;
}

int folder_plan(struct folder *f, const struct checkpoint *src, struct recipe *r, int64_t shard_bytes, struct err *e)
{
    memset(f, 0, sizeof *f);
    if (src->quant)
        return err_set(e, "%s: already quantized (%s); the original float checkpoint was expected", src->path,
                       json_string_value(json_object_get(src->quant, "quant_method")));
    f->src = src;
    f->recipe = r;
    resolve_tie(f);
    f->model_dtype = checkpoint_find(src, "model.layers.0.self_attn.q_proj.weight")->dtype == DT_BF16 ? DT_BF16 : DT_F16;
    enum dtype all = DT_COUNT;
    f->plain = one_float(r, &all);
    if (f->plain) f->model_dtype = all;

    f->items = mem_new(src->n_tensors + 1, sizeof *f->items);
    bool head = false;
    for (size_t i = 0; i < src->n_tensors; i++) {
        const struct tensor *t = &src->tensors[i];
        const struct recipe_entry *it = entry_of(r, t->name);
        if (it) head |= it == head_entry(r);
        if (it) add_entry(f, it);
        else if (checkpoint_reads(src, t->name))
            add_copy(f, t, f->plain ? all : src->is_gguf ? convert_kept_dtype(src, t) : t->dtype);
    }
    if (!f->tied && src->tied && !head) add_entry(f, head_entry(r));
    qsort(f->items, f->n, sizeof *f->items, by_name);

    int64_t in_file = 0;
    for (size_t i = 0; i < f->n; i++) {
        if (in_file && in_file + f->items[i].bytes > shard_bytes) f->n_files++, in_file = 0;
        f->items[i].file = f->n_files;
        in_file += f->items[i].bytes;
        f->bytes += f->items[i].bytes;
    }
    f->n_files++;
    return 0;
}

void folder_free(struct folder *f)
{
    for (size_t i = 0; i < f->n; i++)
        for (size_t k = 0; k < f->items[i].n_parts; k++) free((char *)(uintptr_t)f->items[i].parts[k].name);
    free(f->items);
    memset(f, 0, sizeof *f);
}

/* ---- writing ---- */

struct run {
    struct folder *f;
    void (*on_bytes)(void *ctx, int64_t done, int64_t total);
    void *ctx;
    int64_t total;
    struct write_queue queue;
};

static int write_entry(struct run *x, struct folder_item *it, struct err *e)
{
    const struct recipe_entry *en = it->entry;
    struct qweight src;
    struct qbuffer b;
    if (qweight_open(&src, x->f->src, en->name, en->n_out, en->n_in, e)) return -1;
    struct quant_job job = {en->name, &src, en->fmt, x->f->model_dtype};
    if (method_quantize(en->method, &job, &b, &it->stats, e)) return err_prefix(e, "%s", x->f->src->path);
    qweight_drop(&src);
    x->f->done += src.bytes;
    return write_queue_codes(&x->queue, &b, e);
}

/* All exponent bits set anywhere? */
WIDE static uint32_t not_finite(enum dtype t, const void *p, int64_t n)
{
    uint32_t bad = 0;
    if (t == DT_F32)
        for (int64_t i = 0; i < n; i++) bad |= (((const uint32_t *)p)[i] & 0x7f800000u) == 0x7f800000u;
    else {
        uint16_t mask = t == DT_F16 ? 0x7c00 : 0x7f80;
        for (int64_t i = 0; i < n; i++) bad |= (((const uint16_t *)p)[i] & mask) == mask;
    }
    return bad;
}

struct finite {
    const struct tensor *t;
    atomic_bool bad;
};

static void look_at_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    struct finite *f = ctx;
    int64_t n = (end - begin) * tensor_row_elems(f->t);
    if (not_finite(f->t->dtype, tensor_row(f->t, begin), n)) atomic_store(&f->bad, true);
}

static bool any_not_finite(const struct tensor *t)
{
    struct finite f = {.t = t};
    par_for_dynamic(tensor_rows(t), 256, look_at_rows, &f);
    return atomic_load(&f.bad);
}

/* A tensor as it is, or in another float dtype; NaN, Inf and values that do not fit are refused as everywhere. */
static int write_copy(struct run *x, const struct folder_item *it, struct st_writer *w, struct err *e)
{
    const struct tensor *t = it->src;
    int64_t rows = tensor_rows(t), cols = tensor_row_elems(t), step = CHUNK / 4 / (cols ? cols : 1);
    if (t->dtype == it->dtype && !t->permuted_heads && !any_not_finite(t)) {
        x->f->done += (int64_t)t->n_bytes;
        return write_queue_tensor(&x->queue, t, e);
    }
    if (write_queue_flush(&x->queue, e)) return -1;
    if (step < 1) step = 1;
    if (step > rows) step = rows;
    float *v = mem_array((size_t)(step * cols), 4), *back = mem_array((size_t)(step * cols), 4);
    void *out = mem_array((size_t)(step * cols), 4);
    int rc = 0;
    for (int64_t r = 0; rc == 0 && r < rows && cols; r += step) {
        int64_t n = (rows - r < step ? rows - r : step) * cols, bad = -1;
        tensor_rows_f32(t, r, n / cols, v);
        dtype_from_f32(it->dtype, v, out, n);
        dtype_traits(it->dtype)->to_f32(out, back, n);
        for (int64_t i = n - 1; i >= 0; i--) bad = isfinite(back[i]) ? bad : i;
        if (bad >= 0)
            rc = err_set(e, "%s: tensor %s: %g at row %lld, column %lld (%s was expected)", x->f->src->path, it->name,
                         (double)v[bad], (long long)(r + bad / cols), (long long)(bad % cols),
                         isfinite(v[bad]) ? "a value that fits its dtype" : "a finite weight");
        else
            rc = st_writer_append(w, out, dtype_bytes(it->dtype, n), e);
    }
    free(v);
    free(back);
    free(out);
    checkpoint_drop(t);
    x->f->done += (int64_t)t->n_bytes;
    return rc;
}

/* As much as the largest tensor takes, which goes to the file while the next ones are quantized. */
static int64_t waiting_bytes(const struct checkpoint *c)
{
    int64_t most = 32 << 20;
    for (size_t i = 0; i < c->n_tensors; i++)
        if ((int64_t)c->tensors[i].n_bytes > most) most = (int64_t)c->tensors[i].n_bytes;
    return most;
}

static int write_shard(void *ctx, size_t file, const char *path, json_t *names, struct err *e)
{
    struct run *x = ctx;
    struct folder_item *it = x->f->items, *end = it + x->f->n;
    while (it < end && it->file < file) it++;
    size_t n = 0;
    while (it + n < end && it[n].file == file) n++;
    struct tensor *decl = mem_new(n * CONTAINER_PARTS, sizeof *decl);
    size_t n_decl = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < it[i].n_parts; k++) {
            json_array_append_new(names, json_string(it[i].parts[k].name));
            decl[n_decl++] = it[i].parts[k];
        }
    struct st_writer w;
    int rc = st_writer_open(&w, path, decl, n_decl, e);
    free(decl);
    if (rc) return rc;
    write_queue_begin(&x->queue, &w, waiting_bytes(x->f->src));
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = it[i].entry ? write_entry(x, &it[i], e) : write_copy(x, &it[i], &w, e);
        if (rc == 0 && x->on_bytes) x->on_bytes(x->ctx, x->f->done, x->total);
    }
    struct err late;
    if (write_queue_end(&x->queue, &late) && rc == 0) rc = -1, *e = late;
    if (rc) {
        st_writer_abort(&w);
        return -1;
    }
    return st_writer_close(&w, e);
}

static int write_config(const struct folder *f, const char *dir, struct err *e)
{
    json_t *cfg = json_deep_copy(f->src->config_json), *quant = container_config(f->recipe, f->model_dtype);
    const char *dtype = f->model_dtype == DT_F32 ? "float32" : f->model_dtype == DT_F16 ? "float16" : "bfloat16";
    json_object_del(cfg, "quantization_config");
    json_put(cfg, "dtype", json_string(dtype));
    if (json_object_get(cfg, "torch_dtype")) json_put(cfg, "torch_dtype", json_string(dtype));
    json_put(cfg, "tie_word_embeddings", json_boolean(f->tied));
    if (quant) json_put(cfg, "quantization_config", quant);
    return json_write(dir, "config.json", cfg, e);
}

int folder_write(struct folder *f, const char *dir, void (*on_bytes)(void *ctx, int64_t done, int64_t total), void *ctx,
                 char tokenizer_why[512], struct err *e)
{
    struct run x = {.f = f, .on_bytes = on_bytes, .ctx = ctx, .total = checkpoint_bytes(f->src)};
    struct convert_report r = {0};
    struct dir_out out;
    if (dir_out_open(&out, dir, e)) return -1;
    int rc = write_config(f, out.tmp, e);
    if (rc == 0) rc = convert_companions(f->src, out.tmp, &r, e);
    if (rc == 0) rc = convert_weights(out.tmp, f->n_files, f->bytes, write_shard, &x, e);
    if (rc) dir_out_abort(&out);
    else rc = dir_out_close(&out, e);
    snprintf(tokenizer_why, 512, "%s", r.tokenizer_why);
    f->written = rc == 0;
    return rc;
}

/* ---- results ---- */

/* Loaders turn every plain tensor into the model's dtype: one stored in another would be rounded there, not here. */
json_t *folder_portable(const struct folder *f)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct folder_item *x = &f->items[i];
        enum dtype t = x->entry ? x->entry->fmt->kind == CODE_FLOAT ? x->entry->fmt->dtype : f->model_dtype : x->dtype;
        if (t == f->model_dtype) continue;
        char why[256];
        snprintf(why, sizeof why, "%s is %s in a folder of %s, and is rounded on loading", x->name, dtype_traits(t)->name,
                 dtype_traits(f->model_dtype)->name);
        return json_pack("{s:s,s:s,s:s}", "transformers", "no", "vllm", "no", "why", why);
    }
    return container_portable(f->recipe);
}

json_t *folder_results(const struct folder *f)
{
    json_t *tensors = json_array(), *o = json_object();
    int64_t packed_bytes = 0, packed_elems = 0, elems = 0, read = 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct folder_item *x = &f->items[i];
        const struct recipe_entry *it = x->entry;
        int64_t n = it ? it->n_out * it->n_in : tensor_elems(x->src);
        int64_t bytes = it ? format_bytes(it->fmt, it->n_out, it->n_in) : x->bytes; /* without shapes and code tables */
        elems += n;
        read += bytes;
        if (!strncmp(x->name, "model.embed_tokens", 18)) { /* one row; all of it once more when it is the head */
            read += bytes / f->src->config.vocab_size - (f->tied ? 0 : bytes);
        }
        if (!it) continue;
        packed_bytes += x->bytes;
        packed_elems += n;
        bool w = f->written;
        json_array_append_new(
            tensors,
            json_pack("{s:s,s:s,s:s,s:[I,I],s:I,s:f,s:o,s:o,s:o,s:o}", "name", it->name, "format", it->fmt->name, "method",
                      it->method->name, "shape", (json_int_t)it->n_out, (json_int_t)it->n_in, "bytes",
                      (json_int_t)x->bytes, "bpw", 8.0 * (double)x->bytes / (double)n, "nmse",
                      w ? json_num(x->stats.nmse) : json_null(), "sqnr_db", w ? json_num(x->stats.sqnr_db) : json_null(),
                      "cosine", w ? json_num(x->stats.cosine) : json_null(), "max_abs_err",
                      w ? json_num(x->stats.max_abs_err) : json_null()));
    }
    json_put(o, "tensors", tensors);
    json_put(o, "bytes_before", json_integer(checkpoint_bytes(f->src)));
    json_put(o, "bytes_after", json_integer(f->bytes));
    json_put(o, "bpw", packed_elems ? json_real(8.0 * (double)packed_bytes / (double)packed_elems) : json_null());
    json_put(o, "bpw_model", json_real(8.0 * (double)f->bytes / (double)elems));
    json_put(o, "read_bytes_per_token", json_integer(read));
    json_put(o, "n_files", json_integer((json_int_t)f->n_files));
    json_put(o, "tied_embeddings", json_boolean(f->tied));
    json_put(o, "portable", folder_portable(f));
    return o;
}
