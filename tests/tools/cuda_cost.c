/* cuda_cost: predicted decode times on GPUs nobody here has run, as a Markdown table: counted bytes and kernels
 * (tests/lib/cuda_cost.h) and published bandwidths. Predictions, not measurements: docs/cuda.md says what is assumed. */
#include "cuda_cost.h"
#include "tiny.h"

#include <stdio.h>
#include <string.h>

/* Assumed, not measured: */
#define SUSTAINED 0.85  /* of the published bandwidth, that a long read reaches */
#define KERNEL_S 2.0e-6 /* between two kernels of a graph: end, start, filling the pipe */
enum { N_CTX = 1024 };

static const struct {
    const char *name;
    double bytes_per_s; /* published */
    int n_sm;
} gpus[] = {{"RTX 3060 Ti", 448e9, 38}, {"RTX 4090", 1008e9, 128}, {"H100 SXM", 3350e9, 132}};

static struct config config_of(const char *shape)
{
    struct tiny t;
    struct config c = {0};
    if (tiny_shape(&t, shape)) return c;
    c.arch = t.arch;
    c.hidden_size = t.hidden;
    c.intermediate_size = t.ff;
    c.n_layers = t.layers;
    c.n_heads = t.heads;
    c.n_kv_heads = t.kv_heads;
    c.head_dim = t.head_dim ? t.head_dim : t.hidden / t.heads;
    c.vocab_size = t.vocab;
    c.qkv_bias = t.arch == ARCH_QWEN2;
    return c;
}

int main(void)
{
    static const char *const shapes[] = {"smollm2-135m", "llama-3.2-3b", "qwen2.5-3b"};
    static const char *const formats[] = {"f16", "int8-row", "int4-g128", "nf4"};
    printf("| model | format | MiB a token |");
    for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++)
        printf(" %s: kernels | roofline ms | predicted ms |", gpus[g].name);
    printf("\n|---|---|---:|");
    for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) printf("---:|---:|---:|");
    printf("\n");
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
            struct config c = config_of(shapes[s]);
            struct cuda_cost k;
            const struct format *fmt = format_find(formats[f]);
            for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
                cuda_cost(&k, &c, fmt, fmt, DT_F16, N_CTX, gpus[g].n_sm);
                double bytes = (double)(k.weight_bytes + k.kv_bytes), roof = bytes / gpus[g].bytes_per_s;
                if (g == 0) printf("| %s | %s | %.1f |", shapes[s], formats[f], bytes / (1 << 20));
                printf(" %lld, %lld | %.3f | %.2f |", (long long)k.layer_kernels, (long long)k.kernels, roof * 1e3,
                       (roof / SUSTAINED + (double)k.kernels * KERNEL_S) * 1e3);
            }
            printf("\n");
        }
    return 0;
}
