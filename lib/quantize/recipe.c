#include "quantize/recipe.h"

#include "base/mem.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* unknown format "x" (known: f32, bf16, …) */
static int unknown_format(const char *name, struct err *e)
{
    size_t n;
    const struct format *t = format_table(&n);
    char list[512] = "";
    for (size_t i = 0; i < n; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", t[i].name);
    return err_set(e, "unknown format \"%s\" (known: %s)", name, list);
}

int recipe_format(const char *name, const struct format **f, struct err *e)
{
    *f = format_find(name);
    return *f ? 0 : unknown_format(name, e);
}

int recipe_method(const char *name, const struct method **m, struct err *e)
{
    *m = method_find(name);
    if (*m) return 0;
    size_t n;
    const struct method *t = method_table(&n);
    char list[128] = "";
    for (size_t i = 0; i < n; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", t[i].name);
    return err_set(e, "unknown method \"%s\" (known: %s)", name, list);
}

/* ---- names ---- */

json_t *recipe_from_name(const char *name, const char **method, const char **embed, const char **head, struct err *e)
{
    *method = *embed = *head = NULL;
    char *copy = mem_strdup(name), *save = NULL;
    const struct format *base = NULL, *f;
    const struct method *m;
    int rc = 0, part = 0;
    if (!*name || name[strlen(name) - 1] == '+' || strstr(name, "++")) rc = err_set(e, "recipe \"%s\" has an empty part", name);
    for (char *s = strtok_r(copy, "+", &save); s && rc == 0; s = strtok_r(NULL, "+", &save), part++) {
        const char **slot = !strncmp(s, "head=", 5) ? head : !strncmp(s, "embed=", 6) ? embed : NULL;
        if (part == 0) {
            rc = recipe_format(s, &base, e);
        } else if (slot) {
            if (*slot) rc = err_set(e, "recipe \"%s\" names the %s twice", name, slot == head ? "head" : "embedding");
            else if ((rc = recipe_format(strchr(s, '=') + 1, &f, e)) == 0) *slot = f->name;
        } else if (strchr(s, '=')) {
            rc = err_set(e, "recipe \"%s\": \"%s\" (head=FORMAT, embed=FORMAT or a method was expected)", name, s);
        } else {
            if (*method) rc = err_set(e, "recipe \"%s\" names two methods", name);
            else if ((rc = recipe_method(s, &m, e)) == 0) *method = m->name;
        }
    }
    free(copy);
    return rc ? NULL : json_pack("{s:s}", "default", base->name);
}

int recipe_linear(const char *name, const char *method, const struct format **f, const struct method **m, struct err *e)
{
    const char *own, *embed, *head;
    json_t *recipe = recipe_from_name(name, &own, &embed, &head, e);
    if (!recipe) return -1;
    *f = format_find(json_string_value(json_object_get(recipe, "default")));
    json_decref(recipe);
    if (embed || head)
        return err_set(e, "recipe \"%s\" names the %s (FORMAT or FORMAT+METHOD was expected)", name, head ? "head" : "embedding");
    return recipe_method(method ? method : own ? own : "rtn", m, e);
}

/* ---- resolving ---- */

static void list_entries(struct recipe *r, const struct config *cfg)
{
    r->n = 0;
    r->entries = mem_new((size_t)cfg->n_layers * N_OPS + 2, sizeof *r->entries);
    for (int64_t i = 0; i < cfg->n_layers; i++)
        for (enum op op = 0; op < N_OPS; op++) {
            struct recipe_entry *it = &r->entries[r->n++];
            linear_name(it->name, i, op);
            it->layer = i;
            it->op = op;
            config_op_shape(cfg, op, &it->n_out, &it->n_in);
        }
    const char *ends[2] = {"model.embed_tokens", "lm_head"};
    for (int i = 0; i < 2; i++) {
        struct recipe_entry *it = &r->entries[r->n++];
        snprintf(it->name, sizeof it->name, "%s", ends[i]);
        it->layer = -1;
        it->n_out = cfg->vocab_size;
        it->n_in = cfg->hidden_size;
    }
}

struct rule {
    const char *match;
    const struct format *fmt;
    const struct method *method; /* NULL: the recipe's */
};

static int known_keys(const json_t *o, const char *keys, struct err *e)
{
    const char *k;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, k, v) {
        char word[64];
        snprintf(word, sizeof word, "|%s|", k);
        if (!strstr(keys, word)) return err_set(e, "unknown key \"%s\"", k);
    }
    return 0;
}

static int parse_rule(const json_t *o, struct rule *r, struct err *e)
{
    const char *format, *method;
    memset(r, 0, sizeof *r);
    if (!json_is_object(o)) return err_set(e, "not an object {\"match\", \"format\"}");
    if (known_keys(o, "|match|format|method|", e) || json_get_str(o, "match", true, NULL, &r->match, e) ||
        json_get_str(o, "format", true, NULL, &format, e) || json_get_str(o, "method", false, NULL, &method, e) ||
        recipe_format(format, &r->fmt, e) || (method && recipe_method(method, &r->method, e)))
        return -1;
    return 0;
}

static int apply_rules(struct recipe *r, const json_t *rules, bool *done, struct err *e)
{
    if (!rules || json_is_null(rules)) return 0;
    if (!json_is_array(rules)) return err_set(e, "\"rules\" is not a list");
    size_t i;
    json_t *v;
    json_array_foreach(rules, i, v) {
        struct rule rule;
        bool any = false;
        if (parse_rule(v, &rule, e)) return err_prefix(e, "rule %zu", i + 1);
        for (size_t k = 0; k < r->n; k++) {
            if (fnmatch(rule.match, r->entries[k].name, 0)) continue;
            any = true;
            if (done[k]) continue; /* the first match wins */
            done[k] = true;
            r->entries[k].fmt = rule.fmt;
            r->entries[k].method = rule.method;
        }
        if (!any)
            return err_set(e, "rule %zu: \"%s\" matches no tensor (names are like model.layers.0.mlp.up_proj, "
                              "model.embed_tokens and lm_head)", i + 1, rule.match);
    }
    return 0;
}

static int resolve(struct recipe *r, const json_t *recipe, const char *method, const char *embed, const char *head,
                   bool *done, struct err *e)
{
    const char *dflt, *own;
    const struct format *f = NULL;
    const struct method *m;
    if (!json_is_object(recipe)) return err_set(e, "not an object {\"default\", \"rules\"}");
    if (known_keys(recipe, "|default|rules|method|name|comment|plan|", e) ||
        json_get_str(recipe, "default", false, NULL, &dflt, e) || json_get_str(recipe, "method", false, "rtn", &own, e) ||
        recipe_method(method ? method : own, &m, e) || (dflt && recipe_format(dflt, &f, e)) ||
        apply_rules(r, json_object_get(recipe, "rules"), done, e))
        return -1;
    const char *options[2] = {embed, head};
    for (size_t k = 0; k < r->n; k++) {
        struct recipe_entry *it = &r->entries[k];
        const char *option = it->layer < 0 ? options[k - (r->n - 2)] : NULL;
        if (option) {
            if (recipe_format(option, &it->fmt, e)) return -1;
            it->method = NULL;
        } else if (!done[k] && it->layer >= 0) {
            it->fmt = f;
        }
        if (it->fmt && !it->method) it->method = m;
    }
    return 0;
}

int recipe_resolve(struct recipe *r, const json_t *recipe, const char *method, const char *embed, const char *head,
                   const struct config *cfg, struct err *e)
{
    list_entries(r, cfg);
    bool *done = mem_new(r->n, sizeof *done);
    int rc = resolve(r, recipe, method, embed, head, done, e);
    free(done);
    if (rc) {
        recipe_free(r);
        return err_prefix(e, "recipe");
    }
    return 0;
}

void recipe_free(struct recipe *r)
{
    free(r->entries);
    memset(r, 0, sizeof *r);
}
