#include "eval/device.h"

#include "base/msg.h"

#include <math.h>

void device_note(struct record *r, struct backend *be)
{
    if (!be->ops->describe) return;
    struct device d;
    be->ops->describe(be, &d);
    json_t *host = json_object_get(r->root, "host");
    json_put(host, "gpu", json_string(d.name));
    json_put(host, "driver", *d.driver ? json_string(d.driver) : json_null());
}

json_t *device_memory_json(struct backend *be, const struct config *c, int64_t rows, int64_t weights, int64_t kv,
                           int64_t scratch)
{
    int64_t context = 0;
    if (be->ops->workspace_bytes) scratch += (int64_t)be->ops->workspace_bytes(be, c, rows);
    if (be->ops->describe) {
        struct device d;
        be->ops->describe(be, &d);
        context = d.context_bytes;
    }
    json_t *o = json_object();
    json_put(o, "weights_bytes", json_integer(weights));
    json_put(o, "kv_bytes", json_integer(kv));
    json_put(o, "scratch_bytes", json_integer(scratch));
    json_put(o, "context_bytes", json_integer(context));
    json_put(o, "predicted_bytes", json_integer(weights + kv + scratch + context));
    return o;
}

static struct sensors sensed(struct backend *be)
{
    struct sensors s = {NAN, NAN, NAN, NAN, NAN};
    if (be->ops->sense) be->ops->sense(be, &s);
    return s;
}

int64_t device_settle(struct backend *be, void (*pass)(void *ctx), void *ctx)
{
    double last = sensed(be).sm_mhz;
    if (!isfinite(last)) return 0;
    for (int64_t n = 1; n <= DEVICE_STEADY_PASSES; n++) {
        pass(ctx);
        double now = sensed(be).sm_mhz;
        if (fabs(now - last) <= 0.01 * last) return n;
        last = now;
    }
    return DEVICE_STEADY_PASSES;
}

struct meter {
    struct backend *be;
    double at;
};

static void read_meter(void *arg)
{
    struct meter *m = arg;
    m->be->ops->sync(m->be);
    m->at = sensed(m->be).energy_j;
}

bool device_energy(struct backend *be, struct device_energy *e, double seconds,
                   void (*pass)(void *ctx, void (*between)(void *arg), void *arg), void *ctx)
{
    struct meter m = {be, 0};
    *e = (struct device_energy){0};
    read_meter(&m);
    if (!isfinite(m.at)) return false;
    for (double t0 = clock_s(), before = m.at; e->passes < 3 || clock_s() - t0 < seconds; e->passes++) {
        pass(ctx, read_meter, &m);
        double between = m.at;
        read_meter(&m);
        e->prefill_j += between - before;
        e->decode_j += m.at - between;
        before = m.at;
    }
    return true;
}

json_t *device_sensors_json(const struct sensors *s)
{
    json_t *o = json_object();
    json_put(o, "sm_mhz", json_num(s->sm_mhz));
    json_put(o, "memory_mhz", json_num(s->memory_mhz));
    json_put(o, "temperature_c", json_num(s->temperature_c));
    json_put(o, "power_w", json_num(s->power_w));
    return o;
}
