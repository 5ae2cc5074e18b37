/* Kernel source, compiled per instruction set: norms, rotary embedding, SwiGLU, residual. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

/* Σx² in double */
static void rmsnorm_row(float *y, const float *x, const float *w, int64_t n, double eps)
{
    vd s0 = vd_zero(), s1 = vd_zero();
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vd a = vd_load_f32(x + i), b = vd_load_f32(x + i + VL / 2);
        s0 = vd_fma(a, a, s0);
        s1 = vd_fma(b, b, s1);
    }
    double sum = vd_sum(vd_add(s0, s1));
    for (int64_t j = i; j < n; j++) sum += (double)x[j] * x[j];
    float scale = (float)(1 / sqrt(sum / (double)n + eps));
    vf sv = vf_set1(scale);
    for (i = 0; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), sv), vf_load(w + i)));
    for (; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void rope_row(float *x, const float *c, const float *s, int64_t n_heads, int64_t half)
{
    for (int64_t h = 0; h < n_heads; h++) {
        float *a = x + h * 2 * half, *b = a + half;
        int64_t j = 0;
        for (; j + VL <= half; j += VL) {
            vf av = vf_load(a + j), bv = vf_load(b + j), cv = vf_load(c + j), sv = vf_load(s + j);
            vf_store(a + j, vf_fnma(bv, sv, vf_mul(av, cv)));
            vf_store(b + j, vf_fma(av, sv, vf_mul(bv, cv)));
        }
        if (j < half) {
            int64_t n = half - j;
            vf av = vf_load_n(a + j, n), bv = vf_load_n(b + j, n), cv = vf_load_n(c + j, n), sv = vf_load_n(s + j, n);
            vf_store_n(a + j, vf_fnma(bv, sv, vf_mul(av, cv)), n);
            vf_store_n(b + j, vf_fma(av, sv, vf_mul(bv, cv)), n);
        }
    }
}

/* g / (1 + exp(−g)) · u: at most 5 ulp off. */
INLINE vf silu_mul(vf g, vf u)
{
    vf e = vf_exp(vf_min(vf_set1(88.0f), vf_sub(vf_zero(), g))); /* a NaN passes */
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), e)), u);
}

static void swiglu_row(float *y, const float *gate, const float *up, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, silu_mul(vf_load(gate + i), vf_load(up + i)));
    if (i < n) vf_store_n(y + i, silu_mul(vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i)), n - i);
}

static void add_row(float *x, const float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

static void to_f16_row(uint16_t *y, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store_f16(y + i, vf_load(x + i));
    for (; i < n; i++) y[i] = f32_to_f16(x[i]);
}
