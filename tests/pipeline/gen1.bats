#!/usr/bin/env bats
# gen1 on a tiny model: what it makes, that a second run does nothing, that what changed is made again.

bats_require_minimum_version 1.5.0

setup_file() {
    "$B/tests/mkmodel" -q bigram "$BATS_FILE_TMPDIR/tiny" --dtype f16
}

gen1() { # VARIABLE=VALUE…
    make --no-print-directory -C "$BATS_TEST_DIRNAME/../../pipelines" gen1 MODEL="$BATS_FILE_TMPDIR/tiny" OUT="$BATS_FILE_TMPDIR/out" \
        BIN="$B/bin" RANDOM_MIXES=3 RANDOM_WINDOWS=1 WINDOWS=2 SENS_CHARS=120 CANDIDATES='int4-g128 int4-g64 int8-row' ALSO=seed-mixed \
        BENCH_PROMPTS='4 8' BENCH_DEPTHS=0,8 BENCH_GEN=3 BENCH_TRIALS=1 BUDGET=5.0 "$@"
}

@test "gen1 makes recipes, records and a verdict" {
    gen1 THREADS=1 >"$BATS_FILE_TMPDIR/said"
    m=$(echo "$BATS_FILE_TMPDIR"/out/tiny-*)
    "$B/tests/schema_check" "$BATS_TEST_DIRNAME/../../docs/schema/qreport.json" "$m/gen1/gen1.json"
    jq -e '.results | (.budgets | length) == 3 and (.random | length) == 3' "$m/gen1/gen1.json"
    jq -e '.results.budgets[] | select(.recipe == "mix-portable-5.0") | .portable and .bpw < 5.1' "$m/gen1/gen1.json"
    jq -e '.results.budgets[] | select(.recipe == "mix-5.0") | .margin_se_paired and (.chord | type) == "number"' "$m/gen1/gen1.json"
    jq -e '.params.method == "mse"' "$m/int4-g32-sym+mse/quant.json"
    jq -e '.results.method == "mse"' "$m/sens-isolated-int4-g32-sym+mse.json"
    jq -e '.results.uniform[] | select(.recipe == "int4-g32-sym+mse") | .predicted > 0' "$m/gen1/gen1.json"
    jq -e '.results.spearman | [.[] | type] | all(. == "number")' "$m/gen1/gen1.json"
    jq -e '.params.leak != null' "$m/gen1/ppl/mix-5.0.json"
    [ "$(jq -s '[.[].results.runs[].depth] | length' "$m"/gen1/bench-*.json)" = 8 ]
    [ -s "$m/gen1/sens/lbl_analysis.md" ]
    [ -s "$m/gen1/mix.svg" ]
    [ -s "$m/gen1/speed.svg" ]
    grep -q '(<weights.svg>)' "$m/gen1/sens/lbl_analysis.md"
    jq -e '[.results.speed[] | select(.name == "int4-g64") | .faster_decode] | length == 4 and all(. > 0)' "$m/gen1/speed.json"
    [ "$(find "$m/gen1" -name model -o -name '*.tmp' -o -name '*.part*' | wc -l)" = 0 ]
    grep -q '^| mix-5.0 ' "$BATS_FILE_TMPDIR/said"
    grep -qx "report: $(realpath "$m/gen1/report.md")" "$BATS_FILE_TMPDIR/said"
    grep -q 'isolated sensitivity of each linear (about ' "$BATS_FILE_TMPDIR/said"
}

@test "a second run does nothing; another text is measured again" {
    m=$(echo "$BATS_FILE_TMPDIR"/out/tiny-*)
    find "$m" -name '*.json' -printf '%p %T@\n' | sort >"$BATS_TEST_TMPDIR/before"
    gen1 THREADS=1 >"$BATS_TEST_TMPDIR/said"
    find "$m" -name '*.json' -printf '%p %T@\n' | sort | diff "$BATS_TEST_TMPDIR/before" -
    ! grep -q 'about' "$BATS_TEST_TMPDIR/said"
}

@test "gen2 does not measure again what gen1 has measured" {
    m=$(echo "$BATS_FILE_TMPDIR"/out/tiny-*)
    stat -c '%n %Y.%i' "$m"/*/ppl.json | sort >"$BATS_TEST_TMPDIR/before"
    make --no-print-directory -C "$BATS_TEST_DIRNAME/../../pipelines" gen2 MODEL="$BATS_FILE_TMPDIR/tiny" OUT="$BATS_FILE_TMPDIR/out" \
        BIN="$B/bin" WINDOWS=2 THREADS=1 FORMATS='int4-g64 f16 nf4' BENCH='--prompt-tokens 4 --gen 2 --warmup 0 --trials 1'
    stat -c '%n %Y.%i' "$m"/*/ppl.json | sort | join "$BATS_TEST_TMPDIR/before" - | while read -r name a b; do
        [ "$a" = "$b" ] || { echo "$name: made again"; exit 1; }
    done
    [ -s "$m/nf4/ppl.json" ]
    run ! grep -q /nf4/ "$BATS_TEST_TMPDIR/before"
}

@test "a text that the calibration shares is refused" {
    run gen1 TEXT="$BATS_TEST_DIRNAME/../../data/calibration.txt"
    [ "$status" != 0 ]
    [[ "$output" == *"shares "*calibration.txt* ]]
    [[ "$output" != *sensitivity* ]] # at once, before anything long
}
