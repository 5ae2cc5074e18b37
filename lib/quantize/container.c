#include "quantize/container.h"

#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tensors ---- */

void part_declare(struct tensor *t, const char *name, const char *suffix, enum dtype dtype, int n_dims, int64_t d0,
                  int64_t d1)
{
    *t = (struct tensor){.name = mem_printf("%s%s", name, suffix), .dtype = dtype, .n_dims = n_dims, .shape = {d0, d1}};
    t->n_bytes = dtype_bytes(dtype, tensor_elems(t));
}

size_t container_declare(struct tensor parts[CONTAINER_PARTS], const char *name, const struct format *f, int64_t n_out,
                         int64_t n_in, enum dtype model_dtype)
{
    switch (f->kind) {
    case CODE_FLOAT: part_declare(&parts[0], name, ".weight", f->dtype, 2, n_out, n_in); return 1;
    case CODE_INT: return ct_declare(parts, name, f, n_out, n_in, model_dtype);
    case CODE_STRIDED: return strided_declare(parts, name, f, n_out, n_in);
    case CODE_BOOK: return bnb_declare(parts, name, f, n_out, n_in, model_dtype);
    }
    return 0;
}

int64_t container_bytes(const struct format *f, int64_t n_out, int64_t n_in, enum dtype model_dtype)
{
    struct tensor parts[CONTAINER_PARTS];
    size_t n = container_declare(parts, "x", f, n_out, n_in, model_dtype);
    int64_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += (int64_t)parts[i].n_bytes;
        free((char *)(uintptr_t)parts[i].name);
    }
    return bytes;
}

int container_append(struct st_writer *w, const struct qbuffer *b, struct err *e)
{
    switch (b->w.fmt.kind) {
    case CODE_FLOAT:
        return st_writer_append(w, b->codes, (size_t)b->w.n_out * dtype_bytes(b->w.fmt.dtype, b->w.n_in), e);
    case CODE_INT: return ct_append(w, b, e);
    case CODE_STRIDED: return strided_append(w, b, e);
    case CODE_BOOK: return bnb_append(w, b, e);
    }
    return 0;
}

/* ---- the whole ---- */

bool entry_packed(const struct recipe_entry *it) { return it->fmt && it->fmt->kind != CODE_FLOAT; }
bool entry_is_head(const struct recipe_entry *it) { return !strcmp(it->name, "lm_head"); }
bool entry_is_embed(const struct recipe_entry *it) { return !strcmp(it->name, "model.embed_tokens"); }

enum container container_of(const struct recipe *r)
{
    enum container c = CONT_PLAIN;
    for (size_t i = 0; i < r->n; i++) {
        if (!entry_packed(&r->entries[i])) continue;
        enum container it = r->entries[i].fmt->container;
        if (c == CONT_PLAIN) c = it;
        else if (c != it) return CONT_QLAB;
    }
    return c;
}

json_t *container_config(const struct recipe *r, enum dtype model_dtype)
{
    switch (container_of(r)) {
    case CONT_CT: return ct_config(r);
    case CONT_BNB: return bnb_config(r, model_dtype);
    case CONT_QLAB: return qlab_config(r);
    case CONT_PLAIN: break;
    }
    return NULL;
}

/* ---- portability ---- */

struct facts {
    const struct format *first;
    bool mixed, asymmetric, embed, head;
    const struct recipe_entry *ragged; /* a group that does not divide the row */
    const struct recipe_entry *small;  /* asymmetric with a single word of zero points a group */
    const struct recipe_entry *split;  /* flat blocks across rows */
    const struct recipe_entry *shape, *scheme, *fused; /* what vLLM's kernels do not take */
};

/* vLLM fuses q, k, v and gate, up: they must be alike, and their rows count together. */
static void fused_facts(const struct recipe *r, struct facts *f)
{
    static const struct {
        enum op first, last;
    } sets[] = {{OP_Q, OP_V}, {OP_GATE, OP_UP}};
    for (size_t i = 0; i + N_OPS <= r->n && r->entries[i].layer >= 0; i += N_OPS)
        for (size_t s = 0; s < 2; s++) {
            const struct recipe_entry *a = &r->entries[i + sets[s].first];
            int64_t rows = 0;
            for (enum op op = sets[s].first; op <= sets[s].last; op++) {
                const struct recipe_entry *b = &r->entries[i + op];
                rows += b->n_out;
                if (entry_packed(a) != entry_packed(b) || (entry_packed(a) && !format_same(a->fmt, b->fmt))) f->fused = b;
            }
            if (entry_packed(a) && rows % 64 && !f->shape) f->shape = a;
        }
}

static struct facts gather(const struct recipe *r)
{
    struct facts f = {0};
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        const struct format *fmt = it->fmt;
        if (!entry_packed(it)) continue;
        f.mixed |= f.first && !format_same(f.first, fmt);
        if (!f.first) f.first = fmt;
        f.embed |= entry_is_embed(it);
        f.head |= entry_is_head(it);
        bool alone = it->layer < 0 || it->op == OP_O || it->op == OP_DOWN;
        if (!f.shape && (it->n_in % 128 || (alone && it->n_out % 64))) f.shape = it;
        if (fmt->kind == CODE_BOOK && !f.split && it->n_in % fmt->group) f.split = it;
        if (fmt->kind != CODE_INT) continue;
        f.asymmetric |= !fmt->symmetric;
        if (fmt->group && it->n_in % fmt->group && !f.ragged) f.ragged = it;
        if (!fmt->symmetric && it->n_out <= 32 / fmt->bits && !f.small) f.small = it;
        bool group = fmt->group == 32 || fmt->group == 64 || fmt->group == 128;
        if (!f.scheme && !(fmt->bits == 8 ? fmt->symmetric : group || (!fmt->group && fmt->symmetric))) f.scheme = it;
    }
    fused_facts(r, &f);
    return f;
}

static json_t *verdict(const char *transformers, const char *vllm, const char *t_why, const char *v_why)
{
    char why[512] = "";
    bool same = t_why && v_why && !strcmp(t_why, v_why);
    if (t_why) snprintf(why, sizeof why, "%s%s", same ? "" : "transformers: ", t_why);
    if (v_why && !same)
        snprintf(why + strlen(why), sizeof why - strlen(why), "%svLLM: %s", *why ? "; " : "", v_why);
    return json_pack("{s:s,s:s,s:o}", "transformers", transformers, "vllm", vllm, "why",
                     *why ? json_string(why) : json_null());
}

static json_t *ct_portable(const struct facts *f)
{
    char t[256] = "", v[256] = "";
    const char *transformers = "yes";
    if (f->embed) {
        transformers = "no";
        snprintf(t, sizeof t, "a packed embedding cannot be loaded");
    } else if (f->ragged) {
        transformers = "no";
        snprintf(t, sizeof t, "groups of %lld do not divide the %lld columns of %s", (long long)f->ragged->fmt->group,
                 (long long)f->ragged->n_in, f->ragged->name);
    } else if (f->asymmetric && f->mixed) {
        transformers = "no";
        snprintf(t, sizeof t, "asymmetric codes beside another scheme cannot be loaded");
    } else if (f->small) {
        transformers = "no";
        snprintf(t, sizeof t, "zero points of %lld rows (%s) cannot be unpacked", (long long)f->small->n_out,
                 f->small->name);
    } else if (f->asymmetric) {
        transformers = "dequantize";
        snprintf(t, sizeof t, "asymmetric codes load only with CompressedTensorsConfig(dequantize=True)");
    }
    if (f->embed || f->ragged) snprintf(v, sizeof v, "%s", t);
    else if (f->scheme) snprintf(v, sizeof v, "no kernel for %s", f->scheme->fmt->name);
    else if (f->fused) snprintf(v, sizeof v, "%s differs from the layers it is fused with", f->fused->name);
    else if (f->shape)
        snprintf(v, sizeof v, "its kernels want columns divisible by 128 and rows by 64 (%s is %lld x %lld)", f->shape->name,
                 (long long)f->shape->n_out, (long long)f->shape->n_in);
    return verdict(transformers, *v ? "no" : "expected", *t ? t : NULL, *v ? v : NULL);
}

static json_t *bnb_portable(const struct facts *f)
{
    char t[256] = "", v[256] = "";
    if (f->embed || f->head)
        snprintf(t, sizeof t, "bitsandbytes leaves embedding and head plain: a packed one cannot be loaded");
    else if (f->split)
        snprintf(t, sizeof t, "blocks of 64 cross the rows of %s (%lld columns), which the CPU kernel gets wrong",
                 f->split->name, (long long)f->split->n_in);
    if (f->embed || f->head) snprintf(v, sizeof v, "%s", t);
    else if (f->mixed) snprintf(v, sizeof v, "one 4-bit type for all layers is expected");
    else if (f->fused) snprintf(v, sizeof v, "%s differs from the layers it is fused with", f->fused->name);
    return verdict(*t ? "no" : "yes", *v ? "no" : "expected", *t ? t : NULL, *v ? v : NULL);
}

json_t *container_portable(const struct recipe *r)
{
    struct facts f = gather(r);
    switch (container_of(r)) {
    case CONT_PLAIN: return verdict("yes", "expected", NULL, NULL);
    case CONT_CT: return ct_portable(&f);
    case CONT_BNB: return bnb_portable(&f);
    case CONT_QLAB: break;
    }
    const char *why = f.mixed ? "formats of several containers in one folder open only here"
                              : "this format has no library of its own and opens only here";
    return verdict("no", "no", why, why);
}
