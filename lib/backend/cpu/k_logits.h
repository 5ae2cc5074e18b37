/* Kernel source, compiled per instruction set: sums over a vocabulary, in double. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

static struct top top_row(const float *x, int64_t n)
{
    struct top t = {-INFINITY, 0};
    vf mv = vf_set1(-INFINITY);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) mv = vf_max(vf_load(x + i), mv);
    t.max = vf_max_element(mv);
    for (; i < n; i++) t.max = x[i] > t.max ? x[i] : t.max;
    for (i = 0; i < n; i++)
        if (x[i] == t.max) {
            t.at = (int32_t)i;
            break;
        }
    return t;
}

/* The first index that holds the maximum. A NaN makes the sum NaN; the index is then some valid one. */
static struct slice_sum slice_sum_row(const float *x, int64_t n)
{
    struct slice_sum s = {-INFINITY, 0, 0};
    vf mv = vf_set1(-INFINITY);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) mv = vf_max(vf_load(x + i), mv);
    s.max = vf_max_element(mv);
    for (int64_t j = i; j < n; j++) s.max = x[j] > s.max ? x[j] : s.max;
    while (s.argmax < n - 1 && x[s.argmax] != s.max) s.argmax++;

    /* −inf everywhere: exp(−inf − 0) sums to nothing instead of NaN */
    double m = s.max == -INFINITY ? 0 : s.max;
    vd mm = vd_set1(m), a = vd_zero(), b = vd_zero();
    for (i = 0; i + VL <= n; i += VL) {
        a = vd_add(a, vd_exp(vd_sub(vd_load_f32(x + i), mm)));
        b = vd_add(b, vd_exp(vd_sub(vd_load_f32(x + i + VL / 2), mm)));
    }
    s.sum = vd_sum(vd_add(a, b));
    for (; i < n; i++) s.sum += exp((double)x[i] - m);
    return s;
}

INLINE vd kld_term(const float *a, const float *b, vd la, vd lb)
{
    vd p = vd_sub(vd_load_f32(a), la), q = vd_sub(vd_load_f32(b), lb);
    return vd_mul(vd_exp(p), vd_sub(p, q));
}

static double slice_kld_row(const float *a, const float *b, int64_t n, double lse_a, double lse_b)
{
    vd la = vd_set1(lse_a), lb = vd_set1(lse_b), s0 = vd_zero(), s1 = vd_zero();
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        s0 = vd_add(s0, kld_term(a + i, b + i, la, lb));
        s1 = vd_add(s1, kld_term(a + i + VL / 2, b + i + VL / 2, la, lb));
    }
    double s = vd_sum(vd_add(s0, s1));
    for (; i < n; i++) s += exp(a[i] - lse_a) * ((a[i] - lse_a) - (b[i] - lse_b));
    return s;
}
