/* How much each linear suffers from quantization.
 *
 * Everything happens in one sweep over the layers, and each weight is quantized once: the sweep carries the hidden
 * states of the clean model and of the model with everything quantized, both entering layer i. There
 *  - every linear's output under the quantized weight is compared with the original's on the clean input (all modes);
 *  - isolated: for each unit that begins in layer i the clean states go through layers i … with only that unit
 *    quantized;
 *  - restore: the quantized model's states go through layers i … with all but that unit quantized;
 * and the resulting logits are compared with the clean model's. A unit is a linear, all linears of a layer, or one
 * operation in all layers. Only the text's tokens × hidden are kept, never all layers' states. */
#ifndef QLAB_EVAL_SENSITIVITY_H
#define QLAB_EVAL_SENSITIVITY_H

#include "eval/sens_metrics.h"
#include "model/model.h"
#include "quantize/method.h"

enum sens_mode { SENS_LOCAL, SENS_ISOLATED, SENS_RESTORE };
enum sens_per { SENS_TENSOR, SENS_LAYER, SENS_OP };

struct sens_entry {
    char name[LINEAR_NAME_MAX]; /* the linear; "model.layers.3"; "q_proj" */
    int64_t layer;              /* −1: all */
    int op;                     /* −1: all */
    int64_t n_out, n_in;        /* of a linear; 0 for a unit of several */
    struct sens_metrics local;  /* outputs on clean inputs, pooled over the unit's linears */
    struct sens_metrics seed;   /* with opts.seed_preset: outputs of the quantized against those of the clean model */
    double kld, delta_nll;      /* at the model's output, means over the scored tokens; not in local mode */
    int64_t bytes_before, bytes_after;
    bool done; /* set on entry: metrics above are known (a resumed run), only `all` is still computed for it */
};

struct sens_opts {
    enum sens_mode mode;
    enum sens_per per;
    const struct format *fmt;
    const struct method *method;
    enum dtype model_dtype;  /* as in struct quant_job */
    bool seed_preset;
    const char *samples_dir; /* NULL: none. A CSV for each linear with at most 2,000 (reference, quantized) outputs */
    uint64_t seed;           /* of the samples */
    /* Called when an entry's numbers are complete, in the order of the sweep; an error stops the run. */
    int (*on_done)(void *ctx, const struct sens_entry *en, struct err *e);
    /* done of total: layers run (the head counts as some), for the time left */
    void (*on_progress)(void *ctx, int64_t done, int64_t total);
    void *ctx;
};

struct sens_result {
    struct sens_entry *entries; /* in layer, op order */
    int64_t n;
    int64_t n_tokens, n_scored; /* scored: each token but the first, given all before it */
    double baseline_nll;
    double all_kld, all_delta_nll; /* every decoder linear quantized */
};

/* Units and names of a model; metrics empty. */
void sens_result_init(struct sens_result *r, const struct config *c, enum sens_per per);
void sens_result_free(struct sens_result *r);

/* The dtype qquant would quantize this checkpoint for: BF16 if its linears are (or dequantize to) that, else F16. */
int sens_model_dtype(const struct checkpoint *c, enum dtype *t, struct err *e);

/* The model must be the unquantized one (loaded from c); its layers are as before on return. n_tokens ≥ 2. A number
 * that is not finite is an error naming the linear. */
int sens_run(struct model *m, const struct checkpoint *c, const int32_t *tokens, int64_t n_tokens,
             const struct sens_opts *o, struct sens_result *r, struct err *e);

#endif
