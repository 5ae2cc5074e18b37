/* What this machine is. */
#ifndef QLAB_BASE_HOST_H
#define QLAB_BASE_HOST_H

#include <jansson.h>
#include <stdbool.h>

/* {"cpu", "cores", "isa": […], "gpu": null, "driver": null, "os"} */
json_t *host_json(void);

/* Instruction sets the CPU kernels choose from, in rising order. */
enum isa { ISA_PLAIN, ISA_AVX2, ISA_AVX512 };
/* The best this processor and operating system offer, or the one named by the environment variable QLAB_ISA
 * (plain|avx2|avx512) if it is not better than that; an unknown or unavailable name ends the process. AVX2 includes
 * FMA and F16C; AVX512 is F, BW, DQ, VL. Chosen once. */
enum isa isa_best(void);
const char *isa_name(enum isa isa);
/* Beyond the level: VNNI and BF16 dot products (512-bit), AVX-VNNI (256-bit). */
bool isa_has_vnni(void);
bool isa_has_bf16(void);

#endif
