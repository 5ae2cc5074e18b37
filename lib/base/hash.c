#include "base/hash.h"

#include "base/file.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static void to_hex(const unsigned char *d, unsigned n, char *out)
{
    for (unsigned i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", d[i]);
}

void sha256_hex(const void *p, size_t n, char out[65])
{
    unsigned char d[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_Digest(p, n, d, &len, EVP_sha256(), NULL);
    to_hex(d, len, out);
}

uint32_t fnv1a(const void *p, size_t n)
{
    const uint8_t *s = p;
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 16777619u;
    return h;
}

enum { CACHED_BYTES = 1 << 20 }; /* smaller files are read again */

static char *cache_path(void)
{
    const char *off = getenv("QLAB_NO_CACHE");
    if (off && *off && strcmp(off, "0")) return NULL;
    const char *x = getenv("XDG_CACHE_HOME"), *h = getenv("HOME");
    if (x && *x == '/') return mem_printf("%s/qlab/digests", x);
    return h && *h == '/' ? mem_printf("%s/.cache/qlab/digests", h) : NULL;
}

static void key_of(const struct stat *st, char *key, size_t n)
{
    snprintf(key, n, "%llx:%llx:%lld:%lld.%09ld", (unsigned long long)st->st_dev, (unsigned long long)st->st_ino,
             (long long)st->st_size, (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
}

/* The cache is a hint: any trouble with it only means hashing again. A line is "KEY SHA256\n". */
static int cache_get(const char *path, const char *key, char out[65])
{
    FILE *f = path ? fopen(path, "re") : NULL;
    if (!f) return -1;
    char k[128], h[66];
    int found = -1;
    char buf[256];
    while (fgets(buf, sizeof buf, f))
        if (sscanf(buf, "%127s %65s", k, h) == 2 && !strcmp(k, key) && strlen(h) == 64) {
            memcpy(out, h, 65);
            found = 0;
        }
    fclose(f);
    return found;
}

static void cache_put(const char *path, const char *key, const char *hex)
{
    if (!path) return;
    char *dir = mem_strdup(path);
    *strrchr(dir, '/') = 0;
    int ok = path_make_dirs(dir, NULL);
    free(dir);
    if (ok) return;
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return;
    char line[256];
    int n = snprintf(line, sizeof line, "%s %s\n", key, hex);
    (void)!write(fd, line, (size_t)n); /* one O_APPEND write: lines of parallel tools do not mix */
    close(fd);
}

int sha256_file(const char *path, char out[65], int64_t *bytes, struct err *e)
{
    int fd = file_open(path, e);
    if (fd < 0) return -1;
    struct stat st;
    if (fstat(fd, &st)) {
        err_sys(e, "%s", path);
        close(fd);
        return -1;
    }
    char key[128], *cache = st.st_size >= CACHED_BYTES ? cache_path() : NULL;
    key_of(&st, key, sizeof key);
    if (bytes) *bytes = (int64_t)st.st_size;
    if (cache && cache_get(cache, key, out) == 0) {
        close(fd);
        free(cache);
        return 0;
    }
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    EVP_DigestInit_ex(c, EVP_sha256(), NULL);
    size_t cap = 1 << 20;
    char *buf = mem_new(cap, 1);
    ssize_t n;
    while ((n = read(fd, buf, cap)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0) EVP_DigestUpdate(c, buf, (size_t)n);
    int rc = n < 0 ? err_sys(e, "%s: cannot read", path) : 0;
    unsigned char d[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_DigestFinal_ex(c, d, &len);
    EVP_MD_CTX_free(c);
    free(buf);
    close(fd);
    if (rc == 0) {
        to_hex(d, len, out);
        cache_put(cache, key, out);
    }
    free(cache);
    return rc;
}

void sha256_keep(const char *path)
{
    char hex[65], *cache = cache_path();
    struct stat st;
    if (cache && stat(path, &st) == 0 && st.st_size >= CACHED_BYTES) sha256_file(path, hex, NULL, NULL);
    free(cache);
}
