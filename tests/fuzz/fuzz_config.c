/* config.json on any bytes: what is accepted has sizes that can be multiplied. */
#include "views/config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct err e;
    struct config c;
    json_t *j = json_parse("fuzz", (const char *)data, n, &e);
    if (!j) return 0;
    if (config_parse(&c, j, "fuzz", &e)) {
        if (strncmp(e.msg, "fuzz: ", 6)) abort();
    } else {
        float inv_freq[32];
        if (c.hidden_size < 1 || c.n_heads < 1 || c.n_kv_heads < 1 || c.n_heads % c.n_kv_heads || c.head_dim < 2 ||
            c.head_dim % 2 || c.n_layers < 1 || !(c.rms_norm_eps > 0) || !(c.rope.theta > 0))
            abort();
        for (enum op op = 0; op < N_OPS; op++) {
            int64_t n_out, n_in, product;
            config_op_shape(&c, op, &n_out, &n_in);
            if (n_out < 1 || n_in < 1 || __builtin_mul_overflow(n_out, n_in, &product)) abort();
        }
        if (c.head_dim <= 64) rope_inv_freq(&c.rope, c.head_dim, inv_freq);
    }
    json_decref(j);
    return 0;
}
