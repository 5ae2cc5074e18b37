#!/usr/bin/env bats
# bootstrap on machines that lack things: programs are hidden by a PATH of links, apt-get and sudo are stand-ins.

bats_require_minimum_version 1.5.0

setup() {
    src=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
    bin=$BATS_TEST_TMPDIR/bin
    mkdir "$bin"
    local p
    for p in sh bash env dirname mktemp rm cat cut sort tr id grep nproc sed gcc as ld make; do
        ln -s "$(command -v "$p")" "$bin/$p"
    done
    for p in jq gnuplot pip3 unzip xz bats perl pgrep g++; do # only looked for
        printf '#!/bin/sh\n' >"$bin/$p"
        chmod +x "$bin/$p"
    done
    export CALLS=$BATS_TEST_TMPDIR/calls
}

# Runs bootstrap where only $bin is on the PATH.
narrow() { run --separate-stderr env -i PATH="$bin" HOME="$BATS_TEST_TMPDIR" TMPDIR="$BATS_TEST_TMPDIR" CALLS="$CALLS" "$src/bootstrap" "$@"; }

# apt-get that writes down how it was called and "installs" jq
fake_apt() {
    cat >"$bin/apt-get" <<EOF
#!/bin/sh
echo "\$DEBIAN_FRONTEND apt-get \$*" >>"\$CALLS"
case \$* in *install*) ${1:-$(command -v cp) $bin/unzip $bin/jq} ;; esac
EOF
    chmod +x "$bin/apt-get"
}

@test "with everything there: says so, installs nothing, 0" {
    fake_apt
    narrow --no-install gen2
    [ "$status" = 0 ]
    [[ "$stderr" == *"nothing is missing for 'gen2'"* ]]
    [ ! -e "$CALLS" ]
}

@test "--no-install lists what is missing by name and package, and exits 1" {
    rm "$bin/jq" "$bin/gnuplot"
    fake_apt
    narrow --no-install gen2
    [ "$status" = 1 ]
    [[ "$stderr" == *"JSON filter (Debian package jq)"* ]]
    [[ "$stderr" == *"(Debian package gnuplot-nox)"* ]]
    [[ "$stderr" == *"./bootstrap gen2"* ]]
    [ ! -e "$CALLS" ]
    narrow --no-install all # building needs neither
    [ "$status" = 0 ]
}

@test "without apt-get: plain words, no attempt" {
    rm "$bin/jq"
    narrow help
    [ "$status" = 0 ]
    narrow check
    [ "$status" = 1 ]
    [[ "$stderr" == *"no apt-get"* ]]
    [[ "$stderr" == *"(Debian package jq)"* ]]
}

@test "what is missing is announced, then installed, then looked for again" {
    [ "$(id -u)" = 0 ] || skip "needs root"
    rm "$bin/jq"
    fake_apt
    # smoke would run the pipeline: a stand-in for make ends it
    rm "$bin/make"
    printf '#!/bin/sh\ncase $* in --version) echo GNU Make ;; *) echo "make $*" >>"$CALLS" ;; esac\n' >"$bin/make"
    chmod +x "$bin/make"
    narrow smoke MODEL=x
    [ "$status" = 0 ]
    [[ "$stderr" == *"will install with apt-get: jq"* ]]
    mapfile -t calls <"$CALLS"
    [ "${calls[0]}" = "noninteractive apt-get -q update" ]
    [ "${calls[1]}" = "noninteractive apt-get -q -y install --no-install-recommends jq" ]
    [[ "${calls[2]}" == "make -j"*" all MODEL=x" ]]
    [ "${calls[3]}" = "make -C pipelines smoke MODEL=x" ]
}

@test "an installation that does not help is an error" {
    [ "$(id -u)" = 0 ] || skip "needs root"
    rm "$bin/jq"
    fake_apt :
    narrow smoke
    [ "$status" = 1 ]
    [[ "$stderr" == *"still not found"* ]]
    fake_apt 'exit 100'
    narrow smoke
    [ "$status" = 1 ]
    [[ "$stderr" == *"could not install: jq"* ]]
}

@test "without root: sudo where there is one, else the command to run" {
    rm "$bin/jq" "$bin/id"
    printf '#!/bin/sh\necho 1000\n' >"$bin/id"
    chmod +x "$bin/id"
    fake_apt
    narrow smoke
    [ "$status" = 1 ]
    [[ "$stderr" == *"as root run: apt-get install jq"* ]]
    printf '#!/bin/sh\necho sudo >>"$CALLS"\nexec "$@"\n' >"$bin/sudo"
    chmod +x "$bin/sudo"
    rm "$bin/make"
    printf '#!/bin/sh\necho GNU Make\n' >"$bin/make"
    chmod +x "$bin/make"
    narrow smoke
    [ "$status" = 0 ]
    [[ "$stderr" == *"will install with sudo apt-get: jq"* ]]
    grep -qx sudo "$CALLS"
}

@test "wrong usage" {
    narrow --nothing
    [ "$status" = 2 ]
    narrow gen2 word
    [ "$status" = 2 ]
    narrow --help
    [ "$status" = 0 ]
    [[ "$output" == usage:* ]]
}
