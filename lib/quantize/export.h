/* A resolved recipe in the words of other programs, so that their methods can be tried with the same mix. */
#ifndef QLAB_QUANTIZE_EXPORT_H
#define QLAB_QUANTIZE_EXPORT_H

#include "quantize/recipe.h"

/* kind: "llama.cpp"  lines for llama-quantize --tensor-type-file, one for every matrix: NAME=TYPE with the nearest block type
 *                    (int8 → q8_0, int4 → q4_1, int4 -sym → q4_0, nf4 and fp4 → iq4_nl). llama-quantize heeds them only
 *                    when its own TYPE argument is a quantized one (Q8_0, not F16);
 *       "gptqmodel"  QuantizeConfig as JSON: the most common format, and `dynamic` for what differs;
 *       "vllm"       an llm-compressor recipe (JSON, which is YAML too): QuantizationModifier with config_groups.
 * tied: the model keeps one tensor for embedding and head; dtype: of what stays as it is (F16 or BF16).
 * A format the program does not have is an error naming it. NULL on error; the text is to be freed. */
char *recipe_export(const char *kind, const struct recipe *r, bool tied, enum dtype dtype, struct err *e);

#endif
