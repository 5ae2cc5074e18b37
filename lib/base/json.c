#include "base/json.h"

#include "base/file.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PARSE_FLAGS (JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL)

/* jansson refuses integers beyond 64 bits, which other writers do produce (Hugging Face's model_max_length of 1e30 in
 * digits): the same text with "e0" behind each of them, so that they are read as reals. */
static json_t *parse_big_integers(const char *text, size_t n, json_error_t *je)
{
    char *out = mem_new(n / 9 + n + 1, 1); /* 2 bytes more for 19 */
    size_t k = 0;
    bool in_string = false;
    for (size_t i = 0; i < n;) {
        size_t d = 0;
        if (!in_string)
            while (i + d < n && text[i + d] >= '0' && text[i + d] <= '9') d++;
        if (d) {
            bool fraction = i > 0 && (text[i - 1] == '.' || text[i - 1] == '+' || text[i - 1] == 'e' || text[i - 1] == 'E');
            char next = i + d < n ? text[i + d] : 0;
            memcpy(out + k, text + i, d);
            k += d;
            i += d;
            if (d >= 19 && !fraction && next != '.' && next != 'e' && next != 'E') out[k++] = 'e', out[k++] = '0';
            continue;
        }
        if (in_string && text[i] == '\\' && i + 1 < n) out[k++] = text[i++];
        else if (text[i] == '"') in_string = !in_string;
        out[k++] = text[i++];
    }
    json_t *v = json_loadb(out, k, PARSE_FLAGS, je);
    free(out);
    return v;
}

json_t *json_parse(const char *where, const char *text, size_t n, struct err *e)
{
    json_error_t je;
    json_t *v = json_loadb(text, n, PARSE_FLAGS, &je);
    if (!v && json_error_code(&je) == json_error_numeric_overflow) v = parse_big_integers(text, n, &je);
    if (!v) err_set(e, "%s: not valid JSON: %s (line %d)", where, je.text, je.line);
    return v;
}

json_t *json_read(const char *path, size_t max, struct err *e)
{
    char *buf;
    size_t n;
    if (file_read(path, max, &buf, &n, e)) return NULL;
    json_t *v = json_parse(path, buf, n, e);
    free(buf);
    return v;
}

static json_t *member(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

int json_get_int(const json_t *o, const char *key, bool required, int64_t lo, int64_t hi, int64_t dflt, int64_t *out,
                 struct err *e)
{
    json_t *v = member(o, key);
    *out = dflt;
    if (!v) return required ? err_set(e, "\"%s\" is missing (an integer was expected)", key) : 0;
    double d = json_number_value(v);
    if (!json_is_number(v) || d != floor(d) || fabs(d) > 9e15)
        return err_set(e, "\"%s\" is not an integer", key);
    int64_t i = json_is_integer(v) ? (int64_t)json_integer_value(v) : (int64_t)d;
    if (i < lo || i > hi)
        return err_set(e, "\"%s\" is %lld (%lld to %lld was expected)", key, (long long)i, (long long)lo, (long long)hi);
    *out = i;
    return 0;
}

int json_get_num(const json_t *o, const char *key, bool required, double dflt, double *out, struct err *e)
{
    json_t *v = member(o, key);
    *out = dflt;
    if (!v) return required ? err_set(e, "\"%s\" is missing (a number was expected)", key) : 0;
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return err_set(e, "\"%s\" is not a number", key);
    *out = json_number_value(v);
    return 0;
}

int json_get_bool(const json_t *o, const char *key, bool required, bool dflt, bool *out, struct err *e)
{
    json_t *v = member(o, key);
    *out = dflt;
    if (!v) return required ? err_set(e, "\"%s\" is missing (true or false was expected)", key) : 0;
    if (!json_is_boolean(v)) return err_set(e, "\"%s\" is not true or false", key);
    *out = json_is_true(v);
    return 0;
}

int json_get_str(const json_t *o, const char *key, bool required, const char *dflt, const char **out, struct err *e)
{
    json_t *v = member(o, key);
    *out = dflt;
    if (!v) return required ? err_set(e, "\"%s\" is missing (a string was expected)", key) : 0;
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        return err_set(e, "\"%s\" is not a string", key);
    *out = json_string_value(v);
    return 0;
}

json_t *json_num(double v) { return isfinite(v) ? json_real(v) : json_null(); }
void json_put(json_t *o, const char *key, json_t *v) { json_object_set_new(o, key, v); }

void json_put_headline(json_t *o, const char *key, double v, const char **bad)
{
    if (!isfinite(v) && !*bad) *bad = key;
    json_put(o, key, json_num(v));
}

char *json_text(const json_t *v, size_t flags)
{
    return json_dumps(v, flags | JSON_COMPACT | JSON_REAL_PRECISION(12) | JSON_ENCODE_ANY);
}

int json_write(const char *dir, const char *name, json_t *v, struct err *e)
{
    char *text = json_dumps(v, JSON_INDENT(2) | JSON_REAL_PRECISION(17)), *path = path_join(dir, name);
    int rc = text ? file_write(path, text, strlen(text), e) : err_set(e, "%s: cannot be written as JSON", path);
    free(text);
    free(path);
    json_decref(v);
    return rc;
}
