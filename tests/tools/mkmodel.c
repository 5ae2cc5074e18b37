/* mkmodel KIND DIR [options]: writes a tiny model's folder, or one of a published shape with random weights. */
#include "base/args.h"
#include "base/file.h"
#include "base/msg.h"
#include "tiny.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *dtype = "bf16", *text = NULL, *drop = NULL, *extra = NULL, *nan = NULL;
    int64_t layers = 0, hidden = 0, ff = 0, heads = 0, kv = 0, head_dim = 0, vocab = 0, max_pos = 0, shards = 1;
    bool old = false, bare = false, tied = false, untied = false;
    struct opt opts[] = {
        {"dtype", 0, OPT_CHOICE, &dtype, "bf16|f16|f32", "element type", "bf16|f16|f32", 0, 0},
        {"layers", 0, OPT_INT, &layers, "N", "layers; 0, here and below: as the kind has it", NULL, 0, 1000},
        {"hidden", 0, OPT_INT, &hidden, "N", "hidden size (ff follows as 5/2 of it unless given)", NULL, 0, 65536},
        {"ff", 0, OPT_INT, &ff, "N", "intermediate size", NULL, 0, 262144},
        {"heads", 0, OPT_INT, &heads, "N", "attention heads", NULL, 0, 1024},
        {"kv-heads", 0, OPT_INT, &kv, "N", "key/value heads", NULL, 0, 1024},
        {"head-dim", 0, OPT_INT, &head_dim, "N", "head size", NULL, 0, 1024},
        {"vocab", 0, OPT_INT, &vocab, "N", "vocabulary", NULL, 0, 1000000},
        {"max-position", 0, OPT_INT, &max_pos, "N", "max_position_embeddings", NULL, 0, 1000000},
        {"shards", 0, OPT_INT, &shards, "N", "safetensors files", NULL, 1, 99},
        {"tied", 0, OPT_FLAG, &tied, NULL, "head = embedding", NULL, 0, 0},
        {"untied", 0, OPT_FLAG, &untied, NULL, "a head of its own", NULL, 0, 0},
        {"old-config", 0, OPT_FLAG, &old, NULL, "RoPE keys as transformers 4 writes them", NULL, 0, 0},
        {"no-tokenizer", 0, OPT_FLAG, &bare, NULL, "leave the tokenizer's files out", NULL, 0, 0},
        {"text", 0, OPT_STR, &text, "FILE", "kind bigram: where byte pairs are counted [data/calibration.txt]", NULL, 0, 0},
        {"drop", 0, OPT_STR, &drop, "NAME", "leave this tensor out", NULL, 0, 0},
        {"extra", 0, OPT_STR, &extra, "NAME", "add a tensor nothing reads", NULL, 0, 0},
        {"nan", 0, OPT_STR, &nan, "NAME", "put a NaN into this tensor", NULL, 0, 0},
        {0},
    };
    struct tool tool = {.name = "mkmodel", .summary = "tiny models for tests, and random ones of published shapes", .usage = "KIND DIR [options]",
                        .details = "Kinds: llama-tied llama-untied-rope3 llama-headdim32 qwen2-tied qwen2-untied mistral "
                                   "qwen3 llama-bias bigram\n"
                                   "Shapes (random weights of --seed; DIR appears when it is whole): smollm2-135m "
                                   "smollm2-360m\nqwen2.5-0.5b llama-3.2-1b qwen2.5-1.5b smollm2-1.7b llama-3.2-3b "
                                   "qwen2.5-3b\n",
                        .compute_dflt = "f32", .opts = opts};
    int n;
    char **arg = args_parse(&tool, argc, argv, &n);
    struct tiny t;
    struct err e;
    if (n != 2) die_usage("KIND and DIR were expected");
    bool shape = !tiny_shape(&t, arg[0]);
    if (!shape && tiny_kind(&t, arg[0])) die_usage("unknown kind %s", arg[0]);
    if (layers) t.layers = layers;
    if (hidden) t.hidden = hidden, t.ff = hidden * 5 / 2;
    if (ff) t.ff = ff;
    if (heads) t.heads = heads;
    if (kv) t.kv_heads = kv;
    if (head_dim) t.head_dim = head_dim;
    else if (hidden || heads) t.head_dim = 0;
    if (vocab) t.vocab = vocab;
    if (max_pos) t.max_position = max_pos;
    if (tied) t.tied = true;
    if (untied) t.tied = false;
    if (text) {
        if (!t.text) die_usage("--text is for the kind bigram");
        t.text = text;
    }
    t.dtype = !strcmp(dtype, "bf16") ? DT_BF16 : !strcmp(dtype, "f16") ? DT_F16 : DT_F32;
    t.seed = (uint32_t)tool.common.seed;
    t.shards = (int)shards;
    t.old_config = old, t.no_tokenizer = bare;
    t.drop = drop, t.extra = extra, t.nan = nan;
    struct dir_out out;
    if (!shape) {
        if (tiny_write(&t, arg[1], &e)) die("%s", e.msg);
    } else if (dir_out_open(&out, arg[1], &e) || tiny_write(&t, out.tmp, &e) || dir_out_close(&out, &e)) {
        die("%s", e.msg);
    }
    return 0;
}
