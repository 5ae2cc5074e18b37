/* Device functions of CUDA C++ for the emulation. Warp collectives go through the engine; arithmetic is plain C++. */
#ifndef EMU_DEVICE_H
#define EMU_DEVICE_H

#include "../engine/engine.h"
#include "emu_types.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

inline void __syncthreads(EMU_HERE) { emu::syncthreads(EMU_WHERE); }

/* ---- shuffles, votes, reductions over a warp */

namespace emu {

enum class move { idx, up, down, exchange };
template <class T> struct shuffle_arg {
    T v;
    int arg, width;
};
template <move M, class T> void shuffle_run(const lanes &w)
{
    for (int l = 0; l < w.n; l++) {
        if (!(w.alive >> l & 1)) continue;
        const auto &a = *static_cast<const shuffle_arg<T> *>(w.in[l]);
        if (a.width < 1 || a.width > 32 || (a.width & (a.width - 1))) die("a shuffle of width %d", a.width);
        int lo = l & ~(a.width - 1), hi = lo + a.width - 1, from = l;
        switch (M) {
        case move::idx: from = lo | (a.arg & (a.width - 1)); break;
        case move::up: from = l - a.arg; break;
        case move::down: from = l + a.arg; break;
        case move::exchange: from = l ^ a.arg; break;
        }
        if (from < lo || from > hi) from = l;
        *static_cast<T *>(w.out[l]) = static_cast<const shuffle_arg<T> *>(w.arg(l, from))->v;
    }
}
template <move M, class T> T shuffle(const char *op, unsigned mask, T v, int arg, int width, where at)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2);
    shuffle_arg<T> a{v, arg, width};
    T r;
    collective(op, mask, &a, &r, shuffle_run<M, T>, at);
    return r;
}

template <class T, class F> void reduce_run(const lanes &w)
{
    T sum{};
    bool any = false;
    for (int l = 0; l < w.n; l++) {
        if (!(w.alive >> l & 1)) continue;
        const T &v = *static_cast<const T *>(w.in[l]);
        sum = any ? F()(sum, v) : v;
        any = true;
    }
    for (int l = 0; l < w.n; l++)
        if (w.alive >> l & 1) *static_cast<T *>(w.out[l]) = sum;
}
template <class F, class T> T reduce(const char *op, unsigned mask, T v, where at)
{
    static_assert(std::is_integral<T>::value && sizeof(T) == 4, "32-bit integers only, as on the device");
    T r;
    collective(op, mask, &v, &r, reduce_run<T, F>, at);
    return r;
}
struct take_min {
    template <class T> T operator()(T a, T b) const { return b < a ? b : a; }
};
struct take_max {
    template <class T> T operator()(T a, T b) const { return a < b ? b : a; }
};
inline unsigned ballot(unsigned mask, bool p, where at)
{
    return reduce<std::bit_or<unsigned>>("vote", mask, p ? 1u << lane_id() : 0u, at);
}
inline void nothing(const lanes &) {}

/* A value in another type of the same size. */
template <class T, class F> T bits(F f)
{
    static_assert(sizeof(T) == sizeof(F));
    T t;
    memcpy(&t, &f, sizeof t);
    return t;
}

} // namespace emu

inline void __syncwarp(unsigned mask = ~0u, EMU_HERE)
{
    emu::warp_release();
    emu::collective("__syncwarp", mask, nullptr, nullptr, emu::nothing, EMU_WHERE);
    emu::warp_acquire();
}
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, EMU_HERE)
{
    return emu::shuffle<emu::move::idx>("__shfl_sync", mask, v, from, width, EMU_WHERE);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_HERE)
{
    return emu::shuffle<emu::move::up>("__shfl_up_sync", mask, v, int(by), width, EMU_WHERE);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, EMU_HERE)
{
    return emu::shuffle<emu::move::down>("__shfl_down_sync", mask, v, int(by), width, EMU_WHERE);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, EMU_HERE)
{
    return emu::shuffle<emu::move::exchange>("__shfl_xor_sync", mask, v, with, width, EMU_WHERE);
}
inline unsigned __ballot_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, p != 0, EMU_WHERE); }
inline int __any_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, p != 0, EMU_WHERE) != 0; }
inline int __all_sync(unsigned mask, int p, EMU_HERE) { return emu::ballot(mask, p == 0, EMU_WHERE) == 0; }
template <class T> T __reduce_add_sync(unsigned mask, T v, EMU_HERE)
{
    return T(emu::reduce<std::plus<unsigned>>("__reduce_add_sync", mask, unsigned(v), EMU_WHERE));
}
template <class T> T __reduce_min_sync(unsigned mask, T v, EMU_HERE)
{
    return emu::reduce<emu::take_min>("__reduce_min_sync", mask, v, EMU_WHERE);
}
template <class T> T __reduce_max_sync(unsigned mask, T v, EMU_HERE)
{
    return emu::reduce<emu::take_max>("__reduce_max_sync", mask, v, EMU_WHERE);
}

/* ---- memory. One OS thread runs everything; atomics are atomic so that TSan does not call them races. */

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emu {
template <class T, class F> T atomic_update(T *p, F f)
{
    using U = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;
    static_assert(sizeof(T) == sizeof(U));
    U *u = reinterpret_cast<U *>(p);
    U old = __atomic_load_n(u, __ATOMIC_ACQUIRE);
    __atomic_store_n(u, bits<U>(T(f(bits<T>(old)))), __ATOMIC_RELEASE);
    return bits<T>(old);
}
template <class T> using given = std::common_type_t<T>; /* converted, not deduced */
} // namespace emu
template <class T> T atomicAdd(T *p, emu::given<T> v)
{
    return emu::atomic_update(p, [=](T x) { return x + v; });
}
template <class T> T atomicMax(T *p, emu::given<T> v)
{
    return emu::atomic_update(p, [=](T x) { return x < v ? v : x; });
}
template <class T> T atomicMin(T *p, emu::given<T> v)
{
    return emu::atomic_update(p, [=](T x) { return v < x ? v : x; });
}
template <class T> T atomicExch(T *p, emu::given<T> v)
{
    return emu::atomic_update(p, [=](T) { return v; });
}
template <class T> T atomicCAS(T *p, emu::given<T> expected, emu::given<T> v)
{
    return emu::atomic_update(p, [=](T x) { return x == expected ? v : x; });
}
/* Counts up to and including limit, then starts again at 0. */
inline unsigned atomicInc(unsigned *p, unsigned limit)
{
    return emu::atomic_update(p, [=](unsigned x) { return x >= limit ? 0 : x + 1; });
}

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldca(const T *p) { return *p; }
template <class T> void __stcg(T *p, T v) { *p = v; }
template <class T> void __stcs(T *p, T v) { *p = v; }
template <class T> void __stwt(T *p, T v) { *p = v; }

/* ---- integers and bits */

inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 32; i += 8) c = int(unsigned(c) + unsigned(int8_t(a >> i) * int8_t(b >> i)));
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255);
    return c;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    uint64_t v = uint64_t(y) << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned n = selector >> 4 * i & 15, b = unsigned(v >> 8 * (n & 7)) & 255;
        if (n & 8) b = b & 128 ? 255 : 0;
        r |= b << 8 * i;
    }
    return r;
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned by)
{
    return unsigned((uint64_t(hi) << 32 | lo) >> (by & 31));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
/* Four bytes at once */
inline unsigned __vsub4(unsigned a, unsigned b)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8) r |= (((a >> i) - (b >> i)) & 255) << i;
    return r;
}

/* ---- floats */

inline unsigned __float_as_uint(float f) { return emu::bits<unsigned>(f); }
inline int __float_as_int(float f) { return emu::bits<int>(f); }
inline float __uint_as_float(unsigned u) { return emu::bits<float>(u); }
inline float __int_as_float(int i) { return emu::bits<float>(i); }
inline long long __double_as_longlong(double d) { return emu::bits<long long>(d); }
inline double __longlong_as_double(long long l) { return emu::bits<double>(l); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
/* To the nearest, ties to even; out of range saturates, NaN is 0, as cvt does. */
inline int __float2int_rn(float x)
{
    if (std::isnan(x)) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x < -2147483648.0f) return -2147483647 - 1;
    return int(std::nearbyint(x));
}
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
using std::max;
using std::min;

#include "../engine/matrix.h"

#endif
