#include "machine.h"
#include "state.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emu {

config cfg;
stats counts;
engine &eng = *new engine;

void die(const char *fmt, ...)
{
    tsan_ignore(true);
    fflush(stdout);
    fputs("emu: ", stderr);
    if (eng.cur)
        fprintf(stderr, "%s block (%u,%u,%u) thread %d at %s:%d: ", eng.kernel, blockIdx.x, blockIdx.y, blockIdx.z,
                eng.cur->id, eng.cur->at.file, eng.cur->at.line);
    else if (*eng.kernel)
        fprintf(stderr, "%s: ", eng.kernel);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(stderr);
    _exit(70);
}

int thread_id() { return eng.cur->id; }

/* ---- scheduling */

static void wake(thread *t)
{
    t->st = state::ready;
    eng.ready.push_back(t);
}

[[noreturn]] static void deadlock()
{
    std::string s;
    int shown = 0;
    for (thread *t : eng.threads) {
        if (t->st == state::done || shown++ >= 6) continue;
        char b[200];
        snprintf(b, sizeof b, " [thread %d in %s mask %08x at %s:%d]", t->id, t->op, t->mask, t->at.file, t->at.line);
        s += b;
    }
    die("deadlock; waiting:%s", s.c_str());
}

static thread *pick()
{
    if (eng.head == eng.ready.size()) {
        if (eng.live) deadlock();
        return nullptr;
    }
    thread *next;
    if (cfg.seed % 3 == 2) {
        next = eng.ready.back();
        eng.ready.pop_back();
    } else {
        if (cfg.seed % 3 == 1)
            std::swap(eng.ready[eng.head], eng.ready[eng.head + eng.rng() % (eng.ready.size() - eng.head)]);
        next = eng.ready[eng.head++];
    }
    if (eng.head == eng.ready.size()) eng.ready.clear(), eng.head = 0;
    return next;
}

/* Give the processor to the next thread, or back to the launch; returns when this one is picked again. */
static void pass(bool ending)
{
    thread *me = eng.cur, *next = pick();
    if (next == me) return;
    counts.switches++;
    eng.cur = next;
    if (next) threadIdx = next->idx;
    fiber_switch(me->f, next ? next->f : eng.host, ending);
}

/* In the first block of a watched launch device memory is hidden until every thread has said it: what is read earlier must go
 * through read_early. */
void kernel_begin()
{
    quiet q;
    thread &me = *eng.cur;
    if (me.began) return;
    me.began = true;
    if (!eng.early) return;
    if (--eng.early) {
        me.op = "kernel_begin";
        me.st = state::at_begin;
        pass(false);
        return;
    }
    show_device();
    for (thread *t : eng.threads)
        if (t->st == state::at_begin) wake(t);
}

static void release_barrier()
{
    const thread *first = nullptr;
    for (thread *t : eng.threads) {
        if (t->st != state::at_barrier) continue;
        if (!first) first = t;
        if (t->at.line != first->at.line || strcmp(t->at.file, first->at.file))
            die("__syncthreads at different places: thread %d %s:%d, thread %d %s:%d", first->id, first->at.file,
                first->at.line, t->id, t->at.file, t->at.line);
    }
    eng.waiting = 0;
    for (thread *t : eng.threads)
        if (t->st == state::at_barrier) wake(t);
}

void syncthreads(where w)
{
    char *tag = &eng.on->barrier_tag;
    tsan_release(tag);
    {
        quiet q;
        thread &t = *eng.cur;
        t.at = w;
        t.op = "__syncthreads";
        t.mask = 0;
        t.st = state::at_barrier;
        if (++eng.waiting == eng.live) release_barrier();
        pass(false);
    }
    tsan_acquire(tag);
}

/* ---- collectives */

const void *lanes::arg(int reader, int l) const
{
    if (l < 0 || l > 31 || !(alive >> l & 1))
        die("lane %d reads lane %d, which has exited, does not exist or is not in the mask", reader, l);
    return in[l];
}

/* Run the collective that t waits in, if every live lane of its mask has arrived. */
static bool try_collective(const thread &t)
{
    int base = t.id & ~31, n = std::min(32, int(eng.threads.size()) - base);
    thread **lane = &eng.threads[size_t(base)];
    lanes w;
    w.n = n;
    w.alive = 0;
    for (int l = 0; l < n; l++) {
        const thread &o = *lane[l];
        if (!(t.mask >> l & 1) || o.st == state::done) continue; /* an exited lane is not waited for */
        if (o.st != state::in_collective) return false;
        if (o.mask != t.mask || o.run != t.run)
            die("the warp diverged: lane %d is in %s mask %08x, lane %d in %s mask %08x (%s:%d)", t.id & 31, t.op, t.mask,
                l, o.op, o.mask, o.at.file, o.at.line);
        w.alive |= 1u << l;
        w.in[l] = o.in;
        w.out[l] = o.out;
    }
    t.run(w);
    for (int l = 0; l < n; l++)
        if (w.alive >> l & 1) wake(lane[l]);
    counts.collectives++;
    return true;
}

void collective(const char *op, unsigned mask, const void *in, void *out, collective_fn *run, where w)
{
    quiet q;
    thread &t = *eng.cur;
    t.at = w;
    t.op = op;
    t.mask = mask;
    t.in = in;
    t.out = out;
    t.run = run;
    if (!(mask >> (t.id & 31) & 1)) die("%s: the calling lane is not in its mask %08x", op, mask);
    t.st = state::in_collective;
    try_collective(t);
    pass(false);
}

void warp_release() { tsan_release(&eng.on->warp_tag[eng.cur->id / 32]); }
void warp_acquire() { tsan_acquire(&eng.on->warp_tag[eng.cur->id / 32]); }

/* ---- blocks and launches */

static void thread_main()
{
    thread &t = *eng.cur;
    fiber_entered(t.f);
    if (t.ignored) tsan_ignore(false), t.ignored = false;
    tsan_acquire(&eng.launch_tag);
    tsan_acquire(&eng.on->end_tag[!eng.on->odd]);
    (*eng.body)();
    tsan_release(&eng.on->end_tag[eng.on->odd]);
    tsan_release(&eng.done_tag);
    tsan_ignore(true);
    t.ignored = true;
    if (!t.began) die("the thread exits without kernel_begin");
    if (!t.copies.empty()) die("the thread exits with %zu cp.async not waited for", t.copies.size());
    t.st = state::done;
    eng.live--;
    if (eng.live && eng.waiting == eng.live) release_barrier();
    for (thread *o : eng.threads) /* it may have been the last one that others waited for */
        if (o->id / 32 == t.id / 32 && o->st == state::in_collective && (o->mask >> (t.id & 31) & 1) && try_collective(*o))
            break;
    pass(true);
    abort();
}

static void run_block(bank &b, uint3 at, bool first_of_launch)
{
    int n = int(blockDim.x * blockDim.y * blockDim.z);
    blockIdx = at;
    eng.on = &b;
    b.odd = !b.odd;
    eng.threads.assign(size_t(n), nullptr);
    eng.ready.clear();
    eng.head = 0;
    eng.live = n;
    eng.waiting = 0;
    while (int(b.pool.size()) < n) b.pool.push_back(new thread);
    for (int i = 0; i < n; i++) {
        thread &t = *(eng.threads[size_t(i)] = b.pool[size_t(i)]);
        t.id = i;
        t.idx = {unsigned(i) % blockDim.x, unsigned(i) / blockDim.x % blockDim.y, unsigned(i) / (blockDim.x * blockDim.y)};
        t.st = state::ready;
        t.at = {"kernel entry", 0};
        t.began = false;
        t.copies.clear();
        t.groups.clear();
        t.open = 0;
        fiber_arm(t.f, thread_main);
        eng.ready.push_back(&t);
    }
    shared_begin();
    eng.early = first_of_launch && device_hidden() ? n : 0;
    counts.blocks++;
    thread *first = pick();
    eng.cur = first;
    threadIdx = first->idx;
    fiber_switch(eng.host, first->f, false);
    eng.cur = nullptr;
    shared_check();
}

bool valid_shape(dim3 g, dim3 b)
{
    size_t threads = size_t(b.x) * b.y * b.z;
    return g.x && g.y && g.z && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535 && threads && threads <= 1024 &&
           b.x <= 1024 && b.y <= 1024 && b.z <= 64;
}

void run_grid(const char *name, dim3 grid, dim3 block, size_t dynamic, size_t max_smem, const std::function<void()> &body)
{
    if (eng.cur) die("a launch inside a kernel");
    eng.kernel = name;
    eng.body = &body;
    eng.dynamic = dynamic;
    eng.max_smem = max_smem;
    eng.rng.seed(cfg.seed);
    gridDim = grid;
    blockDim = block;
    size_t n = size_t(grid.x) * grid.y * grid.z;
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = i;
    if (cfg.seed) std::shuffle(order.begin(), order.end(), eng.rng);
    counts.launches++;
    tsan_release(&eng.launch_tag);
    for (size_t i = 0; i < n; i++) {
        quiet q;
        size_t o = order[i];
        run_block(eng.b[i % banks],
                  {unsigned(o % grid.x), unsigned(o / grid.x % grid.y), unsigned(o / grid.x / grid.y)}, i == 0);
    }
    tsan_acquire(&eng.done_tag);
    eng.kernel = "";
}

} // namespace emu
