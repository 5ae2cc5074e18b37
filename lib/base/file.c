#include "base/file.h"

#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- unfinished output: a table that a signal handler can read ---- */

/* Chunks are added and never freed or moved; a handler sees an entry's path only while its state is set. */
#define CHUNK_ENTRIES 256
#define MAX_CHUNKS 1024
struct entry {
    char *volatile path;
    volatile int state; /* 0 free, 1 file, 2 folder */
};
static struct entry *volatile chunks[MAX_CHUNKS];

/* NULL behind the last one. */
static struct entry *entry_at(int i)
{
    struct entry *c = i < CHUNK_ENTRIES * MAX_CHUNKS ? chunks[i / CHUNK_ENTRIES] : NULL;
    return c ? &c[i % CHUNK_ENTRIES] : NULL;
}

static int unfinished_add(const char *path, int state)
{
    int i = 0;
    struct entry *en;
    while ((en = entry_at(i)) && en->state) i++;
    if (!en) {
        if (i == CHUNK_ENTRIES * MAX_CHUNKS) return -1;
        chunks[i / CHUNK_ENTRIES] = mem_new(CHUNK_ENTRIES, sizeof **chunks);
        en = entry_at(i);
    }
    free(en->path);
    en->path = mem_strdup(path);
    en->state = state;
    return i;
}

static void unfinished_del(int slot)
{
    if (slot >= 0) entry_at(slot)->state = 0;
}

void file_remove_unfinished(void)
{
    struct entry *en;
    int n = 0;
    for (; (en = entry_at(n)); n++)
        if (en->state == 1) unlink(en->path);
    while (n-- > 0)
        if (entry_at(n)->state == 2) rmdir(entry_at(n)->path);
    /* Finished files inside an unfinished folder stay registered until the folder is renamed (dir_out_close), so the
     * rmdir above finds it empty. */
}

/* ---- reading ---- */

/* All maps that are open, so that file_map_drop touches nothing else (the same call on ordinary memory would empty it) and
 * that a signal handler can name the file a fault lies in. Nodes are used again and never freed; end is 0 in a free one. */
struct map_node {
    volatile uintptr_t begin, end;
    const char *volatile path; /* the file_map's */
    struct map_node *next;
};
static pthread_mutex_t maps_lock = PTHREAD_MUTEX_INITIALIZER;
static struct map_node *volatile maps;

static void maps_add(const struct file_map *m)
{
    pthread_mutex_lock(&maps_lock);
    struct map_node *k = maps;
    while (k && k->end) k = k->next;
    if (!k) {
        k = mem_new(1, sizeof *k);
        k->next = maps;
        maps = k;
    }
    k->path = m->path;
    k->begin = (uintptr_t)m->data;
    k->end = (uintptr_t)m->data + m->size;
    pthread_mutex_unlock(&maps_lock);
}

static void maps_del(const void *p)
{
    pthread_mutex_lock(&maps_lock);
    for (struct map_node *k = maps; k; k = k->next)
        if (k->end && k->begin == (uintptr_t)p) {
            k->end = 0;
            break;
        }
    pthread_mutex_unlock(&maps_lock);
}

static const struct map_node *map_of(uintptr_t a, uintptr_t b)
{
    const struct map_node *k = maps;
    while (k && !(k->end && a >= k->begin && b <= k->end)) k = k->next;
    return k;
}

static bool is_mapped(uintptr_t a, uintptr_t b)
{
    pthread_mutex_lock(&maps_lock);
    bool in = map_of(a, b);
    pthread_mutex_unlock(&maps_lock);
    return in;
}

const char *file_map_path(const void *p)
{
    const struct map_node *k = map_of((uintptr_t)p, (uintptr_t)p);
    return k ? k->path : NULL;
}

int file_map_open(struct file_map *m, const char *path, struct err *e)
{
    memset(m, 0, sizeof *m);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer is refused, not waited for */
    if (fd < 0) return err_sys(e, "%s", path);
    struct stat st;
    if (fstat(fd, &st)) {
        err_sys(e, "%s", path);
        close(fd);
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return err_set(e, "%s: not a regular file", path);
    }
    m->path = mem_strdup(path);
    m->size = (size_t)st.st_size;
    if (m->size) {
        void *p = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            err_sys(e, "%s: cannot map", path);
            close(fd);
            free(m->path);
            memset(m, 0, sizeof *m);
            return -1;
        }
        /* A file that is not cached yet is then read into huge pages where the system can, which weights stream from a
         * third faster; elsewhere this does nothing. */
        madvise(p, m->size, MADV_HUGEPAGE);
        m->data = p;
        maps_add(m);
    }
    close(fd);
    return 0;
}

void file_map_close(struct file_map *m)
{
    if (m->data) {
        maps_del(m->data);
        munmap((void *)(uintptr_t)m->data, m->size);
    }
    free(m->path);
    memset(m, 0, sizeof *m);
}

void file_map_drop(const void *p, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t a = ((uintptr_t)p + page - 1) / page * page, b = ((uintptr_t)p + n) / page * page;
    if (a < b && is_mapped(a, b)) madvise((void *)a, b - a, MADV_DONTNEED);
}

/* Names of what the caller of the program opened: a pipe there is meant, and someone is at its other end. */
static bool is_given_open(const char *path)
{
    return !strcmp(path, "/dev/stdin") || !strncmp(path, "/dev/fd/", 8) || !strncmp(path, "/proc/self/fd/", 14);
}

int file_open(const char *path, struct err *e)
{
    struct stat st;
    bool given = is_given_open(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | (given ? 0 : O_NONBLOCK));
    if (fd < 0) return err_sys(e, "%s", path);
    if (!fstat(fd, &st) && (given || S_ISREG(st.st_mode))) return fd;
    err_set(e, "%s: not a regular file", path);
    close(fd);
    return -1;
}

int file_read(const char *path, size_t max, char **buf, size_t *n, struct err *e)
{
    *buf = NULL;
    int fd = file_open(path, e);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "rb");
    if (!f && fd >= 0) {
        err_sys(e, "%s", path);
        close(fd);
    }
    if (!f) return -1;
    size_t cap = 1 << 16, len = 0;
    char *p = mem_grow(NULL, cap, 1);
    for (;;) {
        size_t got = fread(p + len, 1, cap - 1 - len, f);
        len += got;
        if (len > max) {
            err_set(e, "%s: larger than %zu bytes", path, max);
            goto fail;
        }
        if (!got) break;
        if (cap - 1 == len) p = mem_grow(p, cap *= 2, 1);
    }
    if (ferror(f)) {
        err_sys(e, "%s: cannot read", path);
        goto fail;
    }
    fclose(f);
    p[len] = 0;
    *buf = p;
    *n = len;
    return 0;
fail:
    fclose(f);
    free(p);
    return -1;
}

/* ---- paths ---- */

bool path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir);
    return mem_printf("%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
}

int path_make_dirs(const char *dir, struct err *e)
{
    char *p = mem_strdup(dir);
    int rc = 0;
    for (char *s = p + 1; rc == 0; s++) {
        if (*s && *s != '/') continue;
        char c = *s;
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST) rc = err_sys(e, "%s: cannot make folder", p);
        *s = c;
        if (!c) break;
    }
    if (rc == 0 && !path_is_dir(dir)) rc = err_set(e, "%s: not a folder", dir);
    free(p);
    return rc;
}

bool path_is_within(const char *path, const char *dir)
{
    char *a = realpath(path, NULL), *b = realpath(dir, NULL);
    size_t n = b ? strlen(b) : 0;
    if (n == 1) n = 0; /* "/" */
    bool in = a && b && !strncmp(a, b, n) && (!a[n] || a[n] == '/');
    free(a);
    free(b);
    return in;
}

bool name_is_plain(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

int path_remove_tree(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st)) return errno == ENOENT ? 0 : err_sys(e, "%s", path);
    if (!S_ISDIR(st.st_mode)) return unlink(path) ? err_sys(e, "%s", path) : 0;
    DIR *d = opendir(path);
    if (!d) return err_sys(e, "%s", path);
    int rc = 0;
    for (struct dirent *it; rc == 0 && (it = readdir(d));) {
        if (!name_is_plain(it->d_name)) continue;
        char *sub = path_join(path, it->d_name);
        rc = path_remove_tree(sub, e);
        free(sub);
    }
    closedir(d);
    if (rc == 0 && rmdir(path)) rc = err_sys(e, "%s", path);
    return rc;
}

/* ---- output ---- */

static int sync_parent(const char *path, struct err *e)
{
    char *dir = mem_strdup(path), *slash = strrchr(dir, '/');
    if (slash && slash != dir) *slash = 0;
    int fd = open(slash ? (slash == dir ? "/" : dir) : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0) return err_sys(e, "%s: cannot open its folder", path);
    /* Some file systems cannot fsync a folder; the rename itself is still atomic there. */
    if (fsync(fd) && errno != EINVAL && errno != EROFS) {
        err_sys(e, "%s: cannot sync its folder", path);
        close(fd);
        return -1;
    }
    close(fd);
    return 0;
}

int file_out_open(struct file_out *o, const char *path, struct err *e)
{
    memset(o, 0, sizeof *o);
    o->slot = -1;
    if (path_is_dir(path)) return err_set(e, "%s: is a folder (a file name was expected)", path);
    o->path = mem_strdup(path);
    o->tmp = mem_printf("%s.part-%ld", path, (long)getpid());
    o->slot = unfinished_add(o->tmp, 1);
    o->f = fopen(o->tmp, "wbe");
    if (!o->f) {
        err_sys(e, "%s: cannot write", path);
        file_out_abort(o);
        return -1;
    }
    return 0;
}

int file_out_write(struct file_out *o, const void *p, size_t n, struct err *e)
{
    if (n && fwrite(p, 1, n, o->f) != n) return err_sys(e, "%s: cannot write", o->path);
    return 0;
}

static void out_free(struct file_out *o)
{
    free(o->path);
    free(o->tmp);
    memset(o, 0, sizeof *o);
    o->slot = -1;
}

/* A file finished inside an unfinished folder stays in the table, under its final name, until the folder is done. */
static int inside_unfinished(const char *path)
{
    struct entry *en;
    for (int i = 0; (en = entry_at(i)); i++) {
        size_t n = en->state == 2 ? strlen(en->path) : 0;
        if (n && !strncmp(path, en->path, n) && path[n] == '/') return 1;
    }
    return 0;
}

static void *run_beside(void *ctx)
{
    const struct file_out *o = ctx;
    o->beside(o->tmp);
    return NULL;
}

static int sync_file(struct file_out *o)
{
    pthread_t t;
    if (fflush(o->f) || ferror(o->f)) return -1;
    sigset_t all, old; /* signals go to the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    bool beside = o->beside && !pthread_create(&t, NULL, run_beside, o);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    int rc = fsync(fileno(o->f)), err = errno;
    if (beside) pthread_join(t, NULL);
    errno = err;
    return rc;
}

int file_out_close(struct file_out *o, struct err *e)
{
    int bad = sync_file(o);
    if (bad) err_sys(e, "%s: cannot write", o->path);
    if (fclose(o->f) && !bad) bad = 1, err_sys(e, "%s: cannot write", o->path);
    o->f = NULL;
    int kept = !bad && inside_unfinished(o->path) ? unfinished_add(o->path, 1) : -1;
    if (!bad && rename(o->tmp, o->path)) bad = 1, err_sys(e, "%s: cannot rename %s to it", o->path, o->tmp);
    if (bad) {
        file_out_abort(o);
        return -1;
    }
    unfinished_del(o->slot);
    int rc = kept >= 0 ? 0 : sync_parent(o->path, e);
    out_free(o);
    return rc;
}

void file_out_abort(struct file_out *o)
{
    if (o->f) fclose(o->f);
    if (o->tmp) unlink(o->tmp);
    unfinished_del(o->slot);
    out_free(o);
}

int file_write(const char *path, const void *p, size_t n, struct err *e)
{
    struct file_out o;
    if (file_out_open(&o, path, e)) return -1;
    if (file_out_write(&o, p, n, e)) {
        file_out_abort(&o);
        return -1;
    }
    return file_out_close(&o, e);
}

/* 1: may be replaced, 0: does not exist, -1: holds something that is not ours */
static int replaceable(const char *path, struct err *e)
{
    struct stat st;
    if (lstat(path, &st)) return errno == ENOENT ? 0 : err_sys(e, "%s", path);
    if (!S_ISDIR(st.st_mode)) return err_set(e, "%s: exists and is not a folder", path);
    char *mark = path_join(path, DIR_MARK);
    bool ours = path_exists(mark);
    free(mark);
    if (ours) return 1;
    DIR *d = opendir(path);
    if (!d) return err_sys(e, "%s", path);
    bool empty = true;
    for (struct dirent *it; (it = readdir(d));)
        if (name_is_plain(it->d_name)) empty = false;
    closedir(d);
    return empty ? 1 : err_set(e, "%s: already there with other contents (not written by qlab; left as it is)", path);
}

int dir_out_open(struct dir_out *d, const char *path, struct err *e)
{
    memset(d, 0, sizeof *d);
    d->slot = -1;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    d->path = mem_strndup(path, n);
    if (replaceable(d->path, e) < 0) {
        dir_out_abort(d);
        return -1;
    }
    d->tmp = mem_printf("%s.part-%ld", d->path, (long)getpid());
    path_remove_tree(d->tmp, NULL); /* left by a killed process that had our pid */
    d->slot = unfinished_add(d->tmp, 2);
    struct err sub;
    if (path_make_dirs(d->tmp, &sub)) {
        err_set(e, "%s", sub.msg);
        dir_out_abort(d);
        return -1;
    }
    char *mark = path_join(d->tmp, DIR_MARK);
    const char text[] = "This folder was written by qlab and may be replaced by it.\n";
    int rc = file_write(mark, text, sizeof text - 1, e);
    free(mark);
    if (rc) dir_out_abort(d);
    return rc;
}

static void forget_inside(const char *dir)
{
    size_t n = strlen(dir);
    struct entry *en;
    for (int i = 0; (en = entry_at(i)); i++)
        if (en->state == 1 && !strncmp(en->path, dir, n) && en->path[n] == '/') en->state = 0;
}

static void dir_free(struct dir_out *d)
{
    free(d->path);
    free(d->tmp);
    memset(d, 0, sizeof *d);
    d->slot = -1;
}

/* The new folder in the old one's place. */
static int replace(struct dir_out *d, const char *old, int can, struct err *e)
{
    if (can == 1 && rename(d->path, old)) return err_sys(e, "%s: cannot replace", d->path);
    if (rename(d->tmp, d->path)) {
        err_sys(e, "%s: cannot rename %s to it", d->path, d->tmp);
        if (can == 1) (void)!rename(old, d->path);
        return -1;
    }
    forget_inside(d->tmp);
    unfinished_del(d->slot);
    if (can == 1) path_remove_tree(old, NULL);
    return 0;
}

int dir_out_close(struct dir_out *d, struct err *e)
{
    int can = replaceable(d->path, e), rc = -1;
    if (can >= 0) {
        char *old = mem_printf("%s.old-%ld", d->path, (long)getpid());
        sigset_t all, before; /* an interrupt between the renames would leave neither folder under the name */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        rc = replace(d, old, can, e);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        free(old);
    }
    if (rc) {
        dir_out_abort(d);
        return -1;
    }
    rc = sync_parent(d->path, e);
    dir_free(d);
    return rc;
}

void dir_out_abort(struct dir_out *d)
{
    if (d->tmp) {
        forget_inside(d->tmp);
        path_remove_tree(d->tmp, NULL);
    }
    unfinished_del(d->slot);
    dir_free(d);
}
