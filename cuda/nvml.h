/* What the driver's management library says of a device: clocks, temperature, power, energy. It is looked for at run
 * time; without it everything is NAN or "". */
#ifndef QLAB_CUDA_NVML_H
#define QLAB_CUDA_NVML_H

#include <cstddef>

struct sensors;
struct nvml;

/* bus_id: "0000:01:00.0". NULL if there is no library or it does not know the device. */
struct nvml *nvml_open(const char *bus_id);
void nvml_close(struct nvml *n);

/* Version of the driver, "580.65.06". */
void nvml_driver(struct nvml *n, char *buf, size_t size);
void nvml_sense(struct nvml *n, struct sensors *s);
/* Bytes in use on the device, by whomever; -1: unknown. */
long long nvml_used_bytes(struct nvml *n);

#endif
