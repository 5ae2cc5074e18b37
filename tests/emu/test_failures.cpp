/* Everything that can go wrong with a device: one clear line each. */
#include "check.h"

extern "C" {
#include "backend/backend_impl.h"
#include "base/msg.h"
#include "base/par.h"
#include "golden.h"
#include "model/model.h"
#include "tiny.h"
}

#include <cstring>

namespace {

void refused(const char *device, const char *message)
{
    struct backend be = {};
    struct err e = {""};
    int rc = backend_open(&be, device, "auto", false, &e);
    CHECK(rc, "%s was opened (\"%s\" was expected)", device, message);
    CHECK(!rc || strstr(e.msg, message), "%s: \"%s\" (\"%s\" was expected)", device, e.msg, message);
    if (!rc) backend_close(&be);
}

/* A tiny model with room for 16 rows, which generates 6 ids; what shall fail is set before, or between. */
struct runs {
    struct checkpoint c;
    struct backend be;
    struct model m;
    struct scratch s;
    struct kv_cache kv;
    struct err e;
    runs()
    {
        struct tiny t;
        const char *dir = test_tmp("llama-tied");
        setenv("QLAB_CUDA_BLAS", "0", 1);
        par_set_threads(1);
        if (tiny_kind(&t, "llama-tied") || tiny_write(&t, dir, &e) || checkpoint_open(&c, dir, &e) ||
            backend_open(&be, "cuda", "int8", false, &e) || model_load(&m, &be, &c, &e) || scratch_alloc(&s, &m, 16, &e))
            die("%s", e.msg);
    }
    void cache(int64_t n)
    {
        if (kv_alloc(&kv, &m, n, &e)) die("%s", e.msg);
    }
    void generate()
    {
        int32_t prompt[20] = {5, 43, 7}, ids[6];
        model_generate(&m, &kv, &s, prompt, 20, ids, 6, NULL, NULL);
    }
};

void run_a_model()
{
    runs r;
    r.cache(64);
    r.generate();
}

} // namespace

EMU_TEST(backend_refusals)
{
    setenv("QLAB_CUDA_BLAS", "0", 1);
    emu::machine &m = emu::the_machine(), as_it_was = m;
    m.devices = 0;
    refused("cuda", "device cuda:0: there is no NVIDIA device");
    m = as_it_was;
    m.driver = 0;
    refused("cuda", "no NVIDIA driver is installed");
    m.driver = 11040;
    refused("cuda", "the NVIDIA driver is too old: it knows CUDA 11.4 (13.0 was expected");
    m = as_it_was;
    refused("cuda:1", "device cuda:1: there is no such device");
    m.capability = 61;
    refused("cuda", "compute capability 6.1");
    m = as_it_was;
    m.fail_launch = 1;
    refused("cuda", "kernel probe (grid 1x1x1");
    emu::reset_errors();
    m = as_it_was;
    m.fail_alloc = 1;
    refused("cuda", "out of memory");
    m = as_it_was;
    emu::reset_errors();
    struct backend be;
    struct err e;
    CHECK(!backend_open(&be, "cuda", "auto", false, &e), "%s", e.msg);
    CHECK(be.compute == COMPUTE_INT8, "auto is %s", compute_name(be.compute));
    backend_close(&be);
}

EMU_TEST(backend_failures)
{
    CHECK_DIES("out of memory: weights take", [] {
        emu::the_machine().memory = 150000;
        run_a_model();
    });
    CHECK_DIES("bits a parameter would fit", [] {
        emu::the_machine().memory = 150000;
        run_a_model();
    });
    CHECK_DIES("tokens would fit", [] {
        runs r;
        emu::the_machine().memory = long(emu::device_memory().bytes) + 30000;
        r.cache(1000);
    });
    CHECK_DIES("are missing", [] { /* in the middle of a run */
        runs r;
        r.cache(64);
        emu::the_machine().memory = long(emu::device_memory().bytes) + 1000;
        r.generate();
    });
    CHECK_DIES("device cuda:0: kernel ", [] { /* refused at its launch */
        emu::the_machine().fail_launch = 20;
        run_a_model();
    });
    CHECK_DIES("at or before kernel ", [] { /* dies while it runs */
        emu::the_machine().fail_run = 20;
        run_a_model();
    });
    CHECK_DIES("pinned memory", [] {
        emu::the_machine().fail_host_alloc = 1;
        run_a_model();
    });
    CHECK_DIES("bytes to it", [] {
        emu::the_machine().fail_copy = 3;
        run_a_model();
    });
    CHECK_DIES("recording a decode step", [] {
        emu::the_machine().fail_capture = 1;
        run_a_model();
    });
}
