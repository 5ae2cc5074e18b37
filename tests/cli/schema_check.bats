#!/usr/bin/env bats
# The checker that the other tests rely on, and the schemas themselves.

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    check=$B/tests/schema_check
    record=$BATS_TEST_TMPDIR/record.json
    cat >"$record" <<'EOF'
{"schema":"qlab.qppl/1","tool":"qppl","version":"0.1.0","results_version":1,"git":"abc","argv":["qppl","m"],
 "host":{"cpu":"x","cores":2,"isa":[],"gpu":null,"driver":null,"os":"Linux"},
 "inputs":[{"role":"model","path":"m","bytes":3,"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}],
 "params":{"threads":2,"device":"cpu","compute":"f32","seed":0,"protocol":"llamacpp"},
 "results":{"protocol":"llamacpp","n_tokens":1024,"n_scored":510,"nll":2.5,"nll_se":0.1,"ppl":12.18,"ppl_se":1.2,
   "bits_per_byte":1.1,"compute":"f32"},
 "timing":{"wall_s":1.5,"started":"2026-01-01T00:00:00Z"}}
EOF
}

# refuses FILTER MESSAGE: the record changed by a jq filter is refused with this message
refuses() {
    jq "$1" "$record" >"$record.bad"
    run "$check" docs/schema/qppl.json "$record.bad"
    [ "$status" = 1 ]
    [[ "$output" == *"$2"* ]] || { echo "$output"; false; }
}

@test "a good record passes, from a file and from stdin" {
    "$check" docs/schema/qppl.json "$record"
    "$check" docs/schema/qppl.json <"$record"
    "$check" docs/schema/record.json "$record"
}

@test "each kind of fault is found and located" {
    refuses 'del(.results.ppl)' '/results: "ppl" is missing'
    refuses '.results.ppl = null' '/results/ppl: null is not of type "number"'
    refuses '.results.ppl = 0.5' '/results/ppl: 0.5 is below 1'
    refuses '.results.n_scored = 1.5' '/results/n_scored: 1.5 is not of type "integer"'
    refuses '.results.top1_agreement = 1.5' 'is above 1'
    refuses '.results.protocol = "other"' '/results/protocol: not one of'
    refuses '.schema = "qlab.qload/1"' '/schema: not the constant'
    refuses '.inputs[0].sha256 = "12"' '/inputs/0/sha256: string too short'
    refuses '.argv = []' '/argv: too few items'
    refuses '.extra = 1' '"extra" is not expected'
    refuses '.results.delta_nll = {"mean": 1}' '/results/delta_nll: "se" is missing'
    refuses '.inputs = {}' 'is not of type "array"'
}

@test "what is not one JSON value is refused" {
    run "$check" docs/schema/qppl.json </dev/null
    [ "$status" = 1 ]
    cat "$record" "$record" >"$record.two"
    run "$check" docs/schema/qppl.json "$record.two"
    [ "$status" = 1 ]
    run "$check" docs/schema/qppl.json <"$record.two"
    [ "$status" = 1 ]
}

@test "a schema with a keyword nobody checks, or a broken reference, is an error of its own" {
    echo '{"type":"object","patternProperties":{}}' >"$BATS_TEST_TMPDIR/s.json"
    run "$check" "$BATS_TEST_TMPDIR/s.json" "$record"
    [ "$status" = 2 ]
    echo '{"$ref":"#/$defs/none"}' >"$BATS_TEST_TMPDIR/s.json"
    run "$check" "$BATS_TEST_TMPDIR/s.json" "$record"
    [ "$status" = 2 ]
    echo '{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}' >"$BATS_TEST_TMPDIR/s.json"
    run "$check" "$BATS_TEST_TMPDIR/s.json" "$record"
    [ "$status" = 2 ]
}

@test "all six schemas are readable to the last reference" {
    for tool in qload qquant qsens qppl qbench qreport; do
        run "$check" "docs/schema/$tool.json" "$record"
        if [ "$tool" = qppl ]; then [ "$status" = 0 ]; else [ "$status" = 1 ]; fi
        # every local reference has its definition
        for name in $(grep -o '\$defs/[a-z0-9_]*' docs/schema/*.json -h | sort -u | cut -d/ -f2); do
            jq -e --arg n "$name" '."$defs"[$n]' docs/schema/record.json >/dev/null
        done
    done
}

@test "includes go down only" {
    tests/check-includes
    mkdir -p "$BATS_TEST_TMPDIR/tree/lib/views" "$BATS_TEST_TMPDIR/tree/tools"
    echo '#include "model/model.h"' >"$BATS_TEST_TMPDIR/tree/lib/views/a.c"
    run tests/check-includes "$BATS_TEST_TMPDIR/tree"
    [ "$status" = 1 ]
    [[ "$output" == *"views includes model/model.h"* ]]
}
