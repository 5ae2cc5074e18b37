/* A small HTTP server that misbehaves on request, for tests: serves the files of a folder on 127.0.0.1, one connection
 * at a time, and closes each after its reply.
 * usage: httpd ROOT PORTFILE LOG [FAULT…]
 * PORTFILE gets the port (chosen by the system) once it listens; LOG a line "PATH range=… auth=…" per request.
 * FAULT: PATH-SUFFIX ACTION[=ARG][*TIMES] as one argument, e.g. "model.safetensors drop=1000*2". The first that matches
 * and has times left applies. Actions:
 *   drop=N         N bytes of the body, then the connection breaks
 *   length=N       states N as Content-Length (and sends what it has)
 *   nolength       states none; the body ends with the connection
 *   longer=N       like nolength, with N bytes too many
 *   norange        answers 200 and the whole file to a Range request
 *   lyingrange     answers 206 with the file from its start
 *   redirect=URL   302 to URL and the path; URL "" stays on this server under /moved
 *   loop           302 to itself
 *   status=N,CODE  that status, with X-Error-Code CODE
 *   hangup         closes without a reply */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct fault {
    const char *suffix, *action, *arg;
    long times; /* left; −1: always */
} faults[32];
static int n_faults;

struct request {
    char path[1024], range[64], auth[256];
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void parse_fault(char *spec) /* cut up in place */
{
    struct fault *f = &faults[n_faults];
    char *action = strchr(spec, ' '), *arg, *times;
    if (n_faults == 32 || !action) fail("bad FAULT");
    *action++ = 0;
    f->times = -1;
    if ((times = strrchr(action, '*'))) {
        *times++ = 0;
        f->times = strtol(times, NULL, 10);
    }
    if ((arg = strchr(action, '='))) *arg++ = 0;
    f->suffix = spec;
    f->action = action;
    f->arg = arg ? arg : "";
    n_faults++;
}

static const struct fault *fault_of(const char *path)
{
    size_t n = strlen(path);
    for (struct fault *f = faults; f < faults + n_faults; f++) {
        size_t k = strlen(f->suffix);
        if (!f->times || k > n || strcmp(path + n - k, f->suffix)) continue;
        if (f->times > 0) f->times--;
        return f;
    }
    return NULL;
}

static bool is(const struct fault *f, const char *action) { return f && !strcmp(f->action, action); }

static bool send_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0) return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static int read_request(int fd, struct request *r)
{
    char buf[8192];
    size_t n = 0;
    while (n < sizeof buf - 1) {
        ssize_t k = recv(fd, buf + n, sizeof buf - 1 - n, 0);
        if (k <= 0) return -1;
        n += (size_t)k;
        buf[n] = 0;
        if (strstr(buf, "\r\n\r\n")) break;
    }
    memset(r, 0, sizeof *r);
    if (sscanf(buf, "GET %1023s HTTP/", r->path) != 1) return -1;
    for (char *line = strstr(buf, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        sscanf(line + 2, "%*[Rr]ange: bytes=%63[0-9-]", r->range);
        sscanf(line + 2, "%*[Aa]uthorization: %255[^\r\n]", r->auth);
    }
    return 0;
}

static void answer(int fd, long status, const char *extra, const char *body, size_t n)
{
    char head[2048];
    int k = snprintf(head, sizeof head, "HTTP/1.1 %ld X\r\nConnection: close\r\n%s\r\n", status, extra);
    if (send_all(fd, head, (size_t)k)) send_all(fd, body, n);
}

static void answer_short(int fd, long status, const char *extra)
{
    char all[1024];
    snprintf(all, sizeof all, "%sContent-Length: 6\r\n", extra);
    answer(fd, status, all, "sorry\n", 6);
}

/* The body p[from … n−1], with the fault's changes. */
static void serve_file(int fd, const struct fault *f, const char *range, const char *p, size_t n)
{
    char extra[512] = "";
    size_t from = *range && !is(f, "norange") ? strtoul(range, NULL, 10) : 0, part;
    if (from && from >= n) {
        answer_short(fd, 416, "");
        return;
    }
    if (is(f, "lyingrange")) from = 0;
    part = n - from;
    if (*range && !is(f, "norange"))
        snprintf(extra, sizeof extra, "Content-Range: bytes %zu-%zu/%zu\r\n", from, n - 1, n);
    long status = *extra ? 206 : 200;
    size_t stated = is(f, "length") ? strtoul(f->arg, NULL, 10) : part;
    if (!is(f, "nolength") && !is(f, "longer"))
        snprintf(extra + strlen(extra), sizeof extra - strlen(extra), "Content-Length: %zu\r\n", stated);
    size_t sent = is(f, "drop") ? strtoul(f->arg, NULL, 10) : part;
    answer(fd, status, extra, p + from, sent < part ? sent : part);
    if (is(f, "longer"))
        for (long i = strtol(f->arg, NULL, 10); i > 0; i--)
            if (!send_all(fd, "x", 1)) break;
}

static void reply(int fd, const char *root, const struct request *r)
{
    const struct fault *f = fault_of(r->path);
    char extra[1024], path[2048];
    const char *plain = strncmp(r->path, "/moved/", 7) ? r->path : r->path + 6;
    if (is(f, "hangup")) return;
    if (is(f, "redirect") || is(f, "loop")) {
        snprintf(extra, sizeof extra, "Location: %.200s%s%.700s\r\n", f->arg, is(f, "loop") || *f->arg ? "" : "/moved",
                 r->path);
        answer_short(fd, 302, extra);
        return;
    }
    if (is(f, "status")) {
        const char *code = strchr(f->arg, ',');
        snprintf(extra, sizeof extra, "X-Error-Code: %s\r\n", code ? code + 1 : "");
        answer_short(fd, strtol(f->arg, NULL, 10), code ? extra : "");
        return;
    }
    snprintf(path, sizeof path, "%s%s", root, plain);
    struct stat st;
    int in = strstr(path, "..") ? -1 : open(path, O_RDONLY);
    if (in < 0 || fstat(in, &st) || !S_ISREG(st.st_mode)) {
        answer_short(fd, 404, "");
        if (in >= 0) close(in);
        return;
    }
    char *body = malloc((size_t)st.st_size + 1);
    ssize_t n = body ? read(in, body, (size_t)st.st_size) : -1;
    close(in);
    if (n == (ssize_t)st.st_size) serve_file(fd, f, r->range, body, (size_t)n);
    free(body);
}

int main(int argc, char **argv)
{
    if (argc < 4) return fprintf(stderr, "usage: httpd ROOT PORTFILE LOG [FAULT…]\n"), 2;
    for (int i = 4; i < argc; i++) parse_fault(argv[i]);
    signal(SIGPIPE, SIG_IGN);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (s < 0 || bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 16) ||
        getsockname(s, (struct sockaddr *)&a, &len))
        fail("httpd");
    FILE *log = fopen(argv[3], "w"), *port = fopen(argv[2], "w");
    if (!log || !port) fail("httpd");
    setvbuf(log, NULL, _IOLBF, 0);
    fprintf(port, "%d\n", ntohs(a.sin_port));
    fclose(port);
    for (;;) {
        int fd = accept(s, NULL, NULL);
        if (fd < 0 && errno == EINTR) continue;
        if (fd < 0) fail("accept");
        struct request r;
        if (read_request(fd, &r) == 0) {
            fprintf(log, "%s range=%s auth=%s\n", r.path, r.range, r.auth);
            reply(fd, argv[1], &r);
        }
        shutdown(fd, SHUT_WR); /* the client's end closes in its own time: an early close could lose sent bytes */
        char rest[512];
        struct timeval patience = {2, 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        while (recv(fd, rest, sizeof rest, 0) > 0) {}
        close(fd);
    }
}
