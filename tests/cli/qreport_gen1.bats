#!/usr/bin/env bats
# qreport sens and mix on records made by hand, whose figures are worked out here.

load common
tool=qreport

sha() { printf %s "$1" | sha256sum | cut -d' ' -f1; }

record() { # FILE TOOL FILTER
    jq -nc --arg tool "$2" '{schema: "qlab.\($tool)/1", tool: $tool, version: "0.1.0", results_version: 1, git: "abc",
        argv: [$tool], host: {cpu: "a CPU", cores: 2, isa: [], gpu: null, driver: null, os: "Linux"}, inputs: [],
        params: {threads: 2, device: "cpu", compute: "f32", seed: 0}, results: {},
        timing: {wall_s: 1, started: "2026-01-01T00:00:00Z"}} | '"$3" >"$1"
}

# folder NAME BPW DELTA SE [RECIPE]: what qquant and qppl say about it
folder() {
    local how=".params.format = \"$1\""
    [ -z "${5-}" ] || how=".params.recipe = \"$5\" | .inputs = [{role: \"recipe\", path: \"$5\", bytes: 1, sha256: \"$(sha256sum <"$5" | cut -d' ' -f1)\"}]"
    record "q-$1.json" qquant "$how | .output = {path: \"out/$1/model\", sha256: \"$(sha "$1")\"} |
        .results = {bpw: $2, portable: {transformers: \"yes\", vllm: \"expected\"}}"
    record "p-$1.json" qppl ".inputs = [{role: \"model\", path: \"x\", bytes: 1, sha256: \"$(sha "$1")\"},
        {role: \"text\", path: \"t.txt\", bytes: 1, sha256: \"$(sha text)\"}, {role: \"ref\", path: \"f\", bytes: 1, sha256: \"$(sha f16)\"}] |
        .params += {protocol: \"llamacpp\", ctx: 512, chars: 0, max_windows: 2, nll: null} |
        .results = {protocol: \"llamacpp\", compute: \"f32\", n_scored: 510, delta_nll: {mean: $3, se: $4},
                    kld: {mean: ($3 + 0.01), se: 0.001}}"
}

recipe() { echo "{\"default\":\"int4-g64\",\"rules\":[],\"plan\":$2}" >"$1"; }

# sens MODE FORMAT VALUES: one value a linear, over layers of down_proj and up_proj
sens() {
    record "s-$1-$2.json" qsens ".inputs = [{role: \"model\", path: \"m\", bytes: 1, sha256: \"$(sha f16)\"},
        {role: \"text\", path: \"c.txt\", bytes: 1, sha256: \"$(sha cal)\"}] |
        .results = {mode: \"$1\", format: \"$2\", per: \"tensor\", n_tokens: 9, baseline: {nll: 3}, all: {kld: 1, delta_nll: 1}, compute: \"f32\",
        tensors: [$3 | to_entries[] | (if .key % 2 == 1 then \"up_proj\" else \"down_proj\" end) as \$op | (.key / 2 | floor) as \$l |
            {name: \"model.layers.\(\$l).mlp.\(\$op)\", layer: \$l, op: \$op, mse: .value, nmse: .value, cosine: 0.99, sqnr_db: 20,
             kld: (if \"$1\" == \"local\" then null elif \"$1\" == \"restore\" then 1 - .value else .value end), delta_nll: null,
             bytes_before: 100, bytes_after: 30}]}"
}

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    recipe r5.json '{"budget":5,"bpw":5,"bytes":1,"predicted":0.07}'
    recipe r6.json '{"budget":{"bytes":6},"budget_bytes":6,"bytes":6,"bpw":6,"predicted":0.05}'
    recipe r7.json '{"budget":7,"bpw":7,"bytes":1,"predicted":0.04}'
    folder int4-g64 4 0.2 0.003
    folder int8-row 8 0 0.001
    folder mix-5 5 0.09 0.004 r5.json
    folder mix-6 6 0.099 0.004 r6.json
    folder mix-7 7 0.06 0.004 r7.json
    sens local int4-g64 '[0.1, 0.2, 0.3, 0.4]'
    sens isolated int4-g64 '[0.01, 0.02, 0.04, 0.03]'
    sens restore int4-g64 '[0.04, 0.03, 0.02, 0.01]'
    all=(q-*.json p-*.json r?.json s-*.json)
}

@test "mix: chord, share below it, error and verdict" {
    "$B/bin/qreport" mix -q "${all[@]}" -o out >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results.budgets | map(.recipe) == ["mix-5", "mix-6", "mix-7"]' out.json
    holds '.results.budgets | map(.budget_bpw) == [5, 6, 7]' out.json
    # the chord loses 0.05 a bit
    holds '.results.budgets | map(.chord) | (.[0] - 0.15 | fabs) < 1e-9 and (.[1] - 0.1 | fabs) < 1e-9' out.json
    holds '.results.budgets[0].below_chord - 0.4 | fabs < 1e-9' out.json
    # below by 0.001 with an error of 0.0043: that is chance
    holds '.results.budgets | map(.verdict) == ["accepted", "rejected", "rejected"]' out.json
    holds '.results.budgets[0].margin.se - (0.004 * 0.004 + 0.75 * 0.75 * 9e-6 + 0.0625 * 1e-6 | sqrt) | fabs < 1e-9' out.json
    holds '.results.budgets[0].margin_se_paired == false' out.json
    holds '.results.uniform | (.[0].predicted - 0.1 | fabs) < 1e-12 and .[1].predicted == null' out.json
    for f in $(jq -r '.results.files[]' out.json); do [ -s "$f" ]; done
    grep -q 'That may be chance' out/report.md
    grep -q '(<mix.svg>)' out/report.md
    grep -q '>mix-5<' out/mix.svg
}

@test "mix: the error is of the paired tokens where there are any" {
    for f in int4-g64 int8-row mix-5; do
        perl -e 'my ($m) = @ARGV; print pack("f<*", map { 3 + $m + sin($_) } 1 .. 510)' \
            "$(jq .results.delta_nll.mean "p-$f.json")" >"$f.nll"
        mean=$(perl -e 'local $/; my @v = unpack("f<*", <STDIN>); my $s = 0; $s += $_ for @v; printf "%.9f", $s / @v' <"$f.nll")
        jq -c ".params.nll = \"$f.nll\" | .results.nll = $mean" "p-$f.json" >new
        mv new "p-$f.json"
    done
    "$B/bin/qreport" mix -q "${all[@]}" -o out >out.json
    # the three differ by constants only
    holds '.results.budgets[0] | .margin_se_paired and .margin.se < 1e-6' out.json
    holds '.results.budgets[1].margin_se_paired == false' out.json
}

@test "mix: rank correlations of modes, and of predicted with measured damage" {
    "$B/bin/qreport" mix -q "${all[@]}" -o out >out.json
    holds '.results.spearman.local_isolated - 0.8 | fabs < 1e-9' out.json
    holds '.results.spearman.local_restore == -1' out.json
    for k in 1 2 3 4; do
        recipe "x$k.json" "{\"random\":$k,\"predicted\":0.$k}"
        folder "rnd-$k" 5 "0.$((k == 1 ? 2 : k == 2 ? 1 : k))" 0.01 "x$k.json"
    done
    "$B/bin/qreport" mix -q q-*.json p-*.json r?.json x?.json s-*.json -o out >out.json
    holds '.results | (.random | length) == 4 and (.budgets | length) == 3' out.json
    holds '.results.spearman.predicted_measured - 0.8 | fabs < 1e-9' out.json
}

@test "mix refuses what it cannot compare" {
    refused 2 'no record given' mix -o out
    refused 2 '-o DIR is missing' mix q-mix-5.json
    refused 1 'no mix among the records' mix q-int*.json p-int*.json -o out
    refused 1 'no qquant record given here wrote' mix p-mix-5.json -o out
    echo '{"schema":"qlab.qbench/1"}' >b.json
    refused 1 'b.json: qlab.qbench/1 (a record of qquant, qppl or qsens, or a recipe, was expected)' mix b.json -o out
    jq -c '.params.max_windows = 3' p-mix-6.json >new && mv new p-mix-6.json
    refused 1 'differ in params.max_windows' mix "${all[@]}" -o out
    folder mix-6 6 0.099 0.004 r6.json
    jq -c 'del(.results.delta_nll)' p-mix-6.json >new && mv new p-mix-6.json
    refused 1 'p-mix-6.json: no results.delta_nll' mix "${all[@]}" -o out
    [ ! -e out/report.md ]
}

@test "sens: worst first, summaries, plots, correlations" {
    mkdir s
    for l in 0 1; do
        for o in up down; do
            { echo reference,quantized; for i in 1 2 3 4; do echo "$i.5,$i.25"; done; } >"s/model.layers.$l.mlp.${o}_proj.csv"
        done
    done
    "$B/bin/qreport" sens -q s-*.json -o out --samples s >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results | .mode == "isolated" and .worst[0] == {name: "model.layers.1.mlp.down_proj", damage: 0.04}' out.json
    holds '.results.spearman.local_isolated - 0.8 | fabs < 1e-9' out.json
    for f in layers.svg heat.svg scatter-up_proj.svg scatter-down_proj.svg lbl_analysis.md; do
        [ -s "out/$f" ]
        grep -q "out/$f" <<<"$(jq -r '.results.files[]' out.json)"
    done
    grep -q '(<heat.svg>)' out/lbl_analysis.md
    # down_proj has 0.05 of 0.1
    grep -q '^| down.*proj *| *0.05 *| *50.0 ' out/lbl_analysis.md
    grep -q 'Spearman ρ of local and isolated: \*\*0.80\*\*' out/lbl_analysis.md
}

@test "sens --model: the worst linears' weights, as the format sees them" {
    "$B/tests/mkmodel" -q llama-tied m --layers 3
    "$B/tests/mkmodel" -q llama-tied other --seed 7
    for f in int4-g32 int4-g32+mse nf4-dq int8-row int4-strided128 f16; do
        "$B/bin/qsens" -q m -f $f --text "$src/data/calibration.txt" --chars 60 >s.json
        "$B/bin/qquant" -q m -f $f -o m-$f >q.json
        "$B/bin/qreport" sens -q s.json -o out --model m >out.json
        "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
        [ $f != f16 ] || break
        holds '.results | [.weights[].name] == [.worst[:3][].name]' out.json
        [ -s out/weights.svg ]
        # qquant measures the same weights
        jq -en --slurpfile q q.json '[inputs.results.weights[] | . as $w | $q[0].results.tensors[] | select(.name == $w.name) |
            .sqnr_db - $w.sqnr_db | fabs] | length == 3 and all(. < 1e-6)' out.json
        # zeros, counted in the folder as it is read
        "$B/tests/dequant" m-$f d
        name=$(jq -r '.results.weights[0].name' out.json)
        n=$(od -An -tu8 -N8 d | tr -d ' ')
        read -r from to < <(tail -c +9 d | head -c "$n" | jq -r --arg n "$name.weight" '.[$n].data_offsets | @tsv')
        zeros=$(tail -c +$((9 + n + from)) d | head -c $((to - from)) | od -An -v -tx2 -w2 | grep -cE '^ (0000|8000)$')
        holds ".results.weights[0].zero_share - $zeros * 2 / ($to - $from) | fabs < 1e-12" out.json
        holds ".results.weights | all(.entropy_bits > 0.9 and .entropy_bits <= $([ $f = int8-row ] && echo 8 || echo 4))" out.json
    done
    holds '.results.weights == []' out.json # floats have no code points worth a picture
    refused 1 'other: not the model of s.json' sens s.json -o out2 --model other
    refused 1 'nowhere' sens s.json -o out2 --model nowhere
    [ ! -e out2 ]
}

# bench FILE NAME PROMPT RUNS: a record of qbench with runs [[depth, ttft, prefill, decode]…]
bench() {
    record "$1" qbench ".inputs = [{role: \"model\", path: \"out/$2/model\", bytes: 1, sha256: \"$(sha "$2")\"}] |
        .results = {compute: \"int8\", prompt_tokens: $3, gen: 8, bandwidth: {decode_fraction: 0.75}, runs: [$4[] | . as [\$d, \$t, \$p, \$g] |
            {depth: \$d, ttft_ms: {p50: \$t, samples: [\$t, \$t * 2]}, prefill_tps: {p50: \$p, samples: [\$p]},
             decode_tps: {p50: \$g, samples: [\$g / 2, \$g]}}]}"
}

@test "speed: prompts and depths side by side, held against the first model" {
    bench f1.json f16 64 '[[0, 80, 800, 100], [256, 90, 700, 80]]'
    bench f2.json f16 256 '[[0, 320, 800, 90]]'
    bench q2.json int4-g64 256 '[[0, 160, 1600, 270], [9, 160, 1600, 280]]'
    bench q1.json int4-g64 64 '[[256, 45, 1400, 200], [0, 20, 3200, 250]]'
    "$B/bin/qreport" speed -q f1.json f2.json q2.json q1.json -o out >out.json
    "$B/tests/schema_check" "$src/docs/schema/qreport.json" out.json
    holds '.results.speed | map([.name, .prompt_tokens, .depth, .faster_ttft, .faster_decode]) == [["f16", 64, 0, null, null],
        ["f16", 64, 256, null, null], ["f16", 256, 0, null, null], ["int4-g64", 64, 0, 4, 2.5], ["int4-g64", 64, 256, 2, 2.5],
        ["int4-g64", 256, 0, 2, 3], ["int4-g64", 256, 9, null, null]]' out.json
    holds '.results.files == ["out/speed.svg", "out/speed.md"]' out.json
    grep -qF '**int4-g64** reads a prompt 2.0 to 4.0 times as fast as f16 and decodes 2.5 to 3.0 times as fast.' out/speed.md
    grep -qF '(<speed.svg>)' out/speed.md
    for s in '>f16<' '>int4-g64<' '>64 tokens<' '>after 256<' '>320<' '>280<'; do grep -q -- "$s" out/speed.svg; done
    # a folder's name may hold what Markdown and the heads of our tables use: nine columns in every line all the same
    bench odd.json 'a|b*' 64 '[[0, 80, 800, 100]]'
    "$B/bin/qreport" speed -q odd.json q1.json -o odd >out.json
    grep -qF '| TTFT, times a\|b\* | decode, times a\|b\* |' odd/speed.md
    [ "$(sed -n '/^|/{s/\\|//g;s/[^|]//g;p}' odd/speed.md | sort -u)" = '||||||||||' ]
}

@test "speed refuses bad input" {
    bench f1.json f16 64 '[[0, 80, 800, 100]]'
    refused 2 'no record given' speed -o out
    refused 2 '-o DIR is missing' speed f1.json
    refused 1 'f1.json and f1.json: two runs of f16 with 64 prompt tokens at depth 0' speed f1.json f1.json -o out
    refused 1 'schema' speed q-mix-5.json -o out
    for f in '.results.runs = []' 'del(.results.runs[0].ttft_ms)' '.results.runs[0].decode_tps.p50 = null' \
        '.results.runs[0].prefill_tps.p50 = "1"' '.results.prompt_tokens = 0' '.results.runs[0].depth = -1' '.results.runs[0] = 3'; do
        jq -c "$f" f1.json >bad.json
        refused 1 'bad.json: ' speed bad.json -o out
    done
    [ ! -e out ]
}

@test "sens refuses bad input" {
    refused 2 '-o DIR is missing' sens s-local-int4-g64.json
    refused 1 'schema' sens q-mix-5.json -o out
    refused 1 'nope: no samples of these linears' sens s-local-int4-g64.json --samples nope -o out
    jq -c '.results.tensors[1].kld = null' s-isolated-int4-g64.json >bad.json
    refused 1 'bad.json: model.layers.0.mlp.up_proj: no finite kld' sens bad.json -o out
    refused 1 'two records of int4-g64, mode local' sens s-local-int4-g64.json s-local-int4-g64.json -o out
    mkdir s
    printf 'reference,quantized\n1,2\n3;4\n' >s/model.layers.0.mlp.up_proj.csv
    refused 1 'line 3 is not two numbers' sens s-isolated-int4-g64.json --samples s -o out
    printf 'reference,quantized\n1,0x2\n' >s/model.layers.0.mlp.up_proj.csv
    refused 1 'line 2 is not two numbers' sens s-isolated-int4-g64.json --samples s -o out
    [ ! -e out/lbl_analysis.md ]
}
