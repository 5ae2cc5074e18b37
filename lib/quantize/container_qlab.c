/* The qlab container: mixes across families and formats no library has. config.json says what each tensor is:
 *   "quantization_config": {"quant_method": "qlab", "version": 1, "tensors": {NAME: {"format": "nf4"}, …}}
 * Tensors are named as in the format's own family; int4-strided128 has
 *   NAME.weight_packed U8 [N][ceil(K/2)], NAME.weight_scale F16 [N][128], NAME.weight_zero_point F16 [N][128]. */
#include "quantize/container.h"

#include <string.h>

static int strided_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e)
{
    int64_t codes[2] = {w->n_out, (w->n_in + 1) / 2}, groups[2] = {w->n_out, w->fmt.group};
    const struct tensor *t;
    if (!(t = part_need(c, name, ".weight_packed", DT_U8, 2, codes, e))) return -1;
    w->codes = t->data;
    if (!(t = part_need(c, name, ".weight_scale", DT_F16, 2, groups, e))) return -1;
    w->scale = t->data;
    if (!(t = part_need(c, name, ".weight_zero_point", DT_F16, 2, groups, e))) return -1;
    w->zero = t->data;
    w->scale_dtype = w->out_dtype = DT_F16;
    return 0;
}

int qlab_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e)
{
    const json_t *tensors = json_object_get(c->quant, "tensors"), *it;
    int64_t version;
    const char *format;
    *packed = false;
    if (json_get_int(c->quant, "version", true, 1, 1, 0, &version, e))
        return err_prefix(e, "%s: quantization_config", c->path);
    if (!json_is_object(tensors)) return err_set(e, "%s: quantization_config has no \"tensors\"", c->path);
    if (!(it = json_object_get(tensors, name))) return 0;
    if (json_get_str(it, "format", true, NULL, &format, e))
        return err_prefix(e, "%s: quantization_config for %s", c->path, name);
    const struct format *f = format_find(format);
    if (!f) return err_set(e, "%s: quantization_config for %s: unknown format \"%s\"", c->path, name, format);
    if (f->kind == CODE_FLOAT) return 0;
    *packed = true;
    w->fmt = *f;
    if (f->kind == CODE_INT) return ct_parts_open(w, c, name, e);
    if (f->kind == CODE_STRIDED) return strided_open(w, c, name, e);
    if (bnb_parts_open(w, c, name, e)) return -1;
    if (!format_same(&w->fmt, f))
        return err_set(e, "%s: %s is stored in another format than quantization_config says (%s)", c->path, name, format);
    return 0;
}

/* ---- writing ---- */

size_t strided_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in)
{
    part_declare(&parts[0], name, ".weight_packed", DT_U8, 2, n_out, (n_in + 1) / 2);
    part_declare(&parts[1], name, ".weight_scale", DT_F16, 2, n_out, f->group);
    part_declare(&parts[2], name, ".weight_zero_point", DT_F16, 2, n_out, f->group);
    return 3;
}

int strided_append(struct st_writer *w, const struct qbuffer *b, struct err *e)
{
    const struct qweight *q = &b->w;
    size_t groups = 2 * (size_t)(q->n_out * q->fmt.group);
    return st_writer_append(w, b->codes, (size_t)(q->n_out * ((q->n_in + 1) / 2)), e) ||
                   st_writer_append(w, b->scale, groups, e) || st_writer_append(w, b->zero, groups, e)
               ? -1
               : 0;
}

json_t *qlab_config(const struct recipe *r)
{
    json_t *tensors = json_object();
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        if (entry_packed(it))
            json_put(tensors, it->name, json_pack("{s:s,s:s}", "format", it->fmt->name, "method", it->method->name));
    }
    return json_pack("{s:s,s:i,s:o}", "quant_method", "qlab", "version", 1, "tensors", tensors);
}
