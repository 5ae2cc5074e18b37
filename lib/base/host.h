/* What this machine is. */
#ifndef QLAB_BASE_HOST_H
#define QLAB_BASE_HOST_H

#include <jansson.h>
#include <stdbool.h>

/* {"cpu", "cores", "isa": […], "gpu": null, "driver": null, "os"} */
json_t *host_json(void);

/* Instruction sets the CPU kernels choose from, in rising order. */
enum isa { ISA_PLAIN, ISA_AVX2, ISA_AVXVNNI, ISA_AVX512 };
/* The best this processor and operating system offer, or the one named by the environment variable QLAB_ISA
 * (plain|avx2|avxvnni|avx512) if the processor has it; an unknown or unavailable name ends the process. AVX2 includes
 * FMA and F16C; AVXVNNI is that and vpdpbusd on 256 bits, in either encoding; AVX512 is F, BW, DQ, VL. Chosen once. */
enum isa isa_best(void);
const char *isa_name(enum isa isa);
/* Beyond AVX512: VNNI and BF16 dot products (512-bit). */
bool isa_has_vnni(void);
bool isa_has_bf16(void);
/* Of the processor: vpdpbusd on 256 bits encoded with VEX (AVX-VNNI) and with EVEX (AVX512_VNNI, AVX512_VL). */
bool isa_has_avxvnni(void);
bool isa_has_avxvnni_evex(void);

#endif
