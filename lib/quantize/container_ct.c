/* compressed-tensors, format pack-quantized (compressors/pack_quantized/base.py, utils/match.py). */
#include "quantize/container.h"

#include "base/mem.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- which scheme a module has ---- */

/* Python's re.match: anchored at the start only. 1 match, 0 no match, -1 error. */
static int regex_match(const char *pattern, const char *name, struct err *e)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &code, &at, NULL);
    if (!re) {
        char why[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return err_set(e, "\"re:%s\" is not a regular expression (%s)", pattern, why);
    }
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_set_match_limit(limits, 100000);
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    int rc = pcre2_match(re, (PCRE2_SPTR)name, strlen(name), 0, 0, m, limits);
    pcre2_match_data_free(m);
    pcre2_match_context_free(limits);
    pcre2_code_free(re);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) return err_set(e, "\"re:%s\" cannot be matched (too costly)", pattern);
    return rc >= 0;
}

/* The torch classes of the modules qlab knows: every linear is a Linear, the embedding an Embedding. */
static bool class_match(const char *name, const char *target)
{
    return !strcmp(target, "Module") || !strcmp(target, !strcmp(name, "model.embed_tokens") ? "Embedding" : "Linear");
}

enum rank { RANK_NONE, RANK_CLASS, RANK_REGEX, RANK_EXACT };

static int target_rank(const char *name, const char *target, enum rank *rank, struct err *e)
{
    *rank = RANK_NONE;
    if (!strncmp(target, "re:", 3)) {
        int m = regex_match(target + 3, name, e);
        if (m < 0) return -1;
        if (m) *rank = RANK_REGEX;
    } else if (!strcmp(target, name)) {
        *rank = RANK_EXACT;
    } else if (class_match(name, target)) {
        *rank = RANK_CLASS;
    }
    return 0;
}

static int target_text(const json_t *v, const char **s, struct err *e)
{
    *s = json_string_value(v);
    if (!*s || strlen(*s) != json_string_length(v)) return err_set(e, "a target is not a string");
    return 0;
}

/* The group that transformers chooses: ignore beats all; then an exact name, then the alphabetically first regex, then
 * the alphabetically first class name; of two groups with the same target the later. NULL: not quantized. */
static int choose_group(const json_t *quant, const char *name, const char **key, const json_t **group, struct err *e)
{
    *group = NULL;
    const json_t *ignore = json_object_get(quant, "ignore"), *groups = json_object_get(quant, "config_groups");
    if (ignore && !json_is_null(ignore) && !json_is_array(ignore)) return err_set(e, "\"ignore\" is not a list");
    if (!json_is_object(groups)) return err_set(e, "\"config_groups\" is missing or not an object");
    size_t i;
    json_t *v, *g;
    const char *target, *best = NULL, *k;
    enum rank rank, best_rank = RANK_NONE;
    json_array_foreach(ignore, i, v) {
        if (target_text(v, &target, e) || target_rank(name, target, &rank, e)) return err_prefix(e, "ignore");
        if (rank != RANK_NONE) return 0;
    }
    json_object_foreach((json_t *)groups, k, g) {
        const json_t *targets = json_is_array(g) ? g : json_object_get(g, "targets");
        if (!json_is_array(targets)) return err_set(e, "config_groups.%s has no list of targets", k);
        json_array_foreach(targets, i, v) {
            if (target_text(v, &target, e) || target_rank(name, target, &rank, e))
                return err_prefix(e, "config_groups.%s", k);
            if (rank == RANK_NONE || rank < best_rank) continue;
            if (rank == best_rank && strcmp(target, best) > 0) continue;
            best = target;
            best_rank = rank;
            *group = g;
            *key = k;
        }
    }
    return 0;
}

/* The named presets of compressed-tensors that are weight-only integers. */
static int preset(const char *key, struct format *f, struct err *e)
{
    static const struct {
        const char *name;
        int bits;
        bool symmetric;
    } known[] = {{"W4A16", 4, true}, {"W8A16", 8, true}, {"W4A16_ASYM", 4, false}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(key, known[i].name)) {
            f->bits = known[i].bits;
            f->symmetric = known[i].symmetric;
            f->group = 128;
            return 0;
        }
    return err_set(e, "preset scheme \"%s\" is not supported (W4A16, W8A16 and W4A16_ASYM are)", key);
}

static bool absent(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return !v || json_is_null(v) || (json_is_object(v) && !json_object_size(v));
}

static int parse_weights(const json_t *w, struct format *f, struct err *e)
{
    int64_t bits, group;
    const char *type, *strategy, *order;
    bool dynamic;
    if (!json_is_object(w)) return err_set(e, "\"weights\" is missing");
    if (json_get_int(w, "num_bits", false, 1, 64, 8, &bits, e) ||
        json_get_int(w, "group_size", false, -1, INT64_C(1) << 31, 0, &group, e) ||
        json_get_str(w, "type", false, "int", &type, e) ||
        json_get_str(w, "strategy", false, group > 0 ? "group" : group < 0 ? "channel" : "tensor", &strategy, e) ||
        json_get_bool(w, "symmetric", false, true, &f->symmetric, e) ||
        json_get_bool(w, "dynamic", false, false, &dynamic, e))
        return -1;
    if (json_is_string(json_object_get(w, "actorder"))) {
        if (json_get_str(w, "actorder", false, NULL, &order, e)) return -1;
        if (strcmp(order, "weight") && strcmp(order, "static"))
            return err_set(e, "actorder \"%s\" is not supported (weight and static are)", order);
    }
    if (strcmp(type, "int") || (bits != 4 && bits != 8) || dynamic)
        return err_set(e, "%lld-bit %s%s weights are not supported (4 and 8-bit int are)", (long long)bits,
                       dynamic ? "dynamic " : "", type);
    if (!strcmp(strategy, "group") ? group <= 0 : strcmp(strategy, "channel") != 0)
        return err_set(e, "strategy \"%s\"%s is not supported (group with a group_size and channel are)", strategy,
                       strcmp(strategy, "group") ? "" : " without a group_size");
    f->bits = (int)bits;
    f->group = !strcmp(strategy, "group") ? group : 0;
    return 0;
}

static int parse_group(const json_t *quant, const char *key, const json_t *group, struct format *f, struct err *e)
{
    const char *format;
    if (json_get_str(quant, "format", false, "pack-quantized", &format, e)) return -1;
    if (json_is_array(group)) {
        if (preset(key, f, e)) return -1;
    } else {
        if (json_get_str(group, "format", false, format, &format, e)) return -1;
        if (!absent(group, "input_activations") || !absent(group, "output_activations"))
            return err_set(e, "quantized activations are not supported");
        if (parse_weights(json_object_get(group, "weights"), f, e)) return -1;
    }
    if (strcmp(format, "pack-quantized")) return err_set(e, "format \"%s\" is not supported (pack-quantized is)", format);
    return 0;
}

static int unsupported_extras(const json_t *quant, struct err *e)
{
    const char *keys[] = {"kv_cache_scheme", "transform_config"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!absent(quant, keys[i])) return err_set(e, "\"%s\" is not supported", keys[i]);
    const json_t *sparsity = json_object_get(quant, "sparsity_config");
    const char *format;
    if (json_is_object(sparsity)) {
        if (json_get_str(sparsity, "format", false, "dense", &format, e)) return err_prefix(e, "sparsity_config");
        if (strcmp(format, "dense")) return err_set(e, "sparse weights (\"%s\") are not supported", format);
    }
    return 0;
}

/* ---- reading ---- */

int ct_parts_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e)
{
    const struct format *f = &w->fmt;
    int64_t groups = format_groups(f, w->n_in);
    int64_t codes[2] = {w->n_out, format_words(f, w->n_in)}, scale[2] = {w->n_out, groups};
    int64_t zero[2] = {format_words(f, w->n_out), groups}, two = 2;
    const struct tensor *t;
    if (!(t = part_need(c, name, ".weight_packed", DT_I32, 2, codes, e))) return -1;
    w->codes = t->data;
    if (!(t = part_need(c, name, ".weight_scale", DT_COUNT, 2, scale, e))) return -1;
    w->scale = t->data;
    w->out_dtype = w->scale_dtype = t->dtype;
    if (!f->symmetric) {
        if (!(t = part_need(c, name, ".weight_zero_point", DT_I32, 2, zero, e))) return -1;
        w->zero = t->data;
    }
    char *g_idx = mem_printf("%s.weight_g_idx", name), *shape = mem_printf("%s.weight_shape", name);
    const struct tensor *permuted = checkpoint_find(c, g_idx), *s = checkpoint_find(c, shape);
    enum dtype dt = s && s->dtype == DT_I32 ? DT_I32 : DT_I64;
    free(g_idx);
    free(shape);
    if (permuted) return err_set(e, "%s: tensor %s: activation ordering is not supported", c->path, permuted->name);
    if (!(s = part_need(c, name, ".weight_shape", dt, 1, &two, e))) return -1;
    int64_t n_out = dt == DT_I64 ? ((const int64_t *)s->data)[0] : ((const int32_t *)s->data)[0];
    int64_t n_in = dt == DT_I64 ? ((const int64_t *)s->data)[1] : ((const int32_t *)s->data)[1];
    if (n_out != w->n_out || n_in != w->n_in)
        return err_set(e, "%s: tensor %s is [%lld, %lld] ([%lld, %lld] was expected from config.json)", c->path, s->name,
                       (long long)n_out, (long long)n_in, (long long)w->n_out, (long long)w->n_in);
    return 0;
}

int ct_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e)
{
    const json_t *group;
    const char *key = "";
    char *full = mem_printf("%s.weight_packed", name);
    bool stored = checkpoint_find(c, full) != NULL;
    free(full);
    if (unsupported_extras(c->quant, e) || choose_group(c->quant, name, &key, &group, e))
        return err_prefix(e, "%s: quantization_config", c->path);
    *packed = group != NULL;
    if (stored && !group)
        return err_set(e, "%s: %s is stored packed, but quantization_config has no group for it", c->path, name);
    if (!group) return 0;
    if (!stored)
        return err_set(e, "%s: quantization_config (group \"%s\") says that %s is packed, but there is no %s.weight_packed",
                       c->path, key, name, name);
    w->fmt = (struct format){.kind = CODE_INT, .container = CONT_CT};
    if (parse_group(c->quant, key, group, &w->fmt, e))
        return err_prefix(e, "%s: quantization_config group \"%s\" (for %s)", c->path, key, name);
    return ct_parts_open(w, c, name, e);
}

/* ---- writing ---- */

size_t ct_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in,
                  enum dtype model_dtype)
{
    int64_t groups = format_groups(f, n_in);
    part_declare(&parts[0], name, ".weight_packed", DT_I32, 2, n_out, format_words(f, n_in));
    part_declare(&parts[1], name, ".weight_scale", model_dtype, 2, n_out, groups);
    part_declare(&parts[2], name, ".weight_shape", DT_I64, 1, 2, 0);
    if (f->symmetric) return 3;
    part_declare(&parts[3], name, ".weight_zero_point", DT_I32, 2, format_words(f, n_out), groups);
    return 4;
}

int ct_append(struct st_writer *w, const struct qbuffer *b, struct err *e)
{
    const struct qweight *q = &b->w;
    int64_t groups = format_groups(&q->fmt, q->n_in), shape[2] = {q->n_out, q->n_in};
    if (st_writer_append(w, b->codes, 4 * (size_t)(q->n_out * format_words(&q->fmt, q->n_in)), e) ||
        st_writer_append(w, b->scale, dtype_bytes(q->scale_dtype, q->n_out * groups), e) ||
        st_writer_append(w, shape, sizeof shape, e))
        return -1;
    if (q->fmt.symmetric) return 0;
    return st_writer_append(w, b->zero, 4 * (size_t)(format_words(&q->fmt, q->n_out) * groups), e);
}

static json_t *group_json(const struct format *f, json_t *targets)
{
    return json_pack("{s:o,s:n,s:n,s:s,s:{s:i,s:s,s:b,s:s,s:o,s:b,s:n,s:n,s:s,s:{}}}", "targets", targets,
                     "input_activations", "output_activations", "format", "pack-quantized", "weights", "num_bits", f->bits,
                     "type", "int", "symmetric", f->symmetric, "strategy", f->group ? "group" : "channel", "group_size",
                     f->group ? json_integer(f->group) : json_null(), "dynamic", 0, "actorder", "block_structure",
                     "observer", "minmax", "observer_kwargs");
}

/* One scheme: every Linear but those in `ignore`. Several: exact names, so that transformers (exact names, then regexes
 * by alphabet) and vLLM (first match in file order) choose alike; what has no group is in `ignore`. */
json_t *ct_config(const struct recipe *r)
{
    const struct format *schemes[64];
    size_t n = 0;
    bool linears = false;
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        size_t k = 0;
        if (!entry_packed(it)) continue;
        linears |= !entry_is_embed(it);
        while (k < n && !format_same(schemes[k], it->fmt)) k++;
        if (k == n && n < sizeof schemes / sizeof *schemes) schemes[n++] = it->fmt;
    }
    json_t *groups = json_object(), *ignore = json_array();
    for (size_t k = 0; k < n; k++) {
        json_t *targets = json_array();
        char key[32];
        if (n == 1 && linears) json_array_append_new(targets, json_string("Linear"));
        for (size_t i = 0; i < r->n; i++) {
            const struct recipe_entry *it = &r->entries[i];
            if (entry_packed(it) && format_same(schemes[k], it->fmt) && (n > 1 || entry_is_embed(it)))
                json_array_append_new(targets, json_string(it->name));
        }
        snprintf(key, sizeof key, "group_%zu", k);
        json_put(groups, key, group_json(schemes[k], targets));
    }
    for (size_t i = 0; i < r->n; i++)
        if (!entry_packed(&r->entries[i]) && !entry_is_embed(&r->entries[i]))
            json_array_append_new(ignore, json_string(r->entries[i].name));
    return json_pack("{s:s,s:s,s:s,s:s,s:o,s:o,s:n,s:n,s:{},s:{}}", "quant_method", "compressed-tensors", "format",
                     "pack-quantized", "quantization_status", "compressed", "version", "0.20.0", "config_groups", groups,
                     "ignore", ignore, "kv_cache_scheme", "global_compression_ratio", "sparsity_config",
                     "transform_config");
}
