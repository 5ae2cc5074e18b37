/* What a perplexity run with a reference says of it, as a record has it; and one model's computes against each other. */
#ifndef QLAB_EVAL_COMPARISON_H
#define QLAB_EVAL_COMPARISON_H

#include "base/json.h"
#include "eval/ppl.h"

/* kld{mean,se,median,p90,p99,p999,max}, top1_agreement, top1_se, delta_p_rms, delta_nll{mean,se} into o. Sorts p->kld.
 * Returns whether the mean of kld is finite. */
bool comparison_put(json_t *o, struct ppl_result *p);

/* The model of job, loaded again from c, in another compute, against the job's, whose final states at the scored rows of
 * the first windows are `rows` (job->keep of its run): {"compute", "n_windows", "n_scored", and the comparison}. NULL with
 * an error. */
json_t *comparison_of_compute(const struct ppl_job *job, const struct checkpoint *c, const char *device, const char *compute,
                              const struct windows *first, const float *rows, struct err *e);

#endif
