/* Frame of the tests in tests/emu/test_*.cpp, on the CPU and, compiled by nvcc, on a GPU (tests/gpu). A test is run for each seed of its build (three in the plain one: three
 * schedules; one under the sanitizers) and prints one line: name, shapes, seeds, the largest error.
 *
 *   EMU_TEST(rmsnorm)
 *   {
 *       dev<float> x(values), y(n);              // exactly n elements, guarded, full of NaN
 *       rmsnorm_launch(y.p, x.p, …, nullptr);
 *       SHAPE("%dx%d", rows, n);
 *       CHECK_CLOSE(y.get(), want, abs, rel, "rows %d n %d", rows, n);
 *   }
 */
#ifndef EMU_CHECK_H
#define EMU_CHECK_H

#include <cuda_runtime.h>

#ifdef CUDA_EMU
#include "engine/engine.h"
#include "engine/machine.h"
#endif

#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace check {

struct test {
    const char *name;
    void (*fn)();
    test *next;
    test(const char *name, void (*fn)());
};
#define EMU_TEST(name)                                     \
    static void test_##name();                             \
    static check::test entry_##name(#name, test_##name);   \
    static void test_##name()

/* One failure is told with the place; the rest of the test still runs. */
void failed(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define CHECK(ok, ...)                                                    \
    do {                                                                  \
        if (!(ok)) check::failed(__FILE__, __LINE__, __VA_ARGS__);        \
    } while (0)
void shape(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
#define SHAPE(...) check::shape(__VA_ARGS__)

/* Every got[i] finite and |got − want| ≤ abs + rel·|want|; the error is the largest |got − want| / (abs + rel·|want|). */
bool close(const float *got, const float *want, size_t n, double abs, double rel, char *why, size_t why_bytes);
#define CHECK_CLOSE(got, want, abs, rel, ...)                                                                       \
    do {                                                                                                            \
        const auto &g_ = (got);                                                                                     \
        const auto &w_ = (want);                                                                                    \
        char why_[160], what_[160];                                                                                 \
        snprintf(what_, sizeof what_, __VA_ARGS__);                                                                 \
        if (g_.size() != w_.size())                                                                                 \
            check::failed(__FILE__, __LINE__, "%s: %zu results, %zu expected", what_, g_.size(), w_.size());        \
        else if (!check::close(g_.data(), w_.data(), g_.size(), abs, rel, why_, sizeof why_))                       \
            check::failed(__FILE__, __LINE__, "%s: %s", what_, why_);                                               \
    } while (0)

unsigned seed();        /* of this run */
std::mt19937 &random(); /* seeded by it */
int pick(int lo, int hi);
float uniform(float lo, float hi);
bool slow(); /* a sanitizer build: fewer or smaller shapes will do */
[[noreturn]] void broken(const char *what, size_t n);

/* Runs fn in a process of its own (this program again: TSan cannot go on in a forked child); passes if that ends with
 * an error and says `message` on stderr. */
void dies(const char *file, int line, const char *message, void (*fn)());
#define CHECK_DIES(message, ...) check::dies(__FILE__, __LINE__, message, __VA_ARGS__)

} // namespace check

/* A device buffer of n elements. */
template <class T> struct dev {
    size_t n = 0;
    T *p = nullptr;
    explicit dev(size_t count) : n(count)
    {
        if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess) check::broken("a device buffer", n);
#ifndef CUDA_EMU /* the emulation's memory is full of NaN as it comes */
        if (cudaMemset(p, 0xff, n * sizeof(T)) != cudaSuccess) check::broken("filling a device buffer", n);
#endif
    }
    explicit dev(const std::vector<T> &v) : dev(v.size()) { put(v); }
    void put(const std::vector<T> &v)
    {
        if (v.size() != n || cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice) != cudaSuccess)
            check::broken("filling a device buffer", n);
    }
    std::vector<T> get() const
    {
        std::vector<T> v(n);
        if (cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess)
            check::broken("reading a device buffer", n);
        return v;
    }
    ~dev() { cudaFree(p); }
    dev(const dev &) = delete;
};

#endif
