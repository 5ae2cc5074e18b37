/* Fibers: a CUDA thread is one. Told to ASan and TSan, so that both work on kernels. x86-64 only. */
#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <cstddef>

#include <sanitizer/asan_interface.h> /* its macros do nothing without ASan */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char *file, int line), AnnotateIgnoreReadsEnd(const char *file, int line);
extern "C" void AnnotateIgnoreWritesBegin(const char *file, int line), AnnotateIgnoreWritesEnd(const char *file, int line);
#endif

namespace emu {

struct fiber {
    char *stack = nullptr; /* null: the thread that launches */
    void *sp = nullptr;
    void *tsan = nullptr, *asan = nullptr;
};

constexpr size_t stack_bytes = 256 * 1024;

/* (Re)start f at entry, which must not return; it runs when somebody switches to it. The stack is kept and reused. */
void fiber_arm(fiber &f, void (*entry)());
/* Leave `from`, go on in `to`. ending: `from` never runs again. */
void fiber_switch(fiber &from, fiber &to, bool ending);
/* First thing in an entry function. */
void fiber_entered(fiber &self);

#ifdef __SANITIZE_THREAD__
constexpr bool under_tsan = true;
inline void tsan_acquire(void *p) { __tsan_acquire(p); }
inline void tsan_release(void *p) { __tsan_release(p); }
inline void tsan_ignore(bool on)
{
    if (on)
        AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0);
    else
        AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0);
}
#else
constexpr bool under_tsan = false;
inline void tsan_acquire(void *) {}
inline void tsan_release(void *) {}
inline void tsan_ignore(bool) {}
#endif

/* The engine is not the program under test: TSan does not look at what it does in such a scope. */
struct quiet {
    quiet() { tsan_ignore(true); }
    ~quiet() { tsan_ignore(false); }
    quiet(const quiet &) = delete;
};

} // namespace emu
#endif
