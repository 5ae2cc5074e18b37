/* GGUF block layouts (source: ggml-common.h) and their decoders. n is a multiple of the block's elements. */
#ifndef QLAB_VIEWS_GGUF_BLOCKS_H
#define QLAB_VIEWS_GGUF_BLOCKS_H

#include <stdint.h>

void q8_0_to_f32(const void *src, float *dst, int64_t n);
void q4_0_to_f32(const void *src, float *dst, int64_t n);
void q4_1_to_f32(const void *src, float *dst, int64_t n);
void q5_0_to_f32(const void *src, float *dst, int64_t n);
void q5_1_to_f32(const void *src, float *dst, int64_t n);
void q4_k_to_f32(const void *src, float *dst, int64_t n);
void q5_k_to_f32(const void *src, float *dst, int64_t n);
void q6_k_to_f32(const void *src, float *dst, int64_t n);

#endif
