/* Recipes: which format each tensor gets. {"default": "nf4", "rules": [{"match": GLOB, "format": F[, "method": M]}, …]},
 * globs on names (fnmatch, '*' crosses dots), first match wins, a rule that matches nothing is an error. The default
 * covers decoder linears; embedding ("model.embed_tokens") and head ("lm_head") only by rule or option. */
#ifndef QLAB_QUANTIZE_RECIPE_H
#define QLAB_QUANTIZE_RECIPE_H

#include "base/err.h"
#include "base/json.h"
#include "quantize/format.h"
#include "quantize/method.h"
#include "views/config.h"

struct recipe_entry {
    char name[LINEAR_NAME_MAX]; /* "model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head" */
    int64_t layer;              /* −1 for embedding and head */
    enum op op;
    int64_t n_out, n_in;
    const struct format *fmt; /* NULL: stays as it is */
    const struct method *method;
};

/* By name; the error lists the names there are. */
int recipe_format(const char *name, const struct format **f, struct err *e);
int recipe_method(const char *name, const struct method **m, struct err *e);

/* One entry for every decoder linear in layer, op order, then model.embed_tokens, then lm_head. */
struct recipe {
    struct recipe_entry *entries;
    size_t n;
};

/* From a recipe's JSON: also "method" (the default one; `method`, when given, is stronger), "name", "comment" and "plan" may
 * stand in it; without "default" the linears no rule matches stay as they are. embed, head: the options (NULL: not
 * given), stronger than rules. */
int recipe_resolve(struct recipe *r, const json_t *recipe, const char *method, const char *embed, const char *head,
                   const struct config *cfg, struct err *e);
/* A recipe name (format with optional +head=, +embed=, +mse) as recipe JSON; options are put into *embed, *head,
 * *method (static or interned strings; NULL if absent). NULL with an error if it is not one. */
json_t *recipe_from_name(const char *name, const char **method, const char **embed, const char **head, struct err *e);
/* What one linear becomes, by such a name (which then has neither head nor embedding). method: the option (NULL: not given),
 * stronger than the name's; rtn without either. */
int recipe_linear(const char *name, const char *method, const struct format **f, const struct method **m, struct err *e);
void recipe_free(struct recipe *r);

#endif
