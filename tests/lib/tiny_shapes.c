#include "tiny.h"

#include "base/hash.h"

#include <string.h>

/* Numbers from the models' config.json as published. */
static const struct {
    const char *name;
    enum arch arch;
    int64_t hidden, ff, layers, heads, kv_heads, head_dim, vocab, max_position;
    double theta, eps;
    bool llama3; /* RoPE scaled as Llama 3.2 does */
} shapes[] = {
    {"smollm2-135m", ARCH_LLAMA, 576, 1536, 30, 9, 3, 64, 49152, 8192, 100000, 1e-5, false},
    {"smollm2-360m", ARCH_LLAMA, 960, 2560, 32, 15, 5, 64, 49152, 8192, 100000, 1e-5, false},
    {"qwen2.5-0.5b", ARCH_QWEN2, 896, 4864, 24, 14, 2, 0, 151936, 32768, 1000000, 1e-6, false},
    {"llama-3.2-1b", ARCH_LLAMA, 2048, 8192, 16, 32, 8, 64, 128256, 131072, 500000, 1e-5, true},
    {"qwen2.5-1.5b", ARCH_QWEN2, 1536, 8960, 28, 12, 2, 0, 151936, 32768, 1000000, 1e-6, false},
    {"smollm2-1.7b", ARCH_LLAMA, 2048, 8192, 24, 32, 32, 64, 49152, 8192, 130000, 1e-5, false},
    {"llama-3.2-3b", ARCH_LLAMA, 3072, 8192, 28, 24, 8, 128, 128256, 131072, 500000, 1e-5, true},
    {"qwen2.5-3b", ARCH_QWEN2, 2048, 11008, 36, 16, 2, 0, 151936, 32768, 1000000, 1e-6, false},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

const char *const tiny_shapes[] = {"smollm2-135m", "smollm2-360m", "qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-1.5b",
                                   "smollm2-1.7b", "llama-3.2-3b", "qwen2.5-3b",   NULL};

int tiny_shape(struct tiny *t, const char *name)
{
    size_t k = 0;
    while (k < N_SHAPES && strcmp(shapes[k].name, name)) k++;
    if (k == N_SHAPES) return -1;
    *t = (struct tiny){.arch = shapes[k].arch, .tied = true, .hidden = shapes[k].hidden, .ff = shapes[k].ff,
                       .layers = shapes[k].layers, .heads = shapes[k].heads, .kv_heads = shapes[k].kv_heads,
                       .head_dim = shapes[k].head_dim, .vocab = shapes[k].vocab, .max_position = shapes[k].max_position,
                       .rope = {.theta = shapes[k].theta}, .eps = shapes[k].eps, .normal = true, .dtype = DT_BF16,
                       .shards = 1};
    if (shapes[k].llama3) t->rope = (struct rope){ROPE_LLAMA3, shapes[k].theta, 32, 1, 4, 8192};
    return 0;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

void tiny_normal(const char *name, uint32_t seed, int64_t i0, int64_t n, float *out)
{
    /* SplitMix64 at position i: the finalizer of key + i · golden ratio. */
    uint64_t key = ((uint64_t)fnv1a(name, strlen(name)) << 32 | seed) * 0xd1342543de82ef95u;
    bool norm = ends_with(name, "norm.weight");
    float sd = norm || ends_with(name, ".bias") ? 0.1f : 0.02f;
    float scale = sd / 37837.2f, mean = norm ? 1.0f : 0.0f; /* deviation of four uniforms of 0 … 65535: √(4·(2^32−1)/12) */
    for (int64_t i = 0; i < n; i++) {
        uint64_t z = key + (uint64_t)(i0 + i) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        int32_t sum = (int32_t)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
        out[i] = mean + (float)(sum - 131070) * scale;
    }
}
