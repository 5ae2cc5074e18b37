#include "eval/peak.h"

#include "base/host.h"
#include "base/msg.h"
#include "base/par.h"

/* Plain C: what the compiler makes of a multiplication and an addition of four floats, sums kept in registers. */
typedef float v4 __attribute__((vector_size(16)));
static volatile float plain_factor = 0.5f, plain_sink;

static void plain_f32(int64_t n)
{
    v4 s[PEAK_UNROLL] = {{0}}, a = {plain_factor, plain_factor, plain_factor, plain_factor}, b = a;
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < PEAK_UNROLL; k++) s[k] = s[k] * a + b; /* converges to 1 */
    for (int k = 1; k < PEAK_UNROLL; k++) s[0] += s[k];
    plain_sink = s[0][0];
}
static const struct probe plain_probe = {"multiply and add, plain C", plain_f32, 2 * 4};

struct job {
    const struct probe *p;
    int64_t n;
};

static void run(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct job *j = ctx;
    for (int64_t i = begin; i < end; i++) j->p->run(j->n);
}

static struct peak measure(const struct probe *p, double seconds)
{
    struct job j = {p, 1000};
    double threads = par_threads(), best = 0, start = clock_s();
    for (double t = 0; clock_s() - start < seconds;) {
        double t0 = clock_s();
        par_for(par_threads(), 1, run, &j);
        t = clock_s() - t0;
        double v = threads * (double)j.n * PEAK_UNROLL * p->ops / t;
        if (v > best) best = v;
        if (t < 2e-3) j.n *= 2; /* long beside the threads' start, short beside a neighbour's turn */
    }
    return (struct peak){p->instruction, best};
}

struct peaks peaks_measure(double seconds)
{
    struct peaks p = {0};
    const struct probe *f32 = &plain_probe, *bf16 = NULL, *int8 = NULL;
#if defined(__x86_64__)
    if (isa_best() >= ISA_AVX2) f32 = &peak_avx2_f32, int8 = &peak_avx2_int8;
    if (isa_best() == ISA_AVXVNNI) int8 = isa_has_avxvnni() ? &peak_avxvnni_int8 : &peak_avxvnni_evex_int8;
    if (isa_best() == ISA_AVX512) {
        f32 = &peak_avx512_f32;
        if (isa_has_vnni()) int8 = &peak_avx512_int8;
        if (isa_has_bf16()) bf16 = &peak_avx512_bf16;
    }
#endif
    p.f32 = measure(f32, seconds);
    if (bf16) p.bf16 = measure(bf16, seconds);
    if (int8) p.int8 = measure(int8, seconds);
    return p;
}

const struct peak *peak_of(const struct peaks *p, enum compute compute)
{
    if (compute == COMPUTE_INT8 || compute == COMPUTE_INT8X2) return p->int8.instruction ? &p->int8 : NULL;
    if (compute == COMPUTE_BF16 && p->bf16.instruction) return &p->bf16;
    return p->f32.instruction ? &p->f32 : NULL;
}

static json_t *one(const struct peak *p)
{
    if (!p->instruction) return json_null();
    json_t *o = json_object();
    json_put(o, "instruction", json_string(p->instruction));
    json_put(o, "ops_per_s", json_num(p->ops_per_s));
    return o;
}

json_t *peaks_json(const struct peaks *p)
{
    json_t *o = json_object();
    json_put(o, "f32", one(&p->f32));
    json_put(o, "bf16", one(&p->bf16));
    json_put(o, "int8", one(&p->int8));
    return o;
}
