#include "mm.h"

namespace mm {

struct rng *dice()
{
    static struct rng r;
    static unsigned last = ~0u;
    if (last != check::seed()) r = {77 + (last = check::seed())};
    return &r;
}

struct format format(const char *name)
{
    static const struct format others[] = {
        {"int4-g24", CODE_INT, CONT_CT, DT_F32, 4, 24, false, nullptr, false},
        {"int4-g5-sym", CODE_INT, CONT_CT, DT_F32, 4, 5, true, nullptr, false},
        {"int4-g96", CODE_INT, CONT_CT, DT_F32, 4, 96, false, nullptr, false},
        {"int8-g64", CODE_INT, CONT_CT, DT_F32, 8, 64, true, nullptr, false},
        {"int8-row-asym", CODE_INT, CONT_CT, DT_F32, 8, 0, false, nullptr, false},
    };
    for (const struct format &f : others)
        if (!strcmp(f.name, name)) return f;
    struct format f = *format_find(strcmp(name, "nf4-g128") ? name : "nf4");
    if (!strcmp(name, "nf4-g128")) f.group = 128;
    return f;
}

std::vector<float> activations(int64_t n_tok, int64_t n_in, bool special)
{
    std::vector<float> x(size_t(n_tok * n_in));
    ::random_floats(dice(), x.data(), n_tok * n_in);
    if (!special) return x;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t k = 0; k < n_in; k++) {
            float &v = x[size_t(t * n_in + k)];
            switch ((t + k / 64) % 5) {
            case 1: v = 0; break;                                       /* a chunk of zeros, where it is whole */
            case 2: v = k % 3 ? -100.0f : 100.0f; break;                /* ±127 everywhere */
            case 3: v *= 1e-39f; break;                                 /* scales that would vanish */
            case 4: v = k % 32 == 7 ? 3e4f : 0.01f * v; break;          /* an outlier */
            }
        }
    return x;
}

filled::filled(const char *name, int64_t n_out, int64_t n_in, enum dtype dtype, fill how_) : how(how_)
{
    struct format f = format(name);
    qrandom(&b, &f, n_out, n_in, dtype, dice(), how == EXTREME);
    struct rng *r = dice();
    if (how == EXACT && f.kind == CODE_INT)
        for (int64_t i = 0; i < n_out * format_groups(&f, n_in); i++) {
            float s = std::ldexp(1.0f, -int(rng_below(r, 3)));
            if (dtype == DT_F32) static_cast<float *>(b.scale)[i] = s;
            else static_cast<uint16_t *>(b.scale)[i] = dtype == DT_F16 ? f32_to_f16(s) : f32_to_bf16(s);
        }
    if (how == EXACT && f.kind == CODE_BOOK) {
        if (f.double_quant) {
            for (int64_t i = 0; i < (format_blocks(&f, n_out, n_in) + 255) / 256; i++)
                static_cast<float *>(b.nested_absmax)[i] = 1;
            for (int i = 0; i < 256; i++) b.nested_map[i] = std::ldexp(1.0f, -i % 3) - 0.5f;
            b.w.nested_offset = 0.5f;
        } else {
            for (int64_t i = 0; i < format_blocks(&f, n_out, n_in); i++)
                static_cast<float *>(b.absmax)[i] = std::ldexp(1.0f, -int(rng_below(r, 3)));
        }
    }
    if (how != EXACT && f.double_quant) { /* not every weight with the same tables */
        const float m = 0.5f + float(rng_below(r, 1000)) / 1000;
        for (int i = 0; i < 256; i++) b.nested_map[i] *= m;
        b.w.nested_offset *= m + 0.25f;
    }
    struct err e;
    if (cuda_weight_plan(&d, &b.w, &e)) check::broken(e.msg, size_t(n_in));
    if (how == EXACT && f.kind == CODE_BOOK) d.factor = 1;
    uint8_t *p;
    if (cudaMalloc(&p, d.bytes) != cudaSuccess) check::broken("a test's weight", d.bytes);
    std::vector<uint8_t> host(CUDA_PIECE_MIN);
    struct cuda_piece it = {};
    while (cuda_weight_next(&d, &it, host.size())) {
        cuda_weight_pack(&d, &b.w, &it, host.data());
        if (cudaMemcpy(p + it.at, host.data(), it.bytes, cudaMemcpyHostToDevice) != cudaSuccess)
            check::broken("a test's weight", it.bytes);
    }
    d.data = p;
}

filled::~filled()
{
    cudaFree(const_cast<uint8_t *>(d.data));
    qbuffer_free(&b);
}

std::vector<float> filled::rows() const
{
    std::vector<float> v(size_t(d.n_out * d.n_in));
    qweight_rows_f32(&b.w, 0, d.n_out, v.data());
    return v;
}

static double rounded(float v, enum cuda_float t)
{
    return double(t == CUF_F16 ? f16_to_f32(f32_to_f16(v)) : t == CUF_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v);
}

struct sums product(const filled &w, const std::vector<float> &x, int64_t n_tok, enum cuda_float type)
{
    const std::vector<float> rows = w.rows();
    const int64_t n_in = w.d.n_in, n_out = w.d.n_out;
    struct sums s;
    for (int64_t t = 0; t < n_tok; t++)
        for (int64_t r = 0; r < n_out; r++) {
            double y = 0, m = 0;
            for (int64_t k = 0; k < n_in; k++) {
                double v = rounded(x[size_t(t * n_in + k)], type) * rounded(rows[size_t(r * n_in + k)], type);
                y += v;
                m += std::fabs(v);
            }
            s.y.push_back(y);
            s.magnitude.push_back(m);
        }
    return s;
}

/* The integer of row r, column k and its scale, from the checkpoint's bytes. */
static int integer(const filled &w, int64_t r, int64_t k, double *scale, bool rest)
{
    const struct qweight &q = w.b.w;
    if (q.fmt.kind == CODE_BOOK) {
        int64_t i = r * q.n_in + k, block = i / q.fmt.group;
        float absmax;
        if (q.fmt.double_quant) {
            float v = q.nested_map[static_cast<const uint8_t *>(q.absmax)[block]] * q.nested_absmax[block / 256];
            absmax = v + q.nested_offset;
        } else {
            absmax = static_cast<const float *>(q.absmax)[block];
        }
        *scale = double(rest ? w.d.factor * w.d.rest_factor * absmax : w.d.factor * absmax);
        const int code = static_cast<const uint8_t *>(q.codes)[i / 2] >> (i % 2 ? 0 : 4) & 15;
        return rest ? w.d.rest_table[code] : w.d.table[code];
    }
    int bits = q.fmt.bits, per = 32 / bits, off = 1 << (bits - 1);
    int64_t groups = format_groups(&q.fmt, q.n_in), g = q.fmt.group ? k / q.fmt.group : 0, at = r * groups + g;
    const uint32_t *codes = static_cast<const uint32_t *>(q.codes) + r * format_words(&q.fmt, q.n_in);
    int u = int(codes[k / per] >> bits * (k % per) & ((1u << bits) - 1)), z = off;
    if (q.zero)
        z = int(static_cast<const uint32_t *>(q.zero)[r / per * groups + g] >> bits * (r % per) & ((1u << bits) - 1));
    *scale = q.scale_dtype == DT_F32 ? double(static_cast<const float *>(q.scale)[at])
             : q.scale_dtype == DT_F16 ? double(f16_to_f32(static_cast<const uint16_t *>(q.scale)[at]))
                                       : double(bf16_to_f32(static_cast<const uint16_t *>(q.scale)[at]));
    return u - z;
}

struct sums int8_product(const filled &w, const std::vector<float> &x, int64_t n_tok, bool twice)
{
    const int64_t n_in = w.d.n_in, n_out = w.d.n_out, n = (n_in + 31) / 32;
    std::vector<int8_t> q(size_t(n * 32));
    std::vector<float> s(static_cast<size_t>(n));
    std::vector<int32_t> neg(static_cast<size_t>(n));
    struct sums out;
    out.y.resize(size_t(n_tok * n_out));
    out.magnitude.resize(out.y.size());
    const bool book = w.b.w.fmt.kind == CODE_BOOK;
    for (int64_t t = 0; t < n_tok; t++) {
        std::vector<float> left(x.begin() + t * n_in, x.begin() + (t + 1) * n_in);
        for (int pass = 0; pass < 1 + twice; pass++) {
            int8_plain.quantize(left.data(), n_in, q.data(), s.data(), neg.data());
            for (int64_t k = 0; k < n_in; k++)
                left[size_t(k)] = float(left[size_t(k)] - double(s[size_t(k / 32)]) * q[size_t(k)]);
            for (int64_t r = 0; r < n_out; r++)
                for (int rest = 0; rest < 1 + (twice && book); rest++)
                    for (int64_t c = 0; c < n; c++) {
                        int sum = 0;
                        double scale = 0;
                        for (int64_t k = c * 32; k < c * 32 + 32 && k < n_in; k++)
                            sum += integer(w, r, k, &scale, rest) * q[size_t(k)];
                        out.y[size_t(t * n_out + r)] += sum * scale * double(s[size_t(c)]);
                        out.magnitude[size_t(t * n_out + r)] += std::fabs(sum * scale * double(s[size_t(c)]));
                    }
        }
    }
    return out;
}

device_acts::device_acts(int64_t n_tok_, int64_t n_in_)
    : mem(acts_bytes(n_tok_, n_in_)), a(acts_at(mem.p, n_tok_, n_in_)), n_tok(n_tok_), n_in(n_in_)
{
}

void check_acts(const device_acts &d, const std::vector<float> &x, const char *what)
{
    const std::vector<uint8_t> mem = d.mem.get();
    const int64_t n = (d.n_in + 31) / 32, stored = d.a.n_chunks;
    CHECK(stored == n + n % 2, "%s: %d chunks", what, int(stored));
    const int8_t *q = reinterpret_cast<const int8_t *>(mem.data());
    const int2 *meta = reinterpret_cast<const int2 *>(mem.data() + (reinterpret_cast<uint8_t *>(d.a.meta) - d.mem.p));
    std::vector<int8_t> want(size_t(stored * 32));
    std::vector<float> s(static_cast<size_t>(stored));
    std::vector<int32_t> neg(static_cast<size_t>(stored));
    for (int64_t t = 0; t < d.n_tok; t++) {
        int8_plain.quantize(x.data() + t * d.n_in, d.n_in, want.data(), s.data(), neg.data());
        for (int64_t c = 0; c < stored; c++, q += 32, meta++) {
            float scale;
            memcpy(&scale, &meta->x, 4);
            bool same = std::isnan(s[size_t(c)]) ? std::isnan(scale) : scale == s[size_t(c)];
            CHECK(same && meta->y == neg[size_t(c)], "%s: token %d, chunk %d: scale %g, sum %d, not %g, %d", what,
                  int(t), int(c), double(scale), meta->y, double(s[size_t(c)]), neg[size_t(c)]);
            for (int k = 0; k < 32; k++)
                CHECK(q[k / 4 % 2 * 16 + k / 8 * 4 + k % 4] == want[size_t(c * 32 + k)], "%s: token %d, column %d",
                      what, int(t), int(c * 32 + k));
        }
    }
}

struct cuda_env env(int sm, int n_sm)
{
    struct cuda_env e = {};
    e.sm = sm;
    e.n_sm = n_sm;
    e.l2_bytes = 1 << 20;
    return e;
}

std::vector<float> random_floats(int64_t n)
{
    std::vector<float> v(static_cast<size_t>(n));
    ::random_floats(dice(), v.data(), n);
    return v;
}

std::vector<double> plus_bias(std::vector<double> y, const std::vector<float> &bias)
{
    for (size_t i = 0; i < y.size(); i++) y[i] += double(bias[i % bias.size()]);
    return y;
}

void compare(const std::vector<float> &got, const std::vector<double> &want, const std::vector<double> &magnitude,
             double eps, const char *what)
{
    CHECK(got.size() == want.size(), "%s: %zu results", what, got.size());
    for (size_t i = 0; i < got.size(); i++) {
        double err = std::fabs(double(got[i]) - want[i]), tol = eps * magnitude[i] + 1e-6 * std::fabs(want[i]) + 1e-30;
        if (std::isfinite(got[i]) && err <= tol) continue;
        CHECK(false, "%s: element %zu of %zu is %.9g, not %.9g (at most %.3g off)", what, i, got.size(), double(got[i]),
              want[i], tol);
        return;
    }
}

} // namespace mm
