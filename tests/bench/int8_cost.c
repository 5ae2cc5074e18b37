/* What int8 activations cost: mean KLD(f32 ‖ int8) and Δ NLL of one model on a text, second halves of windows of 512.
 * Never run by check.   int8_cost MODEL TEXT [windows] */
#include "base/mem.h"
#include "base/msg.h"
#include "base/stats.h"
#include "model/model.h"
#include "views/corpus.h"
#include "views/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    enum { CTX = 512, HALF = 256 };
    struct err e;
    struct checkpoint c;
    struct corpus text;
    struct backend be[2];
    struct model m[2];
    struct scratch s[2];
    struct kv_cache kv[2];
    float *logits[2];
    int32_t *ids;
    size_t n;
    msg_init("int8_cost");
    if (argc < 3) die_usage("MODEL TEXT [windows]");
    if (checkpoint_open(&c, argv[1], &e) || corpus_load(&text, argv[2], TEXT_FILE, 400000, NULL, &e)) die("%s", e.msg);
    struct tokenizer *tok = tokenizer_of_model(argv[1], &e);
    if (!tok || tokenizer_encode(tok, text.text, text.n_bytes, false, &ids, &n, &e)) die("%s", e.msg);
    for (int i = 0; i < 2; i++) {
        if (backend_open(&be[i], "cpu", i ? "int8" : "f32", false, &e) || model_load(&m[i], &be[i], &c, &e) ||
            scratch_alloc(&s[i], &m[i], CTX, &e) || kv_alloc(&kv[i], &m[i], CTX, &e))
            die("%s", e.msg);
        logits[i] = mem_array((size_t)(HALF * m[i].cfg.vocab_size), 4);
    }
    int64_t windows = argc > 3 ? atoll(argv[3]) : 8, v = m[0].cfg.vocab_size, k = 0;
    if (windows > (int64_t)n / CTX) windows = (int64_t)n / CTX;
    double *kld = mem_array((size_t)(windows * HALF), 8), *delta = mem_array((size_t)(windows * HALF), 8);
    struct divergence *d = mem_array(HALF, sizeof *d);
    double same = 0;
    for (int64_t w = 0; w < windows; w++) {
        const int32_t *t = ids + w * CTX;
        for (int i = 0; i < 2; i++) {
            kv[i].n = 0;
            model_forward(&m[i], t, &(struct span){&kv[i], 0, CTX}, 1, &s[i], NULL);
            model_logits(&m[i], s[i].x + (HALF - 1) * m[i].cfg.hidden_size, HALF, logits[i]);
        }
        be[0].ops->diverge(&be[0], d, logits[0], logits[1], t + HALF, HALF, v);
        for (int j = 0; j < HALF; j++, k++) {
            kld[k] = d[j].kld;
            delta[k] = d[j].nll_model - d[j].nll_ref;
            same += d[j].argmax_ref == d[j].argmax_model;
        }
    }
    struct mean_se a = stats_mean(kld, k), b = stats_mean(delta, k);
    printf("%s: %lld tokens, KLD %.3e +- %.1e, delta nll %+.5f +- %.5f, same top %.4f\n", argv[1], (long long)k, a.mean, a.se,
           b.mean, b.se, same / (double)k);
    return 0;
}
