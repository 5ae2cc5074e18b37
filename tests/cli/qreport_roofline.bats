#!/usr/bin/env bats
# qreport table --plot: the roofline of a qbench record with --kernels.

tool=qreport
load common

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    "$B/tests/mkmodel" -q llama-tied "$BATS_FILE_TMPDIR/tiny"
    "$B/bin/qbench" -q "$BATS_FILE_TMPDIR/tiny" --prompt-tokens 20 --gen 4 --trials 2 --kernels --compute f32 >"$BATS_FILE_TMPDIR/k.json"
    "$B/bin/qbench" -q "$BATS_FILE_TMPDIR/tiny" --prompt-tokens 20 --gen 4 --trials 2 --compute f32 >"$BATS_FILE_TMPDIR/plain.json"
}

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    k=$BATS_FILE_TMPDIR/k.json
}

@test "roofs and kernels are drawn and named" {
    "$B/bin/qreport" table -q "$k" --plot plots >out.json
    holds '.results.files | index("plots/roofline-tiny.svg") and index("plots/roofline-tiny.gp")' out.json
    svg=plots/roofline-tiny.svg
    for text in 'Kernels of tiny under the roofs' 'read bandwidth: ' ' GOP/s' 'operations a byte' '>decode<' '>prefill<'; do
        grep -qF -- "$text" "$svg" || { echo "no $text"; false; }
    done
    # every op that computes and takes a hundredth of its phase has its label
    jq -r '.results.kernels as $k | $k[] | . as $r | select(.ops > 0 and (.phase | IN("decode", "prefill"))) |
           select(.ms > 0.0101 * ([$k[] | select(.phase == $r.phase).ms] | add)) |
           .op + (if .format then " " + .format else "" end) + ", "' "$k" >labels
    [ "$(wc -l <labels)" -ge 4 ]
    while read -r l; do grep -qF -- "$l" "$svg" || { echo "no $l"; false; }; done <labels
}

@test "the points are the record's, in phase and place" {
    "$B/bin/qreport" table -q "$k" --plot plots >/dev/null
    for i in 0:decode 1:prefill; do
        sed -n "/^\$p${i%%:*} << EOD/,/^NaN/p" plots/roofline-tiny.gp | grep -v '[EN]' | sort -g >got
        jq -r --arg p "${i##*:}" '.results.kernels as $k | ([$k[] | select(.phase == $p).ms] | add) as $all | $k[]
            | select(.phase == $p and .ops > 0 and .ms >= 0.01 * $all) | "\(.ops / .bytes) \(.ops / .ms / 1e6)"' "$k" | sort -g >want
        [ -s got ]
        [ "$(wc -l <got)" = "$(wc -l <want)" ]
        paste got want | awk '{ if (($1 / $3 - 1) ^ 2 > 1e-10 || ($2 / $4 - 1) ^ 2 > 1e-10) { print; exit 1 } }'
    done
    # the roof is the lower of the slope and the peak, both as measured
    bw=$(jq .results.bandwidth.read_bytes_per_s "$k") peak=$(jq .results.peak.f32.ops_per_s "$k")
    grep '^roof(x, peak)' plots/roofline-tiny.gp | awk -v bw="$bw" '{ exit !(($6 / (bw / 1e9) - 1) ^ 2 < 1e-10) }'
    grep -o 'roof(x, [0-9.]*) notitle' plots/roofline-tiny.gp | grep -o '[0-9][0-9.]*' |
        awk -v peak="$peak" '{ n++; bad += ($1 / (peak / 1e9) - 1) ^ 2 > 1e-10 } END { exit n != 1 || bad }'
}

@test "a record without kernels has no roofline" {
    "$B/bin/qreport" table -q "$BATS_FILE_TMPDIR/plain.json" --plot plots >out.json
    holds '.results.files | any(contains("roofline")) | not' out.json
    [ ! -e plots/roofline-tiny.svg ]
    # nor has one whose peaks are unknown, as a device's are
    jq '.results.peak = null | .results.kernels[].peak = null' "$k" >device.json
    "$B/bin/qreport" table -q device.json --plot plots >out.json
    holds '.results.files | any(contains("roofline")) | not' out.json
}
