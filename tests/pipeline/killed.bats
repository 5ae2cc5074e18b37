#!/usr/bin/env bats
# gen2 that fails, or is killed at any stage: nothing wrong is left, and the next run goes on to the same results.

setup_file() {
    load common
    common_setup_file
}

setup() {
    load common
    common_setup
}

@test "a failing tool: no target, also where there was one; then it goes on from there" {
    start
    head -c 1300 data/calibration.txt >"$T/other"
    echo "fail /$x/model" >"$T/on.qppl"
    run ! gen2 TEXT="$T/other"
    grep -q 'qppl: failing as it was told to' "$T/said"
    [ ! -e "$m/$x/ppl.json" ]
    [ -e "$m/$x/quant.json" ]
    rm "$T/on.qppl"
    ok
    same_results
    nothing_left
}

@test "a failing qquant, qload, qbench, qreport leaves no record of its own" {
    start empty
    for t in "qquant:$x/quant" "qload:$x/load" "qbench:$x/bench" qreport:gen2/report; do
        echo "fail ${t%/*}" | sed 's/q[a-z]*://' >"$T/on.${t%%:*}"
        run ! gen2
        [ ! -e "$m/${t#*:}.json" ] || { echo "$t is there"; false; }
        rm "$T/on.${t%%:*}"
    done
    ok
    ran_is 'qreport 1'
    same_results
    nothing_left
}

@test "SIGKILL to everything at many stages: before, during and after a tool; the same results in the end" {
    start empty
    kills=0
    for at in '1 during' '2 after' '1 before' '1 during' '1 after' '2 during' '2 after' '1 during' '1 after' '2 during' '1 after'; do
        echo "$at" >"$T/kill"
        run gen2_apart
        [ "$status" != 0 ] || break
        [ ! -e "$T/kill" ] || { cat "$T/said"; echo "stopped before it was killed at $at"; false; }
        kills=$((kills + 1))
    done
    echo "killed $kills times"
    [ "$kills" -ge 9 ]
    rm -f "$T/kill"
    ok
    same_results
    nothing_left
    ok
    ran_is ''
}

@test "SIGKILL to a rerun with another text, then the first text again: the same results" {
    start
    head -c 1300 data/calibration.txt >"$T/other"
    for at in '1 during' '2 after' '1 before'; do
        echo "$at" >"$T/kill"
        run gen2_apart TEXT="$T/other"
        [ "$status" != 0 ]
    done
    ok
    same_results
}

@test "make alone is killed and started again while its tool still runs" {
    start empty
    for n in 3 4; do
        rm -f "$T/orphan.done" "$T/make.pid"
        echo "$n make" >"$T/kill"
        gen2 &
        # Its make, by /proc: a fresh machine has no pgrep. The wrapper waits for the file.
        for ((i = 0; i < 3000; i++)); do
            pid=$(awk -v p=$! '$2 == "(make)" && $4 == p { print $1 }' /proc/[0-9]*/stat 2>/dev/null) || true
            [ -z "$pid" ] || break
            sleep 0.02
        done
        [ -n "$pid" ]
        echo "$pid" >"$T/make.pid"
        wait $! && { echo "make was not killed"; false; }
        ok
        same_results
        while [ ! -e "$T/orphan.done" ]; do sleep 0.1; done
        same_results
        rm -rf "$T/out"
    done
}
