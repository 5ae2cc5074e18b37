/* The thread pool: every index once, whatever the shape; starting and stopping; nesting. Run under TSan too (make check-tsan). */
#include "base/par.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct seen {
    unsigned char *count;
    int64_t grain, n;
    int max_thread;
    int bad;
};

static void mark(void *ctx, int64_t begin, int64_t end, int thread)
{
    struct seen *s = ctx;
    if (begin % s->grain || end <= begin || end > s->n || thread < 0 || thread >= par_threads()) s->bad = 1;
    for (int64_t i = begin; i < end; i++) s->count[i]++;
}

static void all_once(int64_t n, int64_t grain, void (*par)(int64_t, int64_t, par_fn *, void *))
{
    struct seen s = {.count = calloc((size_t)n + 1, 1), .grain = grain, .n = n};
    par(n, grain, mark, &s);
    assert_false(s.bad);
    for (int64_t i = 0; i < n; i++) assert_int_equal(s.count[i], 1);
    free(s.count);
}

static void every_index_once(void **state)
{
    (void)state;
    const int64_t sizes[] = {0, 1, 2, 3, 7, 64, 65, 1000}, grains[] = {1, 2, 16, 100};
    for (int t = 1; t <= 5; t++) {
        par_set_threads(t);
        assert_int_equal(par_threads(), t);
        for (size_t i = 0; i < 8; i++)
            for (size_t g = 0; g < 4; g++) {
                all_once(sizes[i], grains[g], par_for);
                all_once(sizes[i], grains[g], par_for_dynamic);
            }
    }
}

static void starts_and_stops(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++) {
        par_set_threads(1 + i % 4);
        all_once(50, 3, i % 2 ? par_for : par_for_dynamic);
        if (i % 3 == 0) par_stop();
        if (i % 100 == 0) usleep(500); /* long enough for the workers to fall asleep */
        all_once(20, 1, par_for);
    }
}

/* Many tiny pieces with pauses in between: wake-ups that come while a thread is about to sleep must not be lost. */
static void wake_ups(void **state)
{
    (void)state;
    par_set_threads(3);
    for (int i = 0; i < 20000; i++) {
        all_once(6, 1, par_for);
        for (volatile int k = 0; k < i % 4000; k++) {}
    }
}

struct nest {
    int64_t sums[10];
    int outer, others; /* the thread outside; inner pieces that ran under another number */
};

static void inner(void *ctx, int64_t begin, int64_t end, int thread)
{
    struct nest *n = ctx;
    n->others += thread != n->outer;
    for (int64_t i = begin; i < end; i++) n->sums[i] += i;
}

static void outer(void *ctx, int64_t begin, int64_t end, int thread)
{
    struct nest *all = ctx;
    for (int64_t i = begin; i < end; i++) {
        all[i].outer = thread;
        (i % 2 ? par_for_dynamic : par_for)(10, 1, inner, &all[i]);
    }
}

/* What a piece of work starts itself runs in its thread and under its number, whose scratch it may use. */
static void nested(void **state)
{
    (void)state;
    par_set_threads(3);
    struct nest all[9] = {0};
    par_for(9, 1, outer, all);
    for (int i = 0; i < 9; i++) {
        assert_int_equal(all[i].outer, i / 3);
        assert_int_equal(all[i].others, 0);
        for (int k = 0; k < 10; k++) assert_int_equal(all[i].sums[k], k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_index_once), cmocka_unit_test(starts_and_stops),
                                       cmocka_unit_test(wake_ups), cmocka_unit_test(nested)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
