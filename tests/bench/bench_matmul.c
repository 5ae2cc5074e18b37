/* matmul of the CPU backend beside what the processor can do: for each format GFLOP/s of a prefill and GB/s of a decode
 * step on one shape, on one thread and in CPU time, so that a busy machine disturbs it little. Never run by check.
 *   bench_matmul [n_out n_in n_tok [compute]]      default 1536 576 512 f32 */
#include "backend/backend_impl.h"
#include "base/mem.h"
#include "base/par.h"
#include "qrandom.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 16 (8, 4) lanes × enough independent chains to hide the latency. */
typedef float lanes __attribute__((vector_size(64)));
__attribute__((target_clones("default", "avx2,fma", "avx512f"), optimize("fp-contract=fast"))) static double fma_peak(void)
{
    lanes a[12], x = {1e-9f}, y = {1 - 1e-7f};
    double best = 0;
    for (int rep = 0; rep < 5; rep++) {
        for (int i = 0; i < 12; i++) a[i] = x + (float)i;
        double t = cpu_s();
        for (int n = 0; n < 2000000; n++)
#pragma GCC unroll 12
            for (int i = 0; i < 12; i++) a[i] = a[i] * y + x;
        t = cpu_s() - t;
        for (int i = 1; i < 12; i++) a[0] += a[i];
        volatile float sink = a[0][0];
        (void)sink;
        double rate = 2.0 * 16 * 12 * 2000000 / t / 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}

static double best_time(struct backend *be, const struct weight *w, int n_w, float *y, const float *x, int64_t n_tok)
{
    double best = 1e9;
    for (int rep = 0; rep < 7; rep++) {
        double t = cpu_s();
        for (int i = 0; i < n_w; i++) be->ops->matmul(be, &(struct matmul){y, &w[i], NULL}, 1, x, n_tok);
        t = (cpu_s() - t) / n_w;
        best = t < best ? t : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    int64_t n_out = argc > 1 ? atoll(argv[1]) : 1536, n_in = argc > 2 ? atoll(argv[2]) : 576;
    int64_t n_tok = argc > 3 ? atoll(argv[3]) : 512;
    enum compute compute = argc > 4 && !strcmp(argv[4], "int8") ? COMPUTE_INT8 : COMPUTE_F32;
    struct backend be;
    struct err e;
    par_set_threads(1);
    if (cpu_open(&be, compute, isa_best(), &e)) return fprintf(stderr, "%s\n", e.msg), 1;
    struct rng rng = {1};
    int64_t room = n_tok < 4 ? 4 : n_tok; /* 4 tokens are measured as well */
    float *x = mem_array((size_t)(room * n_in), 4), *y = mem_array((size_t)(room * n_out), 4);
    random_floats(&rng, x, room * n_in);
    printf("%s, %s, one thread, f32 multiply-add peak %.1f GFLOP/s, %lldx%lld\n", isa_name(isa_best()),
           compute_name(compute), fma_peak(), (long long)n_out, (long long)n_in);
    static const char *const names[] = {"f32", "f16", "bf16", "int8-row", "int4-row", "int4-g128", "int4-g64", "int4-g32",
                                        "int4-g32-sym", "int4-strided128", "nf4", "fp4", "nf4-dq"};
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        enum { COPIES = 64 }; /* decode reads more than the caches hold */
        struct qbuffer b;
        struct weight w[COPIES];
        qrandom(&b, format_find(names[f]), n_out, n_in, DT_F16, &rng, false);
        int copies = getenv("HOT") ? 1 : (int)(64e6 / (double)b.w.bytes) + 1; /* HOT: from the cache */
        if (copies > COPIES) copies = COPIES;
        struct qbuffer c[COPIES] = {b};
        for (int i = 0; i < copies; i++) {
            if (i) qrandom(&c[i], format_find(names[f]), n_out, n_in, DT_F16, &rng, false);
            if (be.ops->load_weight(&be, &w[i], &c[i].w, &e)) return 1;
        }
        double many = best_time(&be, w, 1, y, x, n_tok), one = best_time(&be, w, copies, y, x, 1);
        double four = best_time(&be, w, copies, y, x, 4);
        printf("%-16s %4lld tokens %7.1f GFLOP/s   1 token %7.1f us %6.2f GB/s   4 tokens %7.1f us\n", names[f],
               (long long)n_tok, 2e-9 * (double)(n_tok * n_out * n_in) / many, one * 1e6,
               1e-9 * (double)w[0].read_bytes / one, four * 1e6);
        for (int i = 0; i < copies; i++) {
            be.ops->free_weight(&be, &w[i]);
            qbuffer_free(&c[i]);
        }
    }
    backend_close(&be);
    free(x);
    free(y);
    return 0;
}
