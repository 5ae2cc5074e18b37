#include "base/args.h"

#include "base/mem.h"
#include "base/msg.h"
#include "base/par.h"
#include "base/version.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct opt *common_table(struct tool *t)
{
    static struct opt o[6];
    struct common_opts *c = &t->common;
    struct opt table[] = {
        {"threads", 't', OPT_INT, &c->threads, "N", "threads; 0 is all cores this process may use", NULL, 0, 1024},
        {"device", 0, OPT_STR, &c->device, "cpu|cuda|cuda:N", "where the model runs", NULL, 0, 0},
        {"compute", 0, OPT_CHOICE, &c->compute, "KIND",
         "what the kernels compute in: f32 is exact, bf16 rounds float weights\nand activations, int8 quantizes activations, int8x2 twice, the second\ntime what is left; auto is the device's fastest",
         COMPUTE_NAMES, 0, 0},
        {"seed", 0, OPT_INT, &c->seed, "N", "seed of whatever is random", NULL, 0, 9e15},
        {"quiet", 'q', OPT_FLAG, &c->quiet, NULL, "say nothing on stderr but errors", NULL, 0, 0},
        {0},
    };
    memcpy(o, table, sizeof table);
    return o;
}

static void print_default(const struct opt *o, FILE *f)
{
    switch (o->type) {
    case OPT_INT: fprintf(f, " [%lld]", (long long)*(int64_t *)o->value); break;
    case OPT_NUM: if (isfinite(*(double *)o->value)) fprintf(f, " [%g]", *(double *)o->value); break;
    case OPT_STR:
    case OPT_CHOICE:
        if (*(const char **)o->value) fprintf(f, " [%s]", *(const char **)o->value);
        break;
    case OPT_INTS: {
        const struct int_list *l = o->value;
        for (int i = 0; i < l->n; i++) fprintf(f, "%s%lld", i ? "," : " [", (long long)l->v[i]);
        if (l->n) fputc(']', f);
        break;
    }
    case OPT_FLAG: break;
    }
}

static void print_opts(const struct opt *o)
{
    for (; o->name; o++) {
        char left[128];
        int n = snprintf(left, sizeof left, "  %c%c%s--%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
                         o->letter ? ", " : "  ", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("%s", left);
        if (n > 28) printf("\n%30s", "");
        else printf("%*s", 30 - n, "");
        for (const char *h = o->help; *h; h++) {
            putchar(*h);
            if (*h == '\n') printf("%30s", "");
        }
        if (o->choices && (!o->arg || strcmp(o->arg, o->choices))) printf(" (%s)", o->choices);
        print_default(o, stdout);
        putchar('\n');
    }
}

static _Noreturn void print_help(const struct tool *t, const struct opt *common)
{
    printf("%s - %s\n\nUsage: %s %s\n\nOptions:\n", t->name, t->summary, t->name, t->usage);
    print_opts(t->opts);
    print_opts(common);
    printf("      --help                  this text\n      --version               version and results version\n");
    if (t->details) printf("\n%s", t->details);
    printf("\nOne JSON record goes to stdout, everything else to stderr. "
           "Exit: 0 done, 1 failed, 2 usage, 130 interrupted.\n");
    exit(fflush(stdout) || ferror(stdout));
}

static bool parse_int(const char *s, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (!*s || isspace((unsigned char)*s) || *end || errno) return false;
    *out = v;
    return true;
}

static bool parse_num(const char *s, double *out)
{
    char *end;
    errno = 0;
    double v = strtod(s, &end); /* which takes hexadecimal, inf and nan too */
    if (!*s || s[strspn(s, "0123456789+-.eE")] || *end || errno || !isfinite(v)) return false;
    *out = v;
    return true;
}

static bool in_choices(const char *choices, const char *s)
{
    size_t n = strlen(s);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (n && !strncmp(p, s, n) && (p[n] == '|' || !p[n])) return true;
    return false;
}

static void check_range(const struct opt *o, const char *text, double v)
{
    if ((o->lo != 0 || o->hi != 0) && !(v >= o->lo && v <= o->hi))
        die_usage("--%s %s: out of range (%.17g to %.17g was expected)", o->name, text, o->lo, o->hi);
}

static void set_opt(const struct opt *o, const char *text)
{
    int64_t i;
    double d;
    switch (o->type) {
    case OPT_FLAG: *(bool *)o->value = true; break;
    case OPT_INT:
        if (!parse_int(text, &i)) die_usage("--%s %s: not an integer", o->name, text);
        check_range(o, text, (double)i);
        *(int64_t *)o->value = i;
        break;
    case OPT_NUM:
        if (!parse_num(text, &d)) die_usage("--%s %s: not a number", o->name, text);
        check_range(o, text, d);
        *(double *)o->value = d;
        break;
    case OPT_STR: *(const char **)o->value = text; break;
    case OPT_CHOICE:
        if (!in_choices(o->choices, text)) die_usage("--%s %s: unknown (%s was expected)", o->name, text, o->choices);
        *(const char **)o->value = text;
        break;
    case OPT_INTS: {
        struct int_list l = {0};
        char *copy = mem_strdup(text);
        for (char *s = copy; s;) {
            char *comma = strchr(s, ',');
            if (comma) *comma++ = 0;
            if (l.n == (int)(sizeof l.v / sizeof *l.v)) die_usage("--%s %s: too many numbers", o->name, text);
            if (!parse_int(s, &i)) die_usage("--%s %s: not integers separated by commas", o->name, text);
            check_range(o, text, (double)i);
            l.v[l.n++] = i;
            s = comma;
        }
        free(copy);
        *(struct int_list *)o->value = l;
        break;
    }
    }
}

static char **as_given;

char **args_as_given(void) { return as_given; }

#define MAX_OPTS 64
static const void *given[MAX_OPTS + 1]; /* values; NULL ends, also where every option was given */

static void note_given(const void *value)
{
    int i = 0;
    while (given[i] && given[i] != value) i++;
    given[i] = value;
}

bool args_given(const void *value)
{
    for (int i = 0; i < MAX_OPTS; i++)
        if (given[i] == value) return true;
    return false;
}

/* Getopt's tables for both option tables; the index in `all` is the long option's value + 256. */
char **args_parse(struct tool *t, int argc, char **argv, int *n)
{
    static struct opt none[1];
    if (!t->opts) t->opts = none;
    t->common.device = "cpu";
    t->common.compute = t->compute_dflt ? t->compute_dflt : "f32";
    msg_init(t->name);
    as_given = mem_new((size_t)argc + 1, sizeof *as_given);
    memcpy(as_given, argv, (size_t)argc * sizeof *argv); /* getopt moves operands to the end */
    struct opt *common = common_table(t), *all[MAX_OPTS];
    struct option longs[MAX_OPTS + 3];
    char letters[2 * MAX_OPTS + 2];
    int k = 0, nl = 0;
    for (int pass = 0; pass < 2; pass++)
        for (struct opt *o = pass ? common : t->opts; o->name && k < MAX_OPTS; o++) {
            longs[k] = (struct option){o->name, o->type == OPT_FLAG ? no_argument : required_argument, NULL, 256 + k};
            all[k++] = o;
            if (o->letter) {
                letters[nl++] = o->letter;
                if (o->type != OPT_FLAG) letters[nl++] = ':';
            }
        }
    letters[nl] = 0;
    longs[k] = (struct option){"help", no_argument, NULL, 1};
    longs[k + 1] = (struct option){"version", no_argument, NULL, 2};
    longs[k + 2] = (struct option){0};
    opterr = 0;
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, letters, longs, NULL)) != -1;) {
        if (c == 1) print_help(t, common);
        if (c == 2) {
            printf("%s %s (results %d)\n%s\n", t->name, QLAB_VERSION, t->results_version, version_build_note());
            exit(fflush(stdout) || ferror(stdout));
        }
        if (c == '?') {
            const char *a = argv[optind - 1];
            if (optopt >= 256) die_usage("--%s needs an argument", longs[optopt - 256].name);
            if (optopt && optopt < 256 && strchr(letters, optopt)) die_usage("-%c needs an argument", optopt);
            if (optopt && optopt < 256 && optopt > 2) die_usage("unknown option -%c", optopt);
            die_usage("unknown or ambiguous option %s", a);
        }
        for (int i = 0; i < k; i++)
            if (c == 256 + i || (c < 256 && all[i]->letter == c)) {
                set_opt(all[i], optarg);
                note_given(all[i]->value);
                break;
            }
    }
    const char *d = t->common.device;
    bool numbered = !strncmp(d, "cuda:", 5) && d[5] && strlen(d) < 9 && !d[5 + strspn(d + 5, "0123456789")];
    if (strcmp(d, "cpu") && strcmp(d, "cuda") && !numbered)
        die_usage("--device %s: unknown (cpu, cuda or cuda:N was expected)", d);
    msg_quiet(t->common.quiet);
    par_set_threads((int)t->common.threads);
    *n = argc - optind;
    return argv + optind;
}

static json_t *opt_json(const struct opt *o)
{
    const char *s;
    switch (o->type) {
    case OPT_FLAG: return json_boolean(*(bool *)o->value);
    case OPT_INT: return json_integer(*(int64_t *)o->value);
    case OPT_NUM: return json_num(*(double *)o->value);
    case OPT_STR:
    case OPT_CHOICE:
        s = *(const char **)o->value;
        if (!s) return json_null();
        json_t *v = json_string(s);
        return v ? v : json_stringn_nocheck(s, strlen(s)); /* a file name that is not UTF-8 */
    case OPT_INTS: {
        const struct int_list *l = o->value;
        json_t *a = json_array();
        for (int i = 0; i < l->n; i++) json_array_append_new(a, json_integer(l->v[i]));
        return a;
    }
    }
    return json_null();
}

json_t *args_params(const struct tool *t)
{
    json_t *p = json_object();
    for (int pass = 0; pass < 2; pass++)
        for (const struct opt *o = pass ? common_table((struct tool *)(uintptr_t)t) : t->opts; o->name; o++) {
            if (o->value == &t->common.quiet) continue; /* says nothing about the numbers */
            char key[64];
            snprintf(key, sizeof key, "%s", o->name);
            for (char *c = key; *c; c++)
                if (*c == '-') *c = '_';
            json_put(p, key, o->value == &t->common.threads ? json_integer(par_threads()) : opt_json(o));
        }
    return p;
}
