#include "output/table.h"

#include "base/mem.h"

#include <csv.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

void table_begin(struct table *t, const char *heads)
{
    memset(t, 0, sizeof *t);
    for (const char *p = heads; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL) {
        t->head = mem_grow(t->head, t->n_cols + 1, sizeof *t->head);
        t->left = mem_grow(t->left, t->n_cols + 1, 1);
        t->left[t->n_cols] = *p != '>';
        if (*p == '>') p++;
        t->head[t->n_cols++] = mem_strndup(p, strcspn(p, "|"));
    }
}

void table_head(struct table *t, size_t col, const char *text)
{
    free(t->head[col]);
    t->head[col] = mem_strdup(text);
}

void table_cell(struct table *t, const char *fmt, ...)
{
    if (t->at == t->n_rows * t->n_cols) {
        t->n_rows++;
        t->cells = mem_grow(t->cells, t->n_rows * t->n_cols, sizeof *t->cells);
    }
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    char *s = mem_new((size_t)n + 1, 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    t->cells[t->at++] = s;
}

void table_free(struct table *t)
{
    for (size_t i = 0; i < t->n_cols; i++) free(t->head[i]);
    for (size_t i = 0; i < t->at; i++) free(t->cells[i]);
    free(t->head);
    free(t->left);
    free(t->cells);
    memset(t, 0, sizeof *t);
}

/* Columns a terminal needs. */
static size_t width(const char *s)
{
    size_t w = 0;
    utf8proc_int32_t cp;
    for (utf8proc_ssize_t n; *s; s += n) {
        n = utf8proc_iterate((const utf8proc_uint8_t *)s, -1, &cp);
        if (n <= 0) n = 1;
        else w += (size_t)utf8proc_charwidth(cp);
    }
    return w;
}

static void spaces(FILE *f, size_t n)
{
    while (n--) fputc(' ', f);
}

static void padded(FILE *f, const char *s, size_t w, int left)
{
    size_t have = width(s), pad = w > have ? w - have : 0;
    if (!left) spaces(f, pad);
    fputs(s, f);
    if (left) spaces(f, pad);
}

static const char *cell(const struct table *t, size_t row, size_t col)
{
    size_t i = row * t->n_cols + col;
    return i < t->at ? t->cells[i] : "";
}

static size_t *widths(const struct table *t)
{
    size_t *w = mem_new(t->n_cols, sizeof *w);
    for (size_t c = 0; c < t->n_cols; c++) {
        w[c] = width(t->head[c]);
        if (w[c] < 3) w[c] = 3;
        for (size_t r = 0; r < t->n_rows; r++)
            if (width(cell(t, r, c)) > w[c]) w[c] = width(cell(t, r, c));
    }
    return w;
}

void table_markdown(const struct table *t, FILE *f)
{
    size_t *w = widths(t);
    for (size_t r = 0; r <= t->n_rows; r++) {
        for (size_t c = 0; c < t->n_cols; c++) {
            fputs(c ? " | " : "| ", f);
            padded(f, r ? cell(t, r - 1, c) : t->head[c], w[c], t->left[c]);
        }
        fputs(" |\n", f);
        for (size_t c = 0; r == 0 && c < t->n_cols; c++) {
            fputs(c ? " | " : "| ", f);
            for (size_t k = 0; k < w[c]; k++) fputc(k + 1 == w[c] && !t->left[c] ? ':' : '-', f);
        }
        if (r == 0) fputs(" |\n", f);
    }
    free(w);
}

void table_text(const struct table *t, FILE *f)
{
    size_t *w = widths(t);
    for (size_t r = 0; r <= t->n_rows; r++) {
        for (size_t c = 0; c < t->n_cols; c++) {
            if (c) fputs("  ", f);
            padded(f, r ? cell(t, r - 1, c) : t->head[c], w[c], t->left[c]);
        }
        fputc('\n', f);
    }
    free(w);
}

int csv_row(FILE *f, char *const *cells, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *s = cells[i];
        if (i && fputc(',', f) == EOF) return -1;
        bool quote = strpbrk(s, ",\"\r\n") || *s == ' ' || (*s && s[strlen(s) - 1] == ' ');
        if (quote ? csv_fwrite(f, s, strlen(s)) : fputs(s, f) == EOF) return -1;
    }
    return fputc('\n', f) == EOF ? -1 : 0;
}

int table_csv(const struct table *t, FILE *f)
{
    if (csv_row(f, t->head, t->n_cols)) return -1;
    for (size_t r = 0; r < t->n_rows; r++)
        if (csv_row(f, t->cells + r * t->n_cols, t->n_cols)) return -1;
    return 0;
}

char *md_escape(const char *s)
{
    size_t n = strlen(s), k = 0;
    char *out = mem_new(6 * n + 1, 1);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        const char *as = NULL;
        if (c == '\n') as = " ⏎ ";
        else if (c == '<') as = "&lt;";
        else if (c == '>') as = "&gt;";
        else if (c == '&') as = "&amp;";
        else if (c == '$') as = "&#36;"; /* mathematics on GitHub */
        if (as) {
            memcpy(out + k, as, strlen(as));
            k += strlen(as);
            continue;
        }
        if (strchr("\\`*_[]|#~@", c)) out[k++] = '\\';
        out[k++] = c < 32 || c == 127 ? ' ' : (char)c;
    }
    return out;
}

/* ---- numbers ---- */

static char *ring(void)
{
    static char buf[32][64];
    static unsigned next;
    return buf[next++ % 32];
}

/* U+2212 where a minus leads: it is as wide as a plus. */
static const char *minus(char *buf, double v, int decimals, const char *tail)
{
    char num[48];
    snprintf(num, sizeof num, "%.*f", decimals, fabs(v));
    bool zero = strspn(num, "0.") == strlen(num);
    snprintf(buf, 64, "%s%s%s", v < 0 && !zero ? "−" : "", num, tail);
    return buf;
}

const char *fmt_num(double v, int decimals)
{
    if (!isfinite(v) || fabs(v) > 1e30) return "–";
    return minus(ring(), v, decimals, "");
}

const char *fmt_sig(double v, int digits)
{
    if (!isfinite(v) || fabs(v) > 1e30) return "–";
    int d = v == 0 ? 0 : digits - 1 - (int)floor(log10(fabs(v)));
    return minus(ring(), v, d < 0 ? 0 : d > 12 ? 12 : d, "");
}

const char *fmt_gib(double bytes)
{
    double gib = bytes / 1073741824.0;
    return gib < 1e-4 ? fmt_num(gib, 6) : fmt_sig(gib, 3);
}

const char *fmt_pm(double v, double se, int sign)
{
    if (!isfinite(v) || fabs(v) > 1e30) return "–";
    char *buf = ring(), tail[32] = "";
    int d = se == 0 ? 2 : 4;
    if (isfinite(se) && se > 0 && se < 1e30) d = 1 - (int)floor(log10(se));
    d = d < 0 ? 0 : d > 5 ? 5 : d;
    if (isfinite(se) && se < 1e30) snprintf(tail, sizeof tail, " ± %.*f", d, se);
    char num[64];
    minus(num, v, d, tail);
    snprintf(buf, 64, "%s%.60s", sign && v > 0 ? "+" : "", num);
    return buf;
}
