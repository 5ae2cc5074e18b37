/* Seeded random numbers for tests, samples and bootstraps: SplitMix64 (Steele, Lea, Flood 2014). */
#ifndef QLAB_BASE_RNG_H
#define QLAB_BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t s;
};
static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
/* Uniform in [0, 1). */
static inline double rng_uniform(struct rng *r) { return (double)(rng_next(r) >> 11) * 0x1p-53; }
/* Uniform in 0 … n−1, n > 0 (bias below n / 2^64). */
static inline int64_t rng_below(struct rng *r, int64_t n) { return (int64_t)(rng_next(r) % (uint64_t)n); }
/* Standard normal (Box-Muller, one of the pair). */
double rng_normal(struct rng *r);

#endif
