#include "gguf_writer.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 32

struct buf {
    uint8_t *p;
    size_t n, cap;
};

struct gguf_writer {
    struct buf kv, info, data;
    uint64_t n_kv, n_tensors;
    size_t at;     /* where the next tensor's data begins */
    size_t *sizes; /* of the tensors */
};

static void put(struct buf *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) b->p = mem_grow(b->p, b->cap = 2 * (b->n + n), 1);
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void put_u32(struct buf *b, uint32_t v) { put(b, &v, 4); }
static void put_u64(struct buf *b, uint64_t v) { put(b, &v, 8); }

static void put_str(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static void pad(struct buf *b)
{
    static const uint8_t zero[ALIGN];
    put(b, zero, (ALIGN - b->n % ALIGN) % ALIGN);
}

struct gguf_writer *gguf_writer_new(void) { return mem_new(1, sizeof(struct gguf_writer)); }

static void key(struct gguf_writer *w, const char *k, uint32_t type)
{
    put_str(&w->kv, k);
    put_u32(&w->kv, type);
    w->n_kv++;
}

static void scalar(struct gguf_writer *w, const char *k, uint32_t type, const void *v, size_t n)
{
    key(w, k, type);
    put(&w->kv, v, n);
}

void gguf_put_u32(struct gguf_writer *w, const char *k, uint32_t v) { scalar(w, k, 4, &v, 4); }
void gguf_put_u64(struct gguf_writer *w, const char *k, uint64_t v) { scalar(w, k, 10, &v, 8); }
void gguf_put_f32(struct gguf_writer *w, const char *k, float v) { scalar(w, k, 6, &v, 4); }
void gguf_put_f64(struct gguf_writer *w, const char *k, double v) { scalar(w, k, 12, &v, 8); }

void gguf_put_bool(struct gguf_writer *w, const char *k, bool v)
{
    uint8_t b = v;
    scalar(w, k, 7, &b, 1);
}

void gguf_put_str(struct gguf_writer *w, const char *k, const char *v)
{
    key(w, k, 8);
    put_str(&w->kv, v);
}

static void array(struct gguf_writer *w, const char *k, uint32_t elem, size_t n)
{
    key(w, k, 9);
    put_u32(&w->kv, elem);
    put_u64(&w->kv, n);
}

void gguf_put_strs(struct gguf_writer *w, const char *k, const char *const *v, size_t n)
{
    array(w, k, 8, n);
    for (size_t i = 0; i < n; i++) put_str(&w->kv, v[i]);
}

void gguf_put_i32s(struct gguf_writer *w, const char *k, const int32_t *v, size_t n)
{
    array(w, k, 5, n);
    put(&w->kv, v, 4 * n);
}

void gguf_declare_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int n_dims, const int64_t *shape)
{
    int64_t n = 1;
    for (int d = 0; d < n_dims; d++) n *= shape[d];
    size_t bytes = dtype_bytes(dtype, n);
    put_str(&w->info, name);
    put_u32(&w->info, (uint32_t)n_dims);
    for (int d = n_dims - 1; d >= 0; d--) put_u64(&w->info, (uint64_t)shape[d]);
    put_u32(&w->info, (uint32_t)dtype_traits(dtype)->ggml_type);
    put_u64(&w->info, w->at);
    w->sizes = mem_grow(w->sizes, w->n_tensors + 1, sizeof *w->sizes);
    w->sizes[w->n_tensors++] = bytes;
    w->at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void gguf_put_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int n_dims, const int64_t *shape,
                     const void *data)
{
    int64_t n = 1;
    for (int d = 0; d < n_dims; d++) n *= shape[d];
    gguf_declare_tensor(w, name, dtype, n_dims, shape);
    put(&w->data, data, dtype_bytes(dtype, n));
    pad(&w->data);
}

void gguf_put_permuted(struct gguf_writer *w, const char *name, const struct tensor *hf, int64_t heads)
{
    /* llama.cpp's convert script: weights.reshape(heads, 2, hd/2, cols).swapaxes(1, 2) */
    int64_t n = hf->shape[0], hd = n / heads;
    size_t row = hf->n_bytes / (size_t)n;
    gguf_declare_tensor(w, name, hf->dtype, hf->n_dims, hf->shape);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < hd / 2; j++)
            for (int64_t t = 0; t < 2; t++)
                put(&w->data, (const uint8_t *)hf->data + (size_t)(h * hd + t * (hd / 2) + j) * row, row);
    pad(&w->data);
}

static void head(const struct gguf_writer *w, struct buf *b)
{
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, w->n_tensors);
    put_u64(b, w->n_kv);
    put(b, w->kv.p, w->kv.n);
    put(b, w->info.p, w->info.n);
    pad(b);
}

static void writer_free(struct gguf_writer *w)
{
    free(w->kv.p);
    free(w->info.p);
    free(w->data.p);
    free(w->sizes);
    free(w);
}

uint8_t *gguf_writer_bytes(struct gguf_writer *w, size_t *n)
{
    struct buf b = {0};
    head(w, &b);
    put(&b, w->data.p, w->data.n);
    writer_free(w);
    *n = b.n;
    return b.p;
}

int gguf_writer_save(struct gguf_writer *w, const char *path, struct err *e)
{
    size_t n;
    uint8_t *p = gguf_writer_bytes(w, &n);
    int rc = file_write(path, p, n, e);
    free(p);
    return rc;
}

int gguf_stream_open(struct gguf_stream *s, struct gguf_writer *w, const char *path, struct err *e)
{
    struct buf b = {0};
    head(w, &b);
    *s = (struct gguf_stream){.sizes = w->sizes, .n = w->n_tensors};
    w->sizes = NULL;
    writer_free(w);
    int rc = file_out_open(&s->out, path, e);
    if (rc == 0 && (rc = file_out_write(&s->out, b.p, b.n, e))) file_out_abort(&s->out);
    if (rc) free(s->sizes);
    free(b.p);
    return rc;
}

int gguf_stream_append(struct gguf_stream *s, const void *p, size_t n, struct err *e)
{
    static const uint8_t zero[ALIGN];
    if (s->at == s->n || n > s->sizes[s->at] - s->done)
        return err_set(e, "%s: more bytes than were declared", s->out.path);
    if (file_out_write(&s->out, p, n, e)) return -1;
    s->done += n;
    if (s->done < s->sizes[s->at]) return 0;
    size_t rest = (ALIGN - s->done % ALIGN) % ALIGN;
    s->at++, s->done = 0;
    return file_out_write(&s->out, zero, rest, e);
}

int gguf_stream_close(struct gguf_stream *s, struct err *e)
{
    if (s->at < s->n) {
        err_set(e, "%s: bytes are missing", s->out.path);
        gguf_stream_abort(s);
        return -1;
    }
    free(s->sizes);
    return file_out_close(&s->out, e);
}

void gguf_stream_abort(struct gguf_stream *s)
{
    free(s->sizes);
    file_out_abort(&s->out);
}
