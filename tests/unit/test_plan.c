/* The memory planned without loading against what loading takes, and the number of parameters. */
#include "backend/backend.h"
#include "golden.h"
#include "model/model.h"
#include "model/plan.h"
#include "tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void one(const char *kind)
{
    struct tiny t;
    struct checkpoint c;
    struct backend be;
    struct model m;
    struct kv_cache kv;
    struct scratch s;
    struct memory_plan p;
    struct err e;
    const char *dir = test_tmp(kind);
    assert_int_equal(tiny_kind(&t, kind), 0);
    if (tiny_write(&t, dir, &e) || checkpoint_open(&c, dir, &e) || backend_open(&be, "cpu-ref", "f32", false, &e) ||
        model_load(&m, &be, &c, &e) || kv_alloc(&kv, &m, 100, &e) || scratch_alloc(&s, &m, 33, &e) ||
        memory_plan(&p, &c, &be, 100, 33, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(p.weights_bytes, m.weights_bytes);
    assert_int_equal(p.kv_bytes, kv.bytes);
    assert_int_equal(plan_scratch_bytes(&c.config, 33), s.bytes);
    assert_int_equal(p.scratch_bytes, s.bytes);
    assert_int_equal(plan_n_params(&c.config, c.tied), checkpoint_bytes(&c) / 2);
    assert_int_equal(plan_kv_bytes(&c.config, COMPUTE_INT8, 100) * 2, p.kv_bytes);
    scratch_free(&s, &m);
    kv_free(&kv, &m);
    model_free(&m);
    backend_close(&be);
    checkpoint_close(&c);
}

static void test_plan(void **state)
{
    (void)state;
    for (int i = 0; tiny_kinds[i]; i++) one(tiny_kinds[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
