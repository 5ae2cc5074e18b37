#!/usr/bin/env bats
# tests/bench/peers: its arguments, and the figures it makes of rounds. Nothing is built or measured here.

bats_require_minimum_version 1.5.0

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    peers=tests/bench/peers
    d=$BATS_TEST_TMPDIR/d
    unset PEERS_DIR
}

# says STATUS MESSAGE ARGS…: one line of peers: …, nothing on stdout, nothing made
says() {
    run --separate-stderr -"$1" "$peers" --dir "$d" "${@:3}"
    [ -z "$output" ]
    [[ "${stderr_lines[0]}" == "peers: $2"* ]] || { echo "$stderr"; false; }
    [ ! -e "$d" ]
}

@test "usage errors end with 2, what is missing with 1, before anything is built" {
    says 2 "--nonsense: unknown option" --nonsense
    says 2 "--pairs: a value is missing" --pairs
    says 2 "--pairs 0: a positive number was expected" --pairs 0
    says 2 "--threads two: a positive number was expected" --threads two
    says 2 "--only nothing: no such row" --only small-decode,nothing
    says 1 "--ik $BATS_TEST_TMPDIR: no CMakeLists.txt there" --ik "$BATS_TEST_TMPDIR"
    says 1 "--model $d/none: no model there" --model "$d/none"
    mkdir "$BATS_TEST_TMPDIR/m"
    touch "$BATS_TEST_TMPDIR/m/config.json"
    says 1 "--text FILE: no text there" --model "$BATS_TEST_TMPDIR/m" --only ppl-f16
    says 1 "--text $d/none: no text there" --model "$BATS_TEST_TMPDIR/m" --text "$d/none"
}

@test "--help names every row" {
    run -0 "$peers" --help
    for r in small-decode big-ik-prefill ppl-int4 big-quant size depth gen1; do [[ "$output" == *" $r"* ]]; done
}

line() { # line ROW {members}
    echo '{"git":"abc","key":"k","at":"2026-01-01T00:00:00Z","members":'"$2"'}' >>"$d/rows/$1.jsonl"
}

@test "ratios are paired: medians of the rounds' own, walls and shares the other way round" {
    mkdir -p "$d/rows"
    # a machine that halves its speed between rounds: the medians' ratio would be 3, each round's own is 2
    line small-decode '{"qlab":{"value":200,"bandwidth":4e10},"lc Q4_0":{"value":100}}'
    line small-decode '{"qlab":{"value":100,"bandwidth":2e10},"lc Q4_0":{"value":50}}'
    line small-decode '{"qlab":{"value":300,"bandwidth":6e10},"lc Q4_0":{"value":150}}'
    line ppl-f16 '{"qlab":{"value":10,"ppl":20},"lc F16":{"value":12,"ppl":20.1}}'
    line big-quant '{"qlab":{"value":10},"lc Q4_0":{"value":40}}'
    line big-decode '{"qlab":{"value":20,"bandwidth":4e10,"fraction":0.85,"rss_over":120e6},"lc-clang Q4_0":{"value":20}}'
    line nf4 '{"qlab":{"value":95},"qlab int4":{"value":100}}'
    line strided128 '{"qlab":{"value":50},"qlab int4-g128":{"value":100}}'
    line big-decode.scout '{"x":{"value":1}}'
    line size-small '{"qlab":{"value":100,"bytes":1e8,"bandwidth":4e10}}'
    line size-large '{"qlab":{"value":40,"bytes":1e9,"bandwidth":16e10}}'
    line depth '{"qlab":{"value":1,"token_ms":[[0,3.0],[512,3.5],[8192,11.0]]}}'
    run -0 --separate-stderr "$peers" --dir "$d" --report --json "$d/r.json" --md "$d/r.md" --plots "$d/plots"
    fig() { jq -e '.rows[] | select(.id == "'"$1"'") | '"$2" "$d/r.json" >/dev/null || { jq . "$d/r.json"; false; }; }
    fig small-decode '.ratio.median == 2 and .ratio.n == 3 and .qlab.median == 200 and .bandwidth.median == 4e10 and .reached == "floor"'
    fig ppl-f16 '.ratio.median == 1.2 and .reached == "floor" and .ppl.theirs == 20.1'
    fig big-quant '.ratio.median == 0.25 and .reached == "goal"'
    fig big-decode '.ratio.median == 1 and .reached == "below"'
    fig big-fraction '.value.median == 0.85 and .reached == "floor"'
    fig nf4 '.reached == "goal"'
    fig strided128 '.ratio.median == 0.5 and .reached == "shown"'
    fig big-rss '.value.median == 120 and .reached == "below"'
    grep -q '| default model, int4-g64 + int8 head: decode 64 tokens, depth 0 | 200 t/s | llama.cpp Q4_0 100 | \*\*2\*\* (2 – 2) | 40 |' "$d/r.md"
    grep -q 'llama.cpp (clang) Q4_0 20' "$d/r.md"
    # groups in the rows' order
    [ "$(grep -o '^| \*\*[^*]*' "$d/r.md" | cut -c 5- | paste -sd,)" = "Default model,Beside ourselves,Whole runs, default model,3B shape, random weights" ] || { cat "$d/r.md"; false; }
    # both lines are exact
    [[ "$output" == *$'size\t'*" ms + 40 ms a GB, R² 1, "* ]]
    [[ "$output" == *$'depth\t3 ms + 0.977 ms a thousand tokens, R² 1, '* ]]
    [[ "$output" == *"big-decode"*"floor 1.05 goal 1.3"*"below"* ]]
    # 1e8 bytes in 10 ms at 40 GB/s and 1e9 in 25 ms at 160, both as at 100: a quarter of the bandwidth and nothing beside
    grep -q '40.0 ms a GB (25.0 GB/s)' "$d/plots/peers-size.svg"
    grep -q '>large<' "$d/plots/peers-size.svg"
    grep -q 'ms a thousand tokens' "$d/plots/peers-depth.svg"
}

@test "the fit: a line, its R² and the point farthest off, worked out by hand" {
    fit() { jq -nc -L tests/bench "include \"peers\"; $1 | fit"; }
    [ "$(fit '[[0,1],[1,1],[2,4]]')" = '{"intercept":0.5,"slope":1.5,"r2":0.75,"worst":{"x":0,"off":1}}' ]
    [ "$(fit '[[0,1]]')" = null ]
    [ "$(fit '[[1,1],[1,2]]')" = null ]
}

@test "--prepare makes the models of the rows, once, and measures nothing" {
    mkdir -p "$d/lcp"
    for b in lc lc-clang lc-avx2; do
        mkdir -p "$d/$b/bin"
        printf '#!/bin/sh\nexit 9\n' >"$d/$b/bin/llama-bench" # would end a measurement
        chmod +x "$d/$b/bin/llama-bench"
    done
    "${B:-build}/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/tiny" --dtype f16
    for pass in first second; do
        run -0 --separate-stderr "$peers" --dir "$d" --model "$BATS_TEST_TMPDIR/tiny" --prepare --only nf4,strided128
        [ -z "$output" ]
        [ -e "$d/m/small-nf4/model.safetensors" ] && [ -e "$d/m/small-int4/config.json" ] && [ -e "$d/m/small-strided128/config.json" ]
        if [ $pass = first ]; then [[ "$stderr" == *"making small-nf4"* ]]; else [ -z "$stderr" ] || { echo "$stderr"; false; }; fi
    done
    [ -z "$(find "$d/rows" "$d/scouts" -type f)" ]
    [ ! -e "$d/peers.md" ]
}

@test "without rounds there is a report of nothing, with or without git" {
    run -0 --separate-stderr "$peers" --dir "$d" --report
    mkdir "$BATS_TEST_TMPDIR/bin"
    printf '#!/bin/sh\nexit 127\n' >"$BATS_TEST_TMPDIR/bin/git"
    chmod +x "$BATS_TEST_TMPDIR/bin/git"
    rm "$d/peers.json"
    PATH=$BATS_TEST_TMPDIR/bin:$PATH run -0 --separate-stderr "$peers" --dir "$d" --report
    [ "$(jq -c '[.rows, .size, .depth]' "$d/peers.json")" = '[[],[],[]]' ]
    [ -s "$d/peers.md" ]
}
