/* What products reach alone: many calls between two events, in a run that also measures the bandwidth of copies. On a
 * GPU with the shapes that docs/cuda.md names, for tests/gpu/run (part speed); in the emulation with tiny ones, which show
 * that results are right and records are written, and whose times mean nothing. A test prints a line "# record {…}". */
#include "context.h"
#include "mm.h"

extern "C" {
#include "base/err.h"
}

#include <algorithm>
#include <cstdlib>

using namespace mm;

#ifdef CUDA_EMU
static const bool on_gpu = false;
#else
static const bool on_gpu = true;
#endif

struct opened {
    struct cuda_ctx *c;
    opened()
    {
        struct err e;
        if (!on_gpu) setenv("QLAB_CUDA_BLAS", "0", 1); /* the toolkit's is not for this device */
        c = context_open(0, COMPUTE_INT8, &e);
        if (!c) check::broken(e.msg, 0);
    }
    ~opened() { context_close(c); }
    void must(cudaError_t rc) const
    {
        if (rc != cudaSuccess) check::broken(cudaGetErrorString(rc), 0);
    }
    /* The median time of what `queue` queues, of nine after two that are not counted. */
    template <class F> double seconds(F queue) const
    {
        std::vector<double> t;
        for (int i = -2; i < (on_gpu ? 9 : 1); i++) {
            float ms = 0;
            must(cudaEventRecord(c->begin, c->stream));
            queue();
            must(cudaEventRecord(c->end, c->stream));
            must(cudaStreamSynchronize(c->stream));
            must(cudaEventElapsedTime(&ms, c->begin, c->end));
            if (i >= 0) t.push_back(double(ms) * 1e-3);
        }
        std::sort(t.begin(), t.end());
        return t[t.size() / 2];
    }
};

static struct cuda_matmul one_job(const struct cuda_job *j, const float *x, int64_t n_tok, int64_t n_in,
                                  const dev<uint8_t> &scratch)
{
    struct cuda_matmul m = matmul_of(j, 1, x, n_tok, n_in);
    m.compute = COMPUTE_INT8;
    m.scratch = scratch.p;
    return m;
}

/* One token times one int4 matrix, its activations quantized before: one kernel a call. The calls go round copies of the
 * matrix that are four times the second-level cache together, so that each reads its own from memory, and are launched
 * as one graph, so that the host's time is not in them. */
static void gemv_alone(int n_out, int n_in)
{
    const struct opened d;
    const filled w("int4-g128", n_out, n_in, DT_F16);
    const auto x = activations(1, n_in, false);
    const dev<float> dx(x), y(static_cast<size_t>(n_out));
    const dev<uint8_t> scratch(matmul_scratch(&d.c->env, COMPUTE_INT8, 1, n_in));
    d.must(cudaMemset(scratch.p, 0, scratch.n));
    const device_acts acts(1, n_in);
    quantize_acts(&acts.a, dx.p, 1, n_in, d.c->stream);

    const size_t copies = on_gpu ? 4 * d.c->env.l2_bytes / w.d.bytes + 2 : 2, calls = on_gpu ? 4 * copies : 3;
    const dev<uint8_t> data(copies * w.d.bytes);
    std::vector<uint8_t> bytes(w.d.bytes); /* through the host, as weights come */
    std::vector<struct cuda_weight> of(copies, w.d);
    d.must(cudaMemcpy(bytes.data(), w.d.data, bytes.size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < copies; i++) {
        of[i].data = data.p + i * w.d.bytes;
        d.must(cudaMemcpy(data.p + i * w.d.bytes, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    }
    auto call = [&](size_t i) {
        struct cuda_job j = {};
        j.w = &of[i % copies];
        j.y = y.p;
        struct cuda_matmul m = one_job(&j, nullptr, 1, n_in, scratch);
        m.acts = &acts.a;
        CHECK(cuda_matmul(&d.c->env, &m, d.c->stream) == 0, "cuda_matmul");
    };
    call(0);
    d.must(cudaStreamSynchronize(d.c->stream));
    const struct sums want = int8_product(w, x, 1);
    compare(y.get(), want.y, want.magnitude, 0x1p-24 * (n_in / 32 + 8), "one call");

    cudaGraph_t g = nullptr;
    cudaGraphExec_t exec;
    d.must(cudaStreamBeginCapture(d.c->stream, cudaStreamCaptureModeThreadLocal));
    for (size_t i = 0; i < calls; i++) call(i);
    d.must(cudaStreamEndCapture(d.c->stream, &g));
    d.must(cudaGraphInstantiate(&exec, g, 0));
    cudaGraphDestroy(g);
    const double s = d.seconds([&] { d.must(cudaGraphLaunch(exec, d.c->stream)); }) / double(calls);
    cudaGraphExecDestroy(exec);
    const double copy = context_copy_bandwidth(d.c), read = s > 0 ? double(w.d.read_bytes) / s : 0;
    const char *pdl = getenv("QLAB_CUDA_PDL");
    printf("# record {\"tool\":\"test_speed\",\"params\":{\"format\":\"int4-g128\",\"n_out\":%d,\"n_in\":%d,\"pdl\":%s},"
           "\"results\":{\"seconds\":%.6g,\"bytes\":%zu,\"copies\":%zu,\"read_bytes_per_s\":%.6g,"
           "\"copy_bytes_per_s\":%.6g,\"fraction\":%.4g}}\n",
           n_out, n_in, pdl && *pdl == '1' ? "true" : "false", s, size_t(w.d.read_bytes), copies, read, copy,
           copy > 0 ? read / copy : 0);
    SHAPE("%dx%d", n_out, n_in);
}

EMU_TEST(gemv_wide) { on_gpu ? gemv_alone(2048, 11008) : gemv_alone(20, 416); }
EMU_TEST(gemv_tall) { on_gpu ? gemv_alone(11008, 2048) : gemv_alone(70, 128); }

/* The products of a layer (Llama-3.2-3B: q, k, v, o, gate, up, down) for a long prompt: int4 as it is done, with all that
 * goes with it, and the bf16 product alone, of weights and activations that are bf16 already. */
EMU_TEST(prefill)
{
    struct shape {
        int n_out, n_in, n;
    };
    static const struct shape full[] = {{3072, 3072, 2}, {1024, 3072, 2}, {8192, 3072, 2}, {3072, 8192, 1}};
    static const struct shape tiny[] = {{40, 64, 2}, {24, 64, 2}, {70, 64, 2}, {40, 96, 1}};
    const struct shape *const shapes = on_gpu ? full : tiny;
    const int n_tok = on_gpu ? 2048 : 20, most = on_gpu ? 8192 : 96;
    const struct opened d;
    const struct cuda_env &e = d.c->env;
    const auto x = activations(n_tok, most, false);
    const dev<float> dx(x), y(size_t(n_tok) * size_t(most));
    dev<uint16_t> half(x.size());
    std::vector<uint16_t> rounded;
    for (float v : x) rounded.push_back(f32_to_bf16(v));
    half.put(rounded);
    const size_t n_int = matmul_scratch(&e, COMPUTE_INT8, n_tok, most);
    const size_t n_bf = matmul_scratch(&e, COMPUTE_BF16, n_tok, most);
    const dev<uint8_t> scratch(n_int > n_bf ? n_int : n_bf);
    d.must(cudaMemset(scratch.p, 0, scratch.n));
    double ints = 0, halves = 0;
    for (int i = 0; i < 4; i++) {
        const struct shape &s = shapes[i];
        const filled w4("int4-g128", s.n_out, s.n_in, DT_BF16), w16("bf16", s.n_out, s.n_in, DT_BF16);
        struct cuda_job j = {};
        j.y = y.p;
        struct cuda_matmul m = one_job(&j, dx.p, n_tok, s.n_in, scratch);
        j.w = &w4.d;
        ints += s.n * d.seconds([&] { CHECK(cuda_matmul(&e, &m, d.c->stream) == 0, "int4"); });
        j.w = &w16.d;
        m.compute = COMPUTE_BF16;
        halves += s.n * d.seconds([&] {
            const int rc = e.blas ? e.blas(e.blas_ctx, y.p, s.n_out, w16.d.data + w16.d.codes_at, w16.d.row_bytes / 2,
                                           half.p, s.n_in, CUF_BF16, s.n_out, n_tok, s.n_in, 0, d.c->stream)
                                  : cuda_matmul(&e, &m, d.c->stream);
            CHECK(rc == 0, "bf16");
        });
        SHAPE("%dx%d·%d", s.n_out, s.n_in, n_tok);
    }
    printf("# record {\"tool\":\"test_speed\",\"params\":{\"format\":\"int4-g128\",\"n_tok\":%d,\"cublas\":%s},"
           "\"results\":{\"int4_layer_seconds\":%.6g,\"bf16_gemm_seconds\":%.6g,\"ratio\":%.4g}}\n",
           n_tok, e.blas ? "true" : "false", ints, halves, ints > 0 ? halves / ints : 0);
}
