/* Small models made by formula, written as Hugging Face folders: the golden ones of tests/golden/tiny_models.json to
 * the last bit, and variants of any size. All have a tokenizer whose token id is the byte's value. */
#ifndef QLAB_TESTS_TINY_H
#define QLAB_TESTS_TINY_H

#include "base/err.h"
#include "views/config.h"
#include "views/dtype.h"

#include <stdbool.h>
#include <stdint.h>

struct tiny {
    enum arch arch;
    bool tied;
    int64_t hidden, ff, layers, heads, kv_heads, vocab, max_position;
    int64_t head_dim; /* 0: hidden / heads, and not written where the golden config has none */
    struct rope rope;
    double eps;
    bool attention_bias, mlp_bias;
    uint32_t seed;    /* 0: the golden formula; else other weights */
    const char *text; /* "bigram" kind: file whose byte pairs the model knows */
    bool normal;      /* weights by tiny_normal instead of the golden formula */
    /* how it is written */
    enum dtype dtype;  /* F32, F16, BF16 */
    int shards;        /* 1: model.safetensors; more: so many files and an index */
    bool old_config;   /* rope_theta/rope_scaling and torch_dtype instead of rope_parameters and dtype */
    bool no_tokenizer;
    const char *drop, *extra, *nan; /* leave out tensor NAME, add NAME, put a NaN into NAME */
};

/* The names tiny_kind knows: "llama-tied", "llama-untied-rope3", "llama-headdim32", "qwen2-tied", "qwen2-untied" (the
 * golden ones), "mistral", "qwen3", "llama-bias", and "bigram":
 * a Qwen2 that predicts bytes by a table of byte pairs, so that its perplexity means something. Its gate projections
 * compare with a threshold that one input channel carries, with weights 70 times larger than the others': one scale per
 * row rounds all the others to zero and the model forgets everything, while short groups keep it whole. */
extern const char *const tiny_kinds[]; /* NULL-ended */
/* Defaults of a kind; −1 if it is unknown. */
int tiny_kind(struct tiny *t, const char *kind);
/* Shapes of published models, with random weights (tiny_shapes.c). −1 if it is unknown. */
extern const char *const tiny_shapes[]; /* NULL-ended */
int tiny_shape(struct tiny *t, const char *name);
/* Writes the folder (made if missing, files replaced). */
int tiny_write(const struct tiny *t, const char *dir, struct err *e);

/* n values of tensor `name` by the golden formula (bf16-rounded), from row-major index i0 on. */
void tiny_formula(const char *name, uint32_t seed, int64_t i0, int64_t n, float *out);
/* n values of tensor `name` from row-major index i0 on, near normal (sums of four uniforms) with the deviation that
 * transformers initializes weights with, .02, biases .1, norms 1 ± .1. Each value depends on its index alone, so
 * threads may share a tensor. Weights are as float arithmetic makes them, of the same bits everywhere. */
void tiny_normal(const char *name, uint32_t seed, int64_t i0, int64_t n, float *out);

#endif
