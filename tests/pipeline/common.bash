# shellcheck shell=bash
# Shared by the pipeline tests: a tiny model, a text, and a folder of wrappers around the real tools.
# A wrapper writes its tool's name into $ran and does what the file $T/on.TOOL says, where there is one:
#   version N     --version tells N as the results integer
#   fail WORD     a run with WORD among its arguments prints half a record and fails
# and, in any tool, what $T/kill says ("N MOMENT"): at the N-th run from now, SIGKILL to the process group (make and
# all): before the tool, while it runs, or after it but before make has its record; "make": to make alone, the tool goes
# on as an orphan.

bats_require_minimum_version 1.5.0

make_wrappers() { # DIR
    mkdir -p "$1"
    local t
    for t in qload qquant qsens qppl qbench qreport; do
        cat >"$1/$t" <<'WRAPPER'
#!/usr/bin/env bash
t=${0##*/} real=$B/bin/${0##*/}
read -r what arg 2>/dev/null <"$T/on.$t"
if [ "$1" = --version ]; then
    [ "$what" != version ] || { echo "$t 0.1.0 (results $arg)"; exit 0; }
    exec "$real" --version
fi
echo "$t $*" >>"$T/ran"
if [ "$what" = fail ] && [[ "$*" == *"$arg"* ]]; then
    printf '{"schema":"qlab.%s/1","results":{' "$t"
    echo "$t: failing as it was told to" >&2
    exit 1
fi
n=0
read -r n moment 2>/dev/null <"$T/kill"
[ "$n" -lt 2 ] || echo "$((n - 1)) $moment" >"$T/kill"
[ "$n" = 1 ] || exec "$real" "$@"
rm "$T/kill"
case $moment in
before) ;;
during)
    "$real" "$@" &
    sleep 0.02
    ;;
after) "$real" "$@" ;;
make)
    while [ ! -s "$T/make.pid" ]; do sleep 0.02; done
    kill -9 "$(cat "$T/make.pid")"
    sleep 0.3
    "$real" "$@"
    rc=$?
    sleep 0.3
    touch "$T/orphan.done"
    exit "$rc"
    ;;
esac
kill -9 -- "-$(cut -d' ' -f5 /proc/$$/stat)"
sleep 5
WRAPPER
        chmod +x "$1/$t"
    done
}

# gen2 [VARIABLE=VALUE…]: the pipeline on the tiny model, in $T/out; what ran is in $T/ran, what was said in $T/said
gen2() {
    : >"$T/ran"
    make --no-print-directory -C "${pipelines:-pipelines}" gen2 BIN="$T/bin" OUT="$T/out" MODELS="$T/models" MODEL="$model" \
        TEXT="$text" FORMATS="$formats" BENCH="$bench" SAY_TOKENS=2 PROMPT=Once "$@" >"$T/said" 2>&1 </dev/null
}

# The same in a process group of its own, which the wrappers may kill.
gen2_apart() {
    export -f gen2
    export model text formats bench pipelines
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid -w bash -c 'gen2 "$@"' bash "$@"
}

common_setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    root=$PWD
    export B=${B:-$PWD/build}
    unset SAVE_EVAL_RESULTS METRICS MAKEFLAGS MAKELEVEL
    x=int4-g64+head=int8-row
    formats="f16 $x"
    bench='--prompt-tokens 4 --gen 2 --warmup 0 --trials 1'
    model=$BATS_FILE_TMPDIR/tiny
    text=$BATS_FILE_TMPDIR/text.txt
}

# A finished run in $BATS_FILE_TMPDIR/done, which tests copy.
common_setup_file() {
    common_setup
    export T=$BATS_FILE_TMPDIR/first
    mkdir -p "$T"
    "$B/tests/mkmodel" -q llama-tied "$model"
    head -c 1200 data/sample.txt >"$text"
    make_wrappers "$T/bin"
    gen2 || { cat "$T/said"; false; }
}

# T: this test's own folder, with a finished run unless told "empty".
start() {
    export T=$BATS_TEST_TMPDIR
    make_wrappers "$T/bin"
    [ "${1:-}" = empty ] || cp -a "$BATS_FILE_TMPDIR/first/out" "$T/out"
    m=$T/out/$(cd "$BATS_FILE_TMPDIR/first/out" && echo tiny-*)
}

ok() { gen2 "$@" || { cat "$T/said"; false; }; }

# How often each tool ran: "qppl 3 qreport 1"
ran() { cut -d' ' -f1 "$T/ran" | sort | uniq -c | awk '{ printf "%s%s %d", sep, $2, $1; sep = " " } END { print "" }'; }
ran_is() { [ "$(ran)" = "$1" ] || { cat "$T/ran" "$T/said"; echo "ran: $(ran); expected: $1"; false; }; }

# All results that must not depend on how they came about, in one stream.
results() { # OUT
    (
        cd "$1"/tiny-* || exit 1
        for f in load.json {f16,"$x"}/{quant,load,ppl}.json; do echo "$f"; jq -cS '[.results, .output.sha256]' "$f"; done
        for f in {f16,"$x"}/say.json; do echo "$f"; jq -cS .results.generated "$f"; done
        jq -cS '.results.rows[] | [.name, .sha256, .ppl, .delta_nll, .kld, .generated]' gen2/report.json
        sha256sum {f16,"$x"}/ppl.nll ref.states
    )
}
same_results() { diff <(results "$BATS_FILE_TMPDIR/first/out") <(results "$T/out"); }
# No unfinished file or folder is left.
nothing_left() { local f; f=$(find "$T/out" -name '*.tmp' -o -name '*.part-*' -o -name '*.old-*'); [ -z "$f" ] || { echo "left: $f"; false; }; }
