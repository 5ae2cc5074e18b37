#include "base/par.h"

#include <omp.h>

static int n_threads;

int par_cores(void)
{
    int n = omp_get_num_procs(); /* honours the affinity mask */
    return n > 0 ? n : 1;
}

void par_set_threads(int n)
{
    n_threads = n > 0 ? n : par_cores();
    omp_set_dynamic(0);
    omp_set_num_threads(n_threads);
}

int par_threads(void)
{
    if (!n_threads) par_set_threads(0);
    return n_threads;
}

void par_for(int64_t n, int64_t grain, par_fn *fn, void *ctx)
{
    if (n <= 0) return;
    int64_t items = (n + grain - 1) / grain;
    int nt = par_threads();
    if (nt > items) nt = (int)items;
    if (nt == 1) {
        fn(ctx, 0, n, 0);
        return;
    }
#pragma omp parallel num_threads(nt)
    {
        /* The runtime may give fewer threads than asked: split by the real count. */
        int t = omp_get_thread_num(), got = omp_get_num_threads();
        int64_t b = items * t / got * grain, e = items * (t + 1) / got * grain;
        if (e > n) e = n;
        if (b < e) fn(ctx, b, e, t);
    }
}

void par_for_dynamic(int64_t n, int64_t grain, par_fn *fn, void *ctx)
{
    if (n <= 0) return;
    int64_t items = (n + grain - 1) / grain;
    int nt = par_threads();
    if (nt > items) nt = (int)items;
#pragma omp parallel for schedule(dynamic, 1) num_threads(nt)
    for (int64_t i = 0; i < items; i++) {
        int64_t b = i * grain, e = b + grain < n ? b + grain : n;
        fn(ctx, b, e, omp_get_thread_num());
    }
}
