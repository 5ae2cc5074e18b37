#!/usr/bin/env bats
# pipelines/plan.jq against an exact search on small random instances, on a large one, and on bad input.

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    t=$BATS_TEST_TMPDIR
}

plan() { jq -n -f pipelines/plan.jq "$@"; }

# records SEED LAYERS FORMAT…: one qsens record a format on stdout; bytes rise with the format's place in the list, KLD
# falls with it, both with seeded noise (a linear congruential generator)
records() {
    local seed=$1 layers=$2
    shift 2
    jq -cn --argjson seed "$seed" --argjson layers "$layers" '
        def next: (. * 1103515245 + 12345) % 2147483648;
        $ARGS.positional as $formats
        | ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
           "mlp.down_proj"] as $ops
        | [range($layers) as $l | $ops[] | "model.layers.\($l).\(.)"] as $names
        | foreach range($formats | length) as $f ({s: ($seed + 77)};
            .tensors = [] | reduce range($names | length) as $i (.;
                .s |= (next | next) | (.s / 2147483648) as $u | .s |= next | (.s / 2147483648) as $v
                | (1024 + 512 * ($i % 3)) as $n
                | .tensors += [{name: $names[$i], bytes_before: ($n * 2),
                                bytes_after: ($n / 2 + $f * $n / 8 + ($u * 20 | floor)), kld: ($v * 0.1 / ($f + 1) / ($f + 1))}]);
            {schema: "qlab.qsens/1", inputs: [{role: "model", sha256: "m"}, {role: "text", sha256: "t"}],
             results: {mode: "isolated", format: $formats[$f], n_tokens: 100, all: {kld: 1}, tensors: .tensors}})
    ' --args "$@"
}

# The least damage of all choices within the budget: exact dynamic programming over bytes, in awk.
exact() { # BUDGET_BYTES RECORDS
    jq -r '.results.tensors[] | [.name, .bytes_after, .kld, .bytes_before] | @tsv' "$2" | awk -v budget="$1" '
        { if (!($1 in seen)) { seen[$1] = ++n; w[n, 0] = $4; d[n, 0] = 0; k[n] = 1 }
          i = seen[$1]; w[i, k[i]] = $2; d[i, k[i]] = $3; k[i]++ }
        END {
            size = 1; W[0] = 0; D[0] = 0
            for (i = 1; i <= n; i++) {
                delete best
                for (s = 0; s < size; s++) for (j = 0; j < k[i]; j++) {
                    nw = W[s] + w[i, j]; if (nw > budget) continue
                    nd = D[s] + d[i, j]; if (!(nw in best) || nd < best[nw]) best[nw] = nd
                }
                size = 0
                for (x in best) { W[size] = x + 0; D[size] = best[x]; size++ }
            }
            least = 1e300
            for (s = 0; s < size; s++) if (D[s] < least) least = D[s]
            printf "%.12g\n", least
        }'
}

# jq: the format a recipe gives a linear, first match wins
format_of='def glob: gsub("\\."; "\\.") | gsub("\\*"; ".*") | "^" + . + "$";
    def format_of($p; $n): first($p.rules[] | select(.match as $m | $n | test($m | glob)) | .format) // $p.default;'

@test "small instances: never over the budget, the bound holds, and the choice is the best there is" {
    for seed in 1 2 3 4 5 6 7 8; do
        records $seed 1 int4-g128 int4-g64 int8-row >"$t/r"
        for bpw in 4.6 5.3 6.9 9; do
            plan --argjson budget $bpw "$t/r" >"$t/plan"
            want=$(exact "$(jq .plan.budget_bytes "$t/plan")" "$t/r")
            jq -e --argjson want "$want" '.plan | .bytes <= .budget_bytes and .lower_bound <= .predicted + 1e-12 and
                (.predicted - $want | fabs) < 1e-9 and .lower_bound <= $want + 1e-9 and .optimal' "$t/plan" ||
                { echo "seed $seed, $bpw: want $want"; jq -c .plan "$t/plan"; false; }
        done
    done
}

@test "400 linears, six formats: within the budget, a small gap, the same output twice" {
    records 5 58 int4-g128 int4-g64 int4-g32 nf4 fp4 int8-row >"$t/r"
    for bpw in 4.7 6; do
        (ulimit -t 5 && plan --argjson budget $bpw "$t/r" >"$t/a") # seconds of processor time
        plan --argjson budget $bpw "$t/r" >"$t/b"
        cmp "$t/a" "$t/b"
        jq -e '.plan | .bytes <= .budget_bytes and .optimal and .gap <= 1e-3 * .predicted and .n_linears == 406' "$t/a"
    done
}

@test "rules of the recipe name every linear's format: sizes add up" {
    records 9 3 int4-g64 int8-row >"$t/r"
    plan --argjson budget 6 "$t/r" >"$t/plan"
    jq -n --slurpfile p "$t/plan" --slurpfile r "$t/r" "$format_of"'
        $p[0] as $p | [$r[0].results.tensors[].name as $n | format_of($p; $n) as $f
          | if $f == "f16" then $r[0].results.tensors[] | select(.name == $n) | .bytes_before
            else $r[] | select(.results.format == $f) | .results.tensors[] | select(.name == $n) | .bytes_after end] | add
        | . == $p.plan.bytes' | grep -qx true
}

@test "with shapes, the plan does not depend on how the source stores its weights" {
    records 6 2 int4-g64 int8-row >"$t/r"
    jq -c '.results.tensors[] |= . + {shape: [.bytes_before / 2, 1], bytes_before: (.bytes_before * 0.3 | floor)}' "$t/r" >"$t/gguf"
    plan --argjson budget 6 "$t/r" >"$t/a"
    plan --argjson budget 6 "$t/gguf" >"$t/b"
    cmp "$t/a" "$t/b"
}

@test "budgets in bytes, in GiB with context, and like a format" {
    records 3 2 int4-g64 int8-row >"$t/r"
    total=$(jq -s '.[0].results.tensors | map(.bytes_after) | add' "$t/r")
    plan --argjson budget "{\"bytes\":$((total + 500))}" "$t/r" | jq -e ".plan.budget_bytes == $((total + 500))"
    plan --argjson budget '{"like":"int4-g64"}' "$t/r" | jq -e ".plan.bytes <= $total"
    jq -n --slurpfile r "$t/r" '{schema: "qlab.qload/1", results: {n_layers: 2, n_kv_heads: 2, head_dim: 4, hidden_size: 16,
        n_heads: 4, intermediate_size: 32, weights_bytes: (10000 + ($r[0].results.tensors | map(.bytes_before) | add))}}' >"$t/m"
    gib=$(jq -n "($total + 10000 + 2 * 2 * 4 * 4 * 64 + 100) / 1073741824")
    plan --argjson budget "{\"gib\":$gib,\"ctx\":64}" --argjson model "$(cat "$t/m")" "$t/r" |
        jq -e ".plan.budget_bytes >= $total + 98 and .plan.budget_bytes <= $total + 100"
}

@test "kept linears keep their format, tied ones share it" {
    records 4 2 int4-g64 int8-row >"$t/r"
    plan --argjson budget 11 --argjson keep '{"*.layers.0.*":"f16"}' "$t/r" >"$t/plan"
    jq -e --slurpfile r "$t/r" "$format_of"'. as $p | [$r[0].results.tensors[].name | select(contains(".layers.0."))
        | format_of($p; .)] | length == 7 and all(. == "f16")' "$t/plan"
    plan --argjson budget 6 --argjson ties '"servers"' "$t/r" >"$t/plan"
    jq -e "$format_of"'. as $p | [range(2) as $l | [["q", "k", "v"], ["gate", "up"]][]
        | map(format_of($p; "model.layers.\($l).\(if . == "gate" or . == "up" then "mlp" else "self_attn" end).\(.)_proj"))
        | unique | length] | all(. == 1)' "$t/plan"
}

@test "a record of --method mse is a candidate of its own, and its rules say the method" {
    records 5 2 int4-g32-sym int8-row >"$t/rtn"
    # same bytes, half the damage of one operation, twice that of the others
    jq -c 'select(.results.format == "int4-g32-sym") | .results.method = "mse"
        | .results.tensors[] |= (.kld *= if .name | test("v_proj") then 0.5 else 2 end)' "$t/rtn" >"$t/mse"
    plan --argjson budget '{"like":"int4-g32-sym+mse"}' --argjson formats '["int4-g32-sym","int4-g32-sym+mse"]' \
        "$t/rtn" "$t/mse" >"$t/r"
    jq -e '.default == "int4-g32-sym" and (has("method") | not)
        and .rules == [{match: "*.v_proj", format: "int4-g32-sym", method: "mse"}]' "$t/r"
    jq -e '.plan.formats == {"int4-g32-sym": 12, "int4-g32-sym+mse": 2}' "$t/r"
    # where most are searched, the others say that they are not; qquant does as the recipe says
    jq -c '.results.tensors[] |= (.kld *= if .name | test("v_proj") then 8 else 0.1 end)' "$t/mse" >"$t/mse2"
    jq -e '.default == "int4-g32-sym" and .method == "mse"
        and .rules == [{match: "*.v_proj", format: "int4-g32-sym", method: "rtn"}]' <(
        plan --argjson budget 5 --argjson formats '["int4-g32-sym","int4-g32-sym+mse"]' "$t/rtn" "$t/mse2")
    "$B/tests/mkmodel" -q llama-tied "$t/m"
    jq '.rules[0].match = "*.self_attn.v_proj"' <(
        plan --argjson budget 5 --argjson formats '["int4-g32-sym","int4-g32-sym+mse"]' "$t/rtn" "$t/mse2") >"$t/r"
    "$B/bin/qquant" -q "$t/m" -r "$t/r" -o "$t/q" |
        jq -e '[.results.tensors[] | select(.format == "int4-g32-sym") | [(.name | test("v_proj")), .method]] | unique == [[false, "mse"], [true, "rtn"]]'
}

@test "what cannot be done: one line, exit 5, nothing on stdout" {
    records 1 1 int4-g64 int8-row >"$t/r"
    refused() {
        local message=$1
        shift
        run --separate-stderr jq -n -f pipelines/plan.jq "$@"
        [ "$status" = 5 ] || { echo "status $status: $output $stderr"; false; }
        [ -z "$output" ]
        [[ "$stderr" == *"plan: "*"$message"* ]] || { echo "$stderr"; false; }
    }
    refused "can be reached" --argjson budget 1 "$t/r"
    refused "can be reached with this keep list" --argjson budget 4.6 --argjson keep '["*"]' "$t/r"
    refused "no budget" "$t/r"
    refused "matches no linear" --argjson budget 6 --argjson keep '["nothing"]' "$t/r"
    jq -c 'if .results.format == "int8-row" then del(.results.tensors[2]) else . end' "$t/r" >"$t/missing"
    refused "missing from the record of int8-row" --argjson budget 6 "$t/missing"
    jq -c '.results.tensors[1].kld = null' "$t/r" >"$t/null"
    refused "a finite number was expected" --argjson budget 6 "$t/null"
    jq -c '.inputs[0].sha256 = .results.format' "$t/r" >"$t/other"
    refused "differ in model" --argjson budget 6 "$t/other"
    sed 's/"kld":0[^,}]*/"kld":NaN/' "$t/r" >"$t/nan"
    refused "a finite number was expected" --argjson budget 6 "$t/nan"
    jq -c '.results.tensors[0] = 3' "$t/r" >"$t/odd"
    refused "an entry of results.tensors is not an object" --argjson budget 6 "$t/odd"
    jq -c '.results.tensors[0].bytes_after = -5' "$t/r" >"$t/odd"
    refused "not a whole number" --argjson budget 6 "$t/odd"
    jq -c '.results.tensors[1] = .results.tensors[0]' "$t/r" >"$t/odd"
    refused "twice in the record of int4-g64" --argjson budget 6 "$t/odd"
    refused "no records" --argjson budget 6 /dev/null
    refused "kep: no argument of that name" --argjson budget 6 --argjson kep '["*"]' "$t/r"
    refused "is to be f16 and int8-row" --argjson budget 6 --argjson keep '{"*.v_proj":"f16","*.layers.0.*":"int8-row"}' "$t/r"
    nan=nan
    jq -n --argjson b nan . >/dev/null 2>&1 || nan= # some releases of jq refuse it themselves
    for b in '"abc"' -1 0 $nan '[]' '{}' '{"bpw":5,"bytes":9}' '{"bpw":5,"ctx":9}' '{"gib":"x"}' '{"bits":5}'; do
        refused "expected" --argjson budget "$b" "$t/r"
    done
    jq -c '.schema = "qlab.qsens/2"' "$t/r" >"$t/schema"
    refused "qlab.qsens/1 was expected" --argjson budget 6 "$t/schema"
    jq -c '.results.mode = "local"' "$t/r" >"$t/local"
    refused "local" --argjson budget 6 "$t/local"
}
