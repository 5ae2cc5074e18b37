#include "backend/backend.h"

#include "backend/backend_impl.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char *const compute_names[N_COMPUTE] = {"f32", "f16", "bf16", "int8", "int8x2"};

const char *compute_name(enum compute c) { return compute_names[c]; }

static int compute_parse(const char *s, enum compute *c, struct err *e)
{
    for (int i = 0; i < N_COMPUTE; i++)
        if (!strcmp(s, compute_names[i])) {
            *c = (enum compute)i;
            return 0;
        }
    return err_set(e, "compute '%s': unknown (f32, f16, bf16, int8, int8x2 or auto was expected)", s);
}

int backend_open(struct backend *be, const char *device, const char *compute, bool floats, struct err *e)
{
    *be = (struct backend){0};
    bool fastest = !strcmp(compute, "auto");
    enum compute c = COMPUTE_F32;
    if (!fastest && compute_parse(compute, &c, e)) return -1;

    if (!strcmp(device, "cpu") && fastest) c = floats && isa_has_bf16() ? COMPUTE_BF16 : COMPUTE_INT8;
    if (!strcmp(device, "cpu")) return cpu_open(be, c, isa_best(), e);
    if (!strcmp(device, "cpu-ref")) return cpu_ref_open(be, c, e);
    if (!strncmp(device, "cuda", 4) && (device[4] == 0 || device[4] == ':')) {
#ifdef QLAB_CUDA
        int index = 0;
        char end;
        if (device[4] && sscanf(device + 4, ":%9d%c", &index, &end) != 1)
            return err_set(e, "device '%s': not a device number (cuda:N was expected)", device);
        return cuda_open(be, index, c, fastest, e);
#else
        return err_set(e, "device '%s': this qlab was built without CUDA (cpu was expected)", device);
#endif
    }
    return err_set(e, "device '%s': unknown (cpu, cuda or cuda:N was expected)", device);
}

int backend_check(const char *device, struct err *e)
{
    struct backend be;
    if (backend_open(&be, device, "auto", false, e)) return -1;
    backend_close(&be);
    return 0;
}

void backend_close(struct backend *be)
{
    if (be->ops) be->ops->close(be);
    *be = (struct backend){0};
}
