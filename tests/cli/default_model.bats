#!/usr/bin/env bats
# The default model, where it has been downloaded (or QLAB_MODEL names its GGUF): figures of other programs, and our own
# earlier ones. When a figure of ours moves, the tool's results version has to rise and the figure here with it.

load common

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    local gguf=${QLAB_MODEL:-models/smollm2-135m.gguf}
    [ -e "$gguf" ] || return 0
    export F16=$BATS_FILE_TMPDIR/f16
    "$B/bin/qload" -q "$gguf" -o "$F16" >"$BATS_FILE_TMPDIR/load.json"
}

setup() {
    cd "$src" || exit 1
    [ -n "${F16:-}" ] || skip "the default model has not been downloaded (make -C pipelines gen2 gets it)"
    [ -z "${SAN:-}" ] || skip "takes too long under sanitizers"
    r=$BATS_TEST_TMPDIR/r.json
}

# near FILTER WANTED RELATIVE
near() { holds "(($1) / ($2) - 1) | fabs < $3" "$r"; }

@test "what qload says of it" {
    holds '.results | .architecture == "LlamaForCausalLM" and .n_params == 134515008 and .n_layers == 30 and
        .hidden_size == 576 and .intermediate_size == 1536 and .n_heads == 9 and .n_kv_heads == 3 and .vocab_size == 49152 and
        .tied_embeddings and .rope.theta == 100000' "$BATS_FILE_TMPDIR/load.json"
}

@test "perplexity as transformers computes it in f32 (3 windows of the sample: NLL 3.49808496)" {
    "$B/bin/qppl" -q "$F16" --text data/sample.txt --max-windows 3 >"$r"
    holds '.results.n_tokens == 10338 and .results.n_scored == 765' "$r"
    near .results.nll 3.4980849596 1e-6
    near .results.nll_se 0.1086511602 1e-5
}

@test "perplexity as llama.cpp computes it (wiki.test.raw: 10 windows, and the first 2,000 characters)" {
    wiki=${QLAB_SHARED:-../shared}/text/wiki.test.raw
    [ -e "$wiki" ] || skip "no $wiki"
    "$B/bin/qppl" -q "$F16" --text "$wiki" --max-windows 10 >"$r"
    near .results.ppl 26.6164 1e-3
    "$B/bin/qppl" -q "$F16" --text "$wiki" --protocol seed --text-form hf-rows >"$r"
    near .results.ppl 21.469 1e-3
    "$B/bin/qppl" -q "$F16" --text "$wiki" --protocol seed >"$r"
    near .results.ppl 20.529 1e-3
}

@test "greedy text as transformers generates it in f32" {
    "$B/bin/qbench" -q "$F16" --prompt 'Once upon a time, in a small village by the sea,' --gen 20 --warmup 0 --trials 1 \
        --compute f32 >"$r"
    holds '.results.generated.text == " there was a wise old wizard named Thorold. He lived in a tower surrounded by a beautiful"' "$r"
}

@test "formats keep their damage (KLD and paired difference on 2 windows of the sample)" {
    local name kld delta
    while read -r name kld delta; do
        "$B/bin/qquant" -q "$F16" -f "$name" -o "$BATS_TEST_TMPDIR/q" >/dev/null
        "$B/bin/qppl" -q "$BATS_TEST_TMPDIR/q" --text data/sample.txt --max-windows 2 --ref "$F16" \
            --ref-cache "$BATS_TEST_TMPDIR/ref" >"$r"
        echo "$name $(jq -c '[.results.kld.mean, .results.delta_nll.mean]' "$r")"
        near .results.kld.mean "$kld" 1e-4
        holds "(.results.delta_nll.mean - $delta) | fabs < 1e-4" "$r"
    done <<'GOLDEN'
int8-row 0.00330855509657 0.00103979711326
int4-g64 0.265402163836 0.176369632775
nf4 0.21803878293 0.159835116521
GOLDEN
}
