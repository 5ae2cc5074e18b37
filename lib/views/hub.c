#include "views/hub.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/msg.h"
#include "views/hub_http.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_JSON (64u << 20)
#define INDEX "model.safetensors.index.json"

struct hub {
    char *repo, *revision;      /* "OWNER/NAME", "main" */
    char *endpoint, *commit;    /* without a slash at the end; what the revision stands for now */
    const char *token;          /* NULL: none */
    char *staging;              /* DEST.download */
    int lock;
    struct http *http;
    json_t *files;              /* name → {"size", "oid", "lfs": {"oid", …}} as the hub lists them */
    struct progress bar;
    int64_t total, finished;    /* bytes: of all files wanted, of the files that are done */
};

bool hub_is_spec(const char *spec) { return !strncmp(spec, "hf:", 3); }

/* ---- names ---- */

/* OWNER and NAME: letters, digits, '.', '_', '-'; not "." or "..". */
static bool name_ok(const char *s, size_t n)
{
    if (n < 1 || n > 128 || (s[0] == '.' && (n == 1 || (n == 2 && s[1] == '.')))) return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i])) return false;
    return true;
}

static bool revision_ok(const char *s)
{
    if (!*s || strlen(s) > 200 || strstr(s, "..")) return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("._-/+", *s)) return false;
    return true;
}

static int parse_spec(struct hub *h, const char *spec, struct err *e)
{
    const char *s = hub_is_spec(spec) ? spec + 3 : spec, *at = strchr(s, '@'), *slash = strchr(s, '/');
    size_t n = at ? (size_t)(at - s) : strlen(s);
    if (!slash || slash >= s + n || !name_ok(s, (size_t)(slash - s)) ||
        !name_ok(slash + 1, (size_t)(s + n - slash - 1)) || (at && !revision_ok(at + 1)))
        return err_set(e, "%s: not the name of a model (hf:OWNER/NAME or hf:OWNER/NAME@REVISION was expected)", spec);
    h->repo = mem_strndup(s, n);
    h->revision = mem_strdup(at ? at + 1 : "main");
    return 0;
}

static int get_endpoint(struct hub *h, struct err *e)
{
    const char *s = getenv("HF_ENDPOINT"), *token = getenv("HF_TOKEN");
    if (!s || !*s) s = "https://huggingface.co";
    if ((strncmp(s, "https://", 8) && strncmp(s, "http://", 7)) || strpbrk(s, " \t\r\n?#"))
        return err_set(e, "HF_ENDPOINT: %s is not the URL of a hub", s);
    size_t n = strlen(s);
    while (s[n - 1] == '/') n--;
    h->endpoint = mem_strndup(s, n);
    h->token = token && *token ? token : NULL;
    for (const char *p = h->token; p && *p; p++)
        if (!isgraph((unsigned char)*p))
            return err_set(e, "HF_TOKEN: not a token (it has a blank or a control character)");
    return 0;
}

/* A path of URL: '/' and '+' are escaped, all else that revision_ok lets pass may stand. To be freed. */
static char *escaped(const char *s)
{
    char *out = mem_new(3 * strlen(s) + 1, 1), *p = out;
    for (; *s; s++) {
        if (*s != '/' && *s != '+') {
            *p++ = *s;
            continue;
        }
        memcpy(p, *s == '/' ? "%2F" : "%2B", 3);
        p += 3;
    }
    return out;
}

/* ---- what the hub's refusals mean ---- */

static int refused(const struct hub *h, const char *what, const struct http_reply *r, struct err *e)
{
    const char *code = r->error_code, *why = NULL;
    long st = r->status;
    if (!strcmp(code, "RevisionNotFound"))
        return err_set(e, "hf:%s@%s: no such revision (404)", h->repo, h->revision);
    if (!strcmp(code, "GatedRepo") || st == 403)
        return err_set(e, "hf:%s: the hub refuses access (%ld): the model is gated%s (accept its terms at %s/%s%s)",
                       h->repo, st, h->token ? ", and the account of HF_TOKEN has not been let in" : "", h->endpoint,
                       h->repo, h->token ? "" : " and set HF_TOKEN to an access token of that account");
    if (st == 401) why = h->token ? "or HF_TOKEN is not valid for it" : "or it is private or gated (set HF_TOKEN)";
    if (why) return err_set(e, "hf:%s: the hub refuses access (401): no such model, %s", h->repo, why);
    if (st == 404) return err_set(e, "hf:%s: %s: not found (404) at %s", h->repo, what, h->endpoint);
    return err_set(e, "hf:%s: %s: the server answers %ld", h->repo, what, st);
}

static json_t *get_json(struct hub *h, const char *url, const char *what, struct http_reply *r, struct err *e)
{
    char *text;
    size_t n;
    if (http_get(h->http, url, MAX_JSON, &text, &n, r, e)) return NULL;
    json_t *v = NULL;
    if (r->status / 100 != 2) refused(h, what, r, e);
    else v = json_parse(url, text, n, e);
    free(text);
    return v;
}

static bool hex_ok(const char *s, size_t n)
{
    return s && strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

static int resolve_revision(struct hub *h, struct err *e)
{
    struct http_reply r;
    char *rev = escaped(h->revision), *url = mem_printf("%s/api/models/%s/revision/%s", h->endpoint, h->repo, rev);
    json_t *info = get_json(h, url, "model", &r, e);
    const char *sha = json_string_value(json_object_get(info, "sha"));
    int rc = info ? 0 : -1;
    if (info && !hex_ok(sha, 40)) rc = err_set(e, "%s: no commit (\"sha\": 40 hex digits were expected)", url);
    if (rc == 0) h->commit = mem_strdup(sha);
    json_decref(info);
    free(rev);
    free(url);
    return rc;
}

static int list_page(struct hub *h, const json_t *page, const char *url, struct err *e)
{
    size_t i;
    json_t *f;
    if (!json_is_array(page)) return err_set(e, "%s: not a list of files", url);
    json_array_foreach(page, i, f) {
        const char *type, *path;
        if (json_get_str(f, "type", false, "", &type, e) || json_get_str(f, "path", true, NULL, &path, e))
            return err_prefix(e, "%s: file %zu", url, i);
        if (!strcmp(type, "file") && name_is_plain(path)) json_object_set(h->files, path, f);
    }
    return 0;
}

static int list_files(struct hub *h, struct err *e)
{
    char *url = mem_printf("%s/api/models/%s/tree/%s", h->endpoint, h->repo, h->commit);
    size_t host = strlen(h->endpoint);
    int rc = 0;
    h->files = json_object();
    for (int page = 0; rc == 0 && url; page++) {
        struct http_reply r;
        json_t *list = get_json(h, url, "list of files", &r, e);
        rc = list ? list_page(h, list, url, e) : -1;
        json_decref(list);
        if (rc == 0 && *r.next && (page > 100 || strncmp(r.next, h->endpoint, host) || r.next[host] != '/'))
            rc = err_set(e, "%s: the list of files goes on at another place (%s)", url, r.next);
        free(url);
        url = rc == 0 && *r.next ? mem_strdup(r.next) : NULL;
    }
    free(url);
    return rc;
}

/* ---- one file ---- */

struct wanted {
    const char *name;
    int64_t size;
    const char *sha256, *git_sha1; /* one of them, or NULL where the hub states none */
};

static int describe(const struct hub *h, const char *name, struct wanted *w, struct err *e)
{
    const json_t *f = json_object_get(h->files, name), *lfs = json_object_get(f, "lfs");
    if (!f) return err_set(e, "hf:%s: %s is not among its files", h->repo, name);
    *w = (struct wanted){.name = name};
    const char *sha1, *sha256;
    int64_t lfs_size;
    if (json_get_int(f, "size", true, 0, INT64_MAX / 2, 0, &w->size, e) ||
        json_get_str(f, "oid", false, NULL, &sha1, e) || json_get_str(lfs, "oid", false, NULL, &sha256, e) ||
        json_get_int(lfs, "size", false, 0, INT64_MAX / 2, w->size, &lfs_size, e))
        return err_prefix(e, "hf:%s: %s", h->repo, name);
    if (json_is_object(lfs)) w->size = lfs_size;
    if (sha256 && !strncmp(sha256, "sha256:", 7)) sha256 += 7;
    if ((sha256 && !hex_ok(sha256, 64)) || (!sha256 && sha1 && !hex_ok(sha1, 40)))
        return err_set(e, "hf:%s: %s: the hub states a digest that is none", h->repo, name);
    w->sha256 = sha256;
    w->git_sha1 = sha256 ? NULL : sha1;
    return 0;
}

/* git's name of a blob: sha1 of "blob SIZE\0" and the content. */
static int git_sha1_file(const char *path, int64_t size, char out[41], struct err *e)
{
    FILE *f = fopen(path, "rbe");
    if (!f) return err_sys(e, "%s", path);
    char buf[1 << 16];
    unsigned char d[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    EVP_DigestInit_ex(c, EVP_sha1(), NULL);
    int n = snprintf(buf, sizeof buf, "blob %" PRId64, size);
    EVP_DigestUpdate(c, buf, (size_t)n + 1);
    for (size_t got; (got = fread(buf, 1, sizeof buf, f)) > 0;) EVP_DigestUpdate(c, buf, got);
    EVP_DigestFinal_ex(c, d, &len);
    EVP_MD_CTX_free(c);
    int rc = ferror(f) ? err_sys(e, "%s: cannot read", path) : 0;
    fclose(f);
    for (unsigned i = 0; i < 20; i++) snprintf(out + 2 * i, 3, "%02x", d[i]);
    return rc;
}

static int verify(const struct hub *h, const struct wanted *w, const char *path, struct err *e)
{
    char hex[65];
    const char *want = w->sha256 ? w->sha256 : w->git_sha1;
    if (!want) return 0;
    if (w->sha256 ? sha256_file(path, hex, NULL, e) : git_sha1_file(path, w->size, hex, e)) return -1;
    if (!strcmp(hex, want)) return 0;
    unlink(path);
    return err_set(e, "hf:%s: %s: what came has %s %s (the hub states %s); removed", h->repo, w->name,
                   w->sha256 ? "sha256" : "git sha1", hex, want);
}

static void on_progress(void *ctx, int64_t have)
{
    struct hub *h = ctx;
    progress_at(&h->bar, h->finished + have);
}

/* Into the staging folder: NAME.part while it comes, then verified and renamed. */
static int fetch_file(struct hub *h, const char *name, struct err *e)
{
    struct wanted w;
    struct stat st;
    struct http_reply r;
    if (describe(h, name, &w, e)) return -1;
    char *path = path_join(h->staging, name), *part = mem_printf("%s.part", path);
    char *url = mem_printf("%s/%s/resolve/%s/%s", h->endpoint, h->repo, h->commit, name);
    int rc = 0;
    if (stat(path, &st) || (int64_t)st.st_size != w.size) {
        msg_stage("%s (%.1f MB)%s", name, (double)w.size / 1e6, stat(part, &st) || !st.st_size ? "" : ", going on");
        rc = http_get_file(h->http, url, part, w.size, on_progress, h, &r, e);
        if (stat(part, &st) == 0 && st.st_size == 0 && w.size > 0) unlink(part);
        if (rc == 0 && r.status / 100 != 2) rc = refused(h, name, &r, e);
        if (rc == 0) rc = verify(h, &w, part, e);
        if (rc == 0 && rename(part, path)) rc = err_sys(e, "%s: cannot rename", part);
    }
    if (rc == 0) h->finished += w.size;
    free(path);
    free(part);
    free(url);
    return rc;
}

/* ---- the checkpoint ---- */

/* The weight files: model.safetensors, or the index (fetched here) and the shards it names. An array of names. */
static json_t *weight_files(struct hub *h, struct err *e)
{
    json_t *names = json_array();
    if (json_object_get(h->files, "model.safetensors")) {
        json_array_append_new(names, json_string("model.safetensors"));
        return names;
    }
    if (!json_object_get(h->files, INDEX)) {
        err_set(e, "hf:%s: no model.safetensors and no " INDEX " among its files (other forms of weights are not read)",
                h->repo);
        json_decref(names);
        return NULL;
    }
    char *path = path_join(h->staging, INDEX);
    json_t *index = fetch_file(h, INDEX, e) ? NULL : json_read(path, MAX_JSON, e), *file;
    const json_t *map = json_object_get(index, "weight_map");
    json_t *seen = json_object();
    const char *key, *name;
    int rc = index ? 0 : -1;
    if (index && !json_object_size(map)) rc = err_set(e, "hf:%s: " INDEX ": no \"weight_map\"", h->repo);
    json_object_foreach((json_t *)(uintptr_t)map, key, file) {
        name = json_string_value(file);
        if (rc || (name && json_object_get(seen, name))) continue;
        size_t n = name ? strlen(name) : 0;
        if (!name || !name_ok(name, n) || n < 12 || strcmp(name + n - 12, ".safetensors")) {
            rc = err_set(e, "hf:%s: " INDEX ": %s is not the name of a safetensors file", h->repo, name ? name : key);
            continue;
        }
        json_put(seen, name, json_true());
        json_array_append_new(names, json_string(name));
    }
    json_decref(seen);
    json_decref(index);
    free(path);
    if (rc == 0) return names;
    json_decref(names);
    return NULL;
}

static int fetch_all(struct hub *h, json_t **have, struct err *e)
{
    static const char *const small[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json"};
    size_t i;
    json_t *v;
    *have = json_array();
    if (!json_object_get(h->files, "config.json"))
        return err_set(e, "hf:%s: no config.json among its files (a checkpoint for transformers was expected)",
                       h->repo);
    for (i = 0; i < sizeof small / sizeof *small; i++) {
        if (!json_object_get(h->files, small[i])) continue;
        if (fetch_file(h, small[i], e)) return -1;
        json_array_append_new(*have, json_string(small[i]));
    }
    json_t *weights = weight_files(h, e);
    if (!weights) return -1;
    if (!json_object_get(h->files, "model.safetensors")) json_array_append_new(*have, json_string(INDEX));
    int rc = 0;
    h->total = h->finished;
    json_array_foreach(weights, i, v) {
        struct wanted w;
        if (rc == 0 && (rc = describe(h, json_string_value(v), &w, e)) == 0) h->total += w.size;
    }
    progress_begin(&h->bar, h->repo, "B", h->total);
    json_array_foreach(weights, i, v)
        if (rc == 0) rc = fetch_file(h, json_string_value(v), e);
    progress_end(&h->bar);
    json_array_extend(*have, weights);
    json_decref(weights);
    return rc;
}

/* ---- staging ---- */

static int entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *it; d && (it = readdir(d));) n += name_is_plain(it->d_name);
    if (d) closedir(d);
    return n;
}

/* One download at a time into one staging folder, and one commit: what is left of another one is thrown away. */
static int open_staging(struct hub *h, struct err *e)
{
    if (path_make_dirs(h->staging, e)) return -1;
    h->lock = open(h->staging, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (h->lock < 0) return err_sys(e, "%s", h->staging);
    if (flock(h->lock, LOCK_EX | LOCK_NB)) return err_set(e, "%s: another download into it is under way", h->staging);
    char *stamp = path_join(h->staging, ".commit"), *text = mem_printf("%s %s\n", h->repo, h->commit), *old = NULL;
    size_t n;
    int rc = 0;
    if (!path_exists(stamp) && entries(h->staging) > 0)
        rc = err_set(e, "%s: already there with other contents (the folder for an unfinished download)", h->staging);
    bool same = path_exists(stamp) && file_read(stamp, 4096, &old, &n, e) == 0 && !strcmp(old, text);
    if (!same && path_exists(stamp)) {
        msg_warn("%s: holds a part of another commit; starting over", h->staging);
        close(h->lock);
        h->lock = -1;
        rc = path_remove_tree(h->staging, e);
        free(stamp);
        free(text);
        free(old);
        return rc ? rc : open_staging(h, e);
    }
    if (!same && rc == 0) rc = file_write(stamp, text, strlen(text), e);
    free(stamp);
    free(text);
    free(old);
    return rc;
}

/* A second name for a finished file, so that a publication that stops half-way costs no second download. File systems
 * without links get the file itself. */
static int place(const char *from, const char *to, struct err *e)
{
    if (!link(from, to)) return 0;
    bool none = errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS || errno == EMLINK;
    return none && !rename(from, to) ? 0 : err_sys(e, "%s: cannot be put at %s", from, to);
}

/* The finished files in a folder that appears whole under its name; the staging folder goes last. */
static int publish(struct hub *h, const json_t *have, const char *dest, struct err *e)
{
    struct dir_out d;
    size_t i;
    json_t *v;
    if (dir_out_open(&d, dest, e)) return -1;
    json_array_foreach(have, i, v) {
        char *from = path_join(h->staging, json_string_value(v)), *to = path_join(d.tmp, json_string_value(v));
        int bad = place(from, to, e);
        free(from);
        free(to);
        if (bad) {
            dir_out_abort(&d);
            return -1;
        }
    }
    if (dir_out_close(&d, e)) return -1;
    return path_remove_tree(h->staging, e);
}

static int run(struct hub *h, const char *spec, const char *dest, struct err *e)
{
    struct dir_out probe; /* says now, not after hours, that dest cannot be written */
    json_t *have = NULL;
    if (parse_spec(h, spec, e) || get_endpoint(h, e) || dir_out_open(&probe, dest, e)) return -1;
    h->staging = mem_printf("%s.download", probe.path);
    dir_out_abort(&probe);
    h->http = http_new(h->token, e);
    if (!h->http || resolve_revision(h, e) || list_files(h, e) || open_staging(h, e)) return -1;
    msg_stage("hf:%s@%s into %s", h->repo, h->commit, h->staging);
    int rc = fetch_all(h, &have, e);
    if (rc == 0) rc = publish(h, have, dest, e);
    if (rc && entries(h->staging) <= 1) /* the stamp alone */
        path_remove_tree(h->staging, NULL);
    else if (rc)
        err_suffix(e, "; %s keeps what has come, and the same command goes on", h->staging);
    json_decref(have);
    return rc;
}

int hub_fetch(const char *spec, const char *dest_dir, struct err *e)
{
    struct hub h = {.lock = -1};
    int rc = run(&h, spec, dest_dir, e);
    if (h.lock >= 0) close(h.lock);
    http_free(h.http);
    json_decref(h.files);
    free(h.repo);
    free(h.revision);
    free(h.endpoint);
    free(h.commit);
    free(h.staging);
    return rc;
}
