/* Runs the blocks of a launch one after the other in this OS thread, a fiber a CUDA thread. A fiber runs until it
 * meets a barrier or a collective of its warp; then another runnable one is picked: in order, at random, or last in,
 * first out. Whatever is an error ends the process with one line on stderr (exit 70): deadlocks, diverging
 * collectives, lanes that do not exist, overruns of shared memory, unwaited copies.
 *
 * Under TSan only what orders memory in CUDA orders accesses: it finds missing barriers in any schedule, and blocks
 * that touch the same address. To that end neighbouring blocks run on different banks of fibers and shared memory. */
#ifndef EMU_ENGINE_H
#define EMU_ENGINE_H

#include "emu_types.h"
#include "fiber.h"

#include <functional>

namespace emu {

struct config {
    unsigned seed = 0;        /* seed % 3: in order, random, last in first out; also order of blocks, value of poison */
    bool defer_streams = true; /* queued work runs only when somebody waits for it */
};
extern config cfg;

struct stats {
    uint64_t launches, blocks, switches, collectives, mma, ldmatrix, ldmatrix_conflicts, cp_async;
};
extern stats counts;

struct where {
    const char *file;
    int line;
};
#define EMU_HERE const char *emu_file = __builtin_FILE(), int emu_line = __builtin_LINE()
#define EMU_WHERE ::emu::where{emu_file, emu_line}

/* "KERNEL block (…) thread N at FILE:LINE: MESSAGE", exit 70. */
[[noreturn]] void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

constexpr size_t default_smem = 48 * 1024;

/* One launch, run to its end. max_smem: static and dynamic bytes a block may have. */
void run_grid(const char *name, dim3 grid, dim3 block, size_t dynamic_smem, size_t max_smem,
              const std::function<void()> &body);
/* false if a device would refuse it. */
bool valid_shape(dim3 grid, dim3 block);

int thread_id(); /* in the block */
void kernel_begin(); /* device.cuh: a thread that ends without it is a mistake */
inline int lane_id() { return thread_id() & 31; }
/* A byte of poison: NaN in f16, bf16, f32 and f64, −1 or 0x7f7f… in integers. */
inline int poison_byte() { return cfg.seed & 1 ? 0x7f : 0xff; }

void syncthreads(where w);

/* A collective of a warp: every lane of the mask comes with its arguments; the last one to arrive runs `run` for all. */
struct lanes {
    int n; /* lanes of this warp: fewer than 32 in the last one of a block */
    unsigned alive; /* those that take part: in the mask and not exited */
    const void *in[32];
    void *out[32];
    const void *arg(int reader, int l) const; /* in[l]; dies if lane l takes no part */
};
using collective_fn = void(const lanes &w);
void collective(const char *op, unsigned mask, const void *in, void *out, collective_fn *run, where w);
/* Memory of lanes in the mask is ordered by these two around a collective; shuffles do not order memory. */
void warp_release();
void warp_acquire();

/* Shared memory of this block: the array that belongs to `tag`, made at its first use and poisoned. */
void *shared_array(const void *tag, size_t bytes, size_t align);
/* The array whose size the launch gave. */
void *shared_dynamic();
bool in_shared(const void *p, size_t bytes);

/* cp.async: `bytes` to shared memory, the first src_bytes from src, the rest zeros; they land when waited for. */
void cp_async(void *dst, const void *src, int bytes, int src_bytes, where w);
void cp_async_commit();
void cp_async_wait(size_t pending_groups);

} // namespace emu
#endif
