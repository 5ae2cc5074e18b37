/* A pool of threads that spin a little for the next piece of work and then sleep. OpenMP's runtime waits by spinning
 * for a millisecond or for ever, which on a busy machine takes the very processor the other thread needs; a decode
 * step has hundreds of pieces of work of some ten microseconds, which sleeping at once would double. */
#include "base/par.h"

#include "base/mem.h"
#include "base/msg.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() ((void)0)
#endif

/* About 30 µs (Zen 4: 64 cycles a pause). */
enum { SPINS = 1500 };

struct job {
    par_fn *fn;
    void *ctx;
    int64_t n, grain, items;
    bool dynamic;
};

/* Items begin … end−1 that a thread has still to do: begin in the low half, end in the high half of one word, so that
 * the owner takes the first and others the last by compare and swap. A cache line each. */
struct share {
    _Alignas(64) _Atomic uint64_t range;
};

static struct {
    int want, n_workers; /* threads in all that were asked for; workers that run (want − 1 at most) */
    pthread_t *workers;
    struct share *shares; /* want */
    pthread_mutex_t lock;
    pthread_cond_t go, done;
    atomic_bool main_sleeps, stop;
    atomic_int sleeping;
    /* An epoch is a piece of work. `job` and `active` are written before the epoch rises and stay until all who take
     * part have left. What main writes and what workers write lie on lines of their own. */
    _Alignas(64) atomic_uint epoch;
    int active; /* threads that take part, the caller included */
    struct job job;
    _Alignas(64) atomic_int left;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .go = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

/* Which thread of a piece of work this one is, plus one; 0: it is in none. A piece of work that itself calls par_for runs
 * that alone, as the thread it is. */
static _Thread_local int inside;

int par_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? n : 1;
}

/* The next item of a share, from its front or from its back; −1 if there is none. */
static int64_t take(struct share *s, bool front)
{
    uint64_t r = atomic_load_explicit(&s->range, memory_order_relaxed);
    for (;;) {
        uint32_t begin = (uint32_t)r, end = (uint32_t)(r >> 32);
        if (begin >= end) return -1;
        uint64_t rest = front ? r + 1 : r - ((uint64_t)1 << 32);
        if (atomic_compare_exchange_weak_explicit(&s->range, &r, rest, memory_order_relaxed, memory_order_relaxed))
            return front ? begin : end - 1;
    }
}

static void run_item(const struct job *j, int64_t i, int thread)
{
    int64_t b = i * j->grain, e = b + j->grain < j->n ? b + j->grain : j->n;
    j->fn(j->ctx, b, e, thread);
}

static void run_share(const struct job *j, int thread, int active)
{
    inside = thread + 1;
    if (j->dynamic) {
        for (int k = 0; k < active; k++) /* one's own first */
            for (int64_t i; (i = take(&pool.shares[(thread + k) % active], k == 0)) >= 0;) run_item(j, i, thread);
    } else {
        int64_t b = j->items * thread / active * j->grain, e = j->items * (thread + 1) / active * j->grain;
        if (e > j->n) e = j->n;
        if (b < e) j->fn(j->ctx, b, e, thread);
    }
    inside = 0;
}

static unsigned next_epoch(unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load_explicit(&pool.epoch, memory_order_acquire);
        if (now != seen) return now;
        RELAX();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleeping, 1);
    unsigned now;
    while ((now = atomic_load(&pool.epoch)) == seen) pthread_cond_wait(&pool.go, &pool.lock);
    atomic_fetch_sub(&pool.sleeping, 1);
    pthread_mutex_unlock(&pool.lock);
    return now;
}

struct start {
    int thread;
    unsigned seen;
};

static void *worker(void *arg)
{
    struct start s = *(struct start *)arg;
    free(arg);
    for (;;) {
        s.seen = next_epoch(s.seen);
        if (atomic_load(&pool.stop)) return NULL;
        /* `left` counts every worker, also those that have nothing to do this time: none is late for the next one. */
        if (s.thread < pool.active) run_share(&pool.job, s.thread, pool.active);
        if (atomic_fetch_sub(&pool.left, 1) == 1 && atomic_load(&pool.main_sleeps)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void raise_epoch(void)
{
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_load(&pool.sleeping) == 0) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.go);
    pthread_mutex_unlock(&pool.lock);
}

static void wait_left(void)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool.left, memory_order_acquire) == 0) return;
        RELAX();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.main_sleeps, true);
    while (atomic_load(&pool.left) > 0) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.main_sleeps, false);
    pthread_mutex_unlock(&pool.lock);
}

void par_stop(void)
{
    if (!pool.n_workers) return;
    atomic_store(&pool.stop, true);
    raise_epoch();
    for (int i = 0; i < pool.n_workers; i++) pthread_join(pool.workers[i], NULL);
    atomic_store(&pool.stop, false);
    free(pool.workers);
    free(pool.shares);
    pool.workers = NULL;
    pool.shares = NULL;
    pool.n_workers = 0;
}

/* Workers start with the first work that needs them; where the system gives no more threads, fewer do it. */
static void start_workers(void)
{
    pool.workers = mem_new((size_t)pool.want, sizeof *pool.workers);
    pool.shares = mem_array((size_t)pool.want, sizeof *pool.shares);
    sigset_t all, old; /* signals go to the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.n_workers < pool.want - 1) {
        struct start *s = mem_new(1, sizeof *s);
        *s = (struct start){pool.n_workers + 1, atomic_load(&pool.epoch)};
        if (pthread_create(&pool.workers[pool.n_workers], NULL, worker, s)) {
            free(s);
            msg_warn("only %d of %d threads could be started", pool.n_workers + 1, pool.want);
            pool.want = pool.n_workers + 1;
            break;
        }
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void par_set_threads(int n)
{
    par_stop();
    pool.want = n > 0 ? n : par_cores();
}

int par_threads(void)
{
    if (!pool.want) par_set_threads(0);
    return pool.want;
}

static void run(struct job j)
{
    if (j.n <= 0) return;
    j.items = (j.n + j.grain - 1) / j.grain;
    assert(j.items < (int64_t)1 << 31);
    int active = inside ? 1 : par_threads();
    if (active > j.items) active = (int)j.items;
    if (active == 1) {
        int was = inside, thread = was ? was - 1 : 0;
        inside = thread + 1;
        if (!j.dynamic) j.fn(j.ctx, 0, j.n, thread);
        for (int64_t i = 0; j.dynamic && i < j.items; i++) run_item(&j, i, thread);
        inside = was;
        return;
    }
    if (!pool.n_workers) start_workers();
    if (active > pool.n_workers + 1) active = pool.n_workers + 1;
    pool.job = j;
    pool.active = active;
    for (int64_t t = 0; j.dynamic && t < active; t++)
        atomic_store_explicit(&pool.shares[t].range,
                              (uint64_t)(j.items * t / active) | (uint64_t)(j.items * (t + 1) / active) << 32,
                              memory_order_relaxed);
    atomic_store(&pool.left, pool.n_workers);
    raise_epoch();
    run_share(&j, 0, active);
    wait_left();
}

void par_for(int64_t n, int64_t grain, par_fn *fn, void *ctx)
{
    run((struct job){.fn = fn, .ctx = ctx, .n = n, .grain = grain});
}

void par_for_dynamic(int64_t n, int64_t grain, par_fn *fn, void *ctx)
{
    run((struct job){.fn = fn, .ctx = ctx, .n = n, .grain = grain, .dynamic = true});
}
