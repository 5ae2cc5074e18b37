/* Memory for repacked weights in huge pages: a core reads it at 28 GB/s where pages of 4 KiB give 18 (Zen 4). Blocks are
 * taken from slabs one behind the other; a slab goes back to the system with its last block, and space at its end is
 * used again when the blocks there are freed in any order. */
#ifndef QLAB_BACKEND_CPU_ARENA_H
#define QLAB_BACKEND_CPU_ARENA_H

#include <stddef.h>

struct slab;
struct arena {
    struct slab *slabs;
};

/* n bytes, 64-byte aligned, not initialised. Ends the process when there is no memory (base/mem.h). */
void *arena_alloc(struct arena *a, size_t n);
void arena_free(struct arena *a, void *p); /* NULL is fine */

#endif
