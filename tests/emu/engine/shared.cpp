/* Shared memory: one arena a bank, red zones between arrays, poison at the start of a block; cp.async. */
#include "state.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace emu {

constexpr size_t red_zone = 64, slack = 16 * 1024;
constexpr unsigned char canary = 0xa5;

void shared_begin()
{
    bank &b = *eng.on;
    size_t need = eng.max_smem + slack;
    if (b.bytes < need) {
        if (b.smem) ASAN_UNPOISON_MEMORY_REGION(b.smem, b.bytes);
        free(b.smem);
        b.bytes = (need + 1023) / 1024 * 1024;
        b.smem = static_cast<char *>(aligned_alloc(1024, b.bytes));
        if (!b.smem) die("no host memory for shared memory");
        ASAN_UNPOISON_MEMORY_REGION(b.smem, b.bytes);
        memset(b.smem, canary, b.bytes);
    } else {
        /* only what the last block could have touched; shared_check has looked at the rest */
        ASAN_UNPOISON_MEMORY_REGION(b.smem, b.bytes);
        memset(b.smem, canary, std::min(b.bytes, b.used + 4096));
    }
    b.used = eng.payload = 0;
    eng.arrays.clear();
    ASAN_POISON_MEMORY_REGION(b.smem, b.bytes);
    if (eng.dynamic) shared_array(&eng.dynamic, eng.dynamic, 128);
}

void *shared_array(const void *tag, size_t n, size_t align)
{
    quiet q;
    for (shared_block &a : eng.arrays)
        if (a.tag == tag) return a.p;
    bank &b = *eng.on;
    align = std::max<size_t>(align, 16);
    size_t at = (b.used + red_zone + align - 1) / align * align;
    eng.payload += n;
    if (eng.payload > eng.max_smem || at + n + red_zone > b.bytes)
        die("%zu bytes of shared memory (at most %zu)", eng.payload, eng.max_smem);
    b.used = at + n;
    ASAN_UNPOISON_MEMORY_REGION(b.smem + at, n);
    memset(b.smem + at, poison_byte(), n);
    eng.arrays.push_back({tag, b.smem + at, n});
    return b.smem + at;
}

void *shared_dynamic()
{
    if (!eng.dynamic) die("DYN_SHARED in a launch without dynamic shared memory");
    return shared_array(&eng.dynamic, eng.dynamic, 128);
}

bool in_shared(const void *p, size_t n)
{
    const char *c = static_cast<const char *>(p);
    for (shared_block &a : eng.arrays)
        if (c >= a.p && c + n <= a.p + a.n) return true;
    return false;
}

void shared_check()
{
    bank &b = *eng.on;
    ASAN_UNPOISON_MEMORY_REGION(b.smem, b.bytes);
    const char *p = b.smem;
    for (shared_block &a : eng.arrays) {
        for (; p < a.p; p++)
            if (static_cast<unsigned char>(*p) != canary)
                die("a write outside shared arrays, before one of %zu bytes", a.n);
        p = a.p + a.n;
    }
    for (const char *end = b.smem + std::min(b.bytes, b.used + 4096); p < end; p++)
        if (static_cast<unsigned char>(*p) != canary) die("a write outside shared arrays, after the last one");
}

void cp_async(void *dst, const void *src, int bytes, int src_bytes, where w)
{
    thread &t = *eng.cur;
    async_copy c{static_cast<char *>(dst), bytes, {}};
    int poison;
    {
        quiet q;
        poison = poison_byte();
        t.at = w;
        counts.cp_async++;
        if ((bytes != 4 && bytes != 8 && bytes != 16) || src_bytes < 0 || src_bytes > bytes)
            die("cp.async of %d bytes, %d from the source", bytes, src_bytes);
        if (uintptr_t(dst) % unsigned(bytes) || uintptr_t(src) % unsigned(bytes))
            die("cp.async of %d bytes: misaligned address", bytes);
        if (!in_shared(dst, size_t(bytes))) die("cp.async to an address outside shared arrays");
    }
    memcpy(c.data, src, size_t(src_bytes));           /* the sanitizers see this thread read ... */
    memset(dst, poison, size_t(bytes));               /* ... and write */
    quiet q;
    ASAN_POISON_MEMORY_REGION(dst, size_t(bytes));
    t.copies.push_back(c);
    t.open++;
}

void cp_async_commit()
{
    quiet q;
    thread &t = *eng.cur;
    t.groups.push_back(t.open);
    t.open = 0;
}

void cp_async_wait(size_t pending)
{
    thread &t = *eng.cur;
    size_t n = 0, g = 0;
    {
        quiet q;
        for (; t.groups.size() - g > pending; g++) n += t.groups[g];
        for (size_t i = 0; i < n; i++) ASAN_UNPOISON_MEMORY_REGION(t.copies[i].dst, size_t(t.copies[i].bytes));
    }
    for (size_t i = 0; i < n; i++) memcpy(t.copies[i].dst, t.copies[i].data, size_t(t.copies[i].bytes));
    quiet q;
    t.copies.erase(t.copies.begin(), t.copies.begin() + ptrdiff_t(n));
    t.groups.erase(t.groups.begin(), t.groups.begin() + ptrdiff_t(g));
}

} // namespace emu
