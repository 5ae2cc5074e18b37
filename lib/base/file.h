/* Files: read-only maps, whole reads, and output that appears under its final name only when it is complete
 * (written beside, fsync, rename). Unfinished output is removed when a call fails, when the tool dies and on
 * SIGINT/SIGTERM; after SIGKILL only a temporary name is left. */
#ifndef QLAB_BASE_FILE_H
#define QLAB_BASE_FILE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A read-only map of a whole regular file. An empty file maps to data == NULL, size 0. */
struct file_map {
    const uint8_t *data;
    size_t size;
    char *path; /* owned */
};
int file_map_open(struct file_map *m, const char *path, struct err *e);
void file_map_close(struct file_map *m);
/* Tell the kernel that these mapped bytes will not be needed again: their pages leave the resident set. Bytes outside
 * every open map (copies, buffers) are left alone. */
void file_map_drop(const void *p, size_t n);

/* The path of the open map that p lies in, or NULL. Async-signal-safe. */
const char *file_map_path(const void *p);

/* A descriptor for reading, closed on exec. A pipe under an ordinary name, which may have no writer, is refused and not
 * waited for: only a regular file, or what stands under /dev/stdin, /dev/fd/ or /proc/self/fd/ (a pipe of the shell). */
int file_open(const char *path, struct err *e);
/* Read a whole file of at most max bytes into a new NUL-terminated buffer (free it); *n without the NUL. */
int file_read(const char *path, size_t max, char **buf, size_t *n, struct err *e);

bool path_exists(const char *path);
bool path_is_dir(const char *path);
/* dir + "/" + name in a new string. */
char *path_join(const char *dir, const char *name);
/* mkdir -p. */
int path_make_dirs(const char *dir, struct err *e);
/* True if both exist and `path` is `dir` or lies within it, symbolic links followed. */
bool path_is_within(const char *path, const char *dir);
/* True for a name that stays inside its folder: not empty, no '/', not "." or "..". */
bool name_is_plain(const char *name);

/* One output file. `file_out_close` checks every write, fsyncs and renames; on failure nothing is left. beside (NULL after
 * file_out_open) may be set: it is called in a thread of its own with the complete file's temporary name while the file goes
 * to the disk; it reads it at most. */
struct file_out {
    FILE *f;
    char *path, *tmp; /* owned */
    int slot;
    void (*beside)(const char *tmp);
};
int file_out_open(struct file_out *o, const char *path, struct err *e);
int file_out_write(struct file_out *o, const void *p, size_t n, struct err *e);
int file_out_close(struct file_out *o, struct err *e);
void file_out_abort(struct file_out *o);
/* All at once. */
int file_write(const char *path, const void *p, size_t n, struct err *e);

/* An output folder. Files are made in `tmp` (a sibling of the final name) with file_out_open on path_join(tmp, name);
 * dir_out_close fsyncs and renames it to `path`. An existing `path` is replaced only when it is an empty folder or
 * carries the marker file DIR_MARK, which every dir_out folder gets: anything else is an error and stays untouched. */
#define DIR_MARK ".qlab-folder"
struct dir_out {
    char *path, *tmp; /* owned */
    int slot;
};
int dir_out_open(struct dir_out *d, const char *path, struct err *e);
int dir_out_close(struct dir_out *d, struct err *e);
void dir_out_abort(struct dir_out *d);

/* Remove all registered unfinished output. Async-signal-safe. */
void file_remove_unfinished(void);
/* rm -r of a folder of plain files and folders; missing is not an error. */
int path_remove_tree(const char *path, struct err *e);

#endif
