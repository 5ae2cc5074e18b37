#!/usr/bin/env bats
# Every command of README.md and docs/cookbook.md runs, in order, in a copy of the tree, on a tiny model that stands where
# the default model would. `./bootstrap TARGET` becomes `./bootstrap --no-install TARGET`, and what runs all tests or
# measures for long is only planned (smoke has a test of its own).

bats_require_minimum_version 1.5.0

setup_file() {
    local src
    src=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
    export SRC=$src TREE=$BATS_FILE_TMPDIR/qlab
    mkdir "$TREE"
    # The files git tracks; a tree without git (an unpacked archive) is taken whole but for what is derived.
    if git -C "$src" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        (cd "$src" && git ls-files -z | xargs -0 tar -cf - --) | tar -xf - -C "$TREE"
    else
        tar -cf - -C "$src" --exclude=./build --exclude=./out --exclude=./models . | tar -xf - -C "$TREE"
    fi
    # The tools are built already: bin and the helper that smoke needs, under names that make finds up to date.
    mkdir -p "$TREE/build"
    ln -s "$B/bin" "$TREE/build/bin"
    ln -s "$B/tests" "$TREE/build/tests"
    # A tiny model stands for the default one.
    mkdir -p "$TREE/out/smollm2-135m/f16"
    "$B/tests/mkmodel" -q bigram "$TREE/out/smollm2-135m/f16/model" --dtype f16
}

# Commands of the ```sh blocks, continuation lines joined.
commands() {
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$1" |
        awk '{ if (sub(/\\$/, "") || /\|$/) { held = held $0 " "; next } print held $0; held = "" }'
}

# What a test can run of it.
runnable() {
    sed -E -e 's#^\./bootstrap #./bootstrap --no-install #' \
        -e 's#^make$#test -x build/bin/qload#' \
        -e 's#^make check.*#make -n check >/dev/null#' \
        -e 's#^make -C pipelines (gen[12])$#make -n -C pipelines \1 MODEL=out/smollm2-135m/f16/model >/dev/null#' \
        -e 's#^make -C pipelines smoke$#make -C pipelines help >/dev/null#' \
        -e 's#qbench #qbench --warmup 0 --trials 1 #' \
        -e '/qppl/ s#--text [^ ]+#& --ctx 64 --chars 3000#g'
}

run_all() { # FILE
    cd "$TREE" || exit 1
    local n=0 line
    while IFS= read -r line; do
        n=$((n + 1))
        echo "\$ $line"
        bash -euo pipefail -c "$line" </dev/null || { echo "failed ($?): $line"; return 1; }
    done < <(commands "$SRC/$1" | runnable)
    [ "$n" -ge "$2" ] || { echo "only $n commands found in $1"; return 1; }
}

@test "every command of README.md runs" {
    [ -z "${SAN:-}" ] || skip "the copy builds without sanitizers"
    run_all README.md 20
}

@test "every command of docs/cookbook.md runs" {
    [ -z "${SAN:-}" ] || skip "the copy builds without sanitizers"
    [ -e "$SRC/docs/cookbook.md" ] || skip "no cookbook"
    run_all docs/cookbook.md 10
}

@test "links within the documentation lead somewhere" {
    cd "$SRC"
    local f target
    for f in README.md docs/*.md data/README.md; do
        while IFS= read -r target; do
            case $target in http*|'#'*) continue ;; esac
            [ -e "$(dirname "$f")/${target%%#*}" ] || { echo "$f: $target"; false; }
        done < <(grep -oE '\]\([^)]+\)' "$f" | sed -E 's/^\]\(<?([^>)]*)>?\)$/\1/')
    done
}
