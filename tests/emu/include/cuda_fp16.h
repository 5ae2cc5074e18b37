/* half for the emulation: conversions with the rounding of lib/base/half.h, arithmetic in f32 rounded once (fma in
 * double, where products of halves are exact). The names are the toolkit's. */
#ifndef EMU_CUDA_FP16_H
#define EMU_CUDA_FP16_H

#include "base/half.h"
#include "emu_types.h"

#include <cmath>

struct alignas(2) __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float f) : bits(f32_to_f16(f)) {}
    explicit operator float() const { return f16_to_f32(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

inline __half __ushort_as_half(unsigned short u)
{
    __half h;
    h.bits = u;
    return h;
}
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h) { return f16_to_f32(h.bits); }
inline __half __float2half_rn(float f) { return __half(f); }
inline __half __float2half(float f) { return __half(f); }
/* Through f32 rounded to odd, so that two roundings give what one would. */
inline __half __double2half(double d)
{
    float f = float(d);
    if (std::isfinite(f) && double(f) != d) {
        uint32_t u = f32_bits(f);
        if (std::fabs(double(f)) > std::fabs(d)) u--; /* towards zero */
        f = f32_from_bits(u | 1);
    }
    return __half(f);
}

inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline float __low2float(__half2 a) { return __half2float(a.x); }
inline float __high2float(__half2 a) { return __half2float(a.y); }
inline float2 __half22float2(__half2 a) { return {__half2float(a.x), __half2float(a.y)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }

inline __half __hadd(__half a, __half b) { return __half(__half2float(a) + __half2float(b)); }
inline __half __hsub(__half a, __half b) { return __half(__half2float(a) - __half2float(b)); }
inline __half __hmul(__half a, __half b) { return __half(__half2float(a) * __half2float(b)); }
inline __half __hneg(__half a) { return __ushort_as_half(uint16_t(a.bits ^ 0x8000)); }
inline __half __habs(__half a) { return __ushort_as_half(a.bits & 0x7fff); }
inline __half __hfma(__half a, __half b, __half c)
{
    return __double2half(double(__half2float(a)) * double(__half2float(b)) + double(__half2float(c)));
}
inline __half __hmax(__half a, __half b) { return __half(std::fmax(__half2float(a), __half2float(b))); }
inline __half __hmin(__half a, __half b) { return __half(std::fmin(__half2float(a), __half2float(b))); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hneg2(__half2 a) { return {__hneg(a.x), __hneg(a.y)}; }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

#endif
