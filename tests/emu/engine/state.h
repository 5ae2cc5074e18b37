/* Inside of the engine. */
#ifndef EMU_STATE_H
#define EMU_STATE_H

#include "engine.h"

#include <random>
#include <vector>

namespace emu {

enum class state : uint8_t { ready, at_begin, at_barrier, in_collective, done };

struct async_copy {
    char *dst;
    int bytes;
    char data[16];
};

struct thread {
    fiber f;
    uint3 idx{};
    int id = 0;
    state st = state::ready;
    bool began = false;   /* said kernel_begin */
    bool ignored = false; /* ended in a scope that TSan ignores */
    where at{"", 0};
    const char *op = ""; /* what it waits for, and a collective's arguments: */
    unsigned mask = 0;
    const void *in = nullptr;
    void *out = nullptr;
    collective_fn *run = nullptr;
    std::vector<async_copy> copies; /* issued, oldest first */
    std::vector<size_t> groups;     /* copies in each committed group, oldest first */
    size_t open = 0;                /* copies not committed */
};

struct shared_block {
    const void *tag;
    char *p;
    size_t n;
};

/* Fibers and shared memory of a block; tags are what TSan's happens-before hangs on. */
struct bank {
    std::vector<thread *> pool;
    char *smem = nullptr;
    size_t bytes = 0, used = 0; /* used: up to where its last block had arrays */
    char end_tag[2]; /* of the threads of this block and of the bank's last one */
    bool odd = false;
    char barrier_tag, warp_tag[32];
};

/* A block cannot race with the next banks−1 that start after it unless TSan sees them on other fibers. */
constexpr int banks = under_tsan ? 4 : 1;

struct engine {
    bank b[banks];
    bank *on = nullptr;            /* this block's */
    std::vector<thread *> threads; /* by id in the block */
    std::vector<thread *> ready;   /* ready[head…] can run */
    size_t head = 0;
    thread *cur = nullptr;
    fiber host;
    int live = 0, waiting = 0;
    int early = 0; /* threads of this block before kernel_begin, while device memory is hidden from them */
    std::mt19937 rng;
    const char *kernel = "";
    const std::function<void()> *body = nullptr;
    size_t max_smem = 0, dynamic = 0, payload = 0;
    std::vector<shared_block> arrays;
    char launch_tag, done_tag; /* host before threads, threads before host */
};
extern engine &eng; /* never destroyed: fibers outlive main */

void shared_begin(); /* canaries everywhere, no arrays but the dynamic one */
void shared_check(); /* the canaries at the end of a block */

} // namespace emu
#endif
