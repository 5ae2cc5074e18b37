#include "output/describe.h"

#include "model/plan.h"

static json_t *rope_json(const struct rope *r)
{
    json_t *j = json_object();
    json_put(j, "type", json_string(r->type == ROPE_LLAMA3 ? "llama3" : "default"));
    json_put(j, "theta", json_num(r->theta));
    if (r->type != ROPE_LLAMA3) return j;
    json_put(j, "factor", json_num(r->factor));
    json_put(j, "low_freq_factor", json_num(r->low_freq_factor));
    json_put(j, "high_freq_factor", json_num(r->high_freq_factor));
    json_put(j, "original_max_position_embeddings", json_integer(r->original_max_position_embeddings));
    return j;
}

static void put_sizes(json_t *r, const struct checkpoint *c)
{
    const struct config *g = &c->config;
    json_put(r, "architecture", json_string(g->architecture));
    json_put(r, "n_params", json_integer(plan_n_params(g, c->tied)));
    json_put(r, "n_layers", json_integer(g->n_layers));
    json_put(r, "hidden_size", json_integer(g->hidden_size));
    json_put(r, "intermediate_size", json_integer(g->intermediate_size));
    json_put(r, "n_heads", json_integer(g->n_heads));
    json_put(r, "n_kv_heads", json_integer(g->n_kv_heads));
    json_put(r, "head_dim", json_integer(g->head_dim));
    json_put(r, "vocab_size", json_integer(g->vocab_size));
    json_put(r, "tied_embeddings", json_boolean(c->tied));
    json_put(r, "max_position_embeddings", json_integer(g->max_position_embeddings));
    json_put(r, "rope", rope_json(&g->rope));
}

static void put_tensors(json_t *r, const struct checkpoint *c, bool all)
{
    json_t *dtypes = json_object(), *list = json_array(), *unused = json_array();
    int64_t bytes[DT_COUNT] = {0};
    for (size_t i = 0; i < c->n_tensors; i++) {
        const struct tensor *t = &c->tensors[i];
        json_t *shape = json_array();
        for (int k = 0; k < t->n_dims; k++) json_array_append_new(shape, json_integer(t->shape[k]));
        json_array_append_new(list, json_pack("{s:s,s:s,s:o,s:I}", "name", t->name, "dtype",
                                              dtype_traits(t->dtype)->name, "shape", shape, "bytes",
                                              (json_int_t)t->n_bytes));
        bytes[t->dtype] += (int64_t)t->n_bytes;
    }
    for (int i = 0; i < DT_COUNT; i++)
        if (bytes[i]) json_put(dtypes, dtype_traits((enum dtype)i)->name, json_integer(bytes[i]));
    for (char **u = c->unused; *u; u++) json_array_append_new(unused, json_string(*u));
    json_put(r, "weights_bytes", json_integer(checkpoint_bytes(c)));
    json_put(r, "dtypes", dtypes);
    json_put(r, "n_tensors", json_integer((json_int_t)c->n_tensors));
    json_put(r, "unused_tensors", unused);
    if (all) json_put(r, "tensors", list);
    else json_decref(list);
}

static int count_format(void *ctx, const char *name, const struct qweight *w, struct err *e)
{
    (void)name, (void)e;
    json_t *n = json_object_get(ctx, w->fmt.name);
    json_put(ctx, w->fmt.name, json_integer(json_integer_value(n) + 1));
    return 0;
}

int describe_checkpoint(json_t *r, const struct checkpoint *c, bool tensors, struct err *e)
{
    json_t *formats = json_object(), *q = json_null();
    put_sizes(r, c);
    put_tensors(r, c, tensors);
    int rc = plan_each_weight(c, count_format, formats, e);
    if (c->quant) q = json_pack("{s:O,s:O}", "method", json_object_get(c->quant, "quant_method"), "formats", formats);
    json_put(r, "quantization", q);
    json_decref(formats);
    return rc;
}
