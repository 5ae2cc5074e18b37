#include "views/gguf_rope.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

/* Llama 3 scaling, wl = wavelength, O = original length: the divisor is 1 for wl < O/high, factor for wl > O/low, and
 * between them 1 / ((1 − s)/factor + s) with s = (O/wl − low)/(high − low), which is linear in 1/wl. */

struct table {
    double theta;
    int64_t head_dim, n; /* n = head_dim / 2 */
    const float *div;
    double *wl;    /* n wavelengths */
    float *f0, *f; /* n inverse frequencies, unscaled and scaled */
};

static double bound(const struct rope *r)
{
    double tol = 1e-6 * (1 + r->factor * r->high_freq_factor / (r->high_freq_factor - r->low_freq_factor));
    return tol < 5e-5 ? tol : 5e-5;
}

static bool fits(const struct table *t, const struct rope *r)
{
    if (!(r->factor >= 1) || !(r->low_freq_factor > 0) || !(r->high_freq_factor > r->low_freq_factor) ||
        !isfinite(r->high_freq_factor) || r->original_max_position_embeddings < 1)
        return false;
    rope_inv_freq(r, t->head_dim, t->f);
    double tol = bound(r);
    for (int64_t i = 0; i < t->n; i++) {
        double mine = (double)t->f0[i] / t->f[i];
        if (!(fabs(mine / (double)t->div[i] - 1) <= tol)) return false;
    }
    return true;
}

/* O/low and high/low as found by a fit, in numbers a person would have written where those fit, exact ones else. */
static bool try_fit(const struct table *t, double factor, double length, double ratio, struct rope *out)
{
    if (!(length >= 1) || !(length < 1e12) || !(ratio > 1) || !(ratio < 1e9)) return false;
    double whole = rint(length), near = rint(ratio * 1000) / 1000;
    const struct rope tries[] = {
        {ROPE_LLAMA3, t->theta, factor, 1, near, (int64_t)whole},
        {ROPE_LLAMA3, t->theta, factor, 1, ratio, (int64_t)whole},
        {ROPE_LLAMA3, t->theta, factor, 8192 / length, ratio * 8192 / length, 8192},
    };
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++)
        if (fits(t, &tries[i])) {
            *out = tries[i];
            return true;
        }
    return false;
}

static bool solve(const struct table *t, double factor, struct rope *out)
{
    const struct rope llama3 = {ROPE_LLAMA3, t->theta, factor, 1, 4, 8192};
    if (fits(t, &llama3)) {
        *out = llama3;
        return true;
    }
    /* Entries on the slope, and their neighbours' wavelengths: last of the ones, first of the full factor. */
    double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0, last_one = 0, first_full = 0, wl = 0, s = 0;
    for (int64_t i = 0; i < t->n; i++) {
        double r = t->div[i];
        if (r < 1 + 1e-5) {
            last_one = t->wl[i];
        } else if (r > factor * (1 - 1e-5)) {
            if (!first_full) first_full = t->wl[i];
        } else {
            wl = t->wl[i];
            s = (1 / r - 1 / factor) / (1 - 1 / factor);
            n++, sx += 1 / wl, sy += s, sxx += 1 / wl / wl, sxy += s / wl;
        }
    }
    if (n >= 2) { /* least squares: s = a/wl + b, a = O/(high − low), b = −low/(high − low) */
        double a = (n * sxy - sx * sy) / (n * sxx - sx * sx), b = (sy - a * sx) / n, ratio = 1 - 1 / b;
        return try_fit(t, factor, a * (ratio - 1), ratio, out);
    }
    if (!last_one || !first_full) return false; /* too little is known */
    if (n < 1) {                                /* the slope lies between two entries: anywhere */
        double gap = first_full / last_one;
        return try_fit(t, factor, first_full / pow(gap, 0.25), sqrt(gap), out);
    }
    /* One point on the slope leaves one freedom: the first length that contradicts no neighbour. */
    for (int i = 1; i < 1000; i++) {
        double length = wl * pow(first_full / wl, i / 1000.0);
        if (try_fit(t, factor, length, 1 + (length / wl - 1) / s, out)) return true;
    }
    return false;
}

bool gguf_rope_recover(double theta, int64_t head_dim, const float *divisors, struct rope *out)
{
    struct table t = {.theta = theta, .head_dim = head_dim, .n = head_dim / 2, .div = divisors};
    const struct rope plain = {.type = ROPE_DEFAULT, .theta = theta};
    double top = 1;
    bool ok = head_dim <= 1024; /* the search takes long beyond, and no model is there */
    for (int64_t i = 0; i < t.n && ok; i++) {
        ok = isfinite(divisors[i]) && divisors[i] >= 1 - 1e-6f && divisors[i] < 1e6f;
        top = fmax(top, divisors[i]);
    }
    *out = plain;
    if (!ok || top < 1 + 1e-6) return ok;
    t.wl = mem_new((size_t)t.n, sizeof *t.wl);
    t.f0 = mem_new((size_t)t.n, sizeof *t.f0);
    t.f = mem_new((size_t)t.n, sizeof *t.f);
    rope_inv_freq(&plain, head_dim, t.f0);
    for (int64_t i = 0; i < t.n; i++) t.wl[i] = 2 * M_PI * pow(theta, 2.0 * (double)i / (double)head_dim);
    /* The largest divisor is the factor, unless no wavelength is long enough to need all of it. */
    double near = rint(top * 1000) / 1000;
    const double factors[] = {fabs(near / top - 1) < 1e-6 ? near : top, 8, 32, 4, 16, 2, 64};
    ok = false;
    for (size_t i = 0; i < sizeof factors / sizeof *factors && !ok; i++)
        ok = factors[i] > top * (1 - 1e-6) && solve(&t, factors[i], out);
    if (!ok) *out = plain;
    free(t.wl);
    free(t.f0);
    free(t.f);
    return ok;
}
