#!/usr/bin/env bats
# Downloads from a hub, played by tests/tools/httpd.c on 127.0.0.1: whole, resumed, redirected, refused and lied to.

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    root=$PWD/hub commit=0123456789abcdef0123456789abcdef01234567
    api=$root/api/models/owner/tiny files=$root/owner/tiny/resolve/$commit
    mkdir -p "$api/revision" "$api/tree" "$files"
    echo "{\"sha\":\"$commit\"}" >"$api/revision/main"
    echo '[{"type":"directory","oid":"x","size":0,"path":"onnx"}]' >"$api/tree/$commit"
    small config.json '{"model_type":"llama"}'
    small tokenizer.json '{"version":"1.0"}'
    small README.md 'not wanted'
    head -c 300000 /dev/urandom >weights
    large model.safetensors weights
    unset HF_TOKEN HF_ENDPOINT http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
    export XDG_CACHE_HOME=$PWD/cache
    pids=()
}

teardown() {
    local p
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; wait "$p" || true; done
}

# list NAME JSON: an entry more in the hub's list of files
list() {
    jq -c --arg name "$1" --argjson more "$2" '. + [{type:"file", path:$name} + $more]' "$api/tree/$commit" >t
    mv t "$api/tree/$commit"
}

# small NAME TEXT: a file that git keeps itself; large NAME FILE: one in large file storage
small() {
    printf '%s' "$2" >"$files/$1"
    local n sha
    n=$(stat -c %s "$files/$1")
    sha=$({ printf 'blob %d\0' "$n"; cat "$files/$1"; } | sha1sum | cut -d' ' -f1)
    list "$1" "{\"size\":$n,\"oid\":\"$sha\"}"
}
large() {
    cp "$2" "$files/$1"
    local n sha
    n=$(stat -c %s "$2")
    sha=$(sha256sum "$2" | cut -d' ' -f1)
    list "$1" "{\"size\":$n,\"oid\":\"$(printf %040d 7)\",\"lfs\":{\"oid\":\"$sha\",\"size\":$n,\"pointerSize\":134}}"
}

# serve NAME [FAULT…]: a server with its log in NAME.log; sets port
serve() {
    local name=$1
    shift
    rm -f "$name.port"
    "$B/tests/httpd" "$root" "$name.port" "$name.log" "$@" 3>&- &
    pids+=($!)
    for _ in $(seq 100); do
        [ ! -s "$name.port" ] || break
        sleep 0.05
    done
    port=$(<"$name.port")
}
hub() {
    serve hub "$@"
    export HF_ENDPOINT=http://127.0.0.1:$port
}

# absent GREP-ARGUMENTS…: no line matches (a plain "! grep" would not end a test)
absent() { if grep "$@"; then return 1; fi; }

get() { run "$B/tests/hub_get" "$@"; }

# failed TEXT…: exit 1, one line on stderr behind the stages that has each TEXT, and no folder
failed() {
    [ "$status" = 1 ] || { echo "status $status: $output"; return 1; }
    local t
    for t; do [[ "${lines[-1]}" == "hub_get: "*"$t"* ]] || { echo "without \"$t\": $output"; return 1; }; done
    [ ! -e out ]
}

whole() {
    [ "$status" = 0 ] || { echo "$output"; return 1; }
    cmp weights out/model.safetensors
    cmp "$files/config.json" out/config.json
    cmp "$files/tokenizer.json" out/tokenizer.json
    [ ! -e out/README.md ]
    [ -z "$(find . -maxdepth 1 -name 'out.*')" ] # neither staging nor temporary folders
}

@test "a whole download, from the commit that the revision stands for" {
    hub
    get hf:owner/tiny out
    whole
    grep -q "/owner/tiny/resolve/$commit/model.safetensors" hub.log
    absent -q auth=. hub.log
    # and over a folder of ours again
    get hf:owner/tiny out
    whole
}

@test "a named revision, escaped" {
    mkdir -p "$api/revision"
    echo "{\"sha\":\"$commit\"}" >"$api/revision/v%2F1"
    hub
    get hf:owner/tiny@v/1 out
    whole
}

@test "shards by their index" {
    jq -c 'map(select(.path != "model.safetensors"))' "$api/tree/$commit" >t && mv t "$api/tree/$commit"
    head -c 2000 /dev/urandom >s1
    head -c 3000 /dev/urandom >s2
    large model-00001-of-00002.safetensors s1
    large model-00002-of-00002.safetensors s2
    large consolidated.safetensors weights
    local one=model-00001-of-00002.safetensors two=model-00002-of-00002.safetensors
    small model.safetensors.index.json "{\"weight_map\":{\"a\":\"$one\",\"b\":\"$two\",\"c\":\"$one\"}}"
    hub
    get hf:owner/tiny out
    [ "$status" = 0 ]
    cmp s1 "out/$one"
    cmp s2 "out/$two"
    [ -e out/model.safetensors.index.json ]
    [ ! -e out/consolidated.safetensors ]
    [ "$(grep -c "$one" hub.log)" = 1 ]
}

@test "an index that names a file outside, or one that is not there" {
    jq -c 'map(select(.path != "model.safetensors"))' "$api/tree/$commit" >t && mv t "$api/tree/$commit"
    cp "$api/tree/$commit" tree
    small model.safetensors.index.json '{"weight_map":{"a":"../../x.safetensors"}}'
    hub
    get hf:owner/tiny out
    failed '../../x.safetensors is not the name of a safetensors file'
    cp tree "$api/tree/$commit"
    small model.safetensors.index.json '{"weight_map":{"a":"gone.safetensors"}}'
    get hf:owner/tiny out
    failed 'gone.safetensors is not among its files'
}

@test "dropped connections are taken up where they broke" {
    hub 'model.safetensors drop=100000*2' 'tree/'"$commit"' hangup*1' 'config.json drop=5*1'
    get hf:owner/tiny out
    whole
    grep -q 'model.safetensors range=100000- ' hub.log
    grep -q 'model.safetensors range=200000- ' hub.log
    grep -q 'config.json range=5- ' hub.log
}

@test "a server error and a busy server are waited for" {
    hub 'model.safetensors status=503*1' 'config.json status=429*1'
    get hf:owner/tiny out
    whole
    [[ "$output" == *"the server answers 503; trying again"* ]]
}

@test "a server without ranges: the file comes all over" {
    hub 'model.safetensors drop=100000*1' 'model.safetensors norange*1'
    get hf:owner/tiny out
    whole
}

@test "an answer to a range that starts elsewhere is refused and the part removed" {
    hub 'model.safetensors drop=100000*1' 'model.safetensors lyingrange'
    get hf:owner/tiny out
    failed 'sends bytes from 0 of 300000 (100000 of 300000 was asked)' 'keeps what has come'
    [ ! -e out.download/model.safetensors.part ]
    [ -e out.download/config.json ]
}

@test "an interrupted download goes on, also after SIGKILL" {
    hub 'model.safetensors drop=100000*1' 'model.safetensors status=403'
    get hf:owner/tiny out
    failed 'keeps what has come'
    [ "$(stat -c %s out.download/model.safetensors.part)" = 100000 ]
    hub 'model.safetensors drop=1000*1' 'model.safetensors hangup'
    "$B/tests/hub_get" hf:owner/tiny out 3>&- &
    local client=$!
    for _ in $(seq 100); do
        [ "$(stat -c %s out.download/model.safetensors.part)" = 100000 ] || break
        sleep 0.05
    done
    sleep 0.2
    kill -9 $client
    wait $client || true
    [ "$(stat -c %s out.download/model.safetensors.part)" = 101000 ]
    hub
    get hf:owner/tiny out
    whole
    grep -q 'model.safetensors range=101000- ' hub.log
    absent -q 'resolve.*config.json' hub.log # it was there already
}

@test "what is left of another commit is not mixed in" {
    hub 'model.safetensors drop=100000*1' 'model.safetensors status=403'
    get hf:owner/tiny out
    local next=89abcdef0123456789abcdef0123456789abcdef
    mv "$files" "$root/owner/tiny/resolve/$next"
    mv "$api/tree/$commit" "$api/tree/$next"
    echo "{\"sha\":\"$next\"}" >"$api/revision/main"
    files=$root/owner/tiny/resolve/$next
    hub
    get hf:owner/tiny out
    whole
    [[ "$output" == *"another commit; starting over"* ]]
    absent -q 'range=[0-9]' hub.log
}

@test "lengths that are lies" {
    hub 'model.safetensors length=200000'
    get hf:owner/tiny out
    failed 'model.safetensors: the server has 200000 bytes (300000 were expected)'
    [ ! -e out.download/model.safetensors.part ]
    hub 'model.safetensors length=400000'
    get hf:owner/tiny out
    failed 'the server has 400000 bytes (300000 were expected)'
    hub 'model.safetensors longer=70000'
    get hf:owner/tiny out
    failed 'the server sends more than 300000 bytes'
    [ ! -e out.download/model.safetensors.part ]
    hub 'model.safetensors nolength'
    get hf:owner/tiny out
    whole
}

@test "wrong digests: sha256 of a large file, git's sha1 of a small one" {
    hub
    printf X | dd of="$files/model.safetensors" bs=1 seek=1000 conv=notrunc 2>/dev/null
    get hf:owner/tiny out
    failed 'model.safetensors: what came has sha256' 'the hub states' 'removed'
    [ ! -e out.download/model.safetensors.part ]
    [ ! -e out.download/model.safetensors ]
    cp weights "$files/model.safetensors"
    printf '{"model_type":"llamb"}' >"$files/config.json"
    rm -r out.download
    get hf:owner/tiny out
    failed 'config.json: what came has git sha1'
    [ ! -e out.download ] # nothing worth keeping
}

@test "redirects are followed, and the token stays with the hub" {
    serve cdn
    local cdn=$port
    hub "model.safetensors redirect=http://127.0.0.1:$cdn" "tokenizer.json redirect=http://localhost:$cdn" \
        'config.json redirect=*1'
    HF_TOKEN=secret get hf:owner/tiny out
    whole
    grep -q 'model.safetensors' cdn.log
    grep -q 'tokenizer.json' cdn.log
    absent -q secret cdn.log
    grep -q '/moved/.*config.json range= auth=Bearer secret' hub.log
    absent -v 'auth=Bearer secret' hub.log
}

@test "endless redirects end" {
    hub 'model.safetensors loop'
    get hf:owner/tiny out
    failed 'redirects'
}

@test "gated, private and missing models" {
    hub 'revision/main status=401,GatedRepo'
    get hf:owner/tiny out
    failed 'hf:owner/tiny: the hub refuses access (401): the model is gated (accept its terms at' 'set HF_TOKEN'
    HF_TOKEN=secret get hf:owner/tiny out
    failed 'the account of HF_TOKEN has not been let in'
    [[ "$output" != *secret* ]]
    hub 'revision/main status=403'
    get hf:owner/tiny out
    failed 'gated'
    hub 'revision/main status=401'
    get hf:owner/tiny out
    failed 'no such model, or it is private or gated (set HF_TOKEN'
    HF_TOKEN=secret get hf:owner/tiny out
    failed 'HF_TOKEN is not valid for it'
    hub
    get hf:owner/none out
    failed 'hf:owner/none: model: not found (404)'
    hub 'revision/nope status=404,RevisionNotFound'
    get hf:owner/tiny@nope out
    failed 'hf:owner/tiny@nope: no such revision'
    [ ! -e out.download ]
}

@test "a hub that talks nonsense" {
    hub
    echo '{"sha":"../../etc"}' >"$api/revision/main"
    get hf:owner/tiny out
    failed 'no commit'
    echo '<html>' >"$api/revision/main"
    get hf:owner/tiny out
    failed 'not valid JSON'
    echo "{\"sha\":\"$commit\"}" >"$api/revision/main"
    cp "$api/tree/$commit" tree
    echo '{}' >"$api/tree/$commit"
    get hf:owner/tiny out
    failed 'not a list of files'
    echo '[{"type":"file","path":"config.json"}]' >"$api/tree/$commit"
    get hf:owner/tiny out
    failed 'config.json: "size" is missing'
    echo '[{"type":"file","path":"config.json","size":-3}]' >"$api/tree/$commit"
    get hf:owner/tiny out
    failed 'config.json: "size" is -3'
    echo '[]' >"$api/tree/$commit"
    get hf:owner/tiny out
    failed 'no config.json among its files'
    jq -c 'map(select(.path != "model.safetensors"))' tree >"$api/tree/$commit"
    get hf:owner/tiny out
    failed 'no model.safetensors and no model.safetensors.index.json'
}

@test "names that are none, and an endpoint that is none" {
    local s
    for s in hf:owner hf:/tiny hf:owner/ hf:owner/tiny/more 'hf:owner/ti ny' hf:../tiny hf:owner/.. hf:owner/tiny@ \
        hf:owner/tiny@../x 'hf:owner/tiny@a b'; do
        get "$s" out
        failed "$s: not the name of a model (hf:OWNER/NAME"
    done
    HF_ENDPOINT=ftp://x get hf:owner/tiny out
    failed 'HF_ENDPOINT'
    hub
    HF_TOKEN='two words' get hf:owner/tiny out
    failed 'HF_TOKEN: not a token'
}

@test "folders of somebody else are left alone" {
    hub
    mkdir out
    echo mine >out/precious
    get hf:owner/tiny out
    [ "$status" = 1 ]
    [[ "$output" == *"out: already there with other contents"* ]]
    [ ! -s hub.log ] # said before anything was asked
    rm -r out
    mkdir out.download
    echo mine >out.download/precious
    get hf:owner/tiny out
    failed 'out.download: already there with other contents'
    [ "$(<out.download/precious)" = mine ]
}

@test "what could not be put in its place is not downloaded again" {
    hub 'model.safetensors hangup*3'
    "$B/tests/hub_get" hf:owner/tiny out 2>err 3>&- &
    pid=$!
    for _ in $(seq 100); do # the client waits before it tries again
        grep -q model.safetensors hub.log && break
        sleep 0.02
    done
    mkdir out
    touch out/mine
    rc=0
    wait $pid || rc=$?
    [ $rc = 1 ]
    grep -q '^hub_get: .*out.*out.download keeps what has come' err || { cat err; false; }
    rm -r out
    get hf:owner/tiny out
    [ "$status" = 0 ] || { echo "$output"; false; }
    cmp out/model.safetensors weights
    [ "$(grep -c 'resolve.*/model.safetensors' hub.log)" = 4 ] || { cat hub.log; false; }
    [ ! -e out.download ]
}

@test "nobody listens: tried again, then given up" {
    hub
    kill "${pids[0]}"
    wait "${pids[0]}" || true
    pids=()
    get hf:owner/tiny out
    failed 'after 6 tries'
}
