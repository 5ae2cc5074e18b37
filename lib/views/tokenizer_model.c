/* The tokenizer that a MODEL carries: beside its weights in a folder, or inside a GGUF. */
#include "base/file.h"
#include "base/mem.h"
#include "views/gguf.h"
#include "views/tok.h"
#include "views/tokenizer.h"

#include <stdlib.h>

#define MAX_JSON ((size_t)1 << 30)

static struct tokenizer *of_folder(const char *dir, struct err *e)
{
    char *path = path_join(dir, "tokenizer.json"), *config_path = path_join(dir, "tokenizer_config.json");
    json_t *json = NULL, *config = NULL;
    struct tokenizer *t = NULL;
    if (!path_exists(path)) err_set(e, "%s: missing (the model's tokenizer was expected there)", path);
    else if ((json = json_read(path, MAX_JSON, e)) &&
             (!path_exists(config_path) || (config = json_read(config_path, MAX_JSON, e))))
        t = tokenizer_new(json, config, path, e);
    json_decref(json);
    json_decref(config);
    free(path);
    free(config_path);
    return t;
}

static struct tokenizer *of_gguf(const char *path, struct err *e)
{
    struct gguf g;
    if (gguf_open(&g, path, e)) return NULL;
    struct tokenizer *t = NULL;
    json_t *json = gguf_tokenizer_json(&g, e);
    int64_t bos, eos;
    if (json && (t = tokenizer_new(json, NULL, path, e))) {
        if (gguf_get_int(&g, "tokenizer.ggml.bos_token_id", false, t->bos, &bos, e) ||
            gguf_get_int(&g, "tokenizer.ggml.eos_token_id", false, -1, &eos, e)) {
            err_prefix(e, "%s", path);
            tokenizer_free(t);
            t = NULL;
        } else {
            t->bos = bos;
            t->eos = eos;
        }
    }
    json_decref(json);
    gguf_close(&g);
    return t;
}

struct tokenizer *tokenizer_of_model(const char *path, struct err *e)
{
    return path_is_dir(path) ? of_folder(path, e) : of_gguf(path, e);
}
