/* Threads. Work is cut by the caller into items whose results do not depend on which thread runs them, so a run is
 * bit-identical for any number of threads. One thread (the main one) calls these; work that calls them again runs that
 * part alone, as the thread it is. */
#ifndef QLAB_BASE_PAR_H
#define QLAB_BASE_PAR_H

#include <stdint.h>

/* n ≤ 0: the cores this process may use. Ends the pool's threads if there are any; new ones start when needed. */
void par_set_threads(int n);
/* End the pool's threads: before a fork, and in tests. Work after that starts them again. */
void par_stop(void);
int par_threads(void);
int par_cores(void);

/* fn(ctx, begin, end, thread) for disjoint ranges that cover 0 … n−1 and start at multiples of grain; thread is
 * 0 … par_threads()−1 and no two calls with the same thread run at once. Static split: contiguous, even shares. */
typedef void par_fn(void *ctx, int64_t begin, int64_t end, int thread);
void par_for(int64_t n, int64_t grain, par_fn *fn, void *ctx);
/* The same in ranges of one grain each: a thread that is through with its share takes grains from the end of another's.
 * For items of uneven cost, or where threads start late or are held up. */
void par_for_dynamic(int64_t n, int64_t grain, par_fn *fn, void *ctx);

#endif
