#!/usr/bin/env bats
# qbench on tiny models: the record's shape and its own arithmetic, and what it refuses.

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    "$B/tests/mkmodel" -q llama-tied "$BATS_FILE_TMPDIR/m"
    "$B/tests/mkmodel" -q llama-tied "$BATS_FILE_TMPDIR/bare" --no-tokenizer
}

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    m=$BATS_FILE_TMPDIR/m
    bare=$BATS_FILE_TMPDIR/bare
    r=$BATS_TEST_TMPDIR/r.json
    fast=(-q --prompt-tokens 20 --gen 4 --warmup 1 --trials 3)
}

bench() { "$B/bin/qbench" "${fast[@]}" "$@" >"$r"; }

# refused STATUS MESSAGE ARGS…: exit status, one line on stderr with the message, nothing on stdout
refused() {
    local status_wanted=$1 message=$2
    shift 2
    run --separate-stderr "$B/bin/qbench" "$@"
    [ "$status" = "$status_wanted" ] || { echo "status $status: $stderr"; false; }
    [ -z "$output" ]
    [[ "$stderr" == "qbench: "*"$message"* ]] || { echo "$stderr"; false; }
    [ "$status_wanted" = 2 ] || [ "$(wc -l <<<"$stderr")" = 1 ] || { echo "$stderr"; false; }
}

holds() { jq -e "$1" "$r" >/dev/null || { jq -c .results "$r"; echo "does not hold: $1"; false; }; }

bats_require_minimum_version 1.5.0

@test "the record has the schema's shape, one line, and nothing else is printed" {
    run --separate-stderr bash -c '"$B/bin/qbench" "$@" >"$0"' "$r" "$bare" "${fast[@]}" --depth 0,30
    [ "$status" = 0 ]
    [ -z "$stderr" ]
    [ "$(wc -l <"$r")" = 1 ]
    "$B/tests/schema_check" docs/schema/qbench.json "$r"
}

@test "samples, summaries and the two rates agree" {
    bench "$bare" --depth 30,0
    holds '.results.runs | map(.depth) == [30, 0]'
    holds '.results as $r | [$r.runs[0][ "ttft_ms","prefill_tps","decode_tps","token_ms"]] ==
           [$r["ttft_ms","prefill_tps","decode_tps","token_ms"]]'
    holds '[.results.runs[] | .ttft_ms.n, .prefill_tps.n, .decode_tps.n] == [3,3,3,3,3,3]'
    holds '[.results.runs[] | .token_ms.n, (.token_ms.samples | length)] == [9,9,9,9]'
    holds '[.results.runs[] | .ttft_ms | .min <= .p50 and .p50 <= .p90 and .p90 <= .p99] | all'
    holds '[.results.runs[] | .ttft_ms.min == (.ttft_ms.samples | min)] | all'
    holds '[.results.runs[] | range(3) as $t | (.ttft_ms.samples[$t] * .prefill_tps.samples[$t] / 20000 - 1) | fabs < 1e-6] | all'
    holds '[.results.runs[] | range(3) as $t |
            ((.token_ms.samples[3*$t:3*$t+3] | add) * .decode_tps.samples[$t] / 3000 - 1) | fabs < 1e-6] | all'
}

@test "the memory ledger and the bytes a token reads" {
    bench "$bare" --depth 0,30 --compute f32
    holds '.params.compute == "f32" and .results.compute == "f32"'
    holds '.results.memory | .predicted_bytes == .weights_bytes + .kv_bytes + .scratch_bytes'
    # K and V, 2 layers, 30 + 20 + 4 tokens (a backend may round up to a block of 64), 2 heads of 16, f32
    holds '.results.memory.kv_bytes | . >= 2*2*54*2*16*4 and . <= 2*2*64*2*16*4'
    holds '.results.memory | .peak_rss_bytes > 0 and .peak_rss_bytes < .weights_bytes + .kv_bytes + 200e6'
    holds '.results.memory.device_peak_bytes == null'
    # bf16 linears and tied head, f32 norms, one embedding row; K and V of 20 + 2 tokens
    holds '.results.bandwidth.decode_bytes_per_token ==
           2*(2*(64*64*2 + 64*32*2 + 64*160*3) + 256*64) + 4*64*5 + 2*64 + 22*2*2*2*16*4'
    holds '.results.bandwidth | .read_bytes_per_s > 1e7 and .decode_fraction > 0 and .decode_fraction < 10'
}

@test "--prompt adds what was generated, the same for any number of threads" {
    "$B/bin/qbench" -q "$m" --prompt "Once upon a time" --gen 6 --trials 2 --compute f32 -t 1 >"$r"
    "$B/tests/schema_check" docs/schema/qbench.json "$r"
    holds '.results.generated.token_ids | length == 6'
    holds '.results.generated.text | type == "string"'
    holds '.results.prompt_tokens == 16'
    "$B/bin/qbench" -q "$m" --prompt "Once upon a time" --gen 6 --trials 2 --compute f32 -t 3 >"$r.3"
    [ "$(jq -c .results.generated "$r")" = "$(jq -c .results.generated "$r.3")" ]
    bench "$bare"
    holds '.results | has("generated") | not'
}

@test "the record names seed, prompt length and the compute kind that auto became" {
    bench "$bare" --seed 2
    holds '.params.seed == 2 and .params.prompt_tokens == 20'
    holds '.params.compute | IN("f32", "f16", "bf16", "int8", "int8x2")'
}

@test "--kernels: every op of both phases, with bytes and operations" {
    bench "$bare" --kernels --depth 10
    holds '[.results.kernels[].phase] | unique == ["decode","fill","prefill"]'
    # fused or not: seven linears a layer in four calls and the head, products and little else
    holds '[.results.kernels[] | select(.phase == "decode" and .format == "bf16" and .op != "embed")] |
           (map(.calls) | add) == 27 and
           ((map(.ops) | add) / (3*2*(2*(64*64*2 + 64*32*2 + 64*160*3) + 256*64)) | . >= 1 and . < 1.05)'
    holds '[.results.kernels[] | select(.phase == "decode") | .op] |
           (index("score") or index("argmax")) and index("embed") and
           any(startswith("attention") or startswith("rope_attention"))'
    holds '[.results.kernels[] | .ms > 0 and .bytes > 0] | all'
}

@test "--kernels: rates and fractions follow from the sums, and the kernels from the phases" {
    bench "$bare" --kernels --depth 10
    "$B/tests/schema_check" docs/schema/qbench.json "$r"
    holds '.results.peak.f32 | .ops_per_s > 1e8 and (.instruction | length > 0)'
    # to the six digits that survive printing
    holds '.results.bandwidth.read_bytes_per_s as $bw | .results.peak as $peak | [.results.kernels[] |
            (.bytes_per_s * .ms / 1e3 / .bytes - 1 | fabs < 1e-6) and
            (.bandwidth_fraction * $bw / .bytes_per_s - 1 | fabs < 1e-6) and
            if .ops == 0 then .peak == null and .peak_fraction == null
            else (.ops_per_s * .ms / 1e3 / .ops - 1 | fabs < 1e-6) and
                 (.peak_fraction * $peak[.peak].ops_per_s / .ops_per_s - 1 | fabs < 1e-6) and
                 .peak_fraction > 0 and .peak_fraction <= 1.2 end] | all'
    holds '.results as $r | [.results.phases[] | .phase as $p | .kernels_ms <= .wall_ms and .kernels_ms > 0 and
            (([$r.kernels[] | select(.phase == $p).ms] | add) / .kernels_ms - 1 | fabs < 1e-6)] | length == 3 and all'
    bench "$bare"
    holds '.results | has("kernels") or has("peak") | not'
}

@test "--kernels: integer weights are held against the integer peak, where they are multiplied as integers" {
    "$B/bin/qquant" -q "$bare" -f int4-g32 -o "$BATS_TEST_TMPDIR/q" >/dev/null
    "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/q" --prompt-tokens 20 --gen 3 --trials 1 --kernels --compute int8 >"$r"
    holds '.results | .peak.int8 as $p | [.kernels[] | select(.format == "int4-g32") | .peak] | length > 0 and
           (unique == [if $p then "int8" else null end])'
    holds '[.results.kernels[] | select(.format == "bf16" and .ops > 0) | .peak] | unique == ["f32"]' # the head stays in floats
    "$B/bin/qquant" -q "$bare" -f int4-strided128 -o "$BATS_TEST_TMPDIR/s" >/dev/null # recoded: integers as well
    "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/s" --prompt-tokens 20 --gen 3 --trials 1 --kernels --compute int8 >"$BATS_TEST_TMPDIR/s.json"
    jq -e '.results | .peak.int8 as $p | [.kernels[] | select(.format == "int4-strided128") | .peak] | length > 0 and
           (unique == [if $p then "int8" else null end])' "$BATS_TEST_TMPDIR/s.json"
    # never more than there is: an instruction that multiplies 4 pairs a lane beats one that multiplies one
    holds '.results.peak | .int8 == null or .int8.ops_per_s > .f32.ops_per_s'
    "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/q" --prompt-tokens 20 --gen 3 --trials 1 --kernels --compute f32 >"$r"
    holds '[.results.kernels[] | select(.format == "int4-g32") | .peak] | unique == ["f32"]'
    for isa in plain avx2 avxvnni; do
        QLAB_ISA=$isa "$B/bin/qbench" -q "$bare" --prompt-tokens 5 --gen 2 --trials 1 --kernels --compute f32 >"$r" || skip "no $isa"
        holds '[.results.kernels[] | select(.ops > 0) | .peak_fraction <= 1.2] | all'
    done
}

@test "--gen 1 measures the time to first token alone" {
    "$B/bin/qbench" -q "$bare" --prompt-tokens 5 --gen 1 --trials 2 --warmup 0 >"$r"
    "$B/tests/schema_check" docs/schema/qbench.json "$r"
    holds '.results | .ttft_ms.n == 2 and .decode_tps == null and .token_ms == null and .bandwidth.decode_fraction == null'
}

@test "usage errors" {
    refused 2 "MODEL"
    refused 2 "MODEL" "$m" "$m"
    refused 2 "--gen 0: out of range" "$m" --gen 0
    refused 2 "--trials 0: out of range" "$m" --trials 0
    refused 2 "--depth 0,x" "$m" --depth 0,x
    refused 2 "--depth -1" "$m" --depth -1
    refused 2 "exclude each other" "$m" --prompt a --prompt-tokens 3
    refused 2 "exclude each other" "$m" --prompt a --prompt-tokens 512 # as the default has it
}

@test "what does not fit the model's context" {
    refused 1 "depth 500 + prompt 20 + gen 4 tokens exceed the model's context (at most 512 were expected)" \
        "$bare" "${fast[@]}" --depth 0,500
    refused 1 "exceed the model's context" "$bare" # 512 + 64
    refused 1 "exceed the model's context" "$bare" --prompt-tokens 16777216 --gen 16777216
}

@test "--prompt without a tokenizer, an empty one, one that is not UTF-8" {
    refused 1 "bare" "$bare" --prompt hello
    refused 1 "no tokens" "$m" --prompt ""
    refused 1 "not UTF-8" "$m" --prompt $'\xff'
}

@test "models that are none, and devices that are not there" {
    refused 1 "nowhere" "$BATS_TEST_TMPDIR/nowhere"
    mkdir "$BATS_TEST_TMPDIR/empty"
    refused 1 "empty" "$BATS_TEST_TMPDIR/empty"
    refused 1 "cuda:99" "$bare" "${fast[@]}" --device cuda:99
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/nan" --nan model.layers.1.mlp.up_proj.weight
    for c in f32 int8; do
        refused 1 "nan: the model's logits are not finite" -q "$BATS_TEST_TMPDIR/nan" --prompt-tokens 4 --gen 1 --warmup 0 --trials 1 --compute $c
    done
}

@test "decoding is held against reads of its own weights around each trial" {
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/wide" --hidden 1024 --vocab 40000 --layers 1 --no-tokenizer
    "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/wide" --prompt-tokens 2 --gen 4 --warmup 1 --trials 3 --depth 0,4 --compute f32 >"$BATS_TEST_TMPDIR/r.json"
    jq -e '.results | .bandwidth as $b | ($b.samples | sort) as $s | $b.read_from == "weights" and ($s | length) == 4 and
           (($s[1] + $s[2]) / 2 / $b.read_bytes_per_s - 1 | fabs) < 1e-9 and
           ([range(3) as $t | $b.decode_bytes_per_token * .decode_tps.samples[$t] / (($b.samples[$t] + $b.samples[$t + 1]) / 2)] |
            sort[1] / $b.decode_fraction - 1 | fabs) < 1e-9' "$BATS_TEST_TMPDIR/r.json"
    "$B/bin/qbench" -q "$m" --prompt-tokens 2 --gen 4 --warmup 0 --trials 1 --compute f32 |
        jq -e '.results.bandwidth | .read_from == "buffer" and .samples == []'
}

@test "a closed stdout and a full disk are failures" {
    run bash -c '"$B/bin/qbench" "$@" 2>&1 >&-' - "$bare" "${fast[@]}"
    [ "$status" = 1 ]
    [[ "$output" == "qbench: stdout: "* ]]
    [ ! -e /dev/full ] || {
        run bash -c '"$B/bin/qbench" "$@" 2>&1 >/dev/full' - "$bare" "${fast[@]}"
        [ "$status" = 1 ]
        [[ "$output" == "qbench: stdout: "* ]]
    }
}
