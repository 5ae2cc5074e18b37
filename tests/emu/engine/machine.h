/* The machine that the runtime API shows, and what shall go wrong on it. Read from the environment at the first call
 * (EMU_DEVICES=0 and so on: the names below in capitals), so that whole programs can be tested; tests set it directly. */
#ifndef EMU_MACHINE_H
#define EMU_MACHINE_H

#include "emu_api.h"

#include <cstddef>

namespace emu {

struct machine {
    long devices = 1;
    long driver = 13000, runtime = 13000; /* 1000·major + 10·minor; driver 0: none installed */
    long capability = 86;
    long memory = 1L << 30; /* bytes of a device */
    /* the n-th from now fails, counted from 1; 0: none does */
    long fail_alloc = 0;      /* device memory: out of memory */
    long fail_host_alloc = 0; /* pinned memory */
    long fail_launch = 0;     /* refused at once */
    long fail_run = 0;        /* a kernel that dies: every call after it says so */
    long fail_copy = 0;
    long fail_capture = 0;    /* the end of a capture */
};
machine &the_machine();

/* Device bytes and allocations now held, the most there ever were. */
struct memory_use {
    size_t bytes, peak, blocks, pinned_blocks;
};
memory_use device_memory();
/* Streams, events, graphs that exist. */
size_t handles();
/* Forget a sticky error; tests of failures need a device afterwards. Dies if work is queued. */
void reset_errors();

/* Device memory can be touched only while one of these lives: a host that dereferences a device pointer dies. hidden: not
 * yet, only from show_device on. */
struct device_access {
    explicit device_access(bool hidden = false);
    ~device_access();
    device_access(const device_access &) = delete;
};

/* ---- between the runtime's files */
void show_device(); /* to the kernel that runs, if it is hidden; what it hides from: */
bool device_hidden();
void host_wrote(void *p, bool copied); /* a copy from the host, or anything else that is no kernel's store */
bool counted(long &n); /* true if this is the one that fails */
cudaError_t sticky();  /* what an earlier kernel left behind */
cudaError_t fail(cudaError_t e); /* remember for cudaGetLastError */
bool is_device(const void *p, size_t n); /* all of it in one allocation */
bool touches_device(const void *p);
bool is_pinned(const void *p);
void drain_all();
void drain_blocking(); /* the legacy default stream and those that wait for it */
bool capturing_globally(); /* and invalidates that capture */

} // namespace emu
#endif
