/* Digests. */
#ifndef QLAB_BASE_HASH_H
#define QLAB_BASE_HASH_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* SHA-256 as 64 lower-case hex digits and a NUL. */
void sha256_hex(const void *p, size_t n, char out[65]);
/* Of a file. For files of 1 MiB and more the digest is kept in $XDG_CACHE_HOME/qlab/digests (default ~/.cache), keyed
 * by device, inode, size and mtime in ns, so that only the first call reads the file; QLAB_NO_CACHE=1 turns it off. */
int sha256_file(const char *path, char out[65], int64_t *bytes, struct err *e);
/* Into that cache, for whoever asks for it next; nothing where digests are not kept. */
void sha256_keep(const char *path);
/* FNV-1a, 32 bit. */
uint32_t fnv1a(const void *p, size_t n);

#endif
