#!/usr/bin/env bats
# tests/gpu/run itself, with the CPU in place of a GPU and a tiny model: what it makes, that it goes on, that it fails.

load common

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || return
    export B=${B:-build} OUT=$BATS_TEST_TMPDIR/out DEVICE=cpu SHAPES='' FORMATS="f16 int8-row" DEPTHS=0,8 PROMPTS=16 GEN=4 MODEL=''
}

@test "perplexity and speed: records, one JSON, one table; a second run does nothing again" {
    run tests/gpu/run ppl
    [ "$status" = 0 ]
    MODEL=$OUT/models/tiny
    run tests/gpu/run bench
    [ "$status" = 0 ]
    [ "$(jq '.records | length' "$OUT/gpu.json")" = 7 ] # 2 + 3 of perplexity, 2 of speed
    grep -qE '^\| tiny-int8-row \| [0-9.]+ \| [0-9.]+ \| [0-9.]+ \| -?[0-9.]+ \|$' "$OUT/gpu.md"
    grep -qE '^\| default-int8-row-p16 \| [0-9.]+ \| [0-9.]+ \| [0-9.e-]+ \| [0-9.]+ \|  \|  \| [0-9.]+ \|$' "$OUT/gpu.md"
    before=$(sha256sum "$OUT"/records/*.json)
    run tests/gpu/run bench
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 2 ]
    MODEL='' run tests/gpu/run ppl
    [ "$(grep -c 'done before' <<<"$output")" = 5 ]
    [ "$(sha256sum "$OUT"/records/*.json)" = "$before" ]
}

@test "a step that fails is named, exits 1, leaves no record, and is tried again" {
    DEVICE=cuda:77 run tests/gpu/run ppl
    [ "$status" = 1 ]
    [[ "$output" == *"ppl-tiny-f16-f32.json: FAILED (exit 1): qppl: "* ]]
    [ ! -e "$OUT/records/ppl-tiny-f16-f32.json" ]
    run tests/gpu/run ppl
    [ "$status" = 0 ]
}

@test "a perplexity that differs by more than 1e-3 fails" {
    FORMATS=f16 run tests/gpu/run ppl
    [ "$status" = 0 ]
    sed -i -E 's/"ppl":1/"ppl":2/' "$OUT/records/ppl-tiny-f16-f32.json"
    FORMATS=f16 run tests/gpu/run ppl
    [ "$status" = 1 ]
    [[ "$output" == *"within 1e-3 was expected"* ]]
}

@test "an unknown part is usage" {
    run tests/gpu/run sped
    [ "$status" = 2 ]
}

@test "tests of kernels that find no device fail, and are tried again" {
    mkdir -p "$BATS_TEST_TMPDIR/b/gpu"
    export B=$BATS_TEST_TMPDIR/b
    printf '#!/bin/sh\necho "ok 1 - x # SKIP no driver"\necho 1..1\n' >"$B/gpu/test_x"
    chmod +x "$B/gpu/test_x"
    run tests/gpu/run ops
    [ "$status" = 1 ]
    [[ "$output" == *"test_x: FAILED: no driver"* ]]
    sed -i 's/ # SKIP no driver//' "$B/gpu/test_x"
    run tests/gpu/run ops
    [ "$status" = 0 ]
    [[ "$output" != *"done before"* ]]
    grep -q '^| test_x | 1 | 0 |$' "$OUT/gpu.md"
    grep -q '^| test_x-pdl | 1 | 0 |$' "$OUT/gpu.md"
}

@test "programmatic dependent launch: the tests of kernels with it too, decode without and with it in turn" {
    mkdir -p "$BATS_TEST_TMPDIR/b/gpu"
    printf '#!/bin/sh\necho "ok 1 - x $QLAB_CUDA_PDL"\necho 1..1\n' >"$BATS_TEST_TMPDIR/b/gpu/test_x"
    chmod +x "$BATS_TEST_TMPDIR/b/gpu/test_x"
    B=$BATS_TEST_TMPDIR/b run tests/gpu/run ops
    [ "$status" = 0 ]
    grep -q 'x 0' "$OUT/records/test_x.tap"
    grep -q 'x 1' "$OUT/records/test_x-pdl.tap"
    "$B/tests/mkmodel" bigram "$BATS_TEST_TMPDIR/m"
    MODEL=$BATS_TEST_TMPDIR/m FORMATS=int8-row run tests/gpu/run pdl
    [ "$status" = 0 ]
    [ "$(jq '.records | length' "$OUT/gpu.json")" = 6 ]
    grep -qE '^\| default-int8-row \| [0-9.]+ \| [0-9.]+ \| [0-9]+\.[0-9]{3} \|$' "$OUT/gpu.md"
}

# bench FORMAT TOKENS_PER_S: a record of part bench with two depths, as qbench puts its keys
bench() {
    mkdir -p "$OUT/records"
    run_of() { # TOKENS_PER_S ENERGY
        printf '{"prefill_tps":{"n":1,"min":1,"p50":9,"max":9},"decode_tps":{"n":1,"min":1,"p50":%s,"max":9},"device":{"energy":%s}}' "$1" "$2"
    }
    printf '{"tool":"qbench","results":{"runs":[%s,%s],"decode_tps":{"n":1,"min":1,"p50":%s,"max":9},"memory":{"weights_bytes":1073741824},"bandwidth":{"decode_fraction":0.75}}}\n' \
        "$(run_of "$2" '{"passes":1,"prefill_j_per_token":0.25,"decode_j_per_token":null}')" \
        "$(run_of 7 '{"passes":1,"prefill_j_per_token":0.5,"decode_j_per_token":3}')" "$2" >"$OUT/records/bench-default-$1-p16.json"
}

@test "the table has energy of the first depth, as it has speeds" {
    bench int8-row 100
    run tests/gpu/run summary
    [ "$status" = 0 ]
    grep -qFx '| default-int8-row-p16 | 9 | 100 | 0.75 |  | 0.25 |  | 1.00 |' "$OUT/gpu.md"
}

# Programs that stand for peers: a llama-bench that writes what the real one does, a python3 without torch
fake_peers() {
    mkdir -p "$BATS_TEST_TMPDIR/bin"
    cat >"$BATS_TEST_TMPDIR/bin/llama-bench" <<'END'
#!/bin/sh
printf '[\n  {\n    "n_prompt": 2048,\n    "n_gen": 0,\n    "avg_ts": 900.5,\n    "samples_ts": [ 900.5 ]\n  },\n'
[ -z "$FAIL" ] || exit 3
printf '  {\n    "n_prompt": 0,\n    "n_gen": 4,\n    "avg_ts": 50.0,\n    "samples_ts": [ 50.0 ]\n  }\n]\n'
END
    printf '#!/bin/sh\nexit 1\n' >"$BATS_TEST_TMPDIR/bin/python3"
    chmod +x "$BATS_TEST_TMPDIR"/bin/*
    touch "$BATS_TEST_TMPDIR/q4_0.gguf"
    export PATH=$BATS_TEST_TMPDIR/bin:$PATH GGUF=$BATS_TEST_TMPDIR/q4_0.gguf
}

@test "llama-bench's array is a record among the others, and the ratio to it is in the table" {
    fake_peers
    export FORMATS='int8-row int4-g128'
    bench int4-g128 100
    FAIL=1 run tests/gpu/run peers
    [ "$status" = 1 ]
    [[ "$output" == *"peers-ggml.json: FAILED (exit 3)"* ]]
    run tests/gpu/run peers
    [ "$status" = 0 ] || { echo "$output"; false; }
    jq -e '[.records[] | select(.tool == "llama-bench") | .results.runs[] | .avg_ts] == [900.5, 50]' "$OUT/gpu.json"
    grep -qFx '| int4-g128 over Q4_0 | 2.00 |' "$OUT/gpu.md"
}

@test "a peer whose format is not in FORMATS is left out, and that is said" {
    fake_peers
    mkdir -p "$OUT/records"
    echo '{"tool":"peers.py","results":{"decode_tps":10}}' >"$OUT/records/peers-nf4-default.json"
    run tests/gpu/run peers
    [ "$status" = 0 ]
    [ ! -e "$OUT/records/peers-ggml.json" ]
    [[ "$output" == *"no int4-g128 in FORMATS to compare ggml with, left out"* ]]
    [[ "$output" == *"no nf4 in FORMATS to compare nf4-default with, left out"* ]]
    [[ "$output" != *sed:* ]]
    [ "$(grep -c 'in transformers' "$OUT/gpu.md")" = 0 ]
    FORMATS=nf4 run tests/gpu/run summary # nor was it measured
    [ "$status" = 0 ]
    [[ "$output" == *"no bench-default-nf4-p16.json beside nf4-default (part bench)"* ]]
    bench nf4 30
    FORMATS=nf4 run tests/gpu/run summary
    grep -qFx 'default, nf4 decodes 10 tokens/s in transformers; nf4 here, 3.00 times that.' "$OUT/gpu.md"
}
