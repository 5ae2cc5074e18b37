#include "step.h"

#include "launch.h"
#include "logits.h"

extern "C" {
#include "base/mem.h"
#include "base/msg.h"
}

#include <cstdlib>
#include <cstring>

struct recorded {
    uint64_t key, generation;
    bool seen, recording;
    cudaGraphExec_t exec;
    struct step_state *state; /* device */
    struct step_state *host;  /* pinned: what goes in; the id comes back in token */
    struct step_state now;    /* what the device's state is */
    int32_t chosen;           /* by a step that ran as it is */
};

static bool told_not_to()
{
    const char *s = getenv("QLAB_CUDA_GRAPH");
    return s && !strcmp(s, "0");
}

static struct recorded *of(struct cuda_ctx *c)
{
    if (c->step) return c->step;
    struct err e;
    struct recorded *r = static_cast<struct recorded *>(mem_new(1, sizeof *r));
    r->state = static_cast<struct step_state *>(context_alloc(c, sizeof *r->state, &e));
    if (!r->state) die("%s", e.msg);
    cuda_must(c, cudaMallocHost(reinterpret_cast<void **>(&r->host), sizeof *r->host), "pinned memory");
    r->now = {-1, -1};
    c->step = r;
    return r;
}

const struct step_state *step_state_of(const struct cuda_ctx *c)
{
    return c->step && c->step->recording ? c->step->state : NULL;
}

int32_t step_choose(struct cuda_ctx *c, const float *logits, int64_t n_vocab, void *work)
{
    struct recorded *r = of(c);
    logits_greedy(&r->state->token, &r->state->pos, logits, n_vocab, work, c->stream);
    context_check(c);
    cudaError_t rc = cudaMemcpyAsync(&r->host->token, &r->state->token, sizeof r->host->token, cudaMemcpyDeviceToHost,
                                     c->stream);
    cuda_must(c, rc, "reading a token back");
    if (r->recording) return 0;
    r->now = {-1, -1};
    context_sync(c);
    return r->chosen = r->host->token;
}

static void drop(struct recorded *r)
{
    if (r->exec) cudaGraphExecDestroy(r->exec);
    r->exec = NULL;
    r->seen = false;
}

static void record(struct cuda_ctx *c, struct recorded *r, const struct step *s)
{
    cudaGraph_t g = NULL;
    struct err e;
    cuda_must(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "recording a decode step");
    r->recording = true;
    s->body(s->ctx);
    r->recording = false;
    s->kv->n--; /* nothing has run yet */
    cudaError_t rc = cudaStreamEndCapture(c->stream, &g);
    if (launch_failed(rc, &e)) die("%s: recording a decode step: %s", c->who, e.msg);
    cuda_must(c, cudaGraphInstantiate(&r->exec, g, 0), "recording a decode step");
    cudaGraphDestroy(g);
}

int32_t step_run(struct cuda_ctx *c, const struct step *s)
{
    struct recorded *r = of(c);
    if (r->key != s->key || r->generation != c->generation) drop(r);
    r->key = s->key;
    r->generation = c->generation;
    if (!r->seen || told_not_to()) {
        s->body(s->ctx);
        r->seen = r->generation == c->generation; /* no workspace grew */
        return r->chosen;
    }
    if (!r->exec) record(c, r, s);
    const struct step_state want = {s->token, int(s->kv->n)};
    if (r->now.token != want.token || r->now.pos != want.pos) {
        *r->host = want;
        cuda_must(c, cudaMemcpyAsync(r->state, r->host, sizeof want, cudaMemcpyHostToDevice, c->stream),
                  "a step's start");
    }
    cuda_must(c, cudaGraphLaunch(r->exec, c->stream), "a recorded decode step");
    context_sync(c);
    r->now = {r->host->token, want.pos + 1};
    s->kv->n++;
    return r->now.token;
}

void step_forget(struct cuda_ctx *c)
{
    struct recorded *r = c->step;
    if (!r) return;
    drop(r);
    context_free(c, r->state);
    cudaFreeHost(r->host);
    free(r);
    c->step = NULL;
}
