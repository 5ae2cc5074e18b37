#include "fiber.h"

#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the switch of stacks is written for x86-64 only"
#endif

/* The first race ends the process: what a kernel does after it is of no use. */
#ifdef __SANITIZE_THREAD__
extern "C" const char *__tsan_default_options() { return "halt_on_error=1:report_thread_leaks=0:atexit_sleep_ms=0"; }
#endif

namespace emu {

/* Push what the ABI says a callee keeps, exchange stacks, pop the other's. */
__attribute__((naked, noinline, no_sanitize("address", "thread", "undefined"))) static void exchange(void **, void *)
{
    asm volatile("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
                 "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
                 "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

constexpr size_t guard = 4096;

void fiber_arm(fiber &f, void (*entry)())
{
    if (!f.stack) {
        void *p = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE)) {
            perror("emu: the stack of a fiber");
            exit(70);
        }
        f.stack = static_cast<char *>(p);
#ifdef __SANITIZE_THREAD__
        f.tsan = __tsan_create_fiber(0);
#endif
    }
    ASAN_UNPOISON_MEMORY_REGION(f.stack + guard, stack_bytes - guard);
    f.asan = nullptr;
    void **top = reinterpret_cast<void **>(f.stack + stack_bytes);
    *--top = nullptr; /* so that the entry finds the alignment that a call leaves */
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr; /* the registers */
    f.sp = top;
}

#ifdef __SANITIZE_ADDRESS__
static const void *host_bottom;
static size_t host_size;
#endif

void fiber_entered([[maybe_unused]] fiber &self)
{
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(self.asan, &bottom, &size);
    if (!host_bottom) host_bottom = bottom, host_size = size; /* the first switch leaves the host's stack */
#endif
}

void fiber_switch(fiber &from, fiber &to, [[maybe_unused]] bool ending)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ending ? nullptr : &from.asan, to.stack ? to.stack : host_bottom,
                                   to.stack ? stack_bytes : host_size);
#endif
#ifdef __SANITIZE_THREAD__
    if (!from.tsan) from.tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
    exchange(&from.sp, to.sp);
    fiber_entered(from);
}

} // namespace emu
