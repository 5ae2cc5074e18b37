/* The safetensors parser on any bytes: every tensor of an accepted file lies inside it, and together they cover it. */
#include "views/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors s;
    struct err e;
    if (safetensors_parse(&s, "fuzz", data, n, &e)) {
        if (strncmp(e.msg, "fuzz: ", 6)) abort();
        return 0;
    }
    size_t total = 0;
    unsigned sum = 0;
    for (size_t i = 0; i < s.n_tensors; i++) {
        const struct tensor *t = &s.tensors[i];
        if (t->n_bytes != dtype_bytes(t->dtype, tensor_elems(t))) abort();
        if (i && strcmp(s.tensors[i - 1].name, t->name) >= 0) abort();
        for (size_t k = 0; k < t->n_bytes; k++) sum += ((const uint8_t *)t->data)[k];
        total += t->n_bytes;
    }
    if (total > n || sum == 0x7fffffff) abort();
    safetensors_close(&s);
    return 0;
}
