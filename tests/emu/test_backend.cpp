/* The whole CUDA backend behind its interface: every op against the oracle, models against transformers' logits, recorded
 * decode steps, the ledger of memory. */
#include "check.h"

#include "launch.h"

extern "C" {
#include "backend/backend_impl.h"
#include "base/mem.h"
#include "base/msg.h"
#include "base/par.h"
#include "cuda_cost.h"
#include "eval/device.h"
#include "golden.h"
#include "model/model.h"
#include "model/plan.h"
#include "qrandom.h"
#include "tiny.h"
}

#include <cmath>
#include <cstring>

namespace {

struct opened {
    struct backend be;
    opened(const char *device, const char *compute)
    {
        struct err e;
#ifdef CUDA_EMU /* the machine's own cuBLAS, if it has one, knows nothing of the emulated device */
        setenv("QLAB_CUDA_BLAS", "0", 1);
#endif
        if (backend_open(&be, device, compute, false, &e)) die("%s", e.msg);
    }
    ~opened() { backend_close(&be); }
    opened(const opened &) = delete;
};

/* Floats on a backend's device. */
struct floats {
    struct backend *be;
    size_t n;
    float *p;
    floats(struct backend *be, size_t n) : be(be), n(n)
    {
        struct err e;
        p = static_cast<float *>(be->ops->alloc(be, n * sizeof *p, &e));
        if (!p) die("%s", e.msg);
    }
    floats(struct backend *be, const std::vector<float> &v) : floats(be, v.size())
    {
        be->ops->upload(be, p, v.data(), n * sizeof *p);
    }
    std::vector<float> get() const
    {
        std::vector<float> v(n);
        be->ops->download(be, v.data(), p, n * sizeof *p);
        return v;
    }
    ~floats() { be->ops->free(be, p); }
    floats(const floats &) = delete;
};

std::vector<float> random_vector(size_t n, float by)
{
    std::vector<float> v(n);
    for (float &e : v) e = check::uniform(-by, by) + check::uniform(-by, by);
    return v;
}

/* ---- ops ---- */

/* A weight of random codes, on two backends. What the first was loaded from is gone: a device has copied it. */
struct pair_of_weights {
    struct qbuffer b;
    struct weight w[2];
    struct backend *be[2];
    pair_of_weights(struct backend *x, struct backend *y, const char *format, int64_t n_out, int64_t n_in) : be{x, y}
    {
        struct rng r = {uint64_t(check::random()())}, again = r;
        struct err e;
        struct qbuffer gone;
        qrandom(&b, format_find(format), n_out, n_in, DT_F16, &r, false);
        qrandom(&gone, format_find(format), n_out, n_in, DT_F16, &again, false);
        for (int i = 0; i < 2; i++)
            if (be[i]->ops->load_weight(be[i], &w[i], i ? &b.w : &gone.w, &e)) die("%s", e.msg);
        CHECK(w[0].copied && !w[0].memory, "%s: not copied", format);
        qbuffer_free(&gone);
    }
    ~pair_of_weights()
    {
        for (int i = 0; i < 2; i++) be[i]->ops->free_weight(be[i], &w[i]);
        qbuffer_free(&b);
    }
};

/* Everything the products offer, cuda in `compute` against `other`: tol times the largest result of an op. */
void products(struct backend *cuda, struct backend *other, const char *format, int64_t n_in, int64_t n_out, int64_t n_tok,
              double tol)
{
    struct backend *be[2] = {cuda, other};
    pair_of_weights a(cuda, other, format, n_out, n_in), b(cuda, other, format, n_out, n_in), c(cuda, other, format, 40, n_in);
    std::vector<float> x = random_vector(size_t(n_tok * n_in), 1), bias = random_vector(size_t(n_out), 1);
    std::vector<float> norm = random_vector(size_t(n_in), 1), sum = random_vector(size_t(n_tok * n_out), 3);
    std::vector<float> y[2], q[2], k[2], added[2], swiglu[2];
    const double eps = 1e-5;
    for (int i = 0; i < 2; i++) {
        struct backend *s = be[i];
        const struct backend_ops *o = s->ops;
        floats dx(s, x), dbias(s, bias), dnorm(s, norm), dsum(s, sum), dh(s, x.size());
        floats dy(s, size_t(n_tok * n_out)), du(s, dy.n), dk(s, size_t(n_tok * 40));
        struct matmul one = {dy.p, &a.w[i], dbias.p};
        o->matmul(s, &one, 1, dx.p, n_tok);
        y[i] = dy.get();
        struct matmul two[2] = {{dy.p, &a.w[i], NULL}, {dk.p, &c.w[i], NULL}};
        struct matmul gate_up[2] = {{dy.p, &a.w[i], dbias.p}, {du.p, &b.w[i], NULL}};
        if (o->norm_matmul) {
            o->norm_matmul(s, two, 2, dx.p, dnorm.p, eps, n_tok);
            q[i] = dy.get();
            k[i] = dk.get();
            o->matmul_add(s, dsum.p, &a.w[i], dbias.p, dx.p, n_tok);
            o->gate_up(s, dy.p, gate_up, dx.p, dnorm.p, eps, n_tok);
        } else {
            o->rmsnorm(s, dh.p, dx.p, dnorm.p, n_tok, n_in, eps);
            o->matmul(s, two, 2, dh.p, n_tok);
            q[i] = dy.get();
            k[i] = dk.get();
            o->matmul(s, &one, 1, dx.p, n_tok);
            o->add(s, dsum.p, dy.p, n_tok * n_out);
            o->matmul(s, gate_up, 2, dh.p, n_tok);
            o->swiglu(s, dy.p, dy.p, du.p, n_tok * n_out);
        }
        added[i] = dsum.get();
        swiglu[i] = dy.get();
    }
    char what[120];
    SHAPE("%s %dx%dx%d", format, int(n_tok), int(n_out), int(n_in));
    std::vector<float> *all[][2] = {{&y[0], &y[1]}, {&q[0], &q[1]}, {&k[0], &k[1]}, {&added[0], &added[1]}, {&swiglu[0], &swiglu[1]}};
    const char *names[] = {"matmul", "norm_matmul", "norm_matmul's second", "matmul_add", "gate_up"};
    for (int j = 0; j < 5; j++) {
        double most = 0;
        for (float v : *all[j][1]) most = std::fmax(most, std::fabs(double(v)));
        snprintf(what, sizeof what, "%s of %s, %s", names[j], format, compute_name(cuda->compute));
        CHECK_CLOSE(*all[j][0], *all[j][1], tol * most, 0, "%s, %d tokens, %d to %d", what, int(n_tok), int(n_in), int(n_out));
    }
}

/* NULL-ended */
const char *const formats[] = {"f32", "bf16", "f16", "int8-row", "int4-g64", "int4-g32-sym", "int4-strided128", "nf4", "fp4", NULL};

} // namespace

EMU_TEST(backend_products)
{
    static const int64_t shapes[][3] = {{64, 40, 1}, {320, 33, 3}, {128, 50, 9}, {96, 130, 40}};
    par_set_threads(1);
    opened ref("cpu-ref", "f32"), cpu8("cpu", "int8"), cpu8x2("cpu", "int8x2");
    /* f16 and bf16: x and w rounded to 11 and 8 bits, errors of hundreds of products mostly cancelling. int8: quantized
     * alike on the CPU, but for roundings that fall the other way where a norm differs in its last bit: by a step of
     * 1/127, of int8x2 of 1/127². */
    struct {
        const char *name;
        struct backend *other;
        double tol;
    } computes[] = {{"f32", &ref.be, 2e-6}, {"f16", &ref.be, 2e-3}, {"bf16", &ref.be, 2e-2}, {"int8", &cpu8.be, 6e-3},
                 {"int8x2", &cpu8x2.be, 5e-5}};
    for (auto &c : computes) {
        opened cuda("cuda", c.name);
        for (int f = 0; formats[f]; f++)
            for (int s = 0; s < 4; s++) {
                if ((5 * f + s + int(check::seed())) % (check::slow() ? 12 : c.other == &cpu8x2.be ? 4 : 2)) continue;
                /* strided128 in 8 bits is the CPU's alone: here its products are f32 for few tokens, else f16 */
                bool apart = !strcmp(formats[f], "int4-strided128") && c.other != &ref.be;
                products(&cuda.be, apart ? &ref.be : c.other, formats[f], shapes[s][0], shapes[s][1], shapes[s][2],
                         apart ? 2e-3 : c.tol);
            }
    }
}

EMU_TEST(backend_small_ops)
{
    par_set_threads(1);
    opened ref("cpu-ref", "f32"), cuda("cuda", "f32");
    struct backend *be[2] = {&cuda.be, &ref.be};
    const int64_t rows = 7, n = 37, vocab = 1000;
    std::vector<float> x = random_vector(size_t(rows * n), 3), u = random_vector(x.size(), 3), w = random_vector(size_t(n), 1);
    std::vector<float> logits = random_vector(size_t(rows * vocab), 6), other = random_vector(logits.size(), 6);
    std::vector<float> norm[2], swiglu[2], add[2], embedded[2], turned[2];
    std::vector<struct score> score(size_t(2 * rows));
    std::vector<struct divergence> kld(size_t(2 * rows));
    const int32_t targets[rows] = {0, 5, 999, 17, 300, 2, 1}, ids[3] = {33, 0, 49};
    pair_of_weights table(be[0], be[1], "int4-g32", 50, 36), odd(be[0], be[1], "bf16", 50, 37);
    struct kv_cache kv[2] = {};
    kv[1].n = 100003;
    struct span spans[2] = {{&kv[0], 2, 5}, {&kv[1], 0, 2}};
    const float inv_freq[4] = {1, .1f, .01f, .001f}, slower[4] = {.5f, .05f, .005f, .0005f};
    for (int i = 0; i < 2; i++) {
        struct backend *s = be[i];
        const struct backend_ops *o = s->ops;
        floats dx(s, x), du(s, u), dw(s, w), dy(s, x.size()), dl(s, logits), dk(s, other), de(s, size_t(3 * 37));
        o->rmsnorm(s, dy.p, dx.p, dw.p, rows, n, 1e-5);
        norm[i] = dy.get();
        o->swiglu(s, dy.p, dx.p, du.p, rows * n);
        swiglu[i] = dy.get();
        o->add(s, dx.p, du.p, rows * n);
        add[i] = dx.get();
        o->score(s, &score[size_t(i * rows)], dl.p, targets, rows, vocab);
        o->diverge(s, &kld[size_t(i * rows)], dl.p, dk.p, targets, rows, vocab);
        o->embed(s, de.p, &odd.w[i], ids, 3);
        embedded[i] = de.get();
        o->embed(s, de.p, &table.w[i], ids, 3);
        std::vector<float> more = de.get();
        embedded[i].insert(embedded[i].end(), more.begin(), more.begin() + 3 * 36);
        o->rope(s, du.p, spans, 2, 4, 8, inv_freq); /* rows of 32 */
        o->rope(s, du.p, spans, 2, 4, 8, slower);
        turned[i] = du.get();
        turned[i].resize(size_t(rows * 32));
    }
    SHAPE("%dx%d", int(rows), int(n));
    CHECK_CLOSE(norm[0], norm[1], 0, 1e-6, "rmsnorm");
    CHECK_CLOSE(swiglu[0], swiglu[1], 1e-30, 1e-6, "swiglu");
    CHECK_CLOSE(add[0], add[1], 0, 0, "add");
    CHECK_CLOSE(embedded[0], embedded[1], 0, 0, "embed");
    CHECK_CLOSE(turned[0], turned[1], 6e-6, 0, "rope");
    for (size_t t = 0; t < size_t(rows); t++) {
        const struct score &a = score[t], &b = score[size_t(rows) + t];
        CHECK(std::fabs(a.lse - b.lse) <= 1e-11 && a.target == b.target && a.argmax == b.argmax, "score of row %zu", t);
        const struct divergence &c = kld[t], &d = kld[size_t(rows) + t];
        CHECK(std::fabs(c.kld - d.kld) <= 1e-11 && std::fabs(c.nll_model - d.nll_model) <= 1e-11, "divergence of row %zu", t);
    }
}

/* Rows that a product left quantized are not those of what is written there afterwards. */
EMU_TEST(backend_stale_rows)
{
    par_set_threads(1);
    opened cuda("cuda", "int8");
    struct backend *be = &cuda.be;
    const int64_t n = 64;
    pair_of_weights a(be, be, "int4-g32", n, n);
    std::vector<float> x = random_vector(size_t(n), 1), norm = random_vector(size_t(n), 1), z(static_cast<size_t>(n));
    floats dx(be, x), dnorm(be, norm), y(be, size_t(n)), up(be, size_t(n)), stale(be, z), want(be, z);
    struct matmul jobs[2] = {{y.p, &a.w[0], NULL}, {up.p, &a.w[1], NULL}};
    be->ops->gate_up(be, y.p, jobs, dx.p, dnorm.p, 1e-5, 1);
    be->ops->upload(be, y.p, x.data(), size_t(n) * sizeof(float));
    be->ops->matmul_add(be, stale.p, &a.w[0], NULL, y.p, 1);
    be->ops->matmul_add(be, want.p, &a.w[0], NULL, dx.p, 1);
    SHAPE("%d", int(n));
    CHECK(stale.get() == want.get(), "rows quantized before they were written again were used");
}

/* Spans that are not in the order of their rows, more of them than travel with one launch. */
EMU_TEST(backend_attention)
{
    par_set_threads(1);
    const int n_spans = check::slow() ? 5 : 37, heads = 4, kvs = 2, hd = 16;
    for (const char *compute : {"f32", "int8"}) {
        opened ref("cpu-ref", "f32"), cuda("cuda", compute);
        struct backend *be[2] = {&cuda.be, &ref.be};
        std::vector<float> out[2];
        std::vector<int> depth, fresh;
        int before = 0, rows = 0;
        for (int i = 0; i < n_spans; i++) {
            depth.push_back(check::pick(0, 20));
            fresh.push_back(i % 3 ? 1 : check::pick(1, 5));
            before += depth[size_t(i)];
            rows += fresh[size_t(i)];
        }
        std::vector<float> q = random_vector(size_t(rows * heads * hd), 1);
        std::vector<float> k = random_vector(size_t((before + rows) * kvs * hd), 1), v = random_vector(k.size(), 1);
        for (int i = 0; i < 2; i++) {
            struct backend *s = be[i];
            const struct backend_ops *o = s->ops;
            floats dq(s, q), dk(s, k), dv(s, v), dout(s, q.size());
            std::vector<struct kv_cache> kv(static_cast<size_t>(n_spans));
            std::vector<struct span> old, now;
            struct err e;
            int at = 0, row = rows;
            for (int j = 0; j < n_spans; j++) {
                struct kv_cache &c = kv[size_t(j)];
                c = {cuda.be.compute == COMPUTE_F32 ? DT_F32 : DT_F16, 2, 32, kvs, hd, 0, NULL, NULL, 0};
                size_t bytes = size_t(2 * 32 * kvs * hd) * dtype_bytes(c.dtype, 1);
                c.k = o->alloc(s, bytes, &e);
                c.v = o->alloc(s, bytes, &e);
                if (depth[size_t(j)]) old.push_back({&c, at, depth[size_t(j)]});
                at += depth[size_t(j)];
                row -= fresh[size_t(j)];
                now.push_back({&c, row, fresh[size_t(j)]});
            }
            o->kv_append(s, old.data(), int(old.size()), 1, dk.p, dv.p);
            o->kv_append(s, old.data(), int(old.size()), 0, dv.p, dk.p); /* another layer's are others */
            for (int j = 0; j < n_spans; j++) kv[size_t(j)].n = depth[size_t(j)];
            o->kv_append(s, now.data(), n_spans, 1, dk.p + before * kvs * hd, dv.p + before * kvs * hd);
            o->attention(s, dout.p, dq.p, now.data(), n_spans, 1, heads);
            out[i] = dout.get();
            for (struct kv_cache &c : kv) {
                o->free(s, c.k);
                o->free(s, c.v);
            }
        }
        SHAPE("%s %d spans", compute, n_spans);
        CHECK_CLOSE(out[0], out[1], cuda.be.compute == COMPUTE_F32 ? 3e-6 : 3e-3, 0, "attention, %s", compute);
    }
}

/* ---- models ---- */

namespace {

struct loaded {
    struct checkpoint c;
    opened o;
    struct model m;
    struct scratch s;
    loaded(const char *kind, const char *device, const char *compute, int64_t rows, int64_t ff = 0) : o(device, compute)
    {
        struct tiny t;
        struct err e;
        const char *dir = test_tmp(kind);
        if (tiny_kind(&t, kind)) die("%s", kind);
        if (ff) t.ff = ff;
        if (tiny_write(&t, dir, &e) || checkpoint_open(&c, dir, &e) || model_load(&m, &o.be, &c, &e) ||
            scratch_alloc(&s, &m, rows, &e))
            die("%s: %s", kind, e.msg);
    }
    ~loaded()
    {
        scratch_free(&s, &m);
        model_free(&m);
        checkpoint_close(&c);
    }
    loaded(const loaded &) = delete;
};

double mean_nll(loaded &l, const std::vector<int32_t> &ids)
{
    struct kv_cache kv;
    struct err e;
    int64_t n = int64_t(ids.size()), V = l.m.cfg.vocab_size;
    if (kv_alloc(&kv, &l.m, n, &e)) die("%s", e.msg);
    struct span sp = {&kv, 0, n};
    model_forward(&l.m, ids.data(), &sp, 1, &l.s, NULL);
    floats logits(&l.o.be, size_t(n * V));
    model_logits(&l.m, l.s.x, n, logits.p);
    std::vector<struct score> sc(static_cast<size_t>(n));
    l.o.be.ops->score(&l.o.be, sc.data(), logits.p, ids.data() + 1, n - 1, V);
    double sum = 0;
    for (int64_t i = 0; i + 1 < n; i++) sum += sc[size_t(i)].lse - double(sc[size_t(i)].target);
    kv_free(&kv, &l.m);
    return sum / double(n - 1);
}

std::vector<int32_t> ids_of(int n, int vocab)
{
    std::vector<int32_t> v;
    for (int i = 0; i < n; i++) v.push_back((i * i * 31 + i * 7 + 5) % vocab);
    return v;
}

} // namespace

/* The exact path gives transformers' logits as closely as the CPU's does; the fast ones their NLL. */
EMU_TEST(backend_models)
{
    par_set_threads(1);
    for (const char *file : {"tiny_models.json", "tiny_more.json"}) {
        json_t *g = golden_load(file), *want, *ids = golden_get(g, "token_ids");
        std::vector<int32_t> tokens;
        for (size_t i = 0; i < json_array_size(ids); i++)
            tokens.push_back(int32_t(json_integer_value(json_array_get(ids, i))));
        const char *kind;
        json_object_foreach(golden_get(g, "models"), kind, want)
        {
            double nll = json_number_value(golden_get(want, "mean_nll"));
            for (const char *compute : {"f32", "f16", "bf16", "int8"}) {
                if (check::slow() ? strcmp(compute, "int8") || strcmp(kind, "qwen3") : check::seed() && strcmp(compute, "int8"))
                    continue;
                loaded l(kind, "cuda", compute, 64);
                double got = mean_nll(l, tokens), tol = nll * (!strcmp(compute, "f32") ? 1e-6 : !strcmp(compute, "f16") ? 3e-4 : 1e-3);
                SHAPE("%s %s", kind, compute);
                CHECK(std::isfinite(got) && std::fabs(got - nll) <= tol, "%s, %s: mean NLL %.9g, not %.9g", kind, compute, got,
                      nll);
            }
        }
        json_decref(g);
    }
}

/* Recorded steps: the ids that ops one by one give; nothing launched once it is recorded; nothing recorded that is stale. */
EMU_TEST(backend_steps)
{
    par_set_threads(1);
    const int n = check::slow() ? 3 : 6, n_prompt = check::slow() ? 1 : 20;
    struct err e;
    static const char *const cases[][2] = {{"llama-headdim32", "int8"}, {"qwen3", "f32"}};
    for (auto &it : cases) {
        if (check::slow() && strcmp(it[1], "int8")) continue;
        loaded l(it[0], "cuda", it[1], 16);
        std::vector<int32_t> prompt = ids_of(n_prompt, 256), ids[4];
        struct kv_cache kv[2];
        if (kv_alloc(&kv[0], &l.m, 32, &e) || kv_alloc(&kv[1], &l.m, 48, &e)) die("%s", e.msg);
        unsigned long long launches[4];
        for (int run = 0; run < 4; run++) { /* one by one; recorded; recorded before; on another cache */
            struct kv_cache *c = &kv[run == 3];
            c->n = 0;
            ids[run].resize(size_t(n));
            if (run == 0) setenv("QLAB_CUDA_GRAPH", "0", 1);
            else unsetenv("QLAB_CUDA_GRAPH");
            launches[run] = launch_count();
            model_generate(&l.m, c, &l.s, prompt.data(), n_prompt, ids[run].data(), n, NULL, NULL);
            launches[run] = launch_count() - launches[run];
            CHECK(c->n == n_prompt + n - 1, "%s, run %d: %d tokens in the cache", it[0], run, int(c->n));
            CHECK(ids[run] == ids[0], "%s %s, run %d: other ids than the first's", it[0], it[1], run);
        }
        /* every run has the prompt and the first id; then n − 1 steps one by one; one that is recorded, as the first run has
         * seen them; none; one by ops and one that is recorded */
        const unsigned long long step = (launches[0] - launches[2]) / unsigned(n - 1);
        CHECK(launches[0] == launches[2] + unsigned(n - 1) * step && launches[1] == launches[2] + step && launches[3] == launches[1] + step,
              "%s %s: %llu, %llu, %llu, %llu launches", it[0], it[1], launches[0], launches[1], launches[2], launches[3]);
        { /* memory that is freed may be in what was recorded */
            floats freed(&l.o.be, 1);
        }
        kv[1].n = 0;
        unsigned long long after = launch_count();
        model_generate(&l.m, &kv[1], &l.s, prompt.data(), n_prompt, ids[1].data(), n, NULL, NULL);
        CHECK(ids[1] == ids[0] && launch_count() - after == launches[3], "%s: memory was freed, and a step not recorded anew", it[0]);
        SHAPE("%s %s: %d launches a token", it[0], it[1], int(step));
        kv_free(&kv[0], &l.m);
        kv_free(&kv[1], &l.m);
    }
}

/* A decode step launches the kernels and reads the bytes that tests/lib/cuda_cost.c counts; at most 6 kernels a layer where
 * the quantizing SwiGLU fills the device. */
EMU_TEST(backend_costs)
{
    par_set_threads(1);
    struct err e;
    for (int64_t ff : {96, 160}) /* 32 rows of the emulated device's 4 multiprocessors are between */
        for (const char *name : {"f16", "int8-row", "int4-g32", "nf4"}) {
            if (check::slow()) continue; /* it counts, and computes nothing that other tests do not */
            const struct format *f = format_find(name);
            loaded l("llama-headdim32", "cuda", "int8", 4, ff);
            struct backend *be = &l.o.be;
            std::vector<struct qbuffer> codes;
            struct rng r = {uint64_t(check::random()())};
            auto swap = [&](struct weight *w) {
                struct weight old = *w;
                codes.emplace_back();
                qrandom(&codes.back(), f, old.n_out, old.n_in, DT_F16, &r, false);
                be->ops->free_weight(be, w);
                if (be->ops->load_weight(be, w, &codes.back().w, &e)) die("%s", e.msg);
                l.m.read_bytes += int64_t(w->read_bytes) - int64_t(old.read_bytes);
                return int64_t(w->read_bytes / size_t(w->n_out)) - int64_t(old.read_bytes / size_t(old.n_out));
            };
            for (int64_t i = 0; i < l.m.cfg.n_layers; i++)
                for (int op = 0; op < N_OPS; op++) swap(&l.m.layers[i].w[op]);
            if (!l.m.tied) swap(&l.m.head);
            const int64_t whole = l.m.read_bytes; /* of the table only a row is read, but where it is the head too */
            const int64_t row = swap(&l.m.embed);
            if (l.m.tied) l.m.head = l.m.embed;
            l.m.read_bytes = (l.m.tied ? l.m.read_bytes : whole) + row;
            struct kv_cache kv;
            if (kv_alloc(&kv, &l.m, 16, &e)) die("%s", e.msg);
            int32_t prompt = 7, ids[2];
            unsigned long long n[3]; /* a pass of the prompt, and a step: by ops; recorded; none */
            for (unsigned long long &launches : n) {
                launches = launch_count();
                kv.n = 0;
                model_generate(&l.m, &kv, &l.s, &prompt, 1, ids, 2, NULL, NULL);
                launches = launch_count() - launches;
            }
            struct cuda_cost k;
            cuda_cost(&k, &l.m.cfg, f, f, DT_F16, 16, 4);
            SHAPE("%s ff %d: %d kernels a layer", name, int(ff), int(k.layer_kernels));
            CHECK(int64_t(n[1] - n[2]) == k.kernels, "%s, ff %d: %d kernels a token, %d counted", name, int(ff), int(n[1] - n[2]),
                  int(k.kernels));
            CHECK(ff < 128 || k.layer_kernels <= 6, "%s: %d kernels a layer", name, int(k.layer_kernels));
            CHECK(l.m.read_bytes == k.weight_bytes, "%s: reads %lld bytes a token, %lld counted", name, (long long)l.m.read_bytes,
                  (long long)k.weight_bytes);
            CHECK(int64_t(kv.bytes) == k.kv_bytes, "%s: %zu bytes of cache, %lld counted", name, kv.bytes, (long long)k.kv_bytes);
            kv_free(&kv, &l.m);
            for (struct qbuffer &b : codes) qbuffer_free(&b);
        }
}

/* What is predicted before loading is what is taken. */
EMU_TEST(backend_ledger)
{
    par_set_threads(1);
    for (const char *compute : {"f32", "int8"}) {
        if (check::slow() && strcmp(compute, "int8")) continue;
        loaded l("llama-headdim32", "cuda", compute, 32);
        struct kv_cache kv;
        struct memory_plan p;
        struct device d;
        struct err e;
        std::vector<int32_t> prompt = ids_of(40, 256), ids(4);
        if (memory_plan(&p, &l.c, &l.o.be, 100, 32, &e) || kv_alloc(&kv, &l.m, 100, &e)) die("%s", e.msg);
        model_generate(&l.m, &kv, &l.s, prompt.data(), 40, ids.data(), 4, NULL, NULL);
        l.o.be.ops->describe(&l.o.be, &d);
        json_t *j = device_memory_json(&l.o.be, &l.m.cfg, 32, p.weights_bytes, p.kv_bytes, p.scratch_bytes);
        double predicted = double(json_integer_value(json_object_get(j, "predicted_bytes")));
        CHECK(p.weights_bytes == l.m.weights_bytes && p.kv_bytes == int64_t(kv.bytes) && p.scratch_bytes == int64_t(l.s.bytes),
              "weights %lld, not %lld", (long long)p.weights_bytes, (long long)l.m.weights_bytes);
#ifdef CUDA_EMU
        CHECK(size_t(d.peak_bytes) == emu::device_memory().bytes, "the ledger has %lld bytes, the device %zu",
              (long long)d.peak_bytes, emu::device_memory().bytes);
#endif
        CHECK(std::fabs(predicted / double(d.peak_bytes) - 1) <= 0.02, "%s: predicted %.0f bytes, %lld were taken", compute,
              predicted, (long long)d.peak_bytes);
        SHAPE("%s %.0f", compute, predicted);
        json_decref(j);
        kv_free(&kv, &l.m);
    }
}
