#include "nvml.h"

extern "C" {
#include "backend/backend.h"
#include "base/mem.h"
}

#include <cmath>
#include <cstdlib>
#include <dlfcn.h>

/* Of nvml.h as NVIDIA documents it: an int is returned, 0 is success. */
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2, NVML_TEMPERATURE_GPU = 0 };
struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_functions {
    int (*init)(void);
    int (*shutdown)(void);
    int (*driver)(char *buf, unsigned size);
    int (*handle)(const char *bus_id, void **device);
    int (*clock)(void *device, int which, unsigned *mhz);
    int (*temperature)(void *device, int which, unsigned *celsius);
    int (*power)(void *device, unsigned *milliwatts);
    int (*energy)(void *device, unsigned long long *millijoules);
    int (*memory)(void *device, struct nvml_memory *m);
};
struct nvml {
    void *library, *device;
    struct nvml_functions f;
};

static int load(struct nvml *n)
{
    struct {
        const char *name;
        void **to;
    } names[] = {{"nvmlInit_v2", reinterpret_cast<void **>(&n->f.init)},
                 {"nvmlShutdown", reinterpret_cast<void **>(&n->f.shutdown)},
                 {"nvmlSystemGetDriverVersion", reinterpret_cast<void **>(&n->f.driver)},
                 {"nvmlDeviceGetHandleByPciBusId_v2", reinterpret_cast<void **>(&n->f.handle)},
                 {"nvmlDeviceGetClockInfo", reinterpret_cast<void **>(&n->f.clock)},
                 {"nvmlDeviceGetTemperature", reinterpret_cast<void **>(&n->f.temperature)},
                 {"nvmlDeviceGetPowerUsage", reinterpret_cast<void **>(&n->f.power)},
                 {"nvmlDeviceGetTotalEnergyConsumption", reinterpret_cast<void **>(&n->f.energy)},
                 {"nvmlDeviceGetMemoryInfo", reinterpret_cast<void **>(&n->f.memory)}};
    for (auto &f : names)
        if (!(*f.to = dlsym(n->library, f.name))) return -1;
    return 0;
}

struct nvml *nvml_open(const char *bus_id)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return NULL;
    struct nvml *n = static_cast<struct nvml *>(mem_new(1, sizeof *n));
    n->library = library;
    if (!load(n) && !n->f.init()) {
        if (!n->f.handle(bus_id, &n->device)) return n;
        n->f.shutdown();
    }
    dlclose(library);
    free(n);
    return NULL;
}

void nvml_close(struct nvml *n)
{
    if (!n) return;
    n->f.shutdown();
    dlclose(n->library);
    free(n);
}

void nvml_driver(struct nvml *n, char *buf, size_t size)
{
    if (!n || n->f.driver(buf, unsigned(size))) buf[0] = 0;
}

void nvml_sense(struct nvml *n, struct sensors *s)
{
    unsigned v;
    unsigned long long mj;
    s->sm_mhz = s->memory_mhz = s->temperature_c = s->power_w = s->energy_j = NAN;
    if (!n) return;
    if (!n->f.clock(n->device, NVML_CLOCK_SM, &v)) s->sm_mhz = v;
    if (!n->f.clock(n->device, NVML_CLOCK_MEM, &v)) s->memory_mhz = v;
    if (!n->f.temperature(n->device, NVML_TEMPERATURE_GPU, &v)) s->temperature_c = v;
    if (!n->f.power(n->device, &v)) s->power_w = v * 1e-3;
    if (!n->f.energy(n->device, &mj)) s->energy_j = double(mj) * 1e-3;
}

long long nvml_used_bytes(struct nvml *n)
{
    struct nvml_memory m;
    return n && !n->f.memory(n->device, &m) ? (long long)m.used : -1;
}
