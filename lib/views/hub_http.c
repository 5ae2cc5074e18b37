#include "views/hub_http.h"

#include "base/mem.h"
#include "base/msg.h"
#include "base/version.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_TRIES 6 /* in a row without a byte gained: waits of 0.5, 1, 2, 4, 8 s */

struct http {
    CURL *curl;
    struct curl_slist *headers;
    /* of the transfer under way */
    struct http_reply *reply;
    int64_t range_from, range_total; /* from Content-Range, −1 without */
    struct err *e;
    const char *url;
    bool fatal; /* e is set, and no retry can help */
    /* into memory */
    char *buf;
    size_t n, max;
    /* into a file */
    FILE *f;
    const char *path;
    int64_t size, have, asked; /* asked: the offset requested */
    bool begun, wrong_length;
    void (*progress)(void *ctx, int64_t have);
    void *ctx;
};

struct http *http_new(const char *token, struct err *e)
{
    struct http *h = mem_new(1, sizeof *h);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    h->curl = curl_easy_init();
    if (!h->curl) {
        err_set(e, "libcurl cannot be started");
        free(h);
        return NULL;
    }
    if (token) {
        /* As a custom header libcurl sends it to the first host and port only (CURLOPT_UNRESTRICTED_AUTH is off). */
        char *line = mem_printf("Authorization: Bearer %s", token);
        h->headers = curl_slist_append(NULL, line);
        free(line);
    }
    return h;
}

void http_free(struct http *h)
{
    if (!h) return;
    curl_slist_free_all(h->headers);
    curl_easy_cleanup(h->curl);
    free(h);
}

/* ---- headers ---- */

/* The value if the line is this header: without surrounding blanks, cut to n − 1 bytes. */
static bool header_is(const char *line, size_t len, const char *name, char *value, size_t n)
{
    size_t k = strlen(name);
    if (len <= k || strncasecmp(line, name, k) || line[k] != ':') return false;
    const char *a = line + k + 1, *b = line + len;
    while (a < b && (*a == ' ' || *a == '\t')) a++;
    while (b > a && strchr(" \t\r\n", b[-1])) b--;
    size_t m = (size_t)(b - a) < n - 1 ? (size_t)(b - a) : n - 1;
    memcpy(value, a, m);
    value[m] = 0;
    return true;
}

static size_t on_header(char *line, size_t size, size_t count, void *ctx)
{
    struct http *h = ctx;
    size_t len = size * count;
    char v[2048], *end;
    if (len >= 5 && !strncmp(line, "HTTP/", 5)) { /* the next reply of a chain of redirects */
        memset(h->reply, 0, sizeof *h->reply);
        h->range_from = h->range_total = -1;
    } else if (header_is(line, len, "X-Error-Code", v, sizeof v)) {
        snprintf(h->reply->error_code, sizeof h->reply->error_code, "%.63s", v);
    } else if (header_is(line, len, "Content-Range", v, sizeof v)) {
        long long from, to, total;
        if (sscanf(v, "bytes %lld-%lld/%lld", &from, &to, &total) == 3) h->range_from = from, h->range_total = total;
    } else if (header_is(line, len, "Link", v, sizeof v)) {
        /* <URL>; rel="next" */
        if (*v == '<' && (end = strchr(v, '>')) && strstr(end, "rel=\"next\"") &&
            (size_t)(end - v) < sizeof h->reply->next)
            snprintf(h->reply->next, sizeof h->reply->next, "%.*s", (int)(end - v - 1), v + 1);
    }
    return len;
}

/* ---- bodies ---- */

static size_t to_memory(char *p, size_t size, size_t count, void *ctx)
{
    struct http *h = ctx;
    size_t n = size * count;
    if (n > h->max - h->n) {
        h->fatal = true;
        err_set(h->e, "%s: the answer is longer than %zu bytes", h->url, h->max);
        return 0;
    }
    h->buf = mem_grow(h->buf, h->n + n + 1, 1);
    memcpy(h->buf + h->n, p, n);
    h->n += n;
    h->buf[h->n] = 0;
    return n;
}

static size_t wrong_length(struct http *h, const char *what, int64_t n)
{
    h->fatal = h->wrong_length = true;
    err_set(h->e, "%s: the server %s %" PRId64 " bytes (%" PRId64 " were expected)", h->url, what, n, h->size);
    return 0;
}

/* First bytes of a file's body: is it what was asked for? 1: take it, 0: skip it (an error page), −1: give up. */
static int begin_body(struct http *h)
{
    long status = 0;
    curl_off_t length = -1;
    curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(h->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (status / 100 != 2) return 0;
    int64_t from = 0;
    if (status == 206) {
        from = h->range_from;
        if (from != h->asked || (h->range_total >= 0 && h->range_total != h->size)) {
            h->fatal = h->wrong_length = true;
            err_set(h->e, "%s: the server sends bytes from %" PRId64 " of %" PRId64 " (%" PRId64 " of %" PRId64
                          " was asked)", h->url, from, h->range_total, h->asked, h->size);
            return -1;
        }
    }
    if (length >= 0 && from + length != h->size) return wrong_length(h, "has", from + length), -1;
    if (from != h->have) { /* it sends the whole file all over */
        if (fflush(h->f) || ftruncate(fileno(h->f), 0) || fseek(h->f, 0, SEEK_SET)) {
            h->fatal = true;
            return err_sys(h->e, "%s: cannot write", h->path);
        }
        h->have = 0;
    }
    return 1;
}

static size_t to_file(char *p, size_t size, size_t count, void *ctx)
{
    struct http *h = ctx;
    size_t n = size * count;
    if (!h->begun) {
        int take = begin_body(h);
        if (take < 0) return 0;
        if (take == 0) return n;
        h->begun = true;
    }
    if ((int64_t)n > h->size - h->have) return wrong_length(h, "sends more than", h->size);
    if (fwrite(p, 1, n, h->f) != n) {
        h->fatal = true;
        err_sys(h->e, "%s: cannot write", h->path);
        return 0;
    }
    h->have += (int64_t)n;
    if (h->progress) h->progress(h->ctx, h->have);
    return n;
}

/* ---- one transfer, again and again ---- */

static void set_up(struct http *h, const char *url, curl_write_callback write)
{
    static const char *const both = "http,https", *const tls = "https";
    CURL *c = h->curl;
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "qlab/" QLAB_VERSION);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, h->headers);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, 10L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, both);
    /* never from https down to http */
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, strncasecmp(url, "https:", 6) ? both : tls);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 30L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L); /* nothing for a minute: the connection is dead */
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 60L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, h);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, write);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
    h->url = url;
    h->fatal = h->begun = h->wrong_length = false;
}

static bool may_pass(CURLcode rc, long status)
{
    switch (rc) {
    case CURLE_OK: return status == 408 || status == 429 || status / 100 == 5;
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM: return true;
    default: return false;
    }
}

static void wait_s(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR) {}
}

/* Ask until there is a final reply. before: called before each try (may set options), returns the bytes had so far. */
static int ask(struct http *h, const char *url, curl_write_callback write, int64_t (*before)(struct http *),
               struct http_reply *r, struct err *e)
{
    h->reply = r;
    h->e = e;
    int64_t best = -1;
    for (int tries = 0;; tries++) {
        set_up(h, url, write);
        int64_t have = before(h);
        if (have < 0) return -1;
        if (have > best) tries = 0, best = have;
        CURLcode rc = curl_easy_perform(h->curl);
        curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &r->status);
        if (h->fatal) return -1;
        if (!may_pass(rc, r->status)) {
            if (rc == CURLE_OK) return 0;
            return err_set(e, "%s: %s", url, curl_easy_strerror(rc));
        }
        if (tries + 1 >= MAX_TRIES) {
            if (rc == CURLE_OK)
                return err_set(e, "%s: the server answers %ld, after %d tries", url, r->status, tries + 1);
            return err_set(e, "%s: %s, after %d tries", url, curl_easy_strerror(rc), tries + 1);
        }
        double pause = 0.5 * (double)(1 << tries);
        curl_off_t asked = 0;
        if (!curl_easy_getinfo(h->curl, CURLINFO_RETRY_AFTER, &asked) && (double)asked > pause)
            pause = asked < 300 ? (double)asked : 300;
        if (rc == CURLE_OK) msg_warn("%s: the server answers %ld; trying again in %g s", url, r->status, pause);
        else msg_warn("%s: %s; trying again in %g s", url, curl_easy_strerror(rc), pause);
        wait_s(pause);
    }
}

static int64_t before_memory(struct http *h)
{
    h->n = 0;
    return 0;
}

int http_get(struct http *h, const char *url, size_t max, char **buf, size_t *n, struct http_reply *r, struct err *e)
{
    h->buf = mem_grow(NULL, 1, 1);
    h->buf[0] = 0;
    h->max = max;
    int rc = ask(h, url, to_memory, before_memory, r, e);
    if (rc) free(h->buf);
    *buf = rc ? NULL : h->buf;
    *n = rc ? 0 : h->n;
    h->buf = NULL;
    return rc;
}

static int64_t before_file(struct http *h)
{
    if (fflush(h->f)) return err_sys(h->e, "%s: cannot write", h->path);
    h->asked = h->have;
    if (h->have > 0) {
        char range[40];
        snprintf(range, sizeof range, "%" PRId64 "-", h->have);
        curl_easy_setopt(h->curl, CURLOPT_RANGE, range);
    }
    return h->have;
}

int http_get_file(struct http *h, const char *url, const char *path, int64_t size,
                  void (*progress)(void *ctx, int64_t have), void *ctx, struct http_reply *r, struct err *e)
{
    memset(r, 0, sizeof *r);
    h->f = fopen(path, "abe");
    if (!h->f) return err_sys(e, "%s: cannot write", path);
    struct stat st;
    int rc = fstat(fileno(h->f), &st) ? err_sys(e, "%s", path) : 0;
    h->path = path;
    h->size = size;
    h->have = (int64_t)st.st_size;
    h->progress = progress;
    h->ctx = ctx;
    if (rc == 0 && h->have > size && ftruncate(fileno(h->f), 0)) rc = err_sys(e, "%s: cannot write", path);
    if (h->have > size) h->have = 0;
    r->status = 200;
    h->wrong_length = false;
    /* A whole part needs no request; an empty file needs one for its status. */
    if (rc == 0 && (h->have < size || size == 0)) rc = ask(h, url, to_file, before_file, r, e);
    if (rc == 0 && r->status == 416) { /* cannot be, for a part of a file that is still the same */
        rc = err_set(e, "%s: the server has no bytes from %" PRId64 " on (%" PRId64 " were expected)", url, h->asked,
                     size);
        h->wrong_length = true;
    }
    if (rc == 0 && r->status / 100 == 2 && h->have != size) {
        wrong_length(h, "has", h->have);
        rc = -1;
    }
    /* The file is renamed when it is whole: its bytes must be on the disk before its name. */
    if (rc == 0 && r->status / 100 == 2 && (fflush(h->f) || fsync(fileno(h->f)))) rc = err_sys(e, "%s: cannot write", path);
    if (fclose(h->f) && rc == 0) rc = err_sys(e, "%s: cannot write", path);
    h->f = NULL;
    if (h->wrong_length) unlink(path);
    return rc;
}
