/* What the tests of matrix products share: random weights of every format on the emulated device, their results by
 * plain loops and by cpu_ref, and the bounds that rounding alone explains. */
#ifndef EMU_MM_H
#define EMU_MM_H

#include "check.h"
#include "matmul.h"

extern "C" {
#include "backend/backend_impl.h"
#include "backend/cpu/panels.h"
#include "base/half.h"
#include "qrandom.h"
}

#include <cmath>
#include <cstring>
#include <vector>

namespace mm {

struct rng *dice(); /* seeded by the test's seed at the first call of each */
/* A row of the format table or one that only other folders have: "int4-g24", "int4-g5-sym", "int4-g96", "int8-g64",
 * "int8-row-asym", "nf4-g128". */
struct format format(const char *name);

/* n floats as activations are: normal, a few large. special: also rows of zeros, of one huge value, tiny ones. */
std::vector<float> activations(int64_t n_tok, int64_t n_in, bool special);

/* A weight: on the host as a checkpoint would have it, and on the device. */
struct filled {
    struct qbuffer b;
    struct cuda_weight d;
    enum fill { RANDOM, EXTREME, EXACT } how;
    /* EXACT: scales are powers of two and books' integers their values, so that integer products can be compared
     * exactly. */
    filled(const char *format, int64_t n_out, int64_t n_in, enum dtype dtype, fill how = RANDOM);
    ~filled();
    filled(const filled &) = delete;
    std::vector<float> rows() const; /* qweight_rows_f32 of all */
};

/* y in double, and Σ|terms| of each result. */
struct sums {
    std::vector<double> y, magnitude;
};
/* x·Wᵀ of the dequantized weights; x and w rounded to `type` first. */
struct sums product(const filled &w, const std::vector<float> &x, int64_t n_tok, enum cuda_float type = CUF_F32);
/* With x quantized and the integers of panels.h; twice: int8x2. */
struct sums int8_product(const filled &w, const std::vector<float> &x, int64_t n_tok, bool twice = false);

struct device_acts {
    dev<uint8_t> mem;
    struct cuda_acts a;
    int64_t n_tok, n_in;
    device_acts(int64_t n_tok, int64_t n_in);
};
/* They must be, bit for bit, what the CPU's int8_plain makes of x. */
void check_acts(const device_acts &a, const std::vector<float> &x, const char *what);

struct cuda_env env(int sm, int n_sm = 2); /* n_sm 1: tiles from 32 rows on (matmul.cu: pick) */
std::vector<float> random_floats(int64_t n);
std::vector<double> plus_bias(std::vector<double> y, const std::vector<float> &bias);
/* Every got finite (unless want is not) and |got − want| ≤ eps·(n_in + 8)·magnitude + tiny. */
void compare(const std::vector<float> &got, const std::vector<double> &want, const std::vector<double> &magnitude,
             double eps, const char *what);

} // namespace mm

#endif
