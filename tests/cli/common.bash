# Loaded by the CLI tests. A file that loads this sets `tool` to the program it tests.

bats_require_minimum_version 1.5.0

src=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)

# holds FILTER FILE: the jq filter is true of the record
holds() { jq -e "$1" "$2" >/dev/null || { jq -c '.results // .' "$2"; echo "does not hold: $1"; false; }; }

# refused STATUS MESSAGE ARGS…: $tool ends with that status, says MESSAGE on one line of stderr, prints no record
refused() {
    local wanted=$1 message=$2
    shift 2
    run --separate-stderr "$B/bin/$tool" -q "$@"
    [ "$status" = "$wanted" ] || { echo "status $status, stderr: $stderr"; false; }
    [ -z "$output" ] || { echo "stdout: $output"; false; }
    [[ "$stderr" == "$tool: "*"$message"* ]] || { echo "stderr: $stderr"; false; }
    [ "$(wc -l <<<"$stderr")" = 1 ] || { echo "more than a line: $stderr"; false; }
}
