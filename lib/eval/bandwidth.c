#include "eval/bandwidth.h"

#include "base/mem.h"
#include "base/msg.h"
#include "base/par.h"
#include "base/stats.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BLOCK ((size_t)1 << 20)

/* Regions cut into blocks of at most 1 MiB, so that every thread has its share of every pass. */
struct job {
    const struct region *blocks;
    uint64_t *sums; /* one a block: what is read must be used, or the compiler leaves it out */
};

static void sum_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct job *j = ctx;
    for (int64_t b = begin; b < end; b++) {
        const uint64_t *p = j->blocks[b].p;
        size_t n = j->blocks[b].n / sizeof *p / 8 * 8;
        uint64_t s[8] = {0};
        for (size_t i = 0; i < n; i += 8)
            for (size_t k = 0; k < 8; k++) s[k] += p[i + k];
        j->sums[b] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    }
}

double bandwidth_read(const struct region *r, size_t n, double seconds)
{
    struct region *blocks = NULL;
    size_t n_blocks = 0;
    double bytes = 0;
    for (size_t i = 0; i < n; i++) {
        size_t skip = (64 - (uintptr_t)r[i].p % 64) % 64; /* whole cache lines */
        for (size_t at = skip; at + 64 <= r[i].n;) {
            size_t len = (r[i].n - at < BLOCK ? r[i].n - at : BLOCK) / 64 * 64;
            if (n_blocks % 1024 == 0) blocks = mem_grow(blocks, n_blocks + 1024, sizeof *blocks);
            blocks[n_blocks++] = (struct region){(const char *)r[i].p + at, len};
            bytes += (double)len;
            at += len;
        }
    }
    if (!n_blocks) return 0;
    struct job j = {blocks, mem_new(n_blocks, sizeof *j.sums)};
    double *times = NULL, start = 0;
    int64_t n_times = 0;
    volatile uint64_t sink = 0;
    for (int pass = -1; pass < 3 || clock_s() - start < seconds; pass++) {
        double t0 = clock_s();
        par_for((int64_t)n_blocks, 1, sum_blocks, &j);
        double t = clock_s() - t0;
        for (size_t b = 0; b < n_blocks; b++) sink += j.sums[b];
        if (pass < 0) {
            start = clock_s();
            continue;
        }
        if (n_times % 64 == 0) times = mem_grow(times, (size_t)n_times + 64, sizeof *times);
        times[n_times++] = t;
    }
    stats_sort(times, n_times);
    double median = stats_quantile_sorted(times, n_times, 0.5);
    (void)sink;
    free(blocks);
    free(j.sums);
    free(times);
    return bytes / median;
}

double bandwidth_read_anonymous(size_t n_bytes, double seconds)
{
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return 0;
    memset(p, 1, n_bytes); /* untouched pages would all be one page of zeros */
    double v = bandwidth_read(&(struct region){p, n_bytes}, 1, seconds);
    munmap(p, n_bytes);
    return v;
}
