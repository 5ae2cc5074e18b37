#include "check.h"

#include "../../cuda/launch.h"
extern "C" {
#include "base/err.h"
#include "base/par.h"
}

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/wait.h>
#include <unistd.h>

namespace check {

static test *tests, **last = &tests;
static bool bad;
static double worst;
static int n_shapes;
static std::string first_shapes, last_shape;
static unsigned now;
static const char *running;
static int n_deaths, death;
static std::mt19937 rng;

test::test(const char *name, void (*fn)()) : name(name), fn(fn), next(nullptr)
{
    *last = this;
    last = &next;
}

void failed(const char *file, int line, const char *fmt, ...)
{
    if (!bad) printf("# %s:%d: seed %u: ", file, line, now);
    else printf("# %s:%d: ", file, line);
    va_list ap;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    bad = true;
}

void shape(const char *fmt, ...)
{
    char b[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b, sizeof b, fmt, ap);
    va_end(ap);
    n_shapes++;
    last_shape = b;
    if (first_shapes.size() < 40) first_shapes += (first_shapes.empty() ? "" : ", ") + last_shape;
}

bool close(const float *got, const float *want, size_t n, double abs, double rel, char *why, size_t why_bytes)
{
    bool ok = true;
    for (size_t i = 0; i < n; i++) {
        double err = std::fabs(double(got[i]) - double(want[i])), tol = abs + rel * std::fabs(double(want[i]));
        bool same = got[i] == want[i];
        if (std::isfinite(got[i]) && !same && tol > 0 && err / tol > worst) worst = err / tol;
        if (ok && !same && (!std::isfinite(got[i]) || !(err <= tol))) {
            snprintf(why, why_bytes, "element %zu of %zu is %.9g, not %.9g (at most %.3g off)", i, n, double(got[i]),
                     double(want[i]), tol);
            ok = false;
        }
    }
    return ok;
}

void broken(const char *what, size_t n)
{
    fflush(stdout);
    fprintf(stderr, "%s (%zu elements): %s\n", what, n, cudaGetErrorString(cudaGetLastError()));
    _exit(70);
}

unsigned seed() { return now; }
std::mt19937 &random() { return rng; }
int pick(int lo, int hi) { return lo + int(rng() % unsigned(hi - lo + 1)); }
float uniform(float lo, float hi) { return lo + (hi - lo) * float(rng() >> 8) * (1.0f / 16777216.0f); }

bool slow()
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    return true;
#else
    return false;
#endif
}

void dies(const char *file, int line, const char *message, void (*fn)())
{
    n_deaths++;
    if (death) { /* the child: of all the test only this */
        if (n_deaths == death) {
            fn();
            _exit(0);
        }
        return;
    }
    int fd[2];
    fflush(stdout);
    if (pipe(fd)) abort();
    pid_t pid = fork();
    if (!pid) {
        dup2(fd[1], 2);
        ::close(fd[0]);
        ::close(fd[1]);
        char which[16], seeds[16];
        snprintf(which, sizeof which, "%d", n_deaths);
        snprintf(seeds, sizeof seeds, "%u", now);
        setenv("EMU_SEEDS", seeds, 1);
        execl("/proc/self/exe", "test", running, which, nullptr);
        _exit(0);
    }
    ::close(fd[1]);
    std::string said;
    char b[4096];
    for (ssize_t n; (n = read(fd[0], b, sizeof b)) > 0;) said.append(b, size_t(n));
    ::close(fd[0]);
    int status;
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && !WEXITSTATUS(status))
        failed(file, line, "not noticed (\"%s\" was expected)", message);
    else if (said.find(message) == std::string::npos)
        failed(file, line, "says \"%.400s\" (\"%s\" was expected)", said.c_str(), message);
}

#ifdef CUDA_EMU
static bool leaks(const emu::memory_use &before, size_t handles)
{
    emu::memory_use after = emu::device_memory();
    bool any = after.blocks != before.blocks || after.pinned_blocks != before.pinned_blocks || emu::handles() != handles;
    if (any)
        failed("leaks", 0, "%zu device blocks, %zu pinned, %zu handles left", after.blocks - before.blocks,
               after.pinned_blocks - before.pinned_blocks, emu::handles() - handles);
    return any;
}
#endif

} // namespace check

/* usage: test_X [NAME [DEATH]]    EMU_SEEDS="0 4 5": other seeds; DEATH: only that CHECK_DIES of the test */
int main(int argc, char **argv)
{
    using namespace check;
#ifndef CUDA_EMU
    int n_gpus = 0;
    if (cudaGetDeviceCount(&n_gpus) != cudaSuccess || !n_gpus) {
        printf("ok 1 - %s # SKIP %s\n1..1\n", argv[0], cudaGetErrorString(cudaGetLastError()));
        return 0;
    }
#endif
    par_set_threads(1); /* the library's threads are not instrumented: TSan would not see how they wait */
    const char *env = getenv("EMU_SEEDS");
    std::string seeds = env ? env : slow() ? "1" : "0 1 2";
    death = argc > 2 ? atoi(argv[2]) : 0;
    int n = 0, n_failed = 0;
    for (test *t = tests; t; t = t->next) {
        if (argc > 1 && strcmp(argv[1], t->name)) continue;
        bad = false;
        worst = 0;
        const char *s = seeds.c_str();
        char *end;
        for (unsigned long v = strtoul(s, &end, 10); end != s; s = end, v = strtoul(s, &end, 10)) {
            n_shapes = n_deaths = 0;
            running = t->name;
            first_shapes.clear();
            now = unsigned(v);
            rng.seed(1000 + now);
#ifdef CUDA_EMU
            emu::cfg.seed = now;
            emu::memory_use before = emu::device_memory();
            size_t handles = emu::handles();
#endif
            t->fn();
            struct err e;
            cudaError_t rc = cudaDeviceSynchronize();
            if (launch_failed(rc, &e)) failed("launches", 0, "%s", e.msg);
            cudaGetLastError();
#ifdef CUDA_EMU
            leaks(before, handles);
#endif
        }
        printf("%sok %d - %s", bad ? "not " : "", ++n, t->name);
        if (n_shapes == 1) printf(": %s", last_shape.c_str());
        if (n_shapes > 1)
            printf(": %d shapes (%s%s)", n_shapes, first_shapes.c_str(),
                   first_shapes.size() >= 40 && first_shapes.find(last_shape) == std::string::npos
                       ? (" ... " + last_shape).c_str() : "");
        printf("; seeds %s", seeds.c_str());
        if (worst > 0) printf("; error %.2g of what is allowed", worst);
        putchar('\n');
        fflush(stdout);
        n_failed += bad;
    }
    printf("1..%d\n", n);
    return n_failed || !n;
}
