/* The order of nibbles that integer products unpack with one mask and one shift, for every backend's weight layout. */
#ifndef QLAB_BACKEND_NIBBLES_H
#define QLAB_BACKEND_NIBBLES_H

#include <stdint.h>

/* Nibbles h … a of a word (a lowest) to h d | g c | f b | e a: the bytes' low halves are a, b, c, d, the high ones e … h. */
static inline uint32_t pair_nibbles(uint32_t w)
{
    uint32_t lo = w & 0xffff, hi = w >> 16;
    lo = (lo | lo << 8) & 0x00ff00ffu;
    hi = (hi | hi << 8) & 0x00ff00ffu;
    lo = (lo | lo << 4) & 0x0f0f0f0fu;
    hi = (hi | hi << 4) & 0x0f0f0f0fu;
    return lo | hi << 4;
}

#endif
