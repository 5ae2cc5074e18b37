/* The memory planned without loading against what loading takes, and the number of parameters. */
#include "backend/backend.h"
#include "gguf_writer.h"
#include "golden.h"
#include "model/model.h"
#include "model/plan.h"
#include "tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
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

/* ---- GGUF: blocks are expanded at load, and stay only where somebody reads them */

enum { HIDDEN = 64, FF = 96, VOCAB = 40 };

static void write_blocks(const char *path)
{
    static const struct {
        const char *name;
        int64_t rows, cols;
    } blocks[] = {{"token_embd", VOCAB, HIDDEN},    {"output", VOCAB, HIDDEN},
                  {"blk.0.attn_q", HIDDEN, HIDDEN}, {"blk.0.attn_k", HIDDEN, HIDDEN},
                  {"blk.0.attn_v", HIDDEN, HIDDEN}, {"blk.0.attn_output", HIDDEN, HIDDEN},
                  {"blk.0.ffn_gate", FF, HIDDEN},   {"blk.0.ffn_up", FF, HIDDEN},
                  {"blk.0.ffn_down", HIDDEN, FF}};
    static const char *const sizes[] = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                        "attention.head_count", "attention.head_count_kv"};
    static const uint32_t size[] = {1, 64, HIDDEN, FF, 2, 2};
    static const char *const norms[] = {"output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"};
    static const uint8_t zeros[FF * HIDDEN * 2];
    struct gguf_writer *w = gguf_writer_new();
    struct err e;
    char text[80];
    gguf_put_str(w, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        snprintf(text, sizeof text, "llama.%s", sizes[i]);
        gguf_put_u32(w, text, size[i]);
    }
    gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        snprintf(text, sizeof text, "%s.weight", blocks[i].name);
        gguf_put_tensor(w, text, DT_Q8_0, 2, (int64_t[]){blocks[i].rows, blocks[i].cols}, zeros);
    }
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) {
        snprintf(text, sizeof text, "%s.weight", norms[i]);
        gguf_put_tensor(w, text, DT_F32, 1, (int64_t[]){HIDDEN}, zeros);
    }
    if (gguf_writer_save(w, path, &e)) fail_msg("%s", e.msg);
}

static const struct backend_ops *host;

/* As a device does: a copy that the host does not read. */
static int load_copy(struct backend *be, struct weight *out, const struct qweight *src, struct err *e)
{
    int rc = host->load_weight(be, out, src, e);
    out->copied = true;
    out->memory = NULL;
    return rc;
}

static void test_expanded(void **state)
{
    (void)state;
    const char *path = test_tmp("blocks.gguf");
    write_blocks(path);
    static const struct {
        const char *device, *compute;
        bool copies, stay;
    } cases[] = {{"cpu-ref", "f32", false, true},
                 {"cpu-ref", "f32", true, false},
                 {"cpu", "f32", false, true},
                 {"cpu", "int8", false, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct checkpoint c;
        struct backend be;
        struct model m;
        struct memory_plan p;
        struct err e;
        if (checkpoint_open(&c, path, &e) || backend_open(&be, cases[i].device, cases[i].compute, false, &e))
            fail_msg("%s", e.msg);
        host = be.ops;
        struct backend_ops ops = *host;
        if (cases[i].copies) ops.load_weight = load_copy;
        be.ops = &ops;
        if (model_load(&m, &be, &c, &e) || memory_plan(&p, &c, &be, 64, 8, &e)) fail_msg("%s", e.msg);
        assert_int_equal(p.weights_bytes, m.weights_bytes);
        assert_int_equal(m.owned != NULL, cases[i].stay);
        model_free(&m);
        backend_close(&be);
        checkpoint_close(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan), cmocka_unit_test(test_expanded)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
