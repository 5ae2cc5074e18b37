/* Double quantization of absmax (bitsandbytes functional.py quantize_4bit with compress_statistics). */
#include "quantize/choose.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void nested_map(float map[256])
{
    int n = 0;
    for (int i = 0; i < 7; i++) {
        int items = (1 << i) + 1;
        float edge[65], step = (1.0f - 0.1f) / (float)(items - 1), power = (float)pow(10, i - 6);
        /* torch.linspace: from both ends towards the middle */
        for (int k = 0; k < items; k++)
            edge[k] = k < items / 2 ? 0.1f + step * (float)k : 1.0f - step * (float)(items - 1 - k);
        for (int k = 0; k + 1 < items; k++) {
            float mean = (edge[k] + edge[k + 1]) / 2;
            map[n++] = power * mean;
            map[n++] = -power * mean;
        }
    }
    map[n++] = 0;
    map[n++] = 1;
    qsort(map, 256, sizeof *map, by_value);
}

/* Nearest entry; halfway takes the lower one. */
static uint8_t nearest(const float *map, float x)
{
    int lo = 0, hi = 255;
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (map[mid] < x)
            lo = mid;
        else
            hi = mid;
    }
    return (uint8_t)(x > (map[lo] + map[hi]) / 2 ? hi : lo);
}

void nested_quantize(float *absmax, int64_t n, uint8_t *codes, float *nested, float map[256], float *offset)
{
    nested_map(map);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += absmax[i];
    *offset = (float)(sum / (double)n);
    for (int64_t b = 0; b < n; b += 256) {
        int64_t m = n - b < 256 ? n - b : 256;
        float a = 0;
        for (int64_t i = b; i < b + m; i++) a = fabsf(absmax[i] - *offset) > a ? fabsf(absmax[i] - *offset) : a;
        nested[b / 256] = a;
        float inv = a > 0 ? 1.0f / a : 0;
        for (int64_t i = b; i < b + m; i++) {
            codes[i] = nearest(map, clampf((absmax[i] - *offset) * inv, -1, 1));
            float v = map[codes[i]] * a;
            absmax[i] = v + *offset;
        }
    }
}
