/* Device and pinned memory, and the device itself. Device memory is one reserved range that is inaccessible but while
 * kernels and copies run; allocations have guard bytes, which are checked, and are poisoned. */
#include "engine.h"
#include "machine.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

namespace emu {

machine &the_machine()
{
    static machine m;
    static bool read;
    if (!read) {
        read = true;
        struct {
            const char *name;
            long *value;
        } vars[] = {{"EMU_DEVICES", &m.devices},       {"EMU_DRIVER", &m.driver},
                    {"EMU_CAPABILITY", &m.capability}, {"EMU_MEMORY", &m.memory},
                    {"EMU_FAIL_ALLOC", &m.fail_alloc}, {"EMU_FAIL_HOST_ALLOC", &m.fail_host_alloc},
                    {"EMU_FAIL_LAUNCH", &m.fail_launch}, {"EMU_FAIL_RUN", &m.fail_run},
                    {"EMU_FAIL_COPY", &m.fail_copy},   {"EMU_FAIL_CAPTURE", &m.fail_capture}};
        for (auto &v : vars)
            if (const char *s = getenv(v.name)) *v.value = atol(s);
    }
    return m;
}

bool counted(long &n) { return n > 0 && --n == 0; }

constexpr size_t arena_bytes = size_t(8) << 30, align = 256, guard = 256;
constexpr unsigned char guard_byte = 0xa5;

/* What kernels may read before kernel_begin: memory that only copies from the host filled, and that stays as it was when
 * it was first read so. */
struct payload {
    size_t bytes;
    bool copied, other; /* written by such a copy; by a fill or a copy on the device */
    bool read_early;
    uint64_t sum; /* of its bytes then */
};

struct device_heap {
    char *base = nullptr;
    const char *always = nullptr; /* the same memory, never hidden */
    size_t high = 0; /* bytes ever used, whole pages */
    std::map<size_t, payload> blocks; /* by offset */
    size_t bytes = 0, peak = 0;
    int open = 0;
    bool hidden = false;
};
static device_heap heap;
static std::map<const char *, size_t> pinned;

#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
static void on_fault(int sig, siginfo_t *info, void *)
{
    const char *p = static_cast<const char *>(info->si_addr);
    if (heap.base && p >= heap.base && p < heap.base + arena_bytes) {
        static const char host[] = "emu: host code touches device memory\n";
        static const char early[] = "emu: a kernel touches device memory before kernel_begin\n";
        ssize_t n = heap.hidden ? write(2, early, sizeof early - 1) : write(2, host, sizeof host - 1);
        (void)n;
        _exit(70);
    }
    signal(sig, SIG_DFL);
}
#endif

static void reserve()
{
    if (heap.base) return;
    int fd = memfd_create("emu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, off_t(arena_bytes))) die("cannot make device memory: %s", strerror(errno));
    void *p = mmap(nullptr, arena_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    void *r = mmap(nullptr, arena_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED || r == MAP_FAILED) die("cannot reserve address space for device memory: %s", strerror(errno));
    close(fd);
    heap.base = static_cast<char *>(p);
    heap.always = static_cast<const char *>(r);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__
    struct sigaction sa = {};
    sa.sa_sigaction = on_fault;
    sa.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &sa, nullptr);
#endif
}

device_access::device_access(bool hidden)
{
    const bool was_open = heap.open++ > 0;
    heap.hidden = hidden;
    if (was_open == hidden && heap.high) mprotect(heap.base, heap.high, hidden ? PROT_NONE : PROT_READ | PROT_WRITE);
}
device_access::~device_access()
{
    if (!--heap.open && heap.high) mprotect(heap.base, heap.high, PROT_NONE);
}

void show_device()
{
    if (!heap.hidden) return;
    heap.hidden = false;
    if (heap.high) mprotect(heap.base, heap.high, PROT_READ | PROT_WRITE);
}
bool device_hidden() { return heap.hidden; }

static std::map<size_t, payload>::iterator block_of(const void *p)
{
    const char *c = static_cast<const char *>(p);
    if (!heap.base || c < heap.base || c >= heap.base + arena_bytes) return heap.blocks.end();
    size_t at = size_t(c - heap.base);
    auto i = heap.blocks.upper_bound(at);
    if (i == heap.blocks.begin()) return heap.blocks.end();
    --i;
    return at < i->first + std::max<size_t>(i->second.bytes, 1) ? i : heap.blocks.end();
}
bool is_device(const void *p, size_t n)
{
    auto i = block_of(p);
    return i != heap.blocks.end() && size_t(static_cast<const char *>(p) - heap.base) + n <= i->first + i->second.bytes;
}
bool touches_device(const void *p)
{
    const char *c = static_cast<const char *>(p);
    return heap.base && c >= heap.base && c < heap.base + arena_bytes;
}
bool is_pinned(const void *p)
{
    const char *c = static_cast<const char *>(p);
    auto i = pinned.upper_bound(c);
    if (i == pinned.begin()) return false;
    --i;
    return c < i->first + i->second;
}
memory_use device_memory() { return {heap.bytes, heap.peak, heap.blocks.size(), pinned.size()}; }

/* First gap that holds guard, n bytes, guard. */
static size_t place(size_t n)
{
    size_t at = guard;
    for (auto &b : heap.blocks) {
        if (at + n + guard <= b.first - guard) return at;
        at = (b.first + b.second.bytes + 2 * guard + align - 1) / align * align;
    }
    return at;
}

static void check_guards(size_t at, size_t n)
{
    ASAN_UNPOISON_MEMORY_REGION(heap.base + at - guard, n + 2 * guard);
    for (size_t i = 0; i < guard; i++)
        if (static_cast<unsigned char>(heap.base[at - guard + i]) != guard_byte ||
            static_cast<unsigned char>(heap.base[at + n + i]) != guard_byte)
            die("a write outside an allocation of %zu bytes (%s it)", n,
                static_cast<unsigned char>(heap.base[at + n + i]) != guard_byte ? "after" : "before");
}

/* FNV-1a by words */
static uint64_t sum_of(size_t at, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t w = 0;
        memcpy(&w, heap.always + at + i, std::min<size_t>(8, n - i));
        h = (h ^ w) * 0x100000001b3u;
    }
    return h;
}
static void check_constant(const std::pair<const size_t, payload> &b)
{
    if (b.second.read_early && sum_of(b.first, b.second.bytes) != b.second.sum)
        die("an allocation of %zu bytes that a kernel read before kernel_begin was written by a kernel", b.second.bytes);
}

void host_wrote(void *p, bool copied)
{
    quiet q;
    auto i = block_of(p);
    if (i == heap.blocks.end()) return;
    check_constant(*i);
    i->second.read_early = false;
    (copied ? i->second.copied : i->second.other) = true;
}

void read_early(void *to, const void *from, size_t bytes)
{
    quiet q;
    auto i = block_of(from);
    if (i == heap.blocks.end() || !is_device(from, bytes)) die("a read outside of device memory before kernel_begin");
    payload &b = i->second;
    if (!b.copied || b.other) die("a read before kernel_begin of memory that was not filled by copies from the host alone");
    if (reinterpret_cast<uintptr_t>(from) % bytes) die("a misaligned read before kernel_begin");
    if (!b.read_early) {
        b.read_early = true;
        b.sum = sum_of(i->first, b.bytes);
    }
    memcpy(to, heap.always + (static_cast<const char *>(from) - heap.base), bytes);
}

} // namespace emu

using namespace emu;

cudaError_t cudaMalloc(void **p, size_t n)
{
    if (sticky()) return sticky();
    if (capturing_globally()) return fail(cudaErrorStreamCaptureUnsupported);
    *p = nullptr;
    machine &m = the_machine();
    if (m.devices < 1) return fail(cudaErrorNoDevice);
    if (counted(m.fail_alloc) || heap.bytes + n > size_t(m.memory)) return fail(cudaErrorMemoryAllocation);
    if (!n) return cudaSuccess;
    reserve();
    quiet q;
    size_t at = place(n), end = (at + n + guard + 4095) / 4096 * 4096;
    if (end > arena_bytes) return fail(cudaErrorMemoryAllocation);
    heap.high = std::max(heap.high, end);
    heap.blocks[at] = payload{n, false, false, false, 0};
    heap.bytes += n;
    heap.peak = std::max(heap.peak, heap.bytes);
    device_access open;
    if (heap.open > 1) mprotect(heap.base, heap.high, PROT_READ | PROT_WRITE);
    ASAN_UNPOISON_MEMORY_REGION(heap.base + at - guard, n + 2 * guard);
    memset(heap.base + at - guard, guard_byte, guard);
    memset(heap.base + at, poison_byte(), n);
    memset(heap.base + at + n, guard_byte, guard);
    ASAN_POISON_MEMORY_REGION(heap.base + at - guard, guard);
    ASAN_POISON_MEMORY_REGION(heap.base + at + n, guard);
    *p = heap.base + at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    if (!sticky()) drain_all();
    auto i = block_of(p);
    if (i == heap.blocks.end() || heap.base + i->first != p) return fail(cudaErrorInvalidValue);
    quiet q;
    device_access open;
    const size_t n = i->second.bytes;
    if (!sticky()) check_constant(*i);
    check_guards(i->first, n);
    memset(p, poison_byte(), n);
    ASAN_POISON_MEMORY_REGION(heap.base + i->first - guard, n + 2 * guard);
    heap.bytes -= n;
    heap.blocks.erase(i);
    return sticky();
}

cudaError_t cudaHostAlloc(void **p, size_t n, unsigned)
{
    if (sticky()) return sticky();
    *p = nullptr;
    if (the_machine().devices < 1) return fail(cudaErrorNoDevice);
    if (capturing_globally()) return fail(cudaErrorStreamCaptureUnsupported);
    if (counted(the_machine().fail_host_alloc)) return fail(cudaErrorMemoryAllocation);
    char *c = static_cast<char *>(aligned_alloc(4096, (std::max<size_t>(n, 1) + 4095) / 4096 * 4096));
    if (!c) return fail(cudaErrorMemoryAllocation);
    memset(c, poison_byte(), n);
    pinned[c] = n;
    *p = c;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void *p)
{
    if (!p) return cudaSuccess;
    if (!sticky()) drain_all();
    auto i = pinned.find(static_cast<char *>(p));
    if (i == pinned.end()) return fail(cudaErrorInvalidValue);
    pinned.erase(i);
    free(p);
    return sticky();
}
cudaError_t cudaHostRegister(void *p, size_t n, unsigned)
{
    if (sticky()) return sticky();
    if (is_pinned(p)) return fail(cudaErrorHostMemoryAlreadyRegistered);
    pinned[static_cast<char *>(p)] = n;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    if (!sticky()) drain_all();
    if (!pinned.erase(static_cast<char *>(p))) return fail(cudaErrorHostMemoryNotRegistered);
    return sticky();
}

/* ---- the device */

cudaError_t cudaDriverGetVersion(int *v)
{
    *v = int(the_machine().driver);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = int(the_machine().runtime);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n)
{
    const machine &m = the_machine();
    *n = 0;
    if (m.driver < m.runtime / 1000 * 1000) return fail(cudaErrorInsufficientDriver);
    if (m.devices < 1) return fail(cudaErrorNoDevice);
    *n = int(m.devices);
    return cudaSuccess;
}
static int current_device;
cudaError_t cudaSetDevice(int i)
{
    int n;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc) return rc;
    if (i < 0 || i >= n) return fail(cudaErrorInvalidDevice);
    current_device = i;
    return sticky();
}
cudaError_t cudaGetDevice(int *i)
{
    *i = current_device;
    return sticky();
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i)
{
    int n;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc) return rc;
    if (i < 0 || i >= n) return fail(cudaErrorInvalidDevice);
    *p = cudaDeviceProp{};
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->totalGlobalMem = size_t(the_machine().memory);
    p->sharedMemPerBlock = default_smem;
    p->sharedMemPerBlockOptin = 99 * 1024;
    p->sharedMemPerMultiprocessor = 100 * 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 1536;
    p->multiProcessorCount = 4;
    p->major = int(the_machine().capability / 10);
    p->minor = int(the_machine().capability % 10);
    p->l2CacheSize = 4 << 20;
    p->memoryBusWidth = 256;
    p->pciBusID = i + 1;
    p->asyncEngineCount = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int i)
{
    cudaDeviceProp p;
    cudaError_t rc = cudaGetDeviceProperties(&p, i);
    if (rc) return rc;
    switch (a) {
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(p.sharedMemPerBlock); break;
    case cudaDevAttrClockRate: *value = 1500000; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrMemoryClockRate: *value = 7000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(p.sharedMemPerBlockOptin); break;
    default: return fail(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int i)
{
    snprintf(s, size_t(n), "0000:%02X:00.0", unsigned(i + 1));
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    if (sticky()) return sticky();
    *total = size_t(the_machine().memory);
    *free_bytes = *total - heap.bytes;
    return cudaSuccess;
}
cudaError_t emu_occupancy(int *blocks, int threads, size_t dynamic)
{
    int by_threads = 1536 / std::max(threads, 1), by_smem = int(100 * 1024 / (dynamic + 1024));
    *blocks = std::min(by_threads, by_smem);
    return sticky();
}

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection: return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorHostMemoryAlreadyRegistered: return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorHostMemoryNotRegistered: return "cudaErrorHostMemoryNotRegistered";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnmatched: return "cudaErrorStreamCaptureUnmatched";
    }
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return cudaGetErrorName(e);
    }
}
