/* How fast this process can multiply and add: the other ceiling, beside memory (eval/bandwidth.h). */
#ifndef QLAB_EVAL_PEAK_H
#define QLAB_EVAL_PEAK_H

#include "base/json.h"
#include "backend/backend.h"

#include <stdint.h>

/* Operations a second of all threads, a multiply-add counting as two: the fastest of many short runs of one instruction
 * (or the sequence named) on registers alone. 0, instruction NULL: there is none in the instruction set in use. */
struct peak {
    const char *instruction;
    double ops_per_s;
};
struct peaks {
    struct peak f32, bf16, int8;
};
/* The sets that the CPU kernels use (isa_best); about `seconds` for each. */
struct peaks peaks_measure(double seconds);

/* The peak that an op of this arithmetic is held against; f32 where the set in use has no other. Never a peak of 0. NULL if
 * none is known. */
const struct peak *peak_of(const struct peaks *p, enum compute compute);
/* {"f32": {"instruction", "ops_per_s"}, "bf16": …|null, "int8": …|null} */
json_t *peaks_json(const struct peaks *p);

/* Private: the loops. Each runs n rounds of PEAK_UNROLL independent instructions. */
enum { PEAK_UNROLL = 12 };
struct probe {
    const char *instruction; /* NULL ends */
    void (*run)(int64_t n);
    double ops; /* of one instruction */
};
extern const struct probe peak_avx2_f32, peak_avx2_int8, peak_avxvnni_int8, peak_avxvnni_evex_int8;
extern const struct probe peak_avx512_f32, peak_avx512_bf16, peak_avx512_int8;

#endif
