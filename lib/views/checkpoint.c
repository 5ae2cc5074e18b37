#include "views/checkpoint.h"

#include "base/file.h"
#include "base/mem.h"
#include "views/gguf.h"
#include "views/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX ((size_t)16 << 20)
#define INDEX_MAX ((size_t)64 << 20)
#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* ---- gathering tensors ---- */

static int add_shard(struct checkpoint *c, const char *name, struct err *e)
{
    c->shards = mem_grow(c->shards, c->n_shards + 1, sizeof *c->shards);
    char *path = path_join(c->path, name);
    struct safetensors *s = &c->shards[c->n_shards];
    int rc = safetensors_open(s, path, e);
    free(path);
    if (rc) return -1;
    c->n_shards++;
    c->tensors = mem_grow(c->tensors, c->n_tensors + s->n_tensors, sizeof *c->tensors);
    if (s->n_tensors) memcpy(c->tensors + c->n_tensors, s->tensors, s->n_tensors * sizeof *c->tensors);
    c->n_tensors += s->n_tensors;
    return 0;
}

/* The set of files weight_map names, in order of appearance; then every mapped tensor must be in its file. */
static int add_indexed(struct checkpoint *c, const char *index, struct err *e)
{
    json_t *root = json_read(index, INDEX_MAX, e), *files = json_object(), *v;
    const json_t *map = json_object_get(root, "weight_map");
    const char *name, *file;
    int rc = root ? 0 : -1;
    if (rc == 0 && !json_object_size(map)) rc = err_set(e, "%s: no \"weight_map\"", index);
    json_object_foreach((json_t *)(uintptr_t)map, name, v)
    {
        const char *f = json_string_value(v);
        if (rc) break;
        if (!f || strlen(f) != json_string_length(v) || !name_is_plain(f)) {
            rc = err_set(e, "%s: tensor %s is said to be in \"%s\" (a plain file name was expected)", index, name,
                         f ? f : "?");
            break;
        }
        char *path = path_join(c->path, f);
        if (!json_object_get(files, f)) {
            if (!path_exists(path)) rc = err_set(e, "%s: missing (" INDEX " names it)", path);
            else json_put(files, f, json_integer((json_int_t)json_object_size(files)));
        }
        free(path);
    }
    json_object_foreach(files, file, v)
        if (rc == 0) rc = add_shard(c, file, e);
    json_object_foreach((json_t *)(uintptr_t)map, name, v)
    {
        if (rc) break;
        const struct safetensors *s = &c->shards[json_integer_value(json_object_get(files, json_string_value(v)))];
        struct tensor key = {.name = name};
        if (!s->n_tensors || !bsearch(&key, s->tensors, s->n_tensors, sizeof key, by_name))
            rc = err_set(e, "%s: tensor %s is not in %s", index, name, json_string_value(v));
    }
    json_decref(files);
    json_decref(root);
    return rc;
}

static int open_folder(struct checkpoint *c, struct err *e)
{
    char *cfg = path_join(c->path, "config.json"), *one = path_join(c->path, SINGLE), *index = path_join(c->path, INDEX);
    int rc = -1;
    c->config_json = json_read(cfg, CONFIG_MAX, e);
    if (c->config_json && config_parse(&c->config, c->config_json, cfg, e) == 0) {
        if (path_exists(one)) rc = add_shard(c, SINGLE, e); /* before the index, as transformers does */
        else if (path_exists(index)) rc = add_indexed(c, index, e);
        else err_set(e, "%s: neither " SINGLE " nor " INDEX " is there", c->path);
    }
    free(cfg);
    free(one);
    free(index);
    return rc;
}

static int open_gguf(struct checkpoint *c, struct err *e)
{
    c->is_gguf = true;
    c->gguf = mem_new(1, sizeof *c->gguf);
    if (gguf_open(c->gguf, c->path, e)) {
        free(c->gguf);
        c->gguf = NULL;
        return -1;
    }
    c->config_json = gguf_config_json(c->gguf, e);
    if (!c->config_json || config_parse(&c->config, c->config_json, c->path, e)) return -1;
    return gguf_hf_tensors(c->gguf, &c->tensors, &c->n_tensors, e);
}

/* ---- checking ---- */

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    struct tensor key = {.name = name};
    return c->n_tensors ? bsearch(&key, c->tensors, c->n_tensors, sizeof key, by_name) : NULL;
}

static void shape_text(char buf[128], int n_dims, const int64_t *shape)
{
    int n = snprintf(buf, 128, "[");
    for (int i = 0; i < n_dims; i++) n += snprintf(buf + n, 128 - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    snprintf(buf + n, 128 - (size_t)n, "]");
}

const struct tensor *checkpoint_need(const struct checkpoint *c, const char *name, int n_dims, const int64_t *shape,
                                     struct err *e)
{
    const struct tensor *t = checkpoint_find(c, name);
    char want[128], got[128];
    shape_text(want, n_dims, shape);
    if (!t) {
        err_set(e, "%s: tensor %s is missing (shape %s was expected)", c->path, name, want);
        return NULL;
    }
    if (!dtype_is_float(t->dtype) && !dtype_is_block(t->dtype)) {
        err_set(e, "%s: tensor %s has dtype %s (a float type was expected)", c->path, name, dtype_traits(t->dtype)->name);
        return NULL;
    }
    if (t->n_dims == n_dims && !memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape)) return t;
    shape_text(got, t->n_dims, t->shape);
    err_set(e, "%s: tensor %s has shape %s (%s was expected)", c->path, name, got, want);
    return NULL;
}

static const struct tensor *find_part(const struct checkpoint *c, const char *name, const char *part)
{
    char full[256];
    snprintf(full, sizeof full, "%s.%s", name, part);
    return checkpoint_find(c, full);
}

bool checkpoint_has_linear(const struct checkpoint *c, const char *name)
{
    return find_part(c, name, "weight") || find_part(c, name, "weight_packed");
}

/* What an open checkpoint is checked against, tensor by tensor; used[i]: tensors[i] has a reader. */
struct check {
    const struct checkpoint *c;
    bool *used;
    struct err *e;
};

static void mark(struct check *k, const struct tensor *t) { k->used[t - k->c->tensors] = true; }

static int need_vector(struct check *k, const char *name, int64_t n)
{
    const struct tensor *t = checkpoint_need(k->c, name, 1, &n, k->e);
    if (!t) return -1;
    if (!dtype_is_float(t->dtype))
        return err_set(k->e, "%s: tensor %s has dtype %s (F32, F16 or BF16 was expected)", k->c->path, name,
                       dtype_traits(t->dtype)->name);
    mark(k, t);
    return 0;
}

/* The tensors a packed weight NAME.weight may consist of, all of them in one checkpoint or another. */
static const char *const parts[] = {
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", /* compressed-tensors */
    "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", /* bitsandbytes */
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4",
};

static int need_linear(struct check *k, const char *name, int64_t n_out, int64_t n_in)
{
    const struct checkpoint *c = k->c;
    const struct tensor *plain = find_part(c, name, "weight");
    char full[256];
    snprintf(full, sizeof full, "%s.weight", name);
    if (!c->quant || !checkpoint_has_linear(c, name)) {
        if (!plain && find_part(c, name, "weight_packed"))
            return err_set(k->e, "%s: %s is packed, but config.json has no \"quantization_config\"", c->path, name);
    } else if (!plain || plain->dtype == DT_U8 || plain->dtype == DT_I8) {
        if (plain) mark(k, plain);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            const struct tensor *t = find_part(c, name, parts[i]);
            if (t) mark(k, t);
        }
        return 0;
    }
    if (!checkpoint_need(c, full, 2, (int64_t[]){n_out, n_in}, k->e)) return -1;
    mark(k, plain);
    return 0;
}

static int check_layer(struct check *k, int64_t layer)
{
    const struct config *g = &k->c->config;
    char name[LINEAR_NAME_MAX + 16];
    const struct {
        const char *name;
        int64_t n;
    } vectors[] = {{"input_layernorm", g->hidden_size},
                   {"post_attention_layernorm", g->hidden_size},
                   {"self_attn.q_norm", g->head_dim},
                   {"self_attn.k_norm", g->head_dim}};
    for (size_t i = 0; i < (g->qk_norm ? 4 : 2); i++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer, vectors[i].name);
        if (need_vector(k, name, vectors[i].n)) return -1;
    }
    for (enum op op = 0; op < N_OPS; op++) {
        char linear[LINEAR_NAME_MAX];
        int64_t n_out, n_in;
        config_op_shape(g, op, &n_out, &n_in);
        if (need_linear(k, linear_name(linear, layer, op), n_out, n_in)) return -1;
        snprintf(name, sizeof name, "%s.bias", linear);
        if (config_op_bias(g, op) && need_vector(k, name, n_out)) return -1;
    }
    return 0;
}

static int check_all(struct checkpoint *c, struct check *k)
{
    const struct config *g = &c->config;
    if (need_linear(k, "model.embed_tokens", g->vocab_size, g->hidden_size)) return -1;
    for (int64_t i = 0; i < g->n_layers; i++)
        if (check_layer(k, i)) return -1;
    if (need_vector(k, "model.norm.weight", g->hidden_size)) return -1;
    if (checkpoint_has_linear(c, "lm_head")) return need_linear(k, "lm_head", g->vocab_size, g->hidden_size);
    if (!g->tied_embeddings)
        return err_set(k->e, "%s: tensor lm_head.weight is missing (\"tie_word_embeddings\" is false)", c->path);
    c->tied = true;
    return 0;
}

static int check_quant(struct checkpoint *c, struct err *e)
{
    json_t *q = json_object_get(c->config_json, "quantization_config");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    if (!q || json_is_null(q)) return 0;
    if (!method || (strcmp(method, "compressed-tensors") && strcmp(method, "bitsandbytes") && strcmp(method, "qlab")))
        return err_set(e, "%s: quantization method \"%s\" is not supported (compressed-tensors, bitsandbytes and qlab "
                          "are)", c->path, method ? method : "?");
    c->quant = q;
    return 0;
}

static bool skipped(const char *name) /* a constant that old checkpoints stored */
{
    static const char tail[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name);
    return n >= sizeof tail - 1 && !strcmp(name + n - (sizeof tail - 1), tail);
}

bool checkpoint_reads(const struct checkpoint *c, const char *tensor)
{
    char **u = c->unused;
    while (*u && strcmp(*u, tensor)) u++;
    return !*u && !skipped(tensor);
}

static int check(struct checkpoint *c, struct err *e)
{
    if (c->n_tensors) qsort(c->tensors, c->n_tensors, sizeof *c->tensors, by_name);
    for (size_t i = 1; i < c->n_tensors; i++)
        if (!strcmp(c->tensors[i - 1].name, c->tensors[i].name))
            return err_set(e, "%s: tensor %s is there twice", c->path, c->tensors[i].name);
    if (check_quant(c, e)) return -1;
    struct check k = {.c = c, .used = mem_new(c->n_tensors, sizeof *k.used), .e = e};
    int rc = check_all(c, &k);
    size_t n = 0;
    c->unused = mem_new(c->n_tensors + 1, sizeof *c->unused);
    for (size_t i = 0; i < c->n_tensors; i++)
        if (!k.used[i] && !skipped(c->tensors[i].name)) c->unused[n++] = (char *)(uintptr_t)c->tensors[i].name;
    free(k.used);
    return rc;
}

int checkpoint_open(struct checkpoint *c, const char *path, struct err *e)
{
    memset(c, 0, sizeof *c);
    c->path = mem_strdup(path);
    int rc;
    if (!path_exists(path)) rc = err_set(e, "%s: no such file or folder", path);
    else rc = path_is_dir(path) ? open_folder(c, e) : open_gguf(c, e);
    if (rc == 0) rc = check(c, e);
    if (rc) checkpoint_close(c);
    return rc;
}

void checkpoint_close(struct checkpoint *c)
{
    if (c->gguf) {
        for (size_t i = 0; i < c->n_tensors; i++) free((char *)(uintptr_t)c->tensors[i].name);
        gguf_close(c->gguf);
    }
    for (size_t i = 0; i < c->n_shards; i++) safetensors_close(&c->shards[i]);
    free(c->gguf);
    free(c->shards);
    free(c->tensors);
    free(c->unused); /* the names are the tensors' */
    json_decref(c->config_json);
    free(c->path);
    memset(c, 0, sizeof *c);
}

int64_t checkpoint_bytes(const struct checkpoint *c)
{
    int64_t n = 0;
    for (size_t i = 0; i < c->n_tensors; i++) n += (int64_t)c->tensors[i].n_bytes;
    return n;
}

void checkpoint_drop(const struct tensor *t) { file_map_drop(t->data, t->n_bytes); }
