#include "backend/cpu/arena.h"

#include "base/mem.h"
#include "base/msg.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define SLAB ((size_t)256 << 20) /* of addresses: what is unused is not there, but for the rest of a huge page a slab */

/* Before each block, 64 bytes. */
struct head {
    struct slab *slab;
    struct head *before; /* the block below in the slab */
    size_t bytes;        /* with the head */
    bool live;
};
_Static_assert(sizeof(struct head) <= 64, "a head fits before an aligned block");

struct slab {
    struct slab *next;
    uint8_t *map, *base; /* as mapped; aligned */
    size_t mapped, size, used, live;
    struct head *top;
};

static struct slab *slab_new(struct arena *a, size_t n)
{
    struct slab *s = mem_new(1, sizeof *s);
    s->size = n > SLAB ? (n + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : SLAB;
    s->mapped = s->size + HUGE_PAGE;
    s->map = mmap(NULL, s->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->map == MAP_FAILED) die("out of memory (%zu bytes wanted)", s->mapped);
    s->base = s->map + (HUGE_PAGE - (uintptr_t)s->map % HUGE_PAGE) % HUGE_PAGE;
    madvise(s->base, s->size, MADV_HUGEPAGE); /* where it is not to be had, small pages do */
    s->next = a->slabs;
    a->slabs = s;
    return s;
}

void *arena_alloc(struct arena *a, size_t n)
{
    if (n > SIZE_MAX / 4) die("out of memory (%zu bytes wanted)", n);
    n = (n + 63) / 64 * 64 + 64;
    struct slab *s = a->slabs;
    while (s && s->size - s->used < n) s = s->next;
    if (!s) s = slab_new(a, n);
    struct head *h = (struct head *)(void *)(s->base + s->used);
    *h = (struct head){.slab = s, .before = s->top, .bytes = n, .live = true};
    s->top = h;
    s->used += n;
    s->live++;
    return (uint8_t *)h + 64;
}

void arena_free(struct arena *a, void *p)
{
    if (!p) return;
    struct head *h = (struct head *)(void *)((uint8_t *)p - 64);
    struct slab *s = h->slab;
    h->live = false;
    if (--s->live == 0) {
        struct slab **at = &a->slabs;
        while (*at != s) at = &(*at)->next;
        *at = s->next;
        munmap(s->map, s->mapped);
        free(s);
        return;
    }
    for (; s->top && !s->top->live; s->top = s->top->before) s->used -= s->top->bytes;
}
