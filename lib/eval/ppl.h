/* Negative log likelihoods of a model over windows of tokens, alone or against a reference run on the same windows. */
#ifndef QLAB_EVAL_PPL_H
#define QLAB_EVAL_PPL_H

#include "base/file.h"
#include "eval/protocol.h"
#include "model/model.h"

/* Final hidden states of the reference at every scored row, (n_scored, hidden) f32 in scoring order: with them a second
 * model is compared without running the reference's layers again, bit for bit the same; with its logits (n_scored, vocab)
 * as well, without running its head. A file of either carries a key, the digest of whatever they depend on (model, tokens,
 * windows, compute). The logits' file has the states' name and LOGITS_SUFFIX. */
#define LOGITS_SUFFIX ".logits"
struct ref_states {
    const float *rows;   /* host; NULL: none */
    const float *logits; /* host; NULL: none; never without rows */
    struct file_map map, logits_map;
};
/* rows stays NULL when the file is absent or holds states of another key or shape (it is to be replaced then); the same
 * for logits. */
int ref_states_open(struct ref_states *r, const char *path, const char key[65], int64_t n_scored, int64_t hidden,
                    int64_t vocab, struct err *e);
void ref_states_close(struct ref_states *r);

struct ppl_job {
    const struct model *model;
    const struct model *ref;         /* NULL: no comparison; model itself is run once, not twice */
    const struct ref_states *states; /* of ref (not of model); NULL or rows == NULL: it is run */
    const char *save_states;         /* write ref's states to this file unless they are stored; NULL: do not */
    bool save_logits;                /* and its logits beside, unless they are stored; failing at that is a warning */
    const char *states_key;          /* 64 hex digits, with save_states */
    const int32_t *tokens;
    const struct windows *windows;
    float *keep;    /* NULL, or (n_keep, hidden), host: to be filled with model's final states at the first scored rows */
    int64_t n_keep;
    int32_t bos; /* with windows->replace_bos */
};

/* One value a scored token, in window order; owned, freed by ppl_result_free. */
struct ppl_result {
    int64_t n;
    double *nll;
    double *nll_ref, *kld, *delta_p; /* with ref; delta_p = p_model − p_ref of the target */
    int64_t n_top1;                  /* tokens where both models' argmax agree */
    int64_t kv_bytes, scratch_bytes;
};
int ppl_run(const struct ppl_job *job, struct ppl_result *r, struct err *e);
void ppl_result_free(struct ppl_result *r);

#endif
