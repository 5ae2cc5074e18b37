/* Speed of a model: time to first token, prefill and decode rate, at given depths of the cache. */
#ifndef QLAB_EVAL_BENCH_H
#define QLAB_EVAL_BENCH_H

#include "model/model.h"

/* Order statistics of samples: quantiles interpolate linearly (numpy's default), sd over n−1 (0 for one sample). */
struct bench_summary {
    int64_t n;
    double min, p50, p90, p99, mean, sd;
};
void bench_summarize(const double *x, int64_t n, struct bench_summary *s);
/* {"n", "min", "p50", "p90", "p99", "mean", "sd", "samples"}; null for n == 0. */
json_t *bench_summary_json(const double *x, int64_t n);

/* n token ids below vocab, drawn from SplitMix64 of the seed: the same ids for the same seed and vocabulary size. */
void bench_random_tokens(int32_t *out, int64_t n, int64_t vocab, uint64_t seed);

struct bench_opts {
    const int32_t *prompt; /* n_prompt ids */
    int64_t n_prompt, n_gen; /* both ≥ 1 */
    const int32_t *filler; /* ids that fill the cache before the prompt; as many as the greatest depth */
    int warmup, trials;    /* trials ≥ 1 */
    bool bandwidth;        /* measure it around the trials (bench_bandwidth) */
    /* one pass's end: passes done so far, of all warm-ups and trials of all depths */
    void (*on_pass)(void *ctx, int64_t done);
    void *ctx;
};

/* One depth. Samples of the trials, warm-ups left out:
 *  ttft_ms[t]      prompt in → first id known on the host
 *  prefill_tps[t]  n_prompt / TTFT
 *  decode_tps[t]   (N−1) / (t_N − t_1)
 *  token_ms[t·(N−1) + i]  between ids i and i+1
 * With n_gen == 1 there is no decode: n_decode = 0 and the last two are empty. */
struct bench_run {
    int64_t depth, n_trials, n_token_ms, n_decode;
    double *ttft_ms, *prefill_tps, *decode_tps, *token_ms;
    int64_t n_bandwidth;
    double *bandwidth; /* bytes per second: before the trials, if there were warm-ups, and after each; none if not asked for */
    int32_t *generated; /* (n_gen) ids, the same in every trial */
    json_t *device;     /* NULL on the CPU; else {"settle_passes", "before", "after" the trials (eval/device.h),
                           "energy": {"prefill_j_per_token", "decode_j_per_token", "passes"}|null} */
};

/* A trial: kv->n = depth, then prompt and n_gen greedy tokens by model_generate; end-of-text has no meaning here. The
 * cache up to `depth` is filled by a real prefill first, unless it holds at least as much of the filler already (*filled
 * tokens, updated). A trial whose ids differ from the first's is an error: a backend must be deterministic;
 * so are logits that are not finite. On a device that tells its clock more passes are run until it has settled, before the
 * trials; energy is measured in passes of its own, a second of them, after the trials. */
int bench_depth(const struct model *m, struct kv_cache *kv, struct scratch *s, const struct bench_opts *o, int64_t depth,
                int64_t *filled, int64_t *passes_done, struct bench_run *run, struct err *e);
void bench_run_free(struct bench_run *run);
/* {"depth", "ttft_ms", "prefill_tps", "decode_tps", "token_ms", "device"}; decode fields null with n_gen == 1. */
json_t *bench_run_json(const struct bench_run *run);

/* Bytes that decoding one token reads, averaged over the N−1 decode steps of a trial: weights, and the K and V of all
 * tokens before it. */
double bench_decode_bytes(const struct model *m, const struct kv_cache *kv, int64_t depth, int64_t n_prompt,
                          int64_t n_gen);

/* How fast memory is read, to hold decoding against. */
struct bench_bandwidth {
    double read_bytes_per_s; /* median of the samples */
    double decode_fraction;  /* of it that decoding takes: median over the trials; NaN without decode steps */
    const char *from;        /* what was read: "weights", "buffer", "copy" */
};
/* Of a run and the bytes of a decoded token. "weights": this process read the model's own weights with all its threads
 * (eval/bandwidth.h), four passes and a twentieth of a second at least, before the trials (not if there are no warm-ups: a
 * cold start stays one) and after each. A trial is held against the mean of the samples around it, as neighbours on a
 * machine change its bandwidth by the minute. Where the weights are under 64 MiB or not in one piece, a 128 MiB "buffer"
 * is read once, now, so that it is in no figure of memory. Of a device: its copies ("copy"), both directions counted, now. */
struct bench_bandwidth bench_bandwidth(const struct model *m, const struct bench_run *run, double decode_bytes);

/* One pass at this depth on a timed backend (eval/kernel_timer.h), phases "fill" (if depth > 0), "prefill", "decode".
 * Puts "kernels", "phases" [{"phase", "wall_ms", "kernels_ms"}] and, where the host computes, "peak" (eval/peak.h),
 * measured here, into *results. read_bytes_per_s: as bench_bandwidth gives it. */
void bench_kernels(struct model *m, struct kv_cache *kv, struct scratch *s, const struct bench_opts *o, int64_t depth,
                   double read_bytes_per_s, json_t *results);

#endif
