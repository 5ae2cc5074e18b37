/* bitsandbytes 4-bit (functional.py QuantState.as_dict / from_dict). */
#include "quantize/container.h"

#include "base/mem.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct tensor *find(const struct checkpoint *c, const char *name, const char *suffix)
{
    char *full = mem_printf("%s%s", name, suffix);
    const struct tensor *t = checkpoint_find(c, full);
    free(full);
    return t;
}

static int parse_state(struct qweight *w, const json_t *o, bool nf4, struct err *e)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } dtypes[] = {{"float16", DT_F16}, {"bfloat16", DT_BF16}, {"float32", DT_F32}};
    const char *type, *dtype, *nested_dtype;
    int64_t block, nested;
    double offset;
    if (!json_is_object(o)) return err_set(e, "is not an object");
    if (json_get_str(o, "quant_type", true, NULL, &type, e) || json_get_str(o, "dtype", true, NULL, &dtype, e) ||
        json_get_int(o, "blocksize", true, 32, 65536, 64, &block, e) ||
        json_get_int(o, "nested_blocksize", false, 1, INT64_C(1) << 31, 0, &nested, e) ||
        json_get_str(o, "nested_dtype", false, "float32", &nested_dtype, e) ||
        json_get_num(o, "nested_offset", nested != 0, 0, &offset, e))
        return -1;
    if (strcmp(type, nf4 ? "nf4" : "fp4")) return err_set(e, "quant_type is \"%s\", against the tensor's name", type);
    if (block & (block - 1)) return err_set(e, "blocksize %lld is not a power of two", (long long)block);
    if (nested && (nested != 256 || strcmp(nested_dtype, "float32")))
        return err_set(e, "nested blocks of %lld %s are not supported (256 float32 are)", (long long)nested, nested_dtype);
    size_t i = 0;
    while (i < 3 && strcmp(dtypes[i].name, dtype)) i++;
    if (i == 3) return err_set(e, "dtype \"%s\" is not supported (float16, bfloat16 and float32 are)", dtype);
    const json_t *shape = json_object_get(o, "shape");
    if (json_array_size(shape) != 2 || json_integer_value(json_array_get(shape, 0)) != w->n_out ||
        json_integer_value(json_array_get(shape, 1)) != w->n_in)
        return err_set(e, "shape is not [%lld, %lld], as config.json implies", (long long)w->n_out, (long long)w->n_in);
    if (fabs(offset) > 3e38) return err_set(e, "nested_offset is out of range");
    w->out_dtype = dtypes[i].dtype;
    w->fmt = (struct format){.kind = CODE_BOOK, .container = CONT_BNB, .bits = 4, .group = block,
                             .book = format_book(nf4), .double_quant = nested != 0};
    w->nested_offset = (float)offset;
    return 0;
}

int bnb_parts_open(struct qweight *w, const struct checkpoint *c, const char *name, struct err *e)
{
    const char *suffix[2] = {".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"};
    const struct tensor *state[2] = {find(c, name, suffix[0]), find(c, name, suffix[1])};
    if (!state[0] == !state[1])
        return err_set(e, "%s: tensor %s%s is %s", c->path, name, suffix[0], state[0] ? "there beside one for fp4" : "missing");
    bool nf4 = state[0] != NULL;
    const struct tensor *s = state[nf4 ? 0 : 1], *t;
    if (s->dtype != DT_U8 || s->n_dims != 1 || s->n_bytes > 65536)
        return err_set(e, "%s: tensor %s is not a short list of bytes", c->path, s->name);
    json_t *o = json_parse(s->name, s->data, s->n_bytes, e);
    if (!o) return err_prefix(e, "%s", c->path);
    int rc = parse_state(w, o, nf4, e);
    json_decref(o);
    if (rc) return err_prefix(e, "%s: tensor %s", c->path, s->name);

    int64_t blocks = format_blocks(&w->fmt, w->n_out, w->n_in);
    int64_t codes[2] = {(w->n_out * w->n_in + 1) / 2, 1}, map = 16, nested = (blocks + 255) / 256, nested_map = 256;
    if (!(t = part_need(c, name, ".weight", DT_U8, 2, codes, e))) return -1;
    w->codes = t->data;
    if (!(t = part_need(c, name, ".weight.absmax", w->fmt.double_quant ? DT_U8 : DT_F32, 1, &blocks, e))) return -1;
    w->absmax = t->data;
    if (!(t = part_need(c, name, ".weight.quant_map", DT_F32, 1, &map, e))) return -1;
    const float *map16 = t->data;
    w->book = w->fmt.book; /* as the library's dequantizers do: the stored map only says which table it is */
    for (int i = 0; i < 16; i++)
        if (!(fabsf(map16[i] - w->book[i]) <= 1e-6f))
            return err_set(e, "%s: tensor %s is not the %s code table", c->path, t->name, nf4 ? "NF4" : "FP4");
    if (w->fmt.double_quant) {
        if (!(t = part_need(c, name, ".weight.nested_absmax", DT_F32, 1, &nested, e))) return -1;
        w->nested_absmax = t->data;
        if (!(t = part_need(c, name, ".weight.nested_quant_map", DT_F32, 1, &nested_map, e))) return -1;
        w->nested_map = t->data;
    }
    return 0;
}

int bnb_open(struct qweight *w, const struct checkpoint *c, const char *name, bool *packed, struct err *e)
{
    const struct tensor *t = find(c, name, ".weight");
    *packed = t && !dtype_is_float(t->dtype);
    if (!*packed) return 0; /* a module that was left alone, by whatever list */
    if (find(c, name, ".SCB") || t->dtype == DT_I8)
        return err_set(e, "%s: tensor %s: bitsandbytes 8-bit weights are not supported (4-bit are)", c->path, t->name);
    return bnb_parts_open(w, c, name, e);
}

/* ---- writing ---- */

static const char *dtype_word(enum dtype t) { return t == DT_F16 ? "float16" : t == DT_BF16 ? "bfloat16" : "float32"; }

/* QuantState.as_dict's JSON, with json.dumps' spacing. The offset is written with all its digits in a fixed width, so that
 * the length is known before the weights are read. */
static size_t state_json(char buf[512], const struct format *f, enum dtype dtype, int64_t n_out, int64_t n_in,
                         float offset)
{
    int n = snprintf(buf, 512, "{\"quant_type\": \"%s\", \"blocksize\": %lld, \"dtype\": \"%s\", \"shape\": [%lld, %lld]",
                     f->book == format_book(true) ? "nf4" : "fp4", (long long)f->group, dtype_word(dtype),
                     (long long)n_out, (long long)n_in);
    if (f->double_quant)
        n += snprintf(buf + n, 512 - (size_t)n,
                      ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": %.16e",
                      (double)offset);
    n += snprintf(buf + n, 512 - (size_t)n, "}");
    return (size_t)n;
}

size_t bnb_declare(struct tensor *parts, const char *name, const struct format *f, int64_t n_out, int64_t n_in,
                   enum dtype model_dtype)
{
    char buf[512];
    int64_t blocks = format_blocks(f, n_out, n_in);
    size_t n = 0;
    part_declare(&parts[n++], name, ".weight", DT_U8, 2, (n_out * n_in + 1) / 2, 1);
    part_declare(&parts[n++], name, ".weight.absmax", f->double_quant ? DT_U8 : DT_F32, 1, blocks, 0);
    part_declare(&parts[n++], name, ".weight.quant_map", DT_F32, 1, 16, 0);
    if (f->double_quant) {
        part_declare(&parts[n++], name, ".weight.nested_absmax", DT_F32, 1, (blocks + 255) / 256, 0);
        part_declare(&parts[n++], name, ".weight.nested_quant_map", DT_F32, 1, 256, 0);
    }
    part_declare(&parts[n++], name, f->book == format_book(true) ? ".weight.quant_state.bitsandbytes__nf4"
                                                                 : ".weight.quant_state.bitsandbytes__fp4",
                 DT_U8, 1, (int64_t)state_json(buf, f, model_dtype, n_out, n_in, 0), 0);
    return n;
}

int bnb_append(struct st_writer *w, const struct qbuffer *b, struct err *e)
{
    const struct qweight *q = &b->w;
    const struct format *f = &q->fmt;
    char buf[512];
    size_t blocks = (size_t)format_blocks(f, q->n_out, q->n_in);
    if (st_writer_append(w, b->codes, (size_t)((q->n_out * q->n_in + 1) / 2), e) ||
        st_writer_append(w, b->absmax, blocks * (f->double_quant ? 1 : 4), e) ||
        st_writer_append(w, f->book, 16 * sizeof *f->book, e))
        return -1;
    if (f->double_quant && (st_writer_append(w, b->nested_absmax, 4 * ((blocks + 255) / 256), e) ||
                            st_writer_append(w, b->nested_map, 256 * sizeof *b->nested_map, e)))
        return -1;
    return st_writer_append(w, buf, state_json(buf, f, q->out_dtype, q->n_out, q->n_in, q->nested_offset), e);
}

/* As BitsAndBytesConfig.to_dict writes it. */
json_t *bnb_config(const struct recipe *r, enum dtype model_dtype)
{
    const struct format *first = NULL; /* there is one: the folder is of this container */
    bool nested = false, plain = false;
    json_t *skip = json_array();
    for (size_t i = 0; i < r->n; i++) {
        const struct recipe_entry *it = &r->entries[i];
        if (entry_packed(it)) {
            if (!first) first = it->fmt;
            nested |= it->fmt->double_quant;
        } else if (!entry_is_embed(it)) {
            plain |= !entry_is_head(it); /* the head alone is skipped by default */
            json_array_append_new(skip, json_string(it->name));
        }
    }
    assert(first);
    if (!plain) {
        json_decref(skip);
        skip = json_null();
    }
    return json_pack("{s:s,s:b,s:b,s:b,s:b,s:s,s:b,s:s,s:s,s:b,s:b,s:o,s:f}", "quant_method", "bitsandbytes",
                     "_load_in_4bit", 1, "_load_in_8bit", 0, "load_in_4bit", 1, "load_in_8bit", 0, "bnb_4bit_quant_type",
                     first->book == format_book(true) ? "nf4" : "fp4", "bnb_4bit_use_double_quant", nested,
                     "bnb_4bit_compute_dtype", dtype_word(model_dtype), "bnb_4bit_quant_storage", "uint8",
                     "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0, "llm_int8_skip_modules", skip,
                     "llm_int8_threshold", 6.0);
}
