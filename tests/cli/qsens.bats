#!/usr/bin/env bats
# qsens on tiny models: modes, units, agreement with qppl, resumption, and what it refuses.

bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    "$B/tests/mkmodel" -q llama-tied "$BATS_FILE_TMPDIR/m"
    "$B/tests/mkmodel" -q qwen2-untied "$BATS_FILE_TMPDIR/big" --layers 8 --hidden 256 --dtype f16
}

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    m=$BATS_FILE_TMPDIR/m
    big=$BATS_FILE_TMPDIR/big
    r=$BATS_TEST_TMPDIR/r.json
    text=data/calibration.txt
}

sens() { "$B/bin/qsens" -q --text "$text" --chars 60 "$@" >"$r"; }
holds() { jq -e "$1" "$r" >/dev/null || { jq -c .results "$r"; echo "does not hold: $1"; false; }; }

# refused STATUS MESSAGE ARGS…: exit status, one line on stderr with the message, nothing on stdout
refused() {
    local status_wanted=$1 message=$2
    shift 2
    run --separate-stderr "$B/bin/qsens" -q "$@"
    [ "$status" = "$status_wanted" ] || { echo "status $status: $stderr"; false; }
    [ -z "$output" ]
    [[ "$stderr" == "qsens: "*"$message"* ]] || { echo "$stderr"; false; }
    [ "$status_wanted" = 2 ] || [ "$(wc -l <<<"$stderr")" = 1 ] || { echo "$stderr"; false; }
}

@test "each mode and unit gives a record of the schema" {
    for mode in local isolated restore; do
        for per in tensor op layer; do
            sens "$m" -f int4-g64 --mode $mode --per $per
            "$B/tests/schema_check" docs/schema/qsens.json "$r"
            holds ".results.mode == \"$mode\" and .params.per == \"$per\""
            holds ".results.tensors | length == $(case $per in tensor) echo 14 ;; op) echo 7 ;; layer) echo 2 ;; esac)"
            holds ".results.tensors | all((.kld == null) == ($([ $mode = local ] && echo true || echo false)))"
            holds '.results.tensors | all(.mse > 0 and .nmse > 0 and .cosine < 1 and .sqnr_db > 0)'
            holds '.results.n_tokens == 60 and .results.n_scored == 59 and .results.all.kld > 0'
        done
    done
    holds '.results.tensors[1] | .name == "model.layers.1" and .layer == 1 and .op == null'
    sens "$m" -f int4-g64 --per op
    holds '.results.tensors[6] | .name == "down_proj" and .layer == null and .op == "down_proj"'
    sens "$m" -f int4-g64
    holds '.results.tensors[8] | .name == "model.layers.1.self_attn.k_proj" and .layer == 1 and .op == "k_proj" and (.shape | length == 2)'
}

@test "every format is taken, and both methods" {
    for f in int8-row int4-row int4-g32 int4-g128-sym int4-strided128 nf4 nf4-dq fp4 f16 bf16; do
        sens "$m" -f $f
        "$B/tests/schema_check" docs/schema/qsens.json "$r"
    done
    sens "$m" -f int4-g32
    rtn=$(jq '[.results.tensors[].nmse] | add' "$r")
    sens "$m" -f int4-g32 --method mse
    holds ".results.method == \"mse\" and ([.results.tensors[].nmse] | add) < $rtn"
    jq .results "$r" >"$r.mse"
    # a recipe's name says the same; the option is stronger, as in qquant
    sens "$m" -f int4-g32+mse -o "$BATS_TEST_TMPDIR/p"
    holds '.results.format == "int4-g32" and .params.method == "mse"'
    jq .results "$r" | cmp - "$r.mse"
    # what was kept for one spelling serves the other
    kept=$(wc -l <"$BATS_TEST_TMPDIR/p")
    sens "$m" -f int4-g32 --method mse -o "$BATS_TEST_TMPDIR/p"
    [ "$(wc -l <"$BATS_TEST_TMPDIR/p")" = "$kept" ]
    sens "$m" -f int4-g32+mse --method rtn
    holds ".results.method == \"rtn\" and .params.method == \"rtn\" and ([.results.tensors[].nmse] | add) == $rtn"
}

@test "all linears quantized: the same damage as qppl finds on the quantized folder" {
    for f in int4-g64 nf4-dq; do
        for model in "$m" "$big"; do
            sens "$model" -f $f
            q=$BATS_TEST_TMPDIR/$f-${model##*/}
            "$B/bin/qquant" -q "$model" -f $f -o "$q" >"$q.json"
            "$B/bin/qppl" -q "$q" --text "$text" --protocol seed --chars 60 --ref "$model" >"$q.ppl"
            holds "(.results.all.delta_nll - $(jq .results.delta_nll.mean "$q.ppl")) | fabs < 1e-5"
            holds "(.results.all.kld - $(jq .results.kld.mean "$q.ppl")) | fabs < 1e-5"
            bytes=$(jq '[.results.tensors[] | select(.name | startswith("model.layers.")).bytes] | add' "$q.json")
            holds "[.results.tensors[].bytes_after] | add == $bytes"
        done
    done
}

@test "results do not depend on the number of threads" {
    sens "$big" -f int4-g64 --mode isolated --per layer -t 1
    one=$(jq -c .results "$r")
    sens "$big" -f int4-g64 --mode isolated --per layer -t 3
    [ "$one" = "$(jq -c .results "$r")" ]
}

@test "killed half-way, it goes on and prints the same record" {
    sens "$big" -f nf4 --mode isolated
    whole=$(jq -c .results "$r")
    p=$BATS_TEST_TMPDIR/p.jsonl
    "$B/bin/qsens" -q "$big" --text "$text" --chars 60 -f nf4 --mode isolated -o "$p" >"$r" &
    pid=$!
    for _ in $(seq 500); do
        [ -e "$p" ] && [ "$(wc -l <"$p")" -ge 4 ] && break
        kill -0 $pid 2>/dev/null || break
        sleep 0.02
    done
    kill -9 $pid
    wait $pid || true
    [ "$(wc -l <"$p")" -lt 57 ]
    run --separate-stderr "$B/bin/qsens" "$big" --text "$text" --chars 60 -f nf4 --mode isolated -o "$p"
    [ "$status" = 0 ]
    [[ "$stderr" == *"of 56 units are done"* ]]
    [ "$whole" = "$(jq -c .results <<<"$output")" ]
    [ "$(wc -l <"$p")" = 57 ]
    # all there: nothing is run again but the totals
    sens "$big" -f nf4 --mode isolated -o "$p"
    [ "$whole" = "$(jq -c .results "$r")" ]
}

@test "a partial file of another run is refused and kept" {
    p=$BATS_TEST_TMPDIR/p.jsonl
    sens "$m" -f nf4 -o "$p"
    before=$(sha256sum <"$p")
    refused 1 'its format is "nf4" ("fp4" was expected)' "$m" --text "$text" --chars 60 -f fp4 -o "$p"
    refused 1 'its mode is "local"' "$m" --text "$text" --chars 60 -f nf4 -m restore -o "$p"
    refused 1 'its tokens is' "$m" --text "$text" --chars 61 -f nf4 -o "$p"
    refused 1 'its text is' "$m" --text data/sample.txt --chars 60 -f nf4 -o "$p"
    refused 1 'its model is' "$big" --text "$text" --chars 60 -f nf4 -o "$p"
    refused 1 'its preset is "none"' "$m" --text "$text" --chars 60 -f nf4 --preset seed -o "$p"
    [ "$before" = "$(sha256sum <"$p")" ]
    (cat "$p"; sed -n 4p "$p") >"$p.bad"
    refused 1 'line 16: "model.layers.0.self_attn.v_proj" is there twice' "$m" --text "$text" --chars 60 -f nf4 -o "$p.bad"
    for change in 's/"kld":[^,}]*/"kld":NaN/' 's/"kld":[^,}]*/"kld":null/' 's/.*/{"a":1}/' 's/.*/[]/' 's/"n":[0-9]*/"n":-1/' 's/layers.0/layers.9/'; do
        sed "3$change" "$p" >"$p.bad"
        refused 1 'p.jsonl.bad: line 3: ' "$m" --text "$text" --chars 60 -f nf4 -o "$p.bad"
    done
    echo precious >"$p"
    refused 1 "$p" "$m" --text "$text" --chars 60 -f nf4 -o "$p"
    [ "$(cat "$p")" = precious ]
    refused 1 "is a folder" "$m" --text "$text" --chars 60 -f nf4 -o "$BATS_TEST_TMPDIR"
}

@test "--preset seed adds the original's measure, --samples writes pairs" {
    d=$BATS_TEST_TMPDIR/s/samples
    sens "$m" -f int4-row --preset seed --samples "$d"
    "$B/tests/schema_check" docs/schema/qsens.json "$r"
    holds '.results.tensors | all(.seed_mse > 0 and .seed_cosine < 1)'
    holds '.results.tensors[0] | .seed_mse == .mse'
    holds '.results.tensors[13] | .seed_mse > .mse'
    [ "$(find "$d" -name '*.csv' | wc -l)" = 14 ]
    for f in "$d"/*.csv; do
        [ "$(wc -l <"$f")" -le 2001 ]
        [ "$(head -1 "$f")" = reference,quantized ]
    done
    [ "$(wc -l <"$d/model.layers.0.mlp.up_proj.csv")" = 2001 ]
    [ "$(wc -l <"$d/model.layers.0.self_attn.k_proj.csv")" = $((60 * 32 + 1)) ]
    # every output of k_proj is there, so its error is the record's
    awk -F, 'NR > 1 { s += ($1 - $2)^2 } END { printf "%.9g\n", s / (NR - 1) }' "$d/model.layers.0.self_attn.k_proj.csv" >"$r.mse"
    holds ".results.tensors[1].mse / $(cat "$r.mse") - 1 | fabs < 1e-4"
    sens "$m" -f int4-row --samples "$d.2" -t 3
    diff -r "$d" "$d.2"
    sens "$m" -f int4-row --samples "$d.3" --seed 1
    run cmp -s "$d/model.layers.0.mlp.up_proj.csv" "$d.3/model.layers.0.mlp.up_proj.csv"
    [ "$status" = 1 ]
}

@test "bad input: one line, no record, nothing written" {
    p=$BATS_TEST_TMPDIR/p.jsonl
    t=$BATS_TEST_TMPDIR/t.txt
    printf a >"$t"
    refused 1 "too short: 1 tokens (at least 2 were expected)" "$m" --text "$t" -f nf4 -o "$p"
    : >"$t"
    refused 1 "$t" "$m" --text "$t" -f nf4 -o "$p"
    refused 1 "nowhere.txt" "$m" --text "$BATS_TEST_TMPDIR/nowhere.txt" -f nf4 -o "$p"
    refused 1 "600 tokens, more than the model's context (at most 512 were expected" "$m" --text "$text" --chars 600 -f nf4 -o "$p"
    refused 2 'unknown format "int5" (known: ' "$m" --text "$text" -f int5 -o "$p"
    refused 2 'unknown method "best" (known: rtn, mse)' "$m" --text "$text" -f nf4+best -o "$p"
    refused 2 'recipe "nf4+" has an empty part' "$m" --text "$text" -f nf4+ -o "$p"
    refused 2 'recipe "nf4+head=nf4" names the head (FORMAT or FORMAT+METHOD was expected)' "$m" --text "$text" -f nf4+head=nf4 -o "$p"
    refused 2 'unknown method "best" (known: rtn, mse)' "$m" --text "$text" -f nf4 --method best -o "$p"
    refused 1 "nowhere" "$BATS_TEST_TMPDIR/nowhere" --text "$text" -f nf4 -o "$p"
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/nan" --nan model.layers.1.mlp.up_proj.weight
    refused 1 "not finite" "$BATS_TEST_TMPDIR/nan" --text "$text" --chars 60 -f nf4 -o "$p"
    "$B/bin/qquant" -q "$m" -f nf4 -o "$BATS_TEST_TMPDIR/packed" >/dev/null
    refused 1 "packed: is already quantized (the original was expected)" "$BATS_TEST_TMPDIR/packed" --text "$text" -f nf4 -o "$p"
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/bare" --no-tokenizer
    refused 1 "bare" "$BATS_TEST_TMPDIR/bare" --text "$text" -f nf4 -o "$p"
    refused 1 "" "$m" --text "$text" --chars 60 -f nf4 -o "$BATS_TEST_TMPDIR/no/such/p.jsonl"
    refused 1 "" "$m" --text "$text" --chars 60 -f nf4 --samples "$t/under/a/file"
    [ ! -e "$p" ]
}

@test "usage errors" {
    refused 2 "MODEL" --text "$text" -f nf4
    refused 2 "-f FORMAT" "$m" --text "$text"
    refused 2 "--text" "$m" -f nf4
    refused 2 "--mode x" "$m" --text "$text" -f nf4 --mode x
    refused 2 "--preset x" "$m" --text "$text" -f nf4 --preset x
}

@test "a closed stdout and a full disk are failures" {
    run bash -c '"$B/bin/qsens" "$@" 2>&1 >&-' - -q "$m" --text "$text" --chars 60 -f nf4
    [ "$status" = 1 ]
    [[ "$output" == "qsens: stdout: "* ]]
    [ ! -e /dev/full ] || {
        run bash -c '"$B/bin/qsens" "$@" 2>&1 >/dev/full' - -q "$m" --text "$text" --chars 60 -f nf4
        [ "$status" = 1 ]
        run bash -c '"$B/bin/qsens" "$@" 2>&1 >/dev/null' - -q "$m" --text "$text" --chars 60 -f nf4 -o /dev/full
        [ "$status" = 1 ]
    }
}
