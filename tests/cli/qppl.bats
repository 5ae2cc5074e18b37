#!/usr/bin/env bats
# qppl on tiny models: protocols, references, caches, threads and instruction sets, and what it refuses.

load common
tool=qppl

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    "$B/tests/mkmodel" -q bigram "$BATS_FILE_TMPDIR/m"
    "$B/tests/mkmodel" -q llama-tied "$BATS_FILE_TMPDIR/other"
    "$B/bin/qquant" -q "$BATS_FILE_TMPDIR/m" -f int4-g32 -o "$BATS_FILE_TMPDIR/q" >/dev/null
}

setup() {
    cd "$src" || exit 1
    m=$BATS_FILE_TMPDIR/m
    q=$BATS_FILE_TMPDIR/q
    other=$BATS_FILE_TMPDIR/other
    r=$BATS_TEST_TMPDIR/r.json
    text=data/sample.txt
}

ppl() { "$B/bin/qppl" -q "$@" >"$r"; }

@test "every protocol and text form gives a record of the schema" {
    for p in llamacpp seed hf-sliding gptq; do
        for form in file hf-rows; do
            ppl "$m" --text $text --text-form $form --protocol $p --ctx 64 --chars 1500
            "$B/tests/schema_check" docs/schema/qppl.json "$r"
            holds ".results.protocol == \"$p\" and .params.text_form == \"$form\" and .results.compute == \"f32\"" "$r"
            holds '(.results.ppl / (.results.nll | exp) - 1) | fabs < 1e-9' "$r"
            holds '.inputs | map(.role) == ["model", "text"]' "$r"
        done
    done
}

@test "window counts: the last half of each window, overlapping strides, non-overlapping windows" {
    ppl "$m" --text $text --protocol llamacpp --ctx 64 --chars 1000
    n=$(jq .results.n_tokens "$r")
    holds ".results.n_windows == ($n / 64 | floor) and .results.n_scored == .results.n_windows * 31" "$r"
    ppl "$m" --text $text --protocol hf-sliding --ctx 64 --stride 16 --chars 1000
    holds ".results.n_scored == $n - 1" "$r"
    ppl "$m" --text $text --protocol gptq --ctx 64 --chars 1000 --max-windows 3
    holds '.results.n_windows == 3 and .results.n_scored == 3 * 63' "$r"
}

@test "the NLL file holds the scored tokens, and their mean is the record's" {
    ppl "$m" --text $text --ctx 64 --chars 1000 --nll "$BATS_TEST_TMPDIR/nll"
    n=$(jq .results.n_scored "$r")
    [ "$(stat -c %s "$BATS_TEST_TMPDIR/nll")" = $((4 * n)) ]
    mean=$(od -An -v -tf4 -w4 "$BATS_TEST_TMPDIR/nll" | awk '{s += $1} END {printf "%.9f", s / NR}')
    holds "(.results.nll - $mean) | fabs < 1e-6" "$r"
    holds ".outputs[0].sha256 == \"$(sha256sum <"$BATS_TEST_TMPDIR/nll" | cut -c1-64)\"" "$r"
}

@test "a model against itself: no divergence at all" {
    ppl "$m" --text $text --ctx 64 --chars 1000 --ref "$m"
    "$B/tests/schema_check" docs/schema/qppl.json "$r"
    holds '.results | .kld.mean == 0 and .kld.max == 0 and .top1_agreement == 1 and .delta_p_rms == 0 and
           .delta_nll.mean == 0 and .delta_nll.se == 0' "$r"
}

@test "a quantized model against its source: paired difference equals the difference, KLD is positive" {
    ppl "$m" --text $text --ctx 64 --chars 2000
    base=$(jq .results.nll "$r")
    ppl "$q" --text $text --ctx 64 --chars 2000 --ref "$m"
    holds "(.results.nll - $base - .results.delta_nll.mean) | fabs < 1e-9" "$r"
    holds '.results | .kld.mean > 0 and .kld.median <= .kld.p90 and .kld.p90 <= .kld.p99 and .kld.p99 <= .kld.p999 and
           .kld.p999 <= .kld.max and .top1_agreement > 0.5 and .delta_nll.se < .nll_se' "$r"
}

@test "activations in int8 cost a little, in two passes next to nothing, with any number of threads" {
    "$B/bin/qload" -q "$m" --dtype f16 -o "$BATS_TEST_TMPDIR/f16" >/dev/null # bf16 would round weights in f32 compute more
    for f in int4-g32 nf4; do
        w=$BATS_TEST_TMPDIR/$f
        "$B/bin/qquant" -q "$BATS_TEST_TMPDIR/f16" -f $f -o "$w" >/dev/null
        ppl "$w" --text $text --ctx 64 --chars 2000 --ref "$w" --compute int8
        holds '.results | .compute == "int8" and .kld.mean > 1e-6 and .kld.mean < 0.01' "$r"
        one=$(jq .results.kld.mean "$r")
        ppl "$w" --text $text --ctx 64 --chars 2000 --ref "$w" --compute int8x2 -t 1
        holds ".results | .compute == \"int8x2\" and .kld.mean < $one / 20" "$r"
        jq -cS .results "$r" >"$r.1"
        ppl "$w" --text $text --ctx 64 --chars 2000 --ref "$w" --compute int8x2 -t 3
        [ "$(jq -cS .results "$r")" = "$(cat "$r.1")" ]
    done
}

@test "--also: the same divergence as a run of its own, on the windows asked for" {
    ppl "$q" --text $text --ctx 64 --chars 2000 --max-windows 4 --ref "$q" --compute int8
    jq -cS '.results | {compute, n_windows, n_scored, kld, top1_agreement, top1_se, delta_p_rms, delta_nll}' "$r" >"$r.own"
    ppl "$q" --text $text --ctx 64 --chars 2000 --ref "$m" --also int8 --also-windows 4
    "$B/tests/schema_check" docs/schema/qppl.json "$r"
    jq -cS .results.also "$r" >"$r.also"
    cmp "$r.own" "$r.also"
    jq -cS '.results | del(.also)' "$r" >"$r.rest"
    ppl "$q" --text $text --ctx 64 --chars 2000 --ref "$m"
    jq -cS .results "$r" | cmp - "$r.rest"
    ppl "$m" --text $text --ctx 64 --chars 1000 --protocol hf-sliding --stride 16 --also int8x2 --also-windows 0
    holds '.results | .also.n_scored == .n_scored and .also.kld.mean < 1e-6' "$r"
}

@test "kept states of the reference give the same results without running it, and are replaced when they do not fit" {
    c=$BATS_TEST_TMPDIR/states
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m"
    jq -cS .results "$r" >"$BATS_TEST_TMPDIR/plain"
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    before=$(stat -c %Y.%i "$c")
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    [ "$(stat -c %Y.%i "$c")" = "$before" ]
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m" --ref-cache "$c"
    jq -cS .results "$r" >"$BATS_TEST_TMPDIR/small"
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/small"
    printf x >"$c" # a broken file is no reference
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
}

@test "kept logits of the reference give the same results without its head, within the limit, and are replaced when they do not fit" {
    c=$BATS_TEST_TMPDIR/states
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m"
    jq -cS .results "$r" >"$BATS_TEST_TMPDIR/plain"
    scored=$(jq .results.n_scored "$r") vocab=$(jq .vocab_size "$m/config.json")
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c" --ref-logits 16
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    [ "$(stat -c %s "$c.logits")" = $((128 + 4 * scored * vocab)) ]
    before=$(stat -c %Y.%i "$c" "$c.logits")
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c" --ref-logits 16
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    [ "$(stat -c %Y.%i "$c" "$c.logits")" = "$before" ]
    printf '\0\0\200\177' | dd of="$c.logits" bs=1 seek=128 conv=notrunc status=none # they are what is read
    if ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$c" 2>/dev/null; then false; fi
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m" --ref-cache "$c" --ref-logits 16
    jq -cS .results "$r" >"$BATS_TEST_TMPDIR/small"
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/small"
    printf x >"$c.logits"
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m" --ref-cache "$c"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/small"
    ppl "$m" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/own" --ref-logits 16
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/own"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/none"
    [ ! -e "$BATS_TEST_TMPDIR/none.logits" ]
    before=$(stat -c %Y.%i "$BATS_TEST_TMPDIR/none") # states that are there already get their logits
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/none" --ref-logits 16
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    [ "$(stat -c %Y.%i "$BATS_TEST_TMPDIR/none")" = "$before" ]
    cmp "$BATS_TEST_TMPDIR/none.logits" "$BATS_TEST_TMPDIR/own.logits"
    ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/none" # logits of other states go
    [ ! -e "$BATS_TEST_TMPDIR/none.logits" ]
    before=$(stat -c %i "$BATS_TEST_TMPDIR/none") # another set of instructions, other last bits
    QLAB_ISA=plain ppl "$q" --text $text --ctx 32 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/none"
    [ "$(stat -c %i "$BATS_TEST_TMPDIR/none")" != "$before" ]
}

@test "no room for the reference's logits is a warning: the results and the states are as ever" {
    c=$BATS_TEST_TMPDIR/states # of a model whose logits are larger
    "$B/bin/qquant" -q "$other" -f int4-g32 -o "$BATS_TEST_TMPDIR/q" >/dev/null
    set -- "$BATS_TEST_TMPDIR/q" --text $text --ctx 64 --chars 1000 --ref "$other"
    ppl "$@"
    jq -cS .results "$r" >"$BATS_TEST_TMPDIR/plain"
    mkdir "$c.logits" "$c.logits/taken" # a folder stands where the file should go
    "$B/bin/qppl" "$@" --ref-cache "$c" --ref-logits 16 >"$r" 2>"$BATS_TEST_TMPDIR/err"
    grep -q "logits are not kept: " "$BATS_TEST_TMPDIR/err"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    rm -r "$c.logits"
    states=$(($(stat -c %s "$c") / 1024 + 8)) # no file may be larger than the states, nearly
    rm "$c"
    (trap '' XFSZ; ulimit -f "$states"; "$B/bin/qppl" "$@" --ref-cache "$c" --ref-logits 16) >"$r" 2>"$BATS_TEST_TMPDIR/err"
    grep -q "logits are not kept: " "$BATS_TEST_TMPDIR/err"
    jq -cS .results "$r" | cmp - "$BATS_TEST_TMPDIR/plain"
    [ -s "$c" ]
    [ ! -e "$c.logits" ]
    [ -z "$(find "$BATS_TEST_TMPDIR" -name '*.part-*')" ]
}

@test "a reference that is the model itself: no damage, and the states any other run keeps of it" {
    ppl "$q" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/two" # two models
    ppl "$m" --text $text --ctx 64 --chars 1000 --ref "$m" --ref-cache "$BATS_TEST_TMPDIR/one"
    cmp "$BATS_TEST_TMPDIR/one" "$BATS_TEST_TMPDIR/two"
    jq -e '.results | .kld.max == 0 and .delta_nll.mean == 0 and .delta_nll.se == 0 and .top1_agreement == 1' "$r"
    jq -cS '.results | {ppl, nll}' "$r" >"$BATS_TEST_TMPDIR/with"
    ppl "$m" --text $text --ctx 64 --chars 1000
    jq -cS '.results | {ppl, nll}' "$r" | cmp - "$BATS_TEST_TMPDIR/with"
}

@test "results do not depend on the number of threads" {
    for t in 1 2 3; do
        ppl "$q" --text $text --ctx 128 --chars 3000 --ref "$m" -t $t
        jq -cS .results "$r" >"$BATS_TEST_TMPDIR/t$t"
    done
    cmp "$BATS_TEST_TMPDIR/t1" "$BATS_TEST_TMPDIR/t2"
    cmp "$BATS_TEST_TMPDIR/t1" "$BATS_TEST_TMPDIR/t3"
}

@test "plain C, AVX2, AVX-VNNI and AVX-512 agree to 1e-4 relative" {
    for model in "$m" "$q"; do
        QLAB_ISA=plain ppl "$model" --text $text --ctx 64 --chars 2000
        plain=$(jq .results.ppl "$r")
        for isa in avx2 avxvnni avx512; do
            best=$(jq -r '.host.isa_used' <("$B/bin/qppl" -q "$m" --text $text --ctx 64 --chars 300))
            [ $isa = avx512 ] && [ "$best" != avx512 ] && skip "this processor offers $best at best"
            [ "$best" = plain ] && skip "this processor offers plain C only"
            [ $isa != avxvnni ] || holds '.host.isa | any(. == "avx_vnni" or . == "avx512_vnni")' "$r" || continue
            QLAB_ISA=$isa ppl "$model" --text $text --ctx 64 --chars 2000
            holds ".host.isa_used == \"$isa\" and ((.results.ppl / $plain - 1) | fabs < 1e-4)" "$r"
        done
    done
}

@test "a long window runs in pieces with the same result" {
    ppl "$m" --text $text --protocol gptq --ctx 512 --max-windows 1
    a=$(jq .results.nll "$r")
    ppl "$m" --text $text --protocol hf-sliding --ctx 512 --stride 512 --max-windows 1
    holds "(.results.nll - $a) | fabs < 1e-9" "$r"
}

@test "invalid UTF-8 is read as U+FFFD, with a warning" {
    { head -c 900 $text; printf 'a\xff\xfeb'; head -c 900 $text; } >"$BATS_TEST_TMPDIR/bad.txt"
    run --separate-stderr "$B/bin/qppl" "$m" --text "$BATS_TEST_TMPDIR/bad.txt" --ctx 64
    [ "$status" = 0 ]
    [[ "$stderr" == *"2 invalid UTF-8 sequences"* ]]
}

@test "a text that shares runs of 32 tokens with the calibration text is refused" {
    head -c 3000 $text >"$BATS_TEST_TMPDIR/leak.txt"
    refused 1 "shares" "$m" --text $text --ctx 64 --leak "$BATS_TEST_TMPDIR/leak.txt"
    ppl "$m" --text $text --ctx 64 --chars 1000 --leak data/calibration.txt
}

@test "bad input: one line, no record" {
    printf 'short' >"$BATS_TEST_TMPDIR/short.txt"
    : >"$BATS_TEST_TMPDIR/empty.txt"
    refused 1 "too short" "$m" --text "$BATS_TEST_TMPDIR/short.txt"
    refused 1 "too short" "$m" --text "$BATS_TEST_TMPDIR/short.txt" --protocol gptq --ctx 64
    refused 1 "too short" "$m" --text "$BATS_TEST_TMPDIR/empty.txt" --protocol hf-sliding
    refused 1 "No such file" "$m" --text "$BATS_TEST_TMPDIR/none.txt"
    refused 1 "No such file" "$BATS_TEST_TMPDIR/none" --text $text
    refused 1 "the model's context is" "$m" --text $text --ctx 100000
    cp -r "$m" "$BATS_TEST_TMPDIR/notok"
    rm "$BATS_TEST_TMPDIR/notok/tokenizer.json"
    refused 1 "tokenizer.json" "$BATS_TEST_TMPDIR/notok" --text $text
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/v512" --vocab 512
    refused 1 "vocabulary" "$m" --text $text --ctx 64 --ref "$BATS_TEST_TMPDIR/v512"
    refused 1 "CUDA" "$m" --text $text --device cuda
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/nan" --nan model.norm.weight
    refused 1 "not finite" "$BATS_TEST_TMPDIR/nan" --text $text --ctx 64 --chars 500
    refused 1 "kld is not finite" "$m" --ref "$BATS_TEST_TMPDIR/nan" --text $text --ctx 64 --chars 500 --nll "$BATS_TEST_TMPDIR/no-nll"
    [ ! -e "$BATS_TEST_TMPDIR/no-nll" ]
    refused 2 "--text" "$m"
    refused 2 "one MODEL" --text $text
    refused 2 "not an integer" "$m" --text $text --ctx 12x
    refused 2 "unknown" "$m" --text $text --protocol none
    refused 2 "needs --ref" "$m" --text $text --ref-cache x
    refused 2 "needs --ref-cache" "$m" --text $text --ref "$m" --ref-logits 1
}

@test "a closed or full stdout is a failure" {
    run bash -c "'$B/bin/qppl' -q '$m' --text $text --ctx 64 --chars 500 >&-"
    [ "$status" = 1 ]
    [[ "$output" == "qppl: stdout"* ]]
    run bash -c "'$B/bin/qppl' -q '$m' --text $text --ctx 64 --chars 500 >/dev/full"
    [ "$status" = 1 ]
    [[ "$output" == "qppl: stdout"* ]]
}

@test "an unwritable --nll leaves nothing" {
    refused 1 "nowhere" "$m" --text $text --ctx 64 --chars 500 --nll "$BATS_TEST_TMPDIR/nowhere/nll"
}
