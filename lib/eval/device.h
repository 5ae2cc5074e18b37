/* What a device apart from the host adds to records and measurements. On the CPU there is nothing of it. */
#ifndef QLAB_EVAL_DEVICE_H
#define QLAB_EVAL_DEVICE_H

#include "backend/backend.h"
#include "base/record.h"

/* host.gpu and host.driver of a record. */
void device_note(struct record *r, struct backend *be);
/* {"weights_bytes", "kv_bytes", "scratch_bytes", "context_bytes", "predicted_bytes"}: scratch with what the backend itself
 * needs for passes of `rows` rows, context what the device's runtime takes (0 on the CPU). */
json_t *device_memory_json(struct backend *be, const struct config *c, int64_t rows, int64_t weights, int64_t kv,
                           int64_t scratch);

/* Passes until the clock has settled: two in a row within 1 %, at most DEVICE_STEADY_PASSES. pass(ctx) runs one.
 * Returns how many; 0 where the device does not tell its clock. */
enum { DEVICE_STEADY_PASSES = 20 };
int64_t device_settle(struct backend *be, void (*pass)(void *ctx), void *ctx);

/* Energy of a pass's two phases, summed over passes for at least `seconds`; pass(ctx, fn, arg) calls fn(arg) between the
 * phases. */
struct device_energy {
    double prefill_j, decode_j;
    int64_t passes;
};
bool device_energy(struct backend *be, struct device_energy *e, double seconds,
                   void (*pass)(void *ctx, void (*between)(void *arg), void *arg), void *ctx);

/* {"sm_mhz", "memory_mhz", "temperature_c", "power_w"}: null what it does not tell. */
json_t *device_sensors_json(const struct sensors *s);

#endif
