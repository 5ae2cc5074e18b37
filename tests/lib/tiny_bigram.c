#include "tiny_bigram.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Residual stream of the 512 and more channels:
 *   code     192 channels, ±1: which byte this is
 *   CONST    one channel that is 1 for every byte
 *   OUT + v  log P(next = v | byte) · SCALE, written by the MLPs, read by the head
 *   the rest noise
 * Gate row of byte b's neuron: its code (weights 0.5 … 1.5 times GAIN) and −THRESHOLD·GAIN at CONST, so that the neuron
 * opens only for its own byte; CONST's weight is the outlier. Code channels are placed so that a group of 32 columns
 * around CONST holds none of them, one of 64 holds 32, one of 128 64, and one of 256 or the whole row all. */
#define VOCAB 256
#define CODE 192
#define CONST 40
#define OUT 256
#define THRESHOLD 60.0
#define OPEN 16.0 /* the gate of an open neuron */
#define SCALE 0.05

struct bigram {
    const struct tiny *t;
    double rms;                   /* of an embedding row: RMSNorm divides by it */
    float lp[VOCAB][VOCAB];       /* [byte][next], mean over next taken off */
};

static double code_weight(int64_t i) { return i == CONST ? 0 : i < 32 || (i >= 96 && i < 256) ? 1 : 0; }

/* Uniform in −1 … 1, of tensor and element. */
static double noise(uint32_t h, int64_t i)
{
    uint32_t x = h + (uint32_t)i * 2654435761u;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    x ^= x >> 16;
    return (double)x / 2147483648.0 - 1;
}

static double code(int64_t byte, int64_t channel) { return noise(12345, byte * 1024 + channel) < 0 ? -1 : 1; }

struct bigram *bigram_new(const struct tiny *t, struct err *e)
{
    char *path = *t->text ? mem_strdup(t->text) : test_src("data/calibration.txt"), *buf = NULL;
    size_t n = 0;
    int rc = 0;
    if (t->hidden < OUT + VOCAB || t->ff < VOCAB || t->vocab != VOCAB || t->tied || t->arch != ARCH_QWEN2)
        rc = err_set(e, "a bigram model is an untied qwen2 with hidden >= 512, ff >= 256 and vocab 256");
    if (rc == 0) rc = file_read(path, (size_t)64 << 20, &buf, &n, e);
    if (rc == 0 && n < 1000) rc = err_set(e, "%s: too short to count byte pairs in", path);
    free(path);
    if (rc) {
        free(buf);
        return NULL;
    }
    struct bigram *b = mem_new(1, sizeof *b);
    b->t = t;
    b->rms = sqrt((CODE + 1) / (double)t->hidden);
    double *pair = mem_new(VOCAB * VOCAB, sizeof *pair), one[VOCAB] = {0}, first[VOCAB] = {0};
    const uint8_t *s = (const uint8_t *)buf;
    for (size_t i = 0; i + 1 < n; i++) {
        pair[s[i] * VOCAB + s[i + 1]]++;
        first[s[i]]++;
        one[s[i + 1]]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        double mean = 0, lp[VOCAB];
        for (int v = 0; v < VOCAB; v++) {
            double p1 = (one[v] + 0.5) / ((double)n + VOCAB / 2.0);
            lp[v] = log((pair[i * VOCAB + v] + 4 * p1) / (first[i] + 4));
            mean += lp[v] / VOCAB;
        }
        for (int v = 0; v < VOCAB; v++) b->lp[i][v] = (float)(lp[v] - mean);
    }
    free(pair);
    free(buf);
    return b;
}

void bigram_free(struct bigram *b) { free(b); }

/* Which byte a neuron of the MLP stands for, −1 for the spare ones: a fixed shuffle. */
static int64_t neuron_byte(int64_t row) { return row < VOCAB ? row * 77 % VOCAB : -1; }

static double gate(const struct bigram *b, int64_t row, int64_t col, double z)
{
    double gain = OPEN * b->rms / (CODE - THRESHOLD);
    int64_t byte = neuron_byte(row);
    if (col == CONST) return -THRESHOLD * gain;
    if (byte < 0 || !code_weight(col)) return 0.05 * gain * z;
    return gain * (1 + 0.5 * z) * code(byte, col);
}

static double down(const struct bigram *b, int64_t row, int64_t col, double z)
{
    int64_t byte = neuron_byte(col), next = row - OUT;
    double unit = SCALE / OPEN / (double)b->t->layers;
    if (byte < 0 || next < 0 || next >= VOCAB) return 0.1 * unit * z;
    return unit * (double)b->lp[byte][next];
}

/* z is the element's own noise. */
static double element(const struct bigram *b, const char *kind, int64_t row, int64_t col, double z)
{
    if (!strcmp(kind, "embed_tokens")) return col == CONST ? 1 : code_weight(col) > 0 ? code(row, col) : 0.01 * z;
    if (!strcmp(kind, "lm_head")) return col == OUT + row ? b->rms / SCALE : 0.01 * z;
    if (!strcmp(kind, "gate_proj")) return gate(b, row, col, z);
    if (!strcmp(kind, "up_proj")) return col == CONST ? b->rms : 0.004 * z;
    if (!strcmp(kind, "down_proj")) return down(b, row, col, z);
    if (!strcmp(kind, "o_proj")) return 0.0006 * z;
    return 0.03 * z; /* q, k, v */
}

void bigram_fill(const struct bigram *b, const char *name, float *out, int64_t n)
{
    uint32_t h = fnv1a(name, strlen(name)) ^ b->t->seed;
    char kind[128], *dot;
    strncpy(kind, name, sizeof kind - 1)[sizeof kind - 1] = 0;
    bool norm = strstr(name, "norm.weight"), bias = strstr(name, ".bias");
    if ((dot = strrchr(kind, '.'))) *dot = 0;
    const char *last = strrchr(kind, '.');
    last = last ? last + 1 : kind;
    int64_t cols = !strcmp(last, "down_proj")   ? b->t->ff
                   : !strcmp(last, "o_proj")    ? b->t->heads * (b->t->head_dim ? b->t->head_dim : b->t->hidden / b->t->heads)
                                                : b->t->hidden;
    for (int64_t i = 0; i < n; i++) {
        double z = noise(h, i);
        out[i] = (float)(norm ? 1 : bias ? 0.1 * z : element(b, last, i / cols, i % cols, z));
    }
}
