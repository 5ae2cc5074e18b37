/* Scores of logits against the oracle. */
#include "check.h"

#include "logits.h"

extern "C" {
#include "backend/backend_impl.h"
}

#include <cmath>
#include <cstring>

static std::vector<float> random_logits(int64_t rows, int64_t n, float spread)
{
    std::vector<float> v(size_t(rows * n));
    for (float &e : v) e = check::uniform(-spread, spread) + check::uniform(-spread, spread);
    return v;
}
static std::vector<int32_t> random_targets(int64_t rows, int64_t n)
{
    std::vector<int32_t> v(size_t(rows), 0);
    for (int32_t &e : v) e = check::pick(0, int(n) - 1);
    return v;
}
struct workspace {
    dev<uint8_t> d;
    workspace(int64_t rows, int64_t n) : d(logits_work_bytes(rows, n)) { cudaMemset(d.p, 0, d.n); }
    /* the counters are as they were */
    ~workspace()
    {
        std::vector<uint8_t> w = d.get();
        for (int i = 0; i < 2 * 4096 * 4; i++)
            if (w[size_t(i)]) {
                CHECK(false, "byte %d of the counters is left at %d", i, w[size_t(i)]);
                return;
            }
    }
};
static backend oracle()
{
    backend be;
    struct err e;
    CHECK(!cpu_ref_open(&be, COMPUTE_F32, &e), "the oracle");
    return be;
}
static bool near(double a, double b, double abs) { return std::isfinite(a) && std::fabs(a - b) <= abs + 1e-13 * std::fabs(b); }

static void check_scores(const std::vector<struct score> &got, const std::vector<float> &x, const std::vector<int32_t> &targets,
                         int64_t n, const char *what)
{
    backend be = oracle();
    std::vector<struct score> want(got.size());
    be.ops->score(&be, want.data(), x.data(), targets.data(), int64_t(got.size()), n);
    for (size_t t = 0; t < got.size(); t++) {
        CHECK(near(got[t].lse, want[t].lse, 1e-12), "%s row %zu: lse %.17g, not %.17g", what, t, got[t].lse, want[t].lse);
        CHECK(got[t].target == want[t].target && got[t].argmax == want[t].argmax, "%s row %zu: target %g argmax %d, not %g %d",
              what, t, double(got[t].target), got[t].argmax, double(want[t].target), want[t].argmax);
    }
}

EMU_TEST(score)
{
    static const struct { int rows, n; float spread; } shapes[] = {
        {1, 1, 1}, {3, 31, 5}, {2, 2048, 10}, {2, 2049, 20}, {1, 9973, 8}, {5, 4095, 300}, {1, 70001, 6}};
    workspace work(5, 70001); /* one for all: counters must be left at zero whatever the shape */
    for (auto &s : shapes) {
        if (check::slow() && s.n > 50000) continue;
        auto x = random_logits(s.rows, s.n, s.spread);
        auto targets = random_targets(s.rows, s.n);
        if (s.n > 40) x[size_t(s.n) - 7] = x[11] = s.spread * 3; /* equal maxima: the first one counts */
        dev<float> dx(x);
        dev<int32_t> dt(targets);
        dev<struct score> out(size_t(s.rows));
        logits_score(out.p, dx.p, dt.p, s.rows, s.n, work.d.p, nullptr);
        SHAPE("%dx%d", s.rows, s.n);
        check_scores(out.get(), x, targets, s.n, "score");
    }
}

/* Rows that stand for themselves: the oracle gives NaN for a row of −∞, the CPU backend as here −∞. */
EMU_TEST(score_of_odd_rows)
{
    const int n = 2500;
    const float inf = INFINITY;
    std::vector<float> x(size_t(4 * n), -inf);
    x[size_t(1 * n) + 2100] = 3;         /* all but one are −∞: lse is that one */
    for (int i = 0; i < n; i++) x[size_t(2 * n + i)] = 1;
    x[size_t(2 * n) + 77] = NAN;         /* a NaN spreads */
    for (int i = 0; i < n; i++) x[size_t(3 * n + i)] = -1e30f; /* a slice full of equal, very low ones */
    dev<float> dx(x);
    dev<int32_t> targets(std::vector<int32_t>{5, 2100, 0, 2400});
    dev<struct score> out(4);
    workspace work(4, n);
    logits_score(out.p, dx.p, targets.p, 4, n, work.d.p, nullptr);
    auto r = out.get();
    CHECK(r[0].lse == -inf && r[0].argmax == 0, "row of −inf: %g, %d", r[0].lse, r[0].argmax);
    CHECK(r[1].lse == 3 && r[1].argmax == 2100 && r[1].target == 3, "one number: %g, %d", r[1].lse, r[1].argmax);
    CHECK(std::isnan(r[2].lse) && r[2].argmax >= 0 && r[2].argmax < n, "NaN: %g, %d", r[2].lse, r[2].argmax);
    CHECK(near(r[3].lse, double(-1e30f) + std::log(double(n)), 0) && r[3].argmax == 0, "equal ones: %.17g, %d", r[3].lse, r[3].argmax);
}

/* More rows than one launch takes. */
EMU_TEST(score_of_many_rows)
{
    if (check::slow() || check::seed()) return;
    const int rows = 4099, n = 3;
    auto x = random_logits(rows, n, 4);
    auto targets = random_targets(rows, n);
    dev<float> dx(x);
    dev<int32_t> dt(targets);
    dev<struct score> out(rows);
    workspace work(rows, n);
    logits_score(out.p, dx.p, dt.p, rows, n, work.d.p, nullptr);
    SHAPE("%dx%d", rows, n);
    check_scores(out.get(), x, targets, n, "many rows");
}

EMU_TEST(diverge)
{
    static const struct { int rows, n; float spread; } shapes[] = {{1, 2, 1}, {3, 77, 6}, {2, 2049, 12}, {1, 20011, 5}};
    workspace work(3, 20011);
    backend be = oracle();
    for (auto &s : shapes) {
        auto a = random_logits(s.rows, s.n, s.spread), b = a;
        for (float &e : b) e += check::uniform(-0.5f, 0.5f);
        auto targets = random_targets(s.rows, s.n);
        dev<float> da(a), db(b);
        dev<int32_t> dt(targets);
        dev<struct divergence> out(size_t(s.rows)), same(size_t(s.rows));
        logits_diverge(out.p, da.p, db.p, dt.p, s.rows, s.n, work.d.p, nullptr);
        logits_diverge(same.p, da.p, da.p, dt.p, s.rows, s.n, work.d.p, nullptr);
        std::vector<struct divergence> want(size_t(s.rows));
        be.ops->diverge(&be, want.data(), a.data(), b.data(), targets.data(), s.rows, s.n);
        auto got = out.get(), zero = same.get();
        SHAPE("%dx%d", s.rows, s.n);
        for (size_t t = 0; t < want.size(); t++) {
            const struct divergence &g = got[t], &w = want[t];
            CHECK(near(g.kld, w.kld, 1e-12) && near(g.nll_ref, w.nll_ref, 1e-12) && near(g.nll_model, w.nll_model, 1e-12) &&
                      near(g.p_ref, w.p_ref, 1e-13) && near(g.p_model, w.p_model, 1e-13),
                  "%dx%d row %zu: kld %.17g, not %.17g", s.rows, s.n, t, g.kld, w.kld);
            CHECK(g.argmax_ref == w.argmax_ref && g.argmax_model == w.argmax_model, "row %zu: argmax %d %d", t, g.argmax_ref, g.argmax_model);
            CHECK(zero[t].kld == 0, "a row against itself: %g", zero[t].kld);
        }
    }
}

EMU_TEST(greedy)
{
    workspace work(1, 30000);
    dev<int32_t> token(1), pos(std::vector<int32_t>{41});
    int steps = 0;
    for (int n : {1, 5, 255, 2048, 2050, 30000}) {
        auto x = random_logits(1, n, 9);
        if (n > 5) x[size_t(n) - 1] = x[size_t(n) / 2] = 40; /* the first of two */
        dev<float> dx(x);
        logits_greedy(token.p, pos.p, dx.p, n, work.d.p, nullptr);
        int want = 0;
        for (int i = 1; i < n; i++)
            if (x[size_t(i)] > x[size_t(want)]) want = i;
        steps++;
        SHAPE("%d", n);
        CHECK(token.get()[0] == want && pos.get()[0] == 41 + steps, "n %d: token %d at %d, not %d at %d", n, token.get()[0],
              pos.get()[0], want, 41 + steps);
        logits_greedy(token.p, nullptr, dx.p, n, work.d.p, nullptr);
        CHECK(token.get()[0] == want && pos.get()[0] == 41 + steps, "n %d, without a position", n);
    }
}
