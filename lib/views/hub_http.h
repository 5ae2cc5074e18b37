/* HTTP for hub.c by libcurl: redirects, retries with back-off, resume. A reply of any status counts as a reply; only
 * what no retry mends is an error. */
#ifndef QLAB_VIEWS_HUB_HTTP_H
#define QLAB_VIEWS_HUB_HTTP_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct http_reply {
    long status;
    char error_code[64]; /* the hub's X-Error-Code ("GatedRepo", "RevisionNotFound", …) or "" */
    char next[1024];     /* URL of the next page (Link: <…>; rel="next") or "" */
};

struct http;
/* token: sent as a bearer token to the host of the first URL only, never to one it redirects to; NULL for none. */
struct http *http_new(const char *token, struct err *e);
void http_free(struct http *h);

/* GET into memory, at most max bytes; *buf is NUL-terminated and to be freed. */
int http_get(struct http *h, const char *url, size_t max, char **buf, size_t *n, struct http_reply *r, struct err *e);

/* GET a file of `size` bytes into path, going on behind what is there (which must be a part of it). Returns 0 when the
 * reply was 2xx and path now has size bytes, or when it was another status (path is as it was). A server that states
 * or sends another length: an error, and path is removed. A connection that cannot be kept up: an error, and path
 * keeps what has come. progress (may be NULL) is told the number of bytes that path has. */
int http_get_file(struct http *h, const char *url, const char *path, int64_t size,
                  void (*progress)(void *ctx, int64_t have), void *ctx, struct http_reply *r, struct err *e);

#endif
