/* GGUF keeps llama3 RoPE scaling only as a table of divisors (tensor rope_freqs.weight: inverse frequency i is divided
 * by entry i); Hugging Face keeps the four parameters. */
#ifndef QLAB_VIEWS_GGUF_ROPE_H
#define QLAB_VIEWS_GGUF_ROPE_H

#include "views/config.h"

/* Parameters whose divisors equal the head_dim/2 given ones. Only O/low and O/high show in the table (O the original
 * length), so low is 1 where an integer O allows it: with Llama 3's own numbers they come back as published. Every
 * entry is verified: relative error at most 1e-6 · (1 + factor · high/(high − low)), which is what four roundings to
 * f32 of a wavelength can do to a divisor, and never above 5e-5. A table of ones gives ROPE_DEFAULT. False if no
 * parameters fit. */
bool gguf_rope_recover(double theta, int64_t head_dim, const float *divisors, struct rope *out);

#endif
