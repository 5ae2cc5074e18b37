/* Attention against plain loops in double: every path, all ratios of heads, ragged batches; unused slots of the cache are
 * NaN, so are the outputs before. */
#include "check.h"

#include "../../cuda/attention.h"
#include "base/half.h"

#include <cmath>
#include <cstring>

namespace {

struct span_size {
    int depth, n_new;
};

/* A batch of sequences, and what attention must give. */
struct scene {
    attn_shape s;
    std::vector<span_size> spans;
    bool norm;
    int rows = 0;
    std::vector<float> q, k, v, q_norm, k_norm, inv_freq, out;        /* new rows, before norm and rotation */
    std::vector<std::vector<float>> K, V;                             /* of each span, (depth + n_new, kv heads, hd), stored */
    std::vector<float> q_turned;
};

float stored(const scene &c, float x) { return c.s.f16 ? f16_to_f32(f32_to_f16(x)) : x; }

void turn(const scene &c, float *x, const std::vector<float> &norm, int pos)
{
    int hd = c.s.head_dim, half = hd / 2;
    std::vector<double> y(x, x + hd);
    if (c.norm) {
        double sum = 0;
        for (int i = 0; i < hd; i++) sum += y[i] * y[i];
        for (int i = 0; i < hd; i++) y[i] *= norm[i] / std::sqrt(sum / hd + 1e-6);
    }
    for (int j = 0; j < half; j++) {
        float angle = float(pos) * c.inv_freq[j];
        double cs = std::cos(double(angle)), sn = std::sin(double(angle)), a = y[j], b = y[j + half];
        y[j] = a * cs - b * sn;
        y[j + half] = b * cs + a * sn;
    }
    for (int i = 0; i < hd; i++) x[i] = float(y[i]);
}

void fill(std::vector<float> &x, size_t n, float by)
{
    x.resize(n);
    for (auto &e : x) e = check::uniform(-by, by);
}

/* pos0: added to all positions of rotation, not to the cache */
scene make(const attn_shape &s, const std::vector<span_size> &spans, bool norm, bool rotate)
{
    scene c{s, spans, norm, 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    int hd = s.head_dim, G = s.n_heads / s.n_kv_heads;
    for (auto &sp : spans) c.rows += sp.n_new;
    fill(c.q, size_t(c.rows) * s.n_heads * hd, 2);
    fill(c.k, size_t(c.rows) * s.n_kv_heads * hd, 1.5f);
    fill(c.v, c.k.size(), 1);
    fill(c.q_norm, hd, 1);
    fill(c.k_norm, hd, 1);
    for (int j = 0; j < hd / 2; j++) c.inv_freq.push_back(rotate ? std::pow(1e4f, -2.0f * j / hd) : 0);
    c.q_turned = c.q;
    c.out.resize(c.q.size());
    int row = 0;
    for (size_t i = 0; i < spans.size(); i++) {
        int depth = spans[i].depth, n = spans[i].n_new, width = s.n_kv_heads * hd;
        std::vector<float> K, V;
        fill(K, size_t(depth) * width, 1);
        fill(V, K.size(), 1);
        K.insert(K.end(), c.k.begin() + size_t(row) * width, c.k.begin() + size_t(row + n) * width);
        V.insert(V.end(), c.v.begin() + size_t(row) * width, c.v.begin() + size_t(row + n) * width);
        for (int t = 0; t < n; t++) {
            for (int h = 0; h < s.n_kv_heads; h++) turn(c, &K[size_t((depth + t) * s.n_kv_heads + h) * hd], c.k_norm, depth + t);
            for (int h = 0; h < s.n_heads; h++)
                turn(c, &c.q_turned[size_t((row + t) * s.n_heads + h) * hd], c.q_norm, depth + t);
        }
        for (auto &x : K) x = stored(c, x);
        for (auto &x : V) x = stored(c, x);
        for (int t = 0; t < n; t++)
            for (int h = 0; h < s.n_heads; h++) {
                const float *q = &c.q_turned[size_t((row + t) * s.n_heads + h) * hd];
                int keys = depth + t + 1;
                std::vector<double> p(keys), o(hd);
                double top = -1e300, sum = 0;
                for (int j = 0; j < keys; j++) {
                    double dot = 0;
                    for (int d = 0; d < hd; d++) dot += double(q[d]) * K[size_t(j * s.n_kv_heads + h / G) * hd + d];
                    p[j] = dot / std::sqrt(double(hd));
                    top = std::fmax(top, p[j]);
                }
                for (auto &e : p) sum += e = std::exp(e - top);
                for (int j = 0; j < keys; j++)
                    for (int d = 0; d < hd; d++) o[d] += p[j] * V[size_t(j * s.n_kv_heads + h / G) * hd + d];
                for (int d = 0; d < hd; d++) c.out[size_t((row + t) * s.n_heads + h) * hd + d] = float(o[d] / sum);
            }
        c.K.push_back(K);
        c.V.push_back(V);
        row += n;
    }
    return c;
}

/* A cache [kv][capacity][hd] with tokens 0 … n − 1, NaN behind. */
std::vector<char> cache(const scene &c, const std::vector<float> &K, int n, int capacity)
{
    int hd = c.s.head_dim, kvs = c.s.n_kv_heads;
    size_t size = c.s.f16 ? 2 : 4;
    std::vector<char> b(size_t(kvs) * capacity * hd * size, char(0xff));
    for (int h = 0; h < kvs; h++)
        for (int t = 0; t < n; t++)
            for (int d = 0; d < hd; d++) {
                float x = K[size_t(t * kvs + h) * hd + d];
                uint16_t f16 = f32_to_f16(x);
                size_t at = (size_t(h) * capacity + t) * hd + d;
                memcpy(&b[at * size], c.s.f16 ? static_cast<void *>(&f16) : static_cast<void *>(&x), size);
            }
    return b;
}

struct device_scene {
    attn_batch b{};
    std::vector<dev<char> *> k, v;
    std::vector<int> capacity;
    device_scene(const scene &c, bool with_new, int row_gap)
    {
        int row = row_gap;
        for (size_t i = 0; i < c.spans.size(); i++) {
            int depth = c.spans[i].depth, n = c.spans[i].n_new, cap = (depth + n + check::pick(0, 20) + 15) / 16 * 16;
            int have = with_new ? depth + n : depth;
            k.push_back(new dev<char>(cache(c, c.K[i], have, cap)));
            v.push_back(new dev<char>(cache(c, c.V[i], have, cap)));
            capacity.push_back(cap);
            b.span[i] = {k[i]->p, v[i]->p, depth, row, n, cap};
            row += n;
        }
        b.n = int(c.spans.size());
    }
    ~device_scene()
    {
        for (auto *p : k) delete p;
        for (auto *p : v) delete p;
    }
    /* What lies in the caches is what the scene says, to rounding; and NaN behind. */
    void check_caches(const scene &c, double tol) const
    {
        for (size_t i = 0; i < k.size(); i++) {
            int n = c.spans[i].depth + c.spans[i].n_new, hd = c.s.head_dim;
            for (int which = 0; which < 2; which++) {
                std::vector<char> got = (which ? v : k)[i]->get();
                std::vector<float> g, w;
                for (int h = 0; h < c.s.n_kv_heads; h++)
                    for (int t = 0; t < capacity[i]; t++)
                        for (int d = 0; d < hd; d++) {
                            size_t at = (size_t(h) * capacity[i] + t) * hd + d;
                            float x = c.s.f16 ? f16_to_f32(reinterpret_cast<uint16_t *>(got.data())[at])
                                              : reinterpret_cast<float *>(got.data())[at];
                            if (t < n) {
                                g.push_back(x);
                                w.push_back((which ? c.V : c.K)[i][size_t(t * c.s.n_kv_heads + h) * hd + d]);
                            } else if (!std::isnan(x)) {
                                CHECK(false, "slot %d of head %d, element %d was written", t, h, d);
                                return;
                            }
                        }
                CHECK_CLOSE(g, w, tol, c.s.f16 && !which ? 1e-3 : 0, "cache of %s, span %zu", which ? "v" : "k", i);
            }
        }
    }
};

dev<char> *work_for(const attn_shape &s, int n_sm)
{
    size_t n = attention_work_bytes(s, n_sm);
    return new dev<char>(std::vector<char>(n ? n : 1)); /* zeros */
}

/* f32 within its rounding; f16 within that of q and p and of 64 to 32 keys a tile */
double tolerance(const scene &c) { return c.s.f16 ? 4e-3 : 4e-6; }

void one(const attn_shape &s, const std::vector<span_size> &spans, bool norm, int n_sm, bool dev_pos = false,
         dev<char> *shared_work = nullptr)
{
    char what[120];
    scene c = make(s, spans, norm, true);
    bool decode = true;
    for (auto &sp : spans) decode = decode && sp.n_new == 1;
    snprintf(what, sizeof what, "%s %d/%d heads of %d, %zu spans, depth %d, %d new, %d SMs", s.f16 ? "f16" : "f32", s.n_heads,
             s.n_kv_heads, s.head_dim, spans.size(), spans[0].depth, spans[0].n_new, n_sm);
    SHAPE("%d/%dx%d", s.n_heads, s.n_kv_heads, s.head_dim);
    double tol = decode && s.f16 ? 2e-3 : tolerance(c);
    dev<char> *work = shared_work ? shared_work : work_for(s, n_sm);
    for (int fused = 0; fused < 2; fused++) {
        device_scene ds(c, !fused, 0);
        dev<float> q(fused ? c.q : c.q_turned), k(c.k), v(c.v), qn(c.q_norm), kn(c.k_norm), f(c.inv_freq), out(c.out.size());
        std::vector<int> at = {c.spans[0].depth};
        dev<int> pos(at);
        if (dev_pos) {
            ds.b.pos = pos.p;
            ds.b.span[0].pos0 = -1000000;
        }
        attn_new in = {q.p, k.p, v.p, norm ? qn.p : nullptr, norm ? kn.p : nullptr, 1e-6f, f.p};
        std::vector<float> first;
        for (int again = 0; again < (fused ? 1 : 2); again++) { /* same bits, and the counters are as they were */
            if (fused) rope_attention(out.p, in, ds.b, s, work->p, n_sm, nullptr);
            else attention(out.p, q.p, ds.b, s, work->p, n_sm, nullptr);
            CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess, "%s: %s", what, cudaGetErrorString(cudaGetLastError()));
            std::vector<float> got = out.get();
            CHECK_CLOSE(got, c.out, tol, 0, "%s%s", what, fused ? ", fused" : "");
            if (again) CHECK(!memcmp(got.data(), first.data(), got.size() * 4), "%s: other bits", what);
            first = got;
        }
        ds.check_caches(c, 3e-6);
    }
    if (!shared_work) delete work;
}

} // namespace

EMU_TEST(attention_decode)
{
    static const attn_shape shapes[] = {{4, 4, 64, true},  {6, 3, 64, true},   {9, 3, 64, true},   {7, 1, 128, true},
                                        {8, 1, 128, true}, {16, 2, 128, true}, {5, 1, 96, true},   {3, 1, 80, true},
                                        {2, 1, 256, true}, {8, 1, 256, true},  {11, 1, 64, true},  {4, 2, 16, true},
                                        {9, 3, 64, false}, {7, 1, 128, false}, {5, 1, 96, false},  {2, 1, 256, false}};
    static const int depths[] = {0, 1, 30, 31, 32, 33, 63, 100, 255, 300, 611};
    int at = check::pick(0, 10);
    for (auto &s : shapes) {
        int G = s.n_heads / s.n_kv_heads;
        if (check::slow()) {
            at++;
            one(s, {{depths[at % 9] % 128, 1}}, G % 2, at % 2 ? 1 : 8, at % 2);
            continue;
        }
        one(s, {{depths[at++ % 11], 1}}, G % 2, 1, true);
        one(s, {{depths[at++ % 11], 1}}, false, 8);
        one(s, {{depths[at++ % 11], 1}}, true, 24);
        one(s, {{depths[at++ % 11], 1}, {0, 1}, {depths[at++ % 11], 1}}, false, 30);
    }
    one({3, 1, 64, true}, {{check::slow() ? 400 : 1900, 1}}, false, 60, true); /* more than eight groups' worth of splits */
    one({2, 2, 16, false}, {{check::slow() ? 300 : 1300, 1}}, true, 132, true);
    /* many counters after few, in the same memory */
    const attn_shape s = {8, 8, 16, true};
    dev<char> *work = work_for(s, 132);
    one(s, {{300, 1}}, false, 132, false, work);
    one(s, std::vector<span_size>(8, span_size{70, 1}), false, 132, false, work);
    delete work;
}

EMU_TEST(attention_prefill)
{
    static const attn_shape shapes[] = {{9, 3, 64, true}, {4, 4, 64, true},  {7, 1, 128, true}, {8, 1, 128, true},
                                        {3, 1, 80, true}, {2, 1, 96, true},  {1, 1, 256, true}, {4, 2, 16, true},
                                        {2, 1, 40, true}};
    for (auto &s : shapes) {
        one(s, {{0, check::pick(2, 40)}}, false, 8);
        if (check::slow()) continue;
        one(s, {{check::pick(1, 150), check::pick(2, 30)}}, true, 8);
        one(s, {{0, 17}, {65, 1}, {check::pick(0, 100), 3}}, false, 8);
    }
    one({2, 1, 64, true}, {{0, check::slow() ? 70 : 200}}, false, 8);
}

/* Odd sizes, wide heads, and the exact path. */
EMU_TEST(attention_rows)
{
    static const attn_shape shapes[] = {{9, 3, 64, false}, {2, 2, 20, true}, {3, 1, 20, false},
                                        {6, 1, 80, false}, {2, 1, 320, true}, {7, 1, 2, false}};
    for (auto &s : shapes) {
        one(s, {{check::pick(0, check::slow() ? 20 : 90), 1}}, true, 8);
        one(s, {{0, check::pick(2, check::slow() ? 9 : 33)}, {check::pick(60, check::slow() ? 70 : 140), 2}, {5, 1}}, false, 8);
    }
}

/* Positions far out, where f32 angles are thousands of turns. */
EMU_TEST(rope)
{
    for (int hd : {2, 20, 64, 128, 256}) {
        int heads = check::pick(1, 5), rows = check::pick(1, 9), pos0 = hd == 64 ? 1000003 : check::pick(0, 131072);
        scene c{{heads, 1, hd, false}, {}, false, 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
        for (int j = 0; j < hd / 2; j++) c.inv_freq.push_back(std::pow(1e4f, -2.0f * j / hd));
        std::vector<float> x;
        fill(x, size_t(rows) * heads * hd, 3);
        dev<float> d(x), f(c.inv_freq);
        attn_batch b{};
        b.n = 2;
        b.span[0] = {nullptr, nullptr, pos0, 1, rows - 1, 0}; /* rows 1 … first */
        b.span[1] = {nullptr, nullptr, 7, 0, 1, 0};
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < heads; h++) turn(c, &x[size_t(r * heads + h) * hd], {}, r ? pos0 + r - 1 : 7);
        rope_rows(d.p, b, heads, hd, f.p, nullptr);
        SHAPE("%dx%dx%d", rows, heads, hd);
        CHECK_CLOSE(d.get(), x, 2e-6, 0, "rope of %d rows, %d heads of %d from %d", rows, heads, hd, pos0);
    }
}
