/* Writes GGUF v3 files for tests and for benches beside other programs. Metadata is put together in memory (running out
 * of it ends the process); so is the data of small files, while that of large ones is streamed. */
#ifndef TESTS_GGUF_WRITER_H
#define TESTS_GGUF_WRITER_H

#include "base/err.h"
#include "base/file.h"
#include "views/tensor.h"

struct gguf_writer;
struct gguf_writer *gguf_writer_new(void);

/* Metadata, in the order of the calls. Keys and values are copied. */
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t v);
void gguf_put_f32(struct gguf_writer *w, const char *key, float v);
void gguf_put_f64(struct gguf_writer *w, const char *key, double v);
void gguf_put_bool(struct gguf_writer *w, const char *key, bool v);
void gguf_put_str(struct gguf_writer *w, const char *key, const char *v);
void gguf_put_strs(struct gguf_writer *w, const char *key, const char *const *v, size_t n);
void gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *v, size_t n);

/* A tensor: shape slowest first; the bytes (dtype_bytes of them) are copied. */
void gguf_put_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int n_dims, const int64_t *shape,
                     const void *data);
/* The same from a Hugging Face tensor under its GGUF name, heads > 0: rows permuted as arch llama stores q and k. */
void gguf_put_permuted(struct gguf_writer *w, const char *name, const struct tensor *hf, int64_t heads);

/* The file's bytes, to be freed; ends the writer. */
uint8_t *gguf_writer_bytes(struct gguf_writer *w, size_t *n);
/* Into a file; ends the writer. */
int gguf_writer_save(struct gguf_writer *w, const char *path, struct err *e);

/* The streamed way: declare all tensors, open, append the bytes of each in the order of declaration (in pieces of any
 * size), close. */
void gguf_declare_tensor(struct gguf_writer *w, const char *name, enum dtype dtype, int n_dims, const int64_t *shape);
struct gguf_stream {
    struct file_out out;
    size_t *sizes; /* bytes of each tensor */
    size_t n, at, done; /* tensors; the one being written, and its bytes so far */
};
/* Writes what stands before the data; ends the writer. */
int gguf_stream_open(struct gguf_stream *s, struct gguf_writer *w, const char *path, struct err *e);
int gguf_stream_append(struct gguf_stream *s, const void *p, size_t n, struct err *e);
int gguf_stream_close(struct gguf_stream *s, struct err *e); /* fails if bytes are missing */
void gguf_stream_abort(struct gguf_stream *s);

#endif
