#!/usr/bin/env bats
# qreport on records made by hand: tables and their files, the paired comparison, limits, metrics.csv, bad input.

load common
tool=qreport

sha() { printf %s "$1" | sha256sum | cut -d' ' -f1; }

# record FILE TOOL MODEL FILTER: a record about model out/m/MODEL/model, changed by a jq filter
record() {
    jq -nc --arg tool "$2" --arg path "out/m/$3/model" --arg sha "$(sha "$3")" --arg ref "$(sha f16)" --arg text "$(sha text)" '
        {schema: "qlab.\($tool)/1", tool: $tool, version: "0.1.0", results_version: 1, git: "abc", argv: [$tool],
         host: {cpu: "a CPU", cores: 2, isa: [], gpu: null, driver: null, os: "Linux"},
         inputs: [{role: "model", path: $path, bytes: 900, sha256: $sha,
                   files: [{name: "model.safetensors", bytes: 800}]}],
         params: {threads: 2, device: "cpu", compute: "f32", seed: 0}, results: {},
         timing: {wall_s: 1, started: "2026-01-01T00:00:00Z"}} |
        def text: .inputs += [{role: "text", path: "text/sample.txt", bytes: 9, sha256: $text}];
        def ref: .inputs += [{role: "ref", path: "out/m/f16/model", bytes: 900, sha256: $ref}];
        '"$4" >"$1"
}

summary='def s(v): {n: 2, min: (v - 1), p50: v, p90: v, p99: v, mean: v, sd: 1, samples: [v - 1, v + 1]};'

# nll N OFFSET WAVE: N f32 little endian, 3 + OFFSET + WAVE·sin(i)
nll() {
    perl -e 'my ($n, $off, $w) = @ARGV; print pack("f<*", map { 3 + $off + $w * sin($_) + 0.5 * sin($_ * 7) } 0 .. $n - 1)' "$@"
}
nll_mean() { perl -e 'local $/; my @v = unpack("f<*", <STDIN>); my $s = 0; $s += $_ for @v; printf "%.9f", $s / @v'; }

# nll_record FILE MODEL N OFFSET WAVE [FILTER]: a qppl record and its per-token file beside it
nll_record() {
    nll "$3" "$4" "$5" >"$1.nll"
    record "$1" qppl "$2" "text | .params += {protocol: \"llamacpp\", ctx: 512, nll: \"elsewhere/$(basename "$1").nll\"} |
        .outputs = [{role: \"nll\", path: .params.nll, bytes: $((4 * $3)), sha256: \"$(sha256sum <"$1.nll" | cut -d' ' -f1)\"}] |
        .results = {protocol: \"llamacpp\", n_tokens: $((2 * $3)), n_windows: 20, n_scored: $3, nll: $(nll_mean <"$1.nll")} |
        ${6:-.}"
}

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    unset SAVE_EVAL_RESULTS METRICS
    record f16-load.json qload f16 '.results = {architecture: "LlamaForCausalLM", n_params: 1000000, n_layers: 2, hidden_size: 8,
        intermediate_size: 16, n_heads: 2, n_kv_heads: 1, head_dim: 4, vocab_size: 32, tied_embeddings: true, weights_bytes: 800,
        tensors: [{name: "model.layers.0.mlp.up_proj.weight", bytes: 600}, {name: "model.embed_tokens.weight", bytes: 150},
                  {name: "model.norm.weight", bytes: 50}]}'
    record f16-ppl.json qppl f16 'text | .params.ctx = 0 | .results = {protocol: "llamacpp", n_tokens: 10000, n_scored: 5000,
        nll: 3, nll_se: 0.02, ppl: 20.09, ppl_se: 0.41, compute: "f32"}'
    record nf4-ppl.json qppl nf4 'text | ref | .params.ctx = 0 | .results = {protocol: "llamacpp", n_tokens: 10000, n_scored: 5000,
        nll: 3.2, nll_se: 0.02, ppl: 24.53, ppl_se: 0.5, compute: "f32", kld: {mean: 0.19, se: 0.004}, top1_agreement: 0.8,
        top1_se: 0.005, delta_nll: {mean: 0.2, se: 0.01},
        also: {compute: "int8", n_windows: 8, n_scored: 2040, kld: {mean: 0.0021, se: 0.0001}}}'
    record nf4-bench.json qbench nf4 "$summary"' .params += {prompt_tokens: 64, gen: 8, trials: 2, warmup: 1} |
        .results = {ttft_ms: s(40), prefill_tps: s(900), decode_tps: s(77), token_ms: s(13),
                    memory: {weights_bytes: 500}, bandwidth: {decode_bytes_per_token: 704}}'
    record nf4-say.json qbench nf4 "$summary"' .params.prompt = "Once" | .results = {ttft_ms: s(4), decode_tps: s(1),
        generated: {token_ids: [1], text: "a | pipe, *stars* and\na <b>line</b>"}}'
    record nf4-quant.json qquant f16 '.output = {path: "out/m/nf4/model", bytes: 300, sha256: "'"$(sha nf4)"'",
        files: [{name: "model.safetensors", bytes: 250}]} | .results = {tensors: [], bytes_before: 800, bytes_after: 250,
        bpw: 4.5, bpw_model: 5, read_bytes_per_token: 704, portable: {transformers: "yes", vllm: "no", why: null}}'
    all=(f16-load.json f16-ppl.json nf4-quant.json nf4-ppl.json nf4-bench.json nf4-say.json)
}

@test "table joins the records of one model into one row" {
    "$B/bin/qreport" table -q "${all[@]}" >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results.rows | length == 2 and map(.name) == ["f16", "nf4"]' out.json
    holds '.results.rows[1] | .ppl.mean == 24.53 and .decode_tps == 77 and .disk_bytes == 250 and .memory_bytes == 500' out.json
    holds '.results.rows[1] | .verdict == "worse" and .kld.mean == 0.19 and .top1_agreement.mean == 0.8 and
        .int8_kld.mean == 0.0021' out.json
    holds '.results.rows[0].int8_kld.mean == null' out.json
    # 704 bytes over 2 layers × 8·(2·8 + 2·4 + 3·16) + 32·8 = 1408 weights; the architecture is that of the base
    holds '.results.rows[1].bpw_read == 4' out.json
    holds '.results.rows[0] | .verdict == "reference" and .linears_bytes == 600 and .head_embedding_bytes == 150' out.json
    holds '.results.files == [] and (.inputs | length) == 6' out.json
    holds '.argv[0] | endswith("qreport")' out.json
    holds '.argv[1:4] == ["table", "-q", "f16-load.json"]' out.json
}

@test "the order and number of records do not matter but for the order of rows" {
    "$B/bin/qreport" table -q nf4-say.json nf4-bench.json nf4-ppl.json f16-ppl.json nf4-quant.json f16-load.json >out.json
    holds '.results.rows | map(.name) == ["nf4", "f16"] and .[0].bpw_read == 4 and .[0].decode_tps == 77' out.json
}

@test "Markdown, CSV and plots are written, and listed" {
    "$B/bin/qreport" table -q "${all[@]}" --md r/report.md --csv r/report.csv --plot r --png >out.json
    jq -r '.results.files[]' out.json >listed
    while read -r f; do [ -s "$f" ]; done <listed
    for f in ppl.svg ppl.png decode.svg bytes.svg report.md report.csv; do grep -qx "r/$f" listed; done
    [ "$(find r -type f | wc -l)" = "$(wc -l <listed)" ]
    grep -q '^| nf4 .*24.53 ± 0.50.*+0.200 ± 0.010.*worse' r/report.md
    grep -q 'a \\| pipe, \\\*stars\\\* and ⏎ a &lt;b&gt;line&lt;/b&gt;' r/report.md
    grep -q 'Shown beside' r/report.md
    grep -q '6645' r/report.md
    grep -q '!\[perplexity against size\](<ppl.svg>)' r/report.md
    head -c 100 r/ppl.svg | grep -q '<?xml'
    grep -q '>nf4<' r/ppl.svg
    [ "$(head -c 4 r/ppl.png | tail -c 3)" = PNG ]
    [ "$(wc -l <r/report.csv)" = 3 ]
    head -1 r/report.csv | grep -q '^started,git,architecture,format,'
}

@test "a Markdown report elsewhere than its plots links to them" {
    mkdir a
    "$B/bin/qreport" table -q "${all[@]}" --md a/report.md --plot a/b/c >out.json
    grep -q '(<b/c/ppl.svg>)' a/report.md
}

@test "SAVE_EVAL_RESULTS appends rows under one header, also from many at once" {
    for _ in 1 2 3 4 5 6 7 8; do
        SAVE_EVAL_RESULTS=1 METRICS=m.csv "$B/bin/qreport" table -q "${all[@]}" >/dev/null &
    done
    wait
    [ "$(wc -l <m.csv)" = 17 ]
    [ "$(grep -c ^started m.csv)" = 1 ]
    [ "$(grep -c ',nf4,' m.csv)" = 8 ]
    SAVE_EVAL_RESULTS=1 METRICS=m.csv "$B/bin/qreport" table -q "${all[@]}" | jq -e '.results.files == ["m.csv"]'
    [ "$(awk -F, '{ print NF }' m.csv | sort -u)" = 32 ]
    # without METRICS: beside the nearest .git
    mkdir -p p/.git p/sub
    (cd p/sub && SAVE_EVAL_RESULTS=1 "$B/bin/qreport" table -q ../../nf4-ppl.json >/dev/null)
    [ "$(wc -l <p/metrics.csv)" = 2 ]
    # without SAVE_EVAL_RESULTS nothing is appended
    METRICS=m.csv "$B/bin/qreport" table -q "${all[@]}" >/dev/null
    [ "$(wc -l <m.csv)" = 19 ]
}

@test "a metrics file with other columns or a torn row stays as it is" {
    echo 'a,b' >m.csv
    SAVE_EVAL_RESULTS=1 METRICS=m.csv refused 1 'm.csv: has other columns' table "${all[@]}"
    [ "$(cat m.csv)" = a,b ]
    rm m.csv
    SAVE_EVAL_RESULTS=1 METRICS=m.csv "$B/bin/qreport" table -q "${all[@]}" >/dev/null
    truncate -s -5 m.csv
    cp m.csv before
    SAVE_EVAL_RESULTS=1 METRICS=m.csv refused 1 'm.csv: the last row is cut off' table "${all[@]}"
    cmp m.csv before
}

@test "diff: paired difference, interval and a word" {
    nll_record a.json f16 5100 0 0
    nll_record b.json nf4 5100 0.05 0.3
    nll_record c.json int8 5100 0.0001 0.3
    "$B/bin/qreport" diff -q a.json b.json >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results | .verdict == "worse" and .n == 5100 and .block == 255 and .n_blocks == 20 and .resamples == 10000' out.json
    holds '.results | (.delta_nll.mean - 0.05 | fabs) < 1e-3 and .interval[0] < .delta_nll.mean and .interval[1] > .delta_nll.mean' \
        out.json
    holds '[.inputs[].role] == ["record", "record", "nll", "nll"]' out.json
    "$B/bin/qreport" diff -q b.json a.json | jq -e '.results.verdict == "better"'
    "$B/bin/qreport" diff -q a.json c.json --block 64 | jq -e '.results | .verdict == "cannot-tell" and .n_blocks == 80'
    "$B/bin/qreport" diff -q a.json b.json --seed 1 >out2.json
    holds '.results.interval[0]' out2.json
    [ "$(jq .results.interval out.json)" != "$(jq .results.interval out2.json)" ]
    [ "$("$B/bin/qreport" diff -q -t 1 a.json b.json | jq -c .results)" = "$(jq -c .results out.json)" ]
}

@test "diff refuses what cannot be compared" {
    nll_record a.json f16 5100 0 0
    nll_record b.json nf4 4590 0.05 0.3
    refused 1 'the same tokens were expected' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3 '.inputs[1].sha256 = "0"'
    refused 1 'of different texts' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3 '.params.ctx = 256'
    refused 1 'differ in "ctx"' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3 'del(.params.nll)'
    refused 1 'made with --nll' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3 '.results.nll += 0.01'
    refused 1 'its mean is' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3
    truncate -s -4 b.json.nll
    refused 1 'b.json.nll: 20396 bytes (20400 were expected' diff a.json b.json
    nll_record b.json nf4 5100 0.05 0.3
    printf '\0\0\300\177' | dd of=b.json.nll bs=4 seek=7 conv=notrunc status=none
    refused 1 'sha256 differs' diff a.json b.json
    jq -c 'del(.outputs)' b.json >d.json
    mv b.json.nll d.json.nll
    sed -i 's/b.json.nll/d.json.nll/' d.json
    refused 1 'value 7 is not finite' diff a.json d.json
    rm d.json.nll
    refused 1 'is not there, nor beside the record' diff a.json d.json
    refused 2 'two qppl records' diff a.json
}

@test "check: exit 0 and a record when all limits are kept, else one line naming the limit" {
    q=(nf4-quant.json nf4-ppl.json nf4-bench.json)
    "$B/bin/qreport" check -q --max-dlnppl 0.21 --min-top1 0.8 --max-gib 0.001 --min-decode-tps 70 "${q[@]}" >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results.rows | length == 1' out.json
    refused 1 'nf4: Δ ln PPL 0.2 is above --max-dlnppl 0.1' check --max-dlnppl 0.1 "${q[@]}"
    refused 1 'is below --min-top1 0.9' check --min-top1 0.9 "${q[@]}"
    refused 1 'is above --max-gib 1e-07' check --max-gib 1e-7 "${q[@]}"
    refused 1 'is below --min-decode-tps 78' check --min-decode-tps 78 "${q[@]}"
    refused 1 'not in the records given (--min-decode-tps needs it)' check --min-decode-tps 1 nf4-ppl.json
    refused 2 'no limit given' check "${q[@]}"
    refused 2 'out of range' check --min-top1 1.5 "${q[@]}"
    for v in 0x1p-1 0x.8 inf nan ' .5' '' .5x 1e; do refused 2 "--min-top1 $v: not a number" check --min-top1 "$v" "${q[@]}"; done
    for v in 0x1 1e2 ' 3'; do refused 2 "--seed $v: not an integer" check --seed "$v" "${q[@]}"; done
}

@test "records of another schema version, of another kind, or broken, are refused" {
    jq -c '.schema = "qlab.qppl/2"' nf4-ppl.json >two.json
    refused 1 'two.json: record of schema qlab.qppl/2 (version 1 of' table f16-ppl.json two.json
    jq -c '.schema = "qlab.qsens/1"' nf4-ppl.json >sens.json
    refused 1 'sens.json: record of schema qlab.qsens/1' table sens.json
    echo '{}' >no.json
    refused 1 'no.json: not a qlab record' table no.json
    head -c 300 nf4-ppl.json >cut.json
    refused 1 'cut.json: not valid JSON' table cut.json
    refused 1 'nix.json' table nix.json
    jq -c '.results.kld.mean = "x"' nf4-ppl.json >str.json
    refused 1 '"results.kld.mean" is not a number' table str.json
    jq -c 'del(.output)' nf4-quant.json >plan.json
    refused 1 'plan.json: a plan, not a folder' table plan.json
    jq -c '.inputs[1].sha256 = "0"' nf4-ppl.json >text.json
    refused 1 'different texts' table f16-ppl.json text.json
    refused 2 'no record given' table
    refused 2 'unknown command' sense nf4-ppl.json
    refused 2 'no command given'
}

@test "a failure leaves no file under its final name" {
    mkdir ro bin
    refused 1 "/dev/full" table "${all[@]}" --md /dev/full/x.md
    printf '#!/bin/sh\necho "line 1: told to fail" >&2\nexit 1\n' >bin/gnuplot
    chmod +x bin/gnuplot
    PATH=$PWD/bin:$PATH refused 1 'gnuplot failed: line 1: told to fail' table "${all[@]}" --plot ro --md ro/report.md
    [ "$(find ro -name '*.svg' -o -name '*.md' -o -name '*part*' | wc -l)" = 0 ]
    run --separate-stderr bash -c '"$B/bin/qreport" table -q f16-ppl.json >/dev/full'
    [ "$status" = 1 ]
    [[ "$stderr" == qreport:* ]]
}

@test "real records: tiny model, qppl with a reference, diff agrees with qppl's own pairing" {
    "$B/tests/mkmodel" bigram f16 --dtype f16 --layers 1
    "$B/bin/qquant" -q f16 -f int4-g32 -o out/g32/model >quant.json
    head -c 8000 "$src/data/sample.txt" >text
    "$B/bin/qppl" -q f16 --text text --ctx 128 --nll f16.nll >f16.json
    "$B/bin/qppl" -q out/g32/model --text text --ctx 128 --ref f16 --nll g32.nll >g32.json
    "$B/bin/qload" -q f16 --tensors >load.json
    "$B/bin/qload" -q out/g32/model --tensors >load32.json
    "$B/bin/qbench" -q out/g32/model --prompt-tokens 8 --gen 4 --trials 2 --warmup 0 >bench.json
    "$B/bin/qreport" diff -q f16.json g32.json >diff.json
    want=$(jq '.results.delta_nll | .mean, .se' g32.json)
    got=$(jq '.results.delta_nll | .mean, .se' diff.json)
    paste <(echo "$want") <(echo "$got") | awk '{ d = $1 - $2; if (d < 0) d = -d; if (!(d < 1e-6)) exit 1 }'
    "$B/bin/qreport" table -q quant.json load.json load32.json f16.json g32.json bench.json --md r.md --plot plots >table.json
    holds '.results.rows | map(.name) == ["g32", "f16"]' table.json
    # the stored tensors, and what the folder really takes
    [ "$(jq '.results.rows[0] | .linears_bytes + .head_embedding_bytes + .other_bytes' table.json)" = \
        "$(jq .results.weights_bytes load32.json)" ]
    [ "$(jq '.results.rows[0].disk_bytes' table.json)" = "$(stat -c %s out/g32/model/model.safetensors)" ]
    # all six columns of the linears' and the head's weights are read
    holds '.results.rows[0].bpw_read > 4 and .results.rows[0].bpw_read < 8' table.json
    "$B/bin/qreport" check -q --max-dlnppl 0.1 g32.json >/dev/null
}
