#!/usr/bin/env bats
# qload: its record, the folders it writes, and everything it refuses.

bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    export T=$BATS_FILE_TMPDIR
    for kind in llama-tied llama-untied-rope3 qwen2-untied mistral qwen3 llama-bias; do
        "$B/tests/mkmodel" -q "$kind" "$T/$kind"
    done
    "$B/tests/mkmodel" -q qwen2-untied "$T/sharded" --shards 3
    "$B/tests/mkmodel" -q llama-untied-rope3 "$T/old" --old-config --dtype f16
}

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    r=$BATS_TEST_TMPDIR/r.json
    d=$BATS_TEST_TMPDIR/d # a model to spoil
    out=$BATS_TEST_TMPDIR/out
}

qload() { "$B/bin/qload" -q "$@" >"$r"; }
holds() { jq -e "$1" "$r" >/dev/null || { jq -c .results "$r"; echo "does not hold: $1"; false; }; }
model() { "$B/tests/mkmodel" -q "${1:-llama-tied}" "$d" "${@:2}"; }
edit() { jq "$1" "$d/config.json" >"$d/c.tmp" && mv "$d/c.tmp" "$d/config.json"; }

# refused STATUS MESSAGE ARGS…: exit status, one line on stderr with the message, nothing on stdout, no folder $out
refused() {
    local wanted=$1 message=$2
    shift 2
    run --separate-stderr "$B/bin/qload" -q "$@"
    [ "$status" = "$wanted" ] || { echo "status $status: $stderr"; false; }
    [ -z "$output" ]
    [[ "$stderr" == "qload: "*"$message"* ]] || { echo "$stderr"; false; }
    [ "$wanted" = 2 ] || [ "$(wc -l <<<"$stderr")" = 1 ] || { echo "$stderr"; false; }
    nothing_left
}
nothing_left() { ! compgen -G "$out*" || { ls -la "$BATS_TEST_TMPDIR"; false; }; }

# poke FILE OFFSET BYTES: overwrite
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
header_length() { od -An -tu8 -N8 "$1" | tr -d ' '; }
# header FILE JSON: a safetensors file of this header and 8 bytes of data
header() {
    local n=${#2}
    { printf "\\x$(printf %02x $((n % 256)))\\x$(printf %02x $((n / 256)))\0\0\0\0\0\0%s" "$2"; printf '12345678'; } >"$1"
}

# ---- the record ----

@test "the record has the schema's shape and is all that is printed" {
    for m in llama-tied llama-untied-rope3 qwen2-untied mistral qwen3 llama-bias sharded old; do
        run --separate-stderr bash -c '"$B/bin/qload" "$T/$1" --tensors --plan-memory >"$0"' "$r" "$m"
        [ "$status" = 0 ]
        [ -z "$stderr" ]
        [ "$(wc -l <"$r")" = 1 ]
        "$B/tests/schema_check" docs/schema/qload.json "$r"
        holds '.results.weights_bytes == ([.results.tensors[].bytes] | add)'
        holds '.results.weights_bytes == ([.results.dtypes[]] | add)'
        holds '.results.n_tensors == (.results.tensors | length)'
        holds '.results.weights_bytes == 2 * .results.n_params' # all values are two bytes wide
        holds '.results.quantization == null and .results.unused_tensors == []'
    done
}

@test "sizes, rope and tying are those of the models" {
    qload "$T/llama-tied"
    holds '.results | [.architecture,.n_params,.n_layers,.hidden_size,.intermediate_size,.n_heads,.n_kv_heads,.head_dim,
           .vocab_size,.tied_embeddings,.max_position_embeddings] ==
           ["LlamaForCausalLM",102720,2,64,160,4,2,16,256,true,512]'
    holds '.results.rope == {"type":"default","theta":10000}'
    holds '.results.tokenizer == {"type":"byte-level-bpe","vocab_size":256,"bos":null,"eos":null,"adds_bos":false}'
    holds '.results.dtypes == {"BF16": 205440}'
    for m in llama-untied-rope3 old; do
        qload "$T/$m"
        holds '.results.n_params == 119104 and .results.tied_embeddings == false'
        holds '.results.rope == {"type":"llama3","theta":10000,"factor":8,"low_freq_factor":1,"high_freq_factor":4,
               "original_max_position_embeddings":64}'
    done
    holds '.results.dtypes == {"F16": 238208}'
    qload "$T/qwen3"
    holds '.results.architecture == "Qwen3ForCausalLM" and .results.head_dim == 32'
}

@test "shards give the same results as one file" {
    qload "$T/qwen2-untied" --tensors
    jq -S .results "$r" >"$BATS_TEST_TMPDIR/a"
    qload "$T/sharded" --tensors
    jq -S .results "$r" | cmp - "$BATS_TEST_TMPDIR/a"
}

@test "inputs carry the digest that joins records" {
    qload "$T/llama-tied"
    holds '.inputs | length == 1 and .[0].role == "model"'
    wanted=$(cd "$T/llama-tied" && sha256sum config.json model.safetensors | sha256sum | cut -d' ' -f1)
    [ "$(jq -r '.inputs[0].sha256' "$r")" = "$wanted" ]
}

@test "--encode gives the ids of a text" {
    printf 'Hi  \303\251\n' >"$BATS_TEST_TMPDIR/t"
    qload "$T/llama-tied" --encode "$BATS_TEST_TMPDIR/t"
    holds '.results.token_ids == [72,105,32,32,195,169,10]'
    holds '.inputs | map(.role) == ["model","text"]'
    "$B/tests/schema_check" docs/schema/qload.json "$r"
    printf 'a\377b' >"$BATS_TEST_TMPDIR/t" # invalid UTF-8 is read as U+FFFD
    qload "$T/llama-tied" --encode "$BATS_TEST_TMPDIR/t"
    holds '.results.token_ids == [97,239,191,189,98]'
    : >"$BATS_TEST_TMPDIR/t"
    qload "$T/llama-tied" --encode "$BATS_TEST_TMPDIR/t"
    holds '.results.token_ids == []'
}

@test "--plan-memory adds up, and counts what it should" {
    qload "$T/qwen2-untied" --plan-memory --ctx 1024 --compute f32
    # linears, embedding, head in bf16; norms and biases in f32
    holds '.results.memory.weights_bytes == 2 * (2 * (64*64*2 + 32*64*2 + 3*64*160) + 2*256*64) + 4 * (2*(64+64+128) + 64)'
    holds '.results.memory.kv_bytes == 2 * 2 * 1024 * 32 * 4'
    holds '.results.memory | .predicted_bytes == .weights_bytes + .kv_bytes + .scratch_bytes'
    holds '.results.compute == "f32"'
    qload "$T/qwen2-untied" --plan-memory --ctx 2048 --compute f32
    holds '.results.memory.kv_bytes == 2 * 2 * 2048 * 32 * 4'
}

@test "--plan-memory promises what qbench then takes, to the byte; all of it is in sight" {
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/odd" --hidden 288 --ff 1000 --layers 3 --heads 9 --kv-heads 3 --vocab 1001
    for f in int4-g32 int4-g64-sym int4-row int8-row nf4 nf4-dq int4-strided128; do
        "$B/bin/qquant" -q "$BATS_TEST_TMPDIR/odd" -f $f --head int8-row -o "$out"
        for compute in f32 int8 int8x2; do
            qload "$out" --plan-memory --ctx 48 --batch 40 --compute $compute
            "$B/bin/qbench" -q "$out" --prompt-tokens 40 --gen 8 --warmup 0 --trials 1 --compute $compute >"$r.bench"
            diff <(jq -c '.results.memory | [.weights_bytes, .kv_bytes, .scratch_bytes]' "$r") \
                <(jq -c '.results.memory | [.weights_bytes, .kv_bytes, .scratch_bytes]' "$r.bench")
            # program, libraries, buffers of threads: 40 MB at most
            [ -n "${SAN:-}" ] || jq -e '.results.memory | .peak_rss_bytes < .predicted_bytes + 40e6' "$r.bench"
        done
    done
}

@test "what GGUF makes expand in memory goes when the backend has its own copy" {
    # q and k, whose rows GGUF permutes, are 96 MiB of it
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/wide" --hidden 256 --ff 64 --layers 24 --heads 64 --kv-heads 64 --head-dim 64
    "$B/tests/mkgguf" -q "$BATS_TEST_TMPDIR/wide" "$out.gguf" --dtype bf16
    for compute in bf16 int8; do
        qload "$out.gguf" --plan-memory --ctx 16 --batch 4 --compute $compute
        "$B/bin/qbench" -q "$out.gguf" --prompt-tokens 4 --gen 2 --warmup 0 --trials 1 --compute $compute >"$r.bench"
        diff <(jq -c '.results.memory.weights_bytes' "$r") <(jq -c '.results.memory.weights_bytes' "$r.bench")
        [ -n "${SAN:-}" ] || jq -e '.results.memory | .peak_rss_bytes < .predicted_bytes + 40e6' "$r.bench"
    done
}

@test "a tensor nothing reads is reported" {
    model llama-tied --extra model.layers.7.mlp.up_proj.weight
    run --separate-stderr bash -c '"$B/bin/qload" "$1" >"$0"' "$r" "$d"
    [ "$status" = 0 ]
    [[ "$stderr" == *"tensor model.layers.7.mlp.up_proj.weight is not used by LlamaForCausalLM"* ]]
    holds '.results.unused_tensors == ["model.layers.7.mlp.up_proj.weight"]'
}

# ---- the folders ----

@test "-o writes the canonical folder, whatever the number of threads" {
    for t in 1 3; do
        qload "$T/sharded" -o "$out" -t "$t"
        [ "$(ls "$out")" = $'config.json\ngeneration_config.json\nmodel.safetensors\ntokenizer.json\ntokenizer_config.json' ]
        "$B/tests/schema_check" docs/schema/qload.json "$r"
        sha256sum "$out"/* | sed 's, .*/, ,' >"$BATS_TEST_TMPDIR/sums.$t"
        jq -S .results "$r" >"$BATS_TEST_TMPDIR/results.$t"
    done
    cmp "$BATS_TEST_TMPDIR"/sums.[13]
    cmp "$BATS_TEST_TMPDIR"/results.[13]
    holds '.results.written | .n_files == 1 and .n_tensors == 27 and .tokenizer and .not_finite == []'
    [ "$(jq -r .results.written.sha256 "$r")" = "$("$B/bin/qload" -q "$out" | jq -r '.inputs[0].sha256')" ]
    "$B/bin/qload" -q "$out" --tensors | jq -S .results >"$BATS_TEST_TMPDIR/a"
    "$B/bin/qload" -q "$T/sharded" --tensors | jq -S .results | cmp - "$BATS_TEST_TMPDIR/a"
}

@test "--dtype and --max-shard-bytes" {
    qload "$T/llama-tied" -o "$out" --dtype f32 --max-shard-bytes 100000
    [ "$(jq -r .dtype "$out/config.json")" = float32 ]
    n=$(ls "$out"/model-*.safetensors | wc -l)
    [ "$n" -gt 2 ]
    [ "$(jq .results.written.n_files "$r")" = "$n" ]
    [ -f "$out/model-0000$n-of-0000$n.safetensors" ]
    [ ! -e "$out/model.safetensors" ]
    [ "$(jq .metadata.total_size "$out/model.safetensors.index.json")" = 410880 ]
    qload "$out"
    holds '.results.dtypes == {"F32": 410880} and .results.n_tensors == 20'
    qload "$T/old" -o "$out" --dtype bf16
    [ "$(jq -r .torch_dtype "$out/config.json")" = bfloat16 ]
}

@test "bf16 to f32 and back gives the same file" {
    qload "$T/qwen3" -o "$out" --dtype keep
    qload "$T/qwen3" -o "$out.f32" --dtype f32
    qload "$out.f32" -o "$out.back" --dtype bf16
    cmp "$out/model.safetensors" "$out.back/model.safetensors"
}

@test "NaN and Inf weights are kept and named; a value beyond f16 is refused" {
    model llama-tied --nan model.layers.1.mlp.up_proj.weight
    qload "$d" -o "$out" --dtype f16
    holds '.results.written.not_finite == ["model.layers.1.mlp.up_proj.weight"]'
    rm -r "$out" "$d"
    model llama-tied --dtype f32
    at=$((8 + $(header_length "$d/model.safetensors")))
    poke "$d/model.safetensors" "$at" '\0\0\200\107' # 65536
    refused 1 "has values beyond F16's range" "$d" -o "$out" --dtype f16
}

@test "an output folder with other contents stays as it is; one of qlab's is replaced" {
    mkdir "$BATS_TEST_TMPDIR/mine"
    echo keep >"$BATS_TEST_TMPDIR/mine/file"
    refused 1 "already there with other contents" "$T/llama-tied" -o "$BATS_TEST_TMPDIR/mine"
    [ "$(ls -A "$BATS_TEST_TMPDIR/mine")" = file ]
    [ "$(cat "$BATS_TEST_TMPDIR/mine/file")" = keep ]
    echo x >"$BATS_TEST_TMPDIR/plain"
    refused 1 "exists and is not a folder" "$T/llama-tied" -o "$BATS_TEST_TMPDIR/plain"
    refused 1 "" "$T/llama-tied" -o "$BATS_TEST_TMPDIR/plain/below"
    mkdir "$BATS_TEST_TMPDIR/empty"
    qload "$T/llama-tied" -o "$BATS_TEST_TMPDIR/empty"
    qload "$T/qwen3" -o "$BATS_TEST_TMPDIR/empty"
    qload "$BATS_TEST_TMPDIR/empty"
    holds '.results.architecture == "Qwen3ForCausalLM"'
    [ -z "$(ls -d "$BATS_TEST_TMPDIR"/empty.* 2>/dev/null)" ]
}

@test "a read-only place" {
    mkdir "$BATS_TEST_TMPDIR/ro"
    chmod a-w "$BATS_TEST_TMPDIR/ro"
    if [ ! -w "$BATS_TEST_TMPDIR/ro" ]; then
        refused 1 "Permission denied" "$T/llama-tied" -o "$BATS_TEST_TMPDIR/ro/x"
        [ -z "$(ls -A "$BATS_TEST_TMPDIR/ro")" ]
    else # root may write everywhere, but not on a read-only file system
        run --separate-stderr unshare -rm bash -c \
            'mount -t tmpfs -o ro none "$0" || exit 77; "$B/bin/qload" -q "$T/llama-tied" -o "$0/x"' "$BATS_TEST_TMPDIR/ro"
        [[ "$stderr" != *unshare:* && "$status" != 77 ]] || skip "this user may write everywhere"
        [ "$status" = 1 ]
        [ -z "$output" ]
        [[ "$stderr" == "qload: "*"Read-only file system" ]]
    fi
}

@test "a write that fails half-way leaves nothing" {
    # no file may grow beyond 64 blocks
    run --separate-stderr bash -c 'trap "" XFSZ; ulimit -f 64; exec "$B/bin/qload" -q "$T/llama-tied" -o "$0"' "$out"
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == "qload: "*"cannot write: File too large" ]]
    nothing_left
}

@test "a full disk leaves nothing" {
    mkdir "$BATS_TEST_TMPDIR/small"
    cat >"$BATS_TEST_TMPDIR/on-tmpfs" <<'EOF'
mount -t tmpfs -o size=128k none "$1" || exit 77
"$B/bin/qload" -q "$T/llama-tied" -o "$1/x"
rc=$?
[ -z "$(ls -A "$1")" ] || { ls -la "$1" >&2; exit 78; }
exit $rc
EOF
    run --separate-stderr unshare -rm bash "$BATS_TEST_TMPDIR/on-tmpfs" "$BATS_TEST_TMPDIR/small"
    [[ "$stderr" != *unshare:* && "$status" != 77 ]] || skip "no tmpfs can be mounted here"
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == "qload: "*"No space left on device" ]]
}

@test "a closed or full stdout is a failure" {
    run bash -c '"$B/bin/qload" -q "$T/llama-tied" >&-'
    [ "$status" = 1 ]
    [[ "$output" == "qload: stdout: "* ]]
    [ -w /dev/full ] || skip "no /dev/full"
    run bash -c '"$B/bin/qload" -q "$T/llama-tied" >/dev/full'
    [ "$status" = 1 ]
    [[ "$output" == "qload: stdout: "*"No space left"* ]]
}

@test "a closed stdin or stderr does not get into what is written" {
    qload "$T/llama-tied" -o "$out"
    "$B/bin/qload" "$T/llama-tied" -o "$out.closed" >"$r" 2>&- <&-
    cmp "$out/model.safetensors" "$out.closed/model.safetensors"
    run bash -c '"$B/bin/qload" "$1" -o "$2" >&-' - "$T/llama-tied" "$out.mute" 2>&1
    [ "$status" = 1 ]
    [[ "$output" == *"stdout: "* ]]
    cmp "$out/config.json" "$out.mute/config.json"
}

@test "nohup: a hangup does not end it" {
    "$B/tests/mkmodel" -q llama-tied "$d" --hidden 1024 --layers 12 --no-tokenizer
    (trap '' HUP; exec "$B/bin/qload" -q "$d" -o "$out" --dtype f32 >"$r" 3>&-) &
    pid=$!
    for _ in $(seq 500); do compgen -G "$out.part-*/model.safetensors*" >/dev/null && break; sleep 0.01; done
    kill -HUP $pid
    wait $pid
    [ -s "$out/config.json" ]
    [ -s "$r" ]
}

@test "a folder is not converted into itself" {
    qload "$T/llama-tied" -o "$out"
    run --separate-stderr "$B/bin/qload" -q "$out" -o "$out/"
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == *"is where the model is read from"* ]]
    cmp "$out/tokenizer.json" "$T/llama-tied/tokenizer.json"
}

@test "interrupted half-way: 130 and nothing left; killed: no folder, and the next run works" {
    "$B/tests/mkmodel" -q llama-tied "$d" --hidden 1024 --layers 12 --no-tokenizer
    for sig in INT KILL; do
        "$B/bin/qload" -q "$d" -o "$out" --dtype f32 >"$r" 3>&- &
        pid=$!
        # the shell makes background jobs deaf to SIGINT; SIGTERM takes the same way
        [ $sig = KILL ] || sig=TERM
        for _ in $(seq 500); do compgen -G "$out.part-*/model.safetensors*" >/dev/null && break; sleep 0.01; done
        kill -$sig $pid
        rc=0
        wait $pid || rc=$?
        [ ! -s "$r" ]
        [ ! -e "$out" ]
        if [ $sig = TERM ]; then
            [ $rc = 130 ] || { echo "exit $rc"; false; }
            nothing_left
        fi
    done
    qload "$d" -o "$out" --dtype f32
    qload "$out"
    holds '.results.dtypes | keys == ["F32"]'
}

@test "interrupted with hundreds of finished files: nothing left" {
    "$B/tests/mkmodel" -q llama-tied "$d" --layers 250 --no-tokenizer
    "$B/bin/qload" -q "$d" -o "$out" --dtype f32 --max-shard-bytes 1 >"$r" 3>&- &
    pid=$!
    for _ in $(seq 1000); do [ "$(find "$out".part-* -name 'model-*' 2>/dev/null | wc -l)" -gt 300 ] && break; sleep 0.01; done
    kill -TERM $pid
    rc=0
    wait $pid || rc=$?
    [ $rc = 130 ] || { echo "exit $rc"; false; }
    nothing_left
}

@test "a pipe nobody writes into is no model" {
    mkfifo "$BATS_TEST_TMPDIR/pipe"
    refused 1 "not a regular file" "$BATS_TEST_TMPDIR/pipe"
    for f in config.json tokenizer.json model.safetensors; do
        m=$BATS_TEST_TMPDIR/$f.m
        cp -r "$T/llama-tied" "$m"
        rm -f "$m/$f"
        mkfifo "$m/$f"
        refused 1 "$f: not a regular file" "$m" --encode "$BATS_TEST_TMPDIR/none"
    done
}

@test "hf: is downloaded into -o, as published or converted" {
    commit=0123456789abcdef0123456789abcdef01234567
    hub=$BATS_TEST_TMPDIR/hub
    files=$hub/owner/tiny/resolve/$commit
    mkdir -p "$hub/api/models/owner/tiny/revision" "$hub/api/models/owner/tiny/tree" "$files"
    cp "$T"/sharded/* "$files"
    echo "{\"sha\":\"$commit\"}" >"$hub/api/models/owner/tiny/revision/main"
    for f in "$files"/*; do
        jq -n --arg p "${f##*/}" --argjson n "$(stat -c %s "$f")" \
            --arg o "$({ printf 'blob %d\0' "$(stat -c %s "$f")"; cat "$f"; } | sha1sum | cut -d' ' -f1)" \
            '{type: "file", path: $p, size: $n, oid: $o}'
    done | jq -s . >"$hub/api/models/owner/tiny/tree/$commit"
    "$B/tests/httpd" "$hub" "$BATS_TEST_TMPDIR/port" "$BATS_TEST_TMPDIR/log" 3>&- &
    server=$!
    for _ in $(seq 100); do [ ! -s "$BATS_TEST_TMPDIR/port" ] || break; sleep 0.05; done
    unset HF_TOKEN http_proxy HTTP_PROXY all_proxy ALL_PROXY
    export HF_ENDPOINT=http://127.0.0.1:$(<"$BATS_TEST_TMPDIR/port")
    qload hf:owner/tiny -o "$out"
    cmp "$out/model-00002-of-00003.safetensors" "$T/sharded/model-00002-of-00003.safetensors"
    holds '.results.n_tensors == 27 and .results.dtypes == {"BF16": 238720}'
    qload hf:owner/tiny -o "$out.f32" --dtype f32
    [ "$(ls -d "$out"*)" = "$out"$'\n'"$out.f32" ]
    qload "$out.f32"
    holds '.results.n_tensors == 27 and .results.dtypes == {"F32": 477440}'
    run --separate-stderr "$B/bin/qload" -q hf:owner/none -o "$out.none"
    kill $server
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == "qload: "*owner/none* ]]
    [ ! -e "$out.none" ]
}

# ---- bad input ----

@test "usage" {
    refused 2 "MODEL is missing"
    refused 2 "one MODEL was expected" "$T/llama-tied" "$T/qwen3"
    refused 2 "unknown" "$T/llama-tied" --no-such
    refused 2 "--dtype" "$T/llama-tied" --dtype f16
    refused 2 "dtype" "$T/llama-tied" --dtype f15 -o "$out"
    refused 2 "ctx" "$T/llama-tied" --plan-memory --ctx 0
    refused 2 "-o DIR" hf:OWNER/NAME
    for v in cuda: cuda:x cuda:-1 cuda:1x gpu; do refused 2 "--device $v: unknown" "$T/llama-tied" --device "$v"; done
    refused 1 "cuda:99" "$T/llama-tied" --device cuda:99
    run "$B/bin/qload" --version
    [[ "$output" =~ ^"qload 0.1.0 (results "[0-9]+")"$'\n'"built with"(out)?" CUDA"$ ]]
    run "$B/bin/qload" --help
    [ "$status" = 0 ]
    [[ "$output" == *"--max-shard-bytes"*"[5000000000]"* ]]
}

@test "models that are not there or not models" {
    refused 1 "no such file" "$BATS_TEST_TMPDIR/none"
    mkdir "$d"
    refused 1 "config.json: No such file" "$d"
    echo '{}' >"$d/config.json"
    refused 1 'neither "model_type"' "$d"
    echo 'not a model' >"$BATS_TEST_TMPDIR/x.gguf"
    refused 1 "GGUF" "$BATS_TEST_TMPDIR/x.gguf" -o "$out"
    model
    rm "$d/model.safetensors"
    refused 1 "neither model.safetensors nor model.safetensors.index.json" "$d"
}

@test "safetensors files" {
    model
    st=$d/model.safetensors
    cp "$st" "$BATS_TEST_TMPDIR/good"
    for n in 0 7 8 100 5000 $(($(stat -c %s "$st") - 1)); do
        head -c "$n" "$BATS_TEST_TMPDIR/good" >"$st"
        refused 1 "model.safetensors: " "$d" -o "$out"
    done
    cp "$BATS_TEST_TMPDIR/good" "$st"
    poke "$st" 0 '\377\377\377\377\377\377\377\177'
    refused 1 "header of 9223372036854775807 bytes" "$d"
    header "$st" '{"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
    refused 1 "tensor b overlaps" "$d"
    header "$st" '{"a":{"dtype":"F16","shape":[4,2],"data_offsets":[0,16]}}'
    refused 1 "tensor a ends at byte 16" "$d"
    header "$st" '{"a":{"dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'
    refused 1 "overflows" "$d"
    header "$st" '{"a":{"dtype":"F99","shape":[2,2],"data_offsets":[0,8]}}'
    refused 1 'dtype "F99"' "$d"
    header "$st" '{"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}'
    refused 1 "tensor model.embed_tokens.weight is missing" "$d"
}

@test "tensors that are missing or of another shape" {
    model llama-tied --drop model.layers.1.self_attn.o_proj.weight
    refused 1 "tensor model.layers.1.self_attn.o_proj.weight is missing (shape [64, 64] was expected)" "$d" -o "$out"
    model llama-untied-rope3 --drop lm_head.weight
    refused 1 "lm_head.weight is missing" "$d"
    model
    edit '.intermediate_size = 161'
    refused 1 "has shape [160, 64] ([161, 64] was expected)" "$d"
}

@test "an index that names a missing file, a path outside, or the wrong file" {
    model qwen2-untied --shards 2
    index=$d/model.safetensors.index.json
    cp "$index" "$BATS_TEST_TMPDIR/index"
    for bad in ../x.safetensors /etc/passwd ..; do
        jq --arg b "$bad" '.weight_map["model.norm.weight"] = $b' "$BATS_TEST_TMPDIR/index" >"$index"
        refused 1 "a plain file name was expected" "$d"
    done
    jq '.weight_map["model.norm.weight"] = "model-00001-of-00002.safetensors"' "$BATS_TEST_TMPDIR/index" >"$index"
    refused 1 "tensor model.norm.weight is not in model-00001-of-00002.safetensors" "$d"
    cp "$BATS_TEST_TMPDIR/index" "$index"
    rm "$d/model-00002-of-00002.safetensors"
    refused 1 "model-00002-of-00002.safetensors: missing" "$d" -o "$out"
}

@test "configs with absurd values, and what is not supported" {
    model
    cp "$d/config.json" "$BATS_TEST_TMPDIR/c.json"
    while read -r change message; do
        jq "$change" "$BATS_TEST_TMPDIR/c.json" >"$d/config.json"
        refused 1 "$message" "$d"
    done <<'EOF'
.num_attention_heads=0 "num_attention_heads" is 0
.num_attention_heads=5 5 attention heads are not a multiple of 2
del(.head_dim)|.num_attention_heads=6 "hidden_size" 64 is not a multiple of
.num_key_value_heads=3 not a multiple of 3 key/value heads
.head_dim=15 head_dim 15 is odd
.num_hidden_layers=-1 "num_hidden_layers" is -1
.hidden_size="64" "hidden_size" is not an integer
.vocab_size=1e30 "vocab_size" is not an integer
del(.intermediate_size) "intermediate_size" is missing
.hidden_act="gelu" "hidden_act" is "gelu"
.model_type="gemma" LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM are supported
.architectures=["LlamaModel"] architecture LlamaModel of model_type llama is not supported
.rope_parameters.rope_type="yarn" "yarn" is not supported
.quantization_config={"quant_method":"gptq"} quantization method "gptq" is not supported
EOF
    echo '{"model_type": "llama",' >"$d/config.json"
    refused 1 "not valid JSON" "$d"
    model mistral
    edit '.sliding_window=128'
    refused 1 "sliding-window" "$d"
}

@test "no tokenizer, or one that cannot be used, matters only where text is encoded" {
    echo hello >"$BATS_TEST_TMPDIR/t"
    model llama-tied --no-tokenizer
    refused 1 "tokenizer.json" "$d" --encode "$BATS_TEST_TMPDIR/t"
    qload "$d" -o "$out"
    holds '.results.tokenizer == null and .results.written.tokenizer == false'
    rm -r "$out"
    echo '{"model":{"type":"Unigram"}}' >"$d/tokenizer.json"
    refused 1 "Unigram" "$d" --encode "$BATS_TEST_TMPDIR/t"
    run --separate-stderr bash -c '"$B/bin/qload" "$1" >"$0"' "$r" "$d"
    [ "$status" = 0 ]
    [[ "$stderr" == *warning*Unigram* ]]
    holds '.results.tokenizer == null'
    refused 1 "none.txt" "$T/llama-tied" --encode "$BATS_TEST_TMPDIR/none.txt"
}
