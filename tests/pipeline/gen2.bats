#!/usr/bin/env bats
# gen2 on a tiny model with the real tools: what it makes, and what it makes again when something changes.

setup_file() {
    load common
    common_setup_file
}

setup() {
    load common
    common_setup
}

@test "a first run makes every artifact, numbers its stages, prints the table and where the report is" {
    start
    T=$BATS_FILE_TMPDIR/first
    [ "$(ran)" = "qbench 4 qload 3 qppl 2 qquant 2 qreport 1" ] || { ran; false; }
    m=$(echo "$T"/out/tiny-*)
    for r in $formats; do
        for f in quant load ppl bench say; do jq -e .results "$m/$r/$f.json" >/dev/null; done
        [ -f "$m/$r/model/config.json" ]
    done
    [ -L "$m/f16/model" ]
    [ "$m/f16/model" -ef "$model" ]
    n=$(grep -c '^\[' "$T/said")
    [ "$(sed -n 's/^\[ *\([0-9]*\)\/\([0-9]*\)\].*/\1\/\2/p' "$T/said")" = "$(for ((i = 1; i <= n; i++)); do echo "$i/$n"; done)" ]
    [ "$(jq -r '[.results.rows[].name] | join(" ")' "$m/gen2/report.json")" = "$formats" ]
    [ "$(grep -c '^|' "$T/said")" = 4 ]
    grep -qx "report: $(realpath "$m/gen2/report.md")" "$T/said"
    [ -s "$m/gen2/report.md" ]
    [ -s "$m/gen2/report.csv" ]
    [ -s "$m/gen2/ppl.svg" ]
    nothing_left
}

@test "all quality figures are against f16, whose own difference is zero" {
    start
    [ "$(jq -c '.results.delta_nll.mean, .results.kld.mean' "$m/f16/ppl.json")" = $'0\n0' ]
    jq -e '.results | .kld.mean > 0 and .also.compute == "int8" and .also.n_windows > 0' "$m/$x/ppl.json" >/dev/null
    jq -e '.results.rows | .[0].int8_kld.mean == null and .[1].int8_kld.mean > 0' "$m/gen2/report.json" >/dev/null
    grep -q '^| format .*| KLD of int8 compute |$' "$m/gen2/report.md"
    [ "$(jq -r '.inputs[] | select(.role == "ref").sha256' "$m"/*/ppl.json | sort -u | wc -l)" = 1 ]
    # the kept states give what running f16 again gives
    "$B/bin/qppl" -q "$m/$x/model" --text "$text" --ref "$model" --also int8 --also-windows 4 | jq -cS .results >"$T/again"
    jq -cS .results "$m/$x/ppl.json" | cmp - "$T/again"
}

@test "a second run executes nothing, touches no artifact and takes less than 2 s" {
    start
    find "$T/out" -printf '%p %T@\n' | grep -v '/\.stamp ' | sort >"$T/before"
    t0=$(date +%s%N)
    ok
    t1=$(date +%s%N)
    ran_is ''
    find "$T/out" -printf '%p %T@\n' | grep -v '/\.stamp ' | sort | diff "$T/before" -
    grep -q '^report: ' "$T/said"
    echo "took $(((t1 - t0) / 1000000)) ms"
    [ $((t1 - t0)) -lt 2000000000 ]
}

@test "a rebuilt tool with the same results version reruns nothing" {
    start
    touch "$T"/bin/*
    ok
    ran_is ''
}

@test "a raised results version reruns exactly what depends on that tool" {
    start
    echo version 77 >"$T/on.qreport"
    ok
    ran_is 'qreport 1'
    echo version 77 >"$T/on.qbench"
    ok
    ran_is 'qbench 4 qreport 1'
    echo version 77 >"$T/on.qppl"
    ok
    ran_is 'qppl 2 qreport 1'
    echo version 77 >"$T/on.qsens"
    ok
    ran_is ''
    echo version 77 >"$T/on.qload"
    ok
    ran_is 'qload 3 qreport 1'
    echo version 77 >"$T/on.qquant"
    ok
    ran_is 'qbench 4 qload 2 qppl 2 qquant 2 qreport 1'
    ok
    ran_is ''
    same_results
}

@test "another text, form, protocol or limit reruns perplexities and the report alone" {
    start
    head -c 1300 data/calibration.txt >"$T/other text.txt"
    ok TEXT="$T/other text.txt"
    ran_is 'qppl 2 qreport 1'
    [ "$(jq -r .results.n_chars "$m/f16/ppl.json")" -gt 1200 ]
    ok TEXT="$T/other text.txt" CHARS=1100
    ran_is 'qppl 2 qreport 1'
    [ "$(jq -c '.results.n_chars' "$m"/*/ppl.json | sort -u)" = 1100 ]
    ok TEXT="$T/other text.txt" CHARS=1100 WINDOWS=1
    ran_is 'qppl 2 qreport 1'
    ok TEXT="$T/other text.txt" CHARS=1100 WINDOWS=1 PROTOCOL=hf-sliding
    ran_is 'qppl 2 qreport 1'
    ok
    ran_is 'qppl 2 qreport 1'
    same_results
    # the same text under another name is the same text
    cp "$text" "$T/copy"
    ok TEXT="$T/copy"
    ran_is ''
}

@test "THREADS and BENCH rerun the speed alone, PROMPT the sentences, COMPUTE all that computes" {
    start
    ok THREADS=1
    ran_is 'qbench 2 qreport 1'
    ok THREADS=1 PROMPT=Twice
    ran_is 'qbench 2 qreport 1'
    [ "$(jq -r .params.prompt "$m/f16/say.json")" = Twice ]
    ok THREADS=1 PROMPT=Twice BENCH='--prompt-tokens 5 --gen 2 --warmup 0 --trials 1'
    ran_is 'qbench 2 qreport 1'
    [ "$(jq -r .params.prompt_tokens "$m/f16/bench.json")" = 5 ]
    ok THREADS=1 PROMPT=Twice BENCH='--prompt-tokens 5 --gen 2 --warmup 0 --trials 1' COMPUTE=f32
    ran_is 'qbench 4 qppl 2 qreport 1'
}

@test "a dropped format disappears from the report, one that comes back is not made again" {
    start
    ok FORMATS="f16 $x nf4"
    ran_is 'qbench 2 qload 1 qppl 1 qquant 1 qreport 1'
    [ "$(jq -r '[.results.rows[].name] | join(" ")' "$m/gen2/report.json")" = "f16 $x nf4" ]
    ok FORMATS=nf4
    ran_is 'qreport 1'
    ok FORMATS='nf4 f16 nf4'
    ran_is 'qreport 1'
    [ "$(jq -c '[.results.rows[].name]' "$m/gen2/report.json")" = '["f16","nf4"]' ]
    run ! grep -qF "$x" "$m/gen2/report.csv" "$m/gen2/report.md"
    ok
    ran_is 'qreport 1'
    same_results
}

@test "a changed model reruns everything; a deleted record, itself and what depends on it" {
    start
    rm "$m/$x/ppl.json"
    ok
    ran_is 'qppl 1 qreport 1'
    rm "$m/$x/quant.json"
    ok
    ran_is 'qbench 2 qload 1 qppl 1 qquant 1 qreport 1'
    same_results
    cp -r "$model" "$T/tiny"
    ok MODEL="$T/tiny"
    "$B/tests/mkmodel" -q llama-tied "$T/tiny" --seed 6
    ok MODEL="$T/tiny"
    ran_is 'qbench 4 qload 3 qppl 2 qquant 2 qreport 1'
}

@test "-j2 gives the same results as one job" {
    start empty
    ok -j2
    same_results
    ok -j2
    ran_is ''
    nothing_left
}

@test "deleting OUT is safe: the same results again, nothing else is needed" {
    start
    rm -rf "$T/out"
    ok
    same_results
}

@test "paths with spaces, and paths that start from where make is called" {
    start empty
    cp -r "$model" "$T/a tiny model"
    cp "$text" "$T/a text"
    cd "$T"
    pipelines=$root/pipelines
    ok MODEL='a tiny model' TEXT='a text' OUT=here FORMATS='f16 int8-row'
    ran_is 'qbench 4 qload 3 qppl 2 qquant 2 qreport 1'
    [ -s "$(echo here/a_tiny_model-*)/gen2/report.md" ]
    ok MODEL="$T/a tiny model/" TEXT="$T/a text" OUT="$T/here" FORMATS='f16 int8-row'
    ran_is ''
}

@test "32-bit weights become a 16-bit folder, which is the base" {
    start empty
    "$B/tests/mkmodel" -q llama-tied "$T/wide" --dtype f32
    ok MODEL="$T/wide" FORMATS='f16 int8-row'
    m=$(echo "$T"/out/wide-*)
    [ -d "$m/f16/model" ]
    [ ! -L "$m/f16/model" ]
    "$B/bin/qload" -q "$m/f16/model" | jq -e '.results.dtypes.F16 > 0.9 * .results.weights_bytes' >/dev/null
    [ "$(jq -r '.results.rows[0].name' "$m/gen2/report.json")" = f16 ]
}

@test "a recipe from a file, which is read again when it changes" {
    start
    mkdir "$T/project"
    cp -r "$root/pipelines" "$root/data" "$T/project"
    pipelines=$T/project/pipelines
    ok FORMATS='f16 int4-g64-down8'
    ran_is 'qbench 2 qload 1 qppl 1 qquant 1 qreport 1'
    jq -e '[.results.tensors[] | select(.format == "int8-row").name] | length == 2 and all(test("down_proj"))' \
        "$m/int4-g64-down8/quant.json" >/dev/null
    echo '{"default": "int4-g64", "rules": [{"match": "*.up_proj", "format": "int8-row"}]}' \
        >"$pipelines/recipes/int4-g64-down8.json"
    ok FORMATS='f16 int4-g64-down8'
    ran_is 'qbench 2 qload 1 qppl 1 qquant 1 qreport 1'
}

@test "SAVE_EVAL_RESULTS appends a row a format to METRICS, once" {
    start
    export SAVE_EVAL_RESULTS=1
    ok METRICS="$T/metrics.csv"
    ran_is 'qreport 1'
    [ "$(wc -l <"$T/metrics.csv")" = 3 ]
    ok METRICS="$T/metrics.csv"
    ran_is ''
    [ "$(wc -l <"$T/metrics.csv")" = 3 ]
}

# refused MESSAGE VARIABLE=VALUE…: fails, says so, and runs no tool
refused() {
    local message=$1
    shift
    run ! gen2 "$@"
    grep -qF -- "$message" "$T/said" || { cat "$T/said"; false; }
    ran_is ''
}

@test "what cannot be is refused by name before anything runs" {
    start
    refused 'MODEL=nowhere: no known name' MODEL=nowhere
    refused 'MODEL=hf:x: hf:OWNER/NAME' MODEL=hf:x
    refused 'TEXT=nowhere.txt: no such file' TEXT=nowhere.txt
    refused 'names of formats or recipes were expected' FORMATS='f16 ../x'
    refused 'names of formats or recipes were expected' FORMATS="f16 a'b"
    refused 'in this path' OUT="$T/o ut"
    refused 'no tools there' BIN="$T"
    make --no-print-directory -C pipelines help MODEL=nowhere TEXT=nowhere FORMATS='x y' | grep -q 'MODEL  *nowhere'
}

@test "downloads: what fails or is not the pinned file leaves nothing; what is there is used" {
    start empty
    mkdir -p "$T/shared/text"
    printf 'not that text' >"$T/shared/text/wiki.test.raw"
    export QLAB_SHARED=$T/shared
    run ! gen2 TEXT=wikitext2
    grep -q 'TEXT=wikitext2: not the file that was expected' "$T/said"
    run ! gen2 MODEL=smollm2-135m PIP=false
    grep -q 'the default model cannot be downloaded by pip' "$T/said"
    [ -z "$(ls -A "$T/models")" ]
    # a hub model: the folder is taken when its record stands for it
    cp -r "$model" "$T/models/qwen2.5-0.5b-instruct"
    "$B/bin/qload" -q "$model" >"$T/models/qwen2.5-0.5b-instruct.json"
    ok MODEL=qwen2.5-0.5b-instruct FORMATS=f16
    ran_is 'qbench 2 qload 2 qppl 1 qquant 1 qreport 1'
}

@test "smoke: naive INT4 collapses on the generated model, groups of 32 do not; a second smoke does nothing" {
    start empty
    make --no-print-directory -C pipelines smoke BIN="$T/bin" MKMODEL="$B/tests/mkmodel" OUT="$T/out" MODELS="$T/models" >"$T/said" 2>&1 || { cat "$T/said"; false; }
    grep -q '^smoke: good\.' "$T/said"
    : >"$T/ran"
    make --no-print-directory -C pipelines smoke BIN="$T/bin" MKMODEL="$B/tests/mkmodel" OUT="$T/out" MODELS="$T/models" >"$T/said"
    ran_is ''
    grep -q '^smoke: good\.' "$T/said"
}
