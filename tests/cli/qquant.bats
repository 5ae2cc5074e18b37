#!/usr/bin/env bats
# qquant: folders in every format, their records, and everything it refuses.

load common
tool=qquant

setup_file() {
    export T=$BATS_FILE_TMPDIR
    "$B/tests/mkmodel" -q llama-tied "$T/tied"
    "$B/tests/mkmodel" -q llama-untied-rope3 "$T/untied" --dtype f16
    "$B/tests/mkmodel" -q qwen2-untied "$T/qwen" --hidden 48 --heads 3 --kv-heads 1 --ff 74
    "$B/tests/mkmodel" -q llama-tied "$T/sharded" --shards 3 --old-config --dtype f32
}

setup() {
    cd "$src" || exit 1
    out=$BATS_TEST_TMPDIR/out
    r=$BATS_TEST_TMPDIR/r.json
}

qquant() { "$B/bin/$tool" -q "$@" >"$r"; }
nothing_left() { ! compgen -G "$out*" || { ls -la "$BATS_TEST_TMPDIR"; false; }; }
# tensors FOLDER: "NAME DTYPE SHAPE" a line, from the safetensors headers
tensors() {
    local f n
    for f in "$1"/*.safetensors; do
        n=$(od -An -tu8 -N8 "$f" | tr -d ' ')
        tail -c +9 "$f" | head -c "$n" | jq -r 'del(.__metadata__) | to_entries[] | "\(.key) \(.value.dtype) \(.value.shape | tojson)"'
    done | sort
}

formats="f32 bf16 f16 int8-row int4-row int4-row-sym int4-g32 int4-g32-sym int4-g64 int4-g64-sym int4-g128 int4-g128-sym
int4-g256 int4-g256-sym int4-strided128 nf4 nf4-dq fp4"

@test "every format: the record, the folder, the size that was promised" {
    for f in $formats; do
        for m in tied qwen; do
            "$B/bin/qquant" -q "$T/$m" -f "$f" --plan >"$r.plan"
            qquant "$T/$m" -f "$f" -o "$out"
            "$B/tests/schema_check" docs/schema/qquant.json "$r" || { echo "$f"; false; }
            "$B/tests/schema_check" docs/schema/qquant.json "$r.plan"
            holds '.results.tensors | length == 14 and all(.format == "'$f'" and .method == "rtn")' "$r"
            [ "$(jq '.results | del(.tensors[]["nmse","sqnr_db","cosine","max_abs_err"])' "$r")" = \
                "$(jq '.results | del(.tensors[]["nmse","sqnr_db","cosine","max_abs_err"])' "$r.plan")" ]
            # the file is the tensors and a header
            n=$(od -An -tu8 -N8 "$out/model.safetensors" | tr -d ' ')
            [ "$(jq .results.bytes_after "$r")" = $(($(stat -c %s "$out/model.safetensors") - 8 - n)) ]
            "$B/bin/qload" -q "$out" >"$r.load"
            [ "$(jq .results.weights_bytes "$r.load")" = "$(jq .results.bytes_after "$r")" ]
            [ "$(jq -c .output.sha256 "$r")" = "$(jq -c '.inputs[0].sha256' "$r.load")" ]
            [ "$(jq -c .results.n_params "$r.load")" = "$(jq -c .results.n_params <("$B/bin/qload" -q "$T/$m"))" ]
        done
    done
}

@test "damage falls with bits, and mse is never worse" {
    last=1
    for f in int4-row int4-g32 int8-row f16; do
        qquant "$T/tied" -f $f -o "$out"
        now=$(jq '[.results.tensors[].nmse] | add' "$r")
        qquant "$T/tied" -f $f+mse -o "$out"
        holds ".results.tensors | all(.method == \"mse\") and ([.[].nmse] | add) <= $now" "$r"
        jq -en "$now < $last" || { echo "$f: $now, before: $last"; false; }
        last=$now
    done
}

@test "tensors, names and shapes of each container" {
    qquant "$T/qwen" -f int4-g32 -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'model.layers.1.mlp.down_proj.weight_packed I32 \[48,10\]' "$r.t"
    grep -qx 'model.layers.1.mlp.down_proj.weight_scale BF16 \[48,3\]' "$r.t"
    grep -qx 'model.layers.1.mlp.down_proj.weight_shape I64 \[2\]' "$r.t"
    grep -qx 'model.layers.1.mlp.down_proj.weight_zero_point I32 \[6,3\]' "$r.t"
    grep -qx 'model.layers.1.mlp.up_proj.weight_zero_point I32 \[10,2\]' "$r.t"
    grep -qx 'model.layers.1.self_attn.q_proj.bias BF16 \[48\]' "$r.t"
    grep -qx 'lm_head.weight BF16 \[256,48\]' "$r.t"
    holds '.quantization_config | .quant_method == "compressed-tensors" and .quantization_status == "compressed"
        and .format == "pack-quantized" and .ignore == ["lm_head"] and (.config_groups | length == 1)
        and .config_groups.group_0.targets == ["Linear"]
        and (.config_groups.group_0.weights | .num_bits == 4 and .group_size == 32 and .symmetric == false and .strategy == "group")' \
        "$out/config.json"
    qquant "$T/qwen" -f nf4-dq -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'model.layers.0.mlp.up_proj.weight U8 \[1776,1\]' "$r.t"
    grep -qx 'model.layers.0.mlp.up_proj.weight.absmax U8 \[56\]' "$r.t"
    grep -qx 'model.layers.0.mlp.up_proj.weight.nested_absmax F32 \[1\]' "$r.t"
    grep -qx 'model.layers.0.mlp.up_proj.weight.nested_quant_map F32 \[256\]' "$r.t"
    grep -qx 'model.layers.0.mlp.up_proj.weight.quant_map F32 \[16\]' "$r.t"
    grep -qE '^model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4 U8' "$r.t"
    holds '.quantization_config | .quant_method == "bitsandbytes" and .load_in_4bit and .bnb_4bit_quant_type == "nf4"
        and .bnb_4bit_use_double_quant and .llm_int8_skip_modules == null' "$out/config.json"
    qquant "$T/qwen" -f int4-strided128 -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'model.layers.0.mlp.down_proj.weight_packed U8 \[48,37\]' "$r.t"
    grep -qx 'model.layers.0.mlp.down_proj.weight_zero_point F16 \[48,128\]' "$r.t"
    holds '.quantization_config | .quant_method == "qlab" and (.tensors | length == 14)' "$out/config.json"
    holds '.results.portable | .transformers == "no" and .vllm == "no" and (.why | length > 0)' "$r"
}

@test "plain formats convert everything, quantized ones leave the rest alone" {
    qquant "$T/sharded" -f bf16 -o "$out"
    run ! grep -v ' BF16 ' <(tensors "$out")
    holds '.dtype == "bfloat16" and .torch_dtype == "bfloat16" and (has("quantization_config") | not)' "$out/config.json"
    qquant "$T/sharded" -f f32 -o "$out" # from f32: the same weights in one file
    cmp <("$B/tests/dequant" "$T/sharded" "$BATS_TEST_TMPDIR/a" && cat "$BATS_TEST_TMPDIR/a") \
        <("$B/tests/dequant" "$out" "$BATS_TEST_TMPDIR/b" && cat "$BATS_TEST_TMPDIR/b")
    qquant "$T/sharded" -f int4-g32-sym -o "$out" # norms stay f32, which a loader in f16 would round
    tensors "$out" | grep -qx 'model.norm.weight F32 \[64\]'
    holds '.results.portable | .transformers == "no" and (.why | contains("rounded on loading"))' "$r"
}

@test "tied models: --head unties, --embed packs for both" {
    qquant "$T/tied" -f int4-g32-sym --head int8-row -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'lm_head.weight_packed I32 \[256,16\]' "$r.t"
    grep -qx 'model.embed_tokens.weight BF16 \[256,64\]' "$r.t"
    holds '.tie_word_embeddings == false and (.quantization_config | .ignore == []
        and (.config_groups | [.[].targets[]] | length == 15 and index("lm_head") != null))' "$out/config.json"
    holds '.results.portable.transformers == "yes" and (.results.tensors | length == 15)' "$r"
    qquant "$T/tied" -f int8-row --head int8-row --embed int8-row -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'model.embed_tokens.weight_packed I32 \[256,16\]' "$r.t"
    run ! grep lm_head "$r.t"
    holds '.tie_word_embeddings == true' "$out/config.json"
    holds '.results.portable.transformers == "no" and (.results.tensors | length == 15)' "$r"
    qquant "$T/tied" -f int8-row+embed=int4-g64+head=int8-row -o "$out"
    tensors "$out" >"$r.t"
    grep -qx 'model.embed_tokens.weight_packed I32 \[256,8\]' "$r.t"
    grep -qx 'lm_head.weight_packed I32 \[256,16\]' "$r.t"
    holds '.tie_word_embeddings == false' "$out/config.json"
    qquant "$T/untied" -f int4-g32-sym+head=int4-g32-sym -o "$out"
    holds '.quantization_config | .ignore == [] and (.config_groups | length == 1)' "$out/config.json"
    "$B/bin/qload" -q "$out" >/dev/null
}

@test "recipes: first match wins, mixes within a family and across families" {
    echo '{"default":"int4-g32-sym","rules":[{"match":"*down_proj","format":"int8-row"},{"match":"model.layers.0.self_attn.*","format":"f16"}]}' >"$r.r"
    qquant "$T/untied" -r "$r.r" -o "$out"
    holds '[.results.tensors[] | select(.format == "int8-row")] | length == 2' "$r"
    holds '.inputs | map(.role) == ["model","recipe"]' "$r"
    holds '.quantization_config | .quant_method == "compressed-tensors" and (.config_groups | length == 2)
        and (.ignore | sort == (["k","o","q","v"] | map("model.layers.0.self_attn.\(.)_proj") | . + ["lm_head"] | sort))' "$out/config.json"
    holds '.results.portable.transformers == "yes"' "$r"
    "$B/tests/dequant" "$out" "$r.d"
    echo '{"default":"nf4","rules":[{"match":"*v_proj","format":"int4-strided128"},{"match":"lm_head","format":"int8-row"}]}' >"$r.r"
    qquant "$T/untied" -r "$r.r" --method mse -o "$out"
    holds '.quantization_config | .quant_method == "qlab" and .tensors.lm_head == {"format":"int8-row","method":"mse"}
        and (.tensors | length == 15)' "$out/config.json"
    "$B/tests/dequant" "$out" "$r.d"
    [ "$(jq .results.read_bytes_per_token "$r")" -lt "$(jq .results.bytes_after "$r")" ]
}

@test "any number of threads, any number of files: the same weights" {
    for f in int4-g32+mse nf4-dq int4-strided128; do
        for t in 1 2 3; do
            "$B/bin/qquant" -q -t $t "$T/qwen" -f $f -o "$out.$t" >"$r.$t"
            cmp "$out.1/model.safetensors" "$out.$t/model.safetensors"
            [ "$(jq -c .results "$r.1")" = "$(jq -c .results "$r.$t")" ]
        done
    done
    "$B/bin/qquant" -q "$T/qwen" -f int4-strided128 -o "$out.s" --max-shard-bytes 50000 >"$r"
    holds '.results.n_files > 2' "$r"
    files=("$out.s"/*.safetensors)
    [ ${#files[@]} = "$(jq .results.n_files "$r")" ]
    holds '.metadata.total_size > 0 and (.weight_map | length > 20)' "$out.s/model.safetensors.index.json"
    "$B/tests/dequant" "$out.1" "$r.a"
    "$B/tests/dequant" "$out.s" "$r.b"
    cmp "$r.a" "$r.b"
}

@test "the tokenizer comes along; a second run replaces the folder" {
    qquant "$T/tied" -f nf4 -o "$out"
    cmp "$T/tied/tokenizer.json" "$out/tokenizer.json"
    touch "$out/stale"
    qquant "$T/tied" -f fp4 -o "$out/"
    [ ! -e "$out/stale" ]
    holds '.quantization_config.bnb_4bit_quant_type == "fp4"' "$out/config.json"
}

@test "recipes in other programs' words" {
    qquant "$T/tied" -f int4-g32-sym+head=int8-row --export-recipe llama.cpp -o "$out.txt"
    grep -qxF '^blk\.1\.ffn_down\.weight=q4_0' "$out.txt"
    grep -qxF '^token_embd\.weight=q8_0' "$out.txt" # tied: there is one tensor for both
    [ "$(wc -l <"$out.txt")" = 15 ]
    qquant "$T/untied" -f int4-g32 --embed int8-row --export-recipe llama.cpp -o "$out.txt"
    grep -qxF '^token_embd\.weight=q8_0' "$out.txt"
    grep -qxF '^output\.weight=f16' "$out.txt"
    refused 1 "llama.cpp's blocks of 32 do not divide the 48 columns of model.layers.0.self_attn.q_proj" "$T/qwen" -f nf4 --export-recipe llama.cpp
    qquant "$T/tied" -f int4-g32-sym+head=int8-row --export-recipe llama.cpp -o "$out.txt"
    holds '.results.export.for == "llama.cpp"' "$r"
    echo '{"default":"int4-g32","rules":[{"match":"*.0.*down_proj","format":"int8-row"},{"match":"*.1.*v_proj","format":"f16"}]}' >"$r.r"
    qquant "$T/tied" -r "$r.r" --export-recipe gptqmodel -o "$out.txt"
    jq -e '.bits == 4 and .group_size == 32 and .sym == false and .lm_head == false and .dynamic ==
        {"+:^model\\.layers\\.0\\.mlp\\.down_proj$": {"bits":8,"group_size":-1,"sym":true},
         "-:^model\\.layers\\.1\\.self_attn\\.v_proj$": {}}' "$out.txt"
    qquant "$T/tied" -r "$r.r" --export-recipe vllm -o "$out.txt"
    jq -e '.default_stage.default_modifiers.QuantizationModifier | (.config_groups | length == 2) and (.ignore | length == 2)' "$out.txt"
    refused 1 'GPTQModel has no nf4' "$T/tied" -f nf4 --export-recipe gptqmodel
    refused 1 'only recipes of int4 and int8' "$T/tied" -f nf4 --export-recipe vllm
    [ ! -e "$out" ]
}

@test "a warning when other programs cannot open the folder" {
    run --separate-stderr "$B/bin/qquant" "$T/tied" -f int4-g64 -o "$out"
    [ "$status" = 0 ]
    [[ "$stderr" == *"warning: $out: not for every program: "*"groups of 64 do not divide the 160 columns"* ]]
    run --separate-stderr "$B/bin/qquant" "$T/tied" -f int4-g32-sym -o "$out"
    [[ "$stderr" != *warning* ]]
}

@test "memory: twice the largest tensor and 100 MB, whatever the model's size" {
    [ -z "${SAN:-}" ] || skip "sanitizers need memory of their own"
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/big" --hidden 512 --ff 2048 --layers 10 --heads 8 --kv-heads 8 --dtype f32
    [ "$(stat -c %s "$BATS_TEST_TMPDIR/big/model.safetensors")" -gt 160000000 ]
    for f in nf4-dq f32 int8-row; do
        (ulimit -d $((2 * 4096 + 100000)) && "$B/bin/qquant" -q -t 2 "$BATS_TEST_TMPDIR/big" -f $f -o "$out" >"$r")
    done
}

# ---- refused ----

@test "NaN and Inf weights are named" {
    for name in model.layers.1.mlp.gate_proj.weight model.embed_tokens.weight model.norm.weight; do
        for dtype in bf16 f16 f32; do
            "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/nan" --nan $name --dtype $dtype
            refused 1 "${name%.weight}" "$BATS_TEST_TMPDIR/nan" -f int4-g32 -o "$out"
            [[ "$stderr" == *nan* || "$stderr" == *NaN* ]]
            nothing_left
            refused 1 "${name%.weight}" "$BATS_TEST_TMPDIR/nan" -f bf16 -o "$out"
            nothing_left
        done
    done
}

@test "unknown formats, methods, options; rules that match nothing" {
    refused 2 'unknown format "int5-g64" (known: f32, bf16' "$T/tied" -f int5-g64 -o "$out"
    refused 2 'unknown method "awq" (known: rtn, mse)' "$T/tied" -f nf4 --method awq -o "$out"
    refused 2 'unknown format "q4_0"' "$T/tied" -f nf4 --head q4_0 -o "$out"
    refused 2 'unknown format "q4_1"' "$T/tied" -f nf4 --embed q4_1 -o "$out"
    refused 1 "cuda:99" "$T/tied" -f nf4 -o "$out" --device cuda:99
    echo '{"default":"q4_0"}' >"$r.r" # the file is wrong, not the command line
    refused 1 "$r.r: recipe: unknown format \"q4_0\"" "$T/tied" -r "$r.r" -o "$out"
    echo '{"default":"nf4","rules":[{"match":"model.layers.7.*","format":"f16"}]}' >"$r.r"
    refused 1 "$r.r: recipe: rule 1: \"model.layers.7.*\" matches no tensor" "$T/tied" -r "$r.r" -o "$out"
    echo '{"default":"nf4",}' >"$r.r"
    refused 1 "$r.r: not valid JSON" "$T/tied" -r "$r.r" -o "$out"
    refused 1 'No such file' "$T/tied" -r "$BATS_TEST_TMPDIR/none.json" -o "$out"
    for args in "-f nf4" "-o $out" "-f nf4 -r x -o $out" "-f nf4 -o $out --nonsense" "-f nf4 -o $out --max-shard-bytes 0"; do
        run --separate-stderr "$B/bin/qquant" "$T/tied" $args
        [ "$status" = 2 ]
        [ -z "$output" ]
    done
    run --separate-stderr "$B/bin/qquant" -f nf4 -o "$out"
    [ "$status" = 2 ]
    nothing_left
}

@test "sources that cannot be quantized" {
    qquant "$T/tied" -f nf4 -o "$out.q"
    refused 1 "$out.q: already quantized (bitsandbytes)" "$out.q" -f int8-row -o "$out.2"
    refused 1 'no such file or folder' "$BATS_TEST_TMPDIR/none" -f nf4 -o "$out.2"
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/less" --drop model.layers.0.mlp.up_proj.weight
    refused 1 'model.layers.0.mlp.up_proj.weight is missing' "$BATS_TEST_TMPDIR/less" -f nf4 -o "$out.2"
    [ ! -e "$out.2" ]
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/more" --extra model.other.weight
    run --separate-stderr "$B/bin/qquant" "$BATS_TEST_TMPDIR/more" -f nf4 -o "$out.2"
    [ "$status" = 0 ]
    [[ "$stderr" == *"model.other.weight is not used by the model and left out"* ]]
    run ! grep model.other <(tensors "$out.2")
}

@test "output folders that are not ours, not writable, or the source" {
    mkdir "$out"
    echo precious >"$out/file"
    refused 1 "$out: already there with other contents" "$T/tied" -f nf4 -o "$out"
    [ "$(cat "$out/file")" = precious ]
    rm -r "$out"
    echo file >"$out"
    refused 1 "$out: exists and is not a folder" "$T/tied" -f nf4 -o "$out"
    rm "$out"
    refused 1 '/dev/null/x' "$T/tied" -f nf4 -o /dev/null/x
    cp -r "$T/tied" "$out"
    touch "$out/.qlab-folder" # even one that may be replaced
    refused 1 "$out: is where the model is read from" "$out" -f nf4 -o "$out"
    refused 1 "is where the model is read from" "$out" -f nf4 -o "$BATS_TEST_TMPDIR"
    [ -e "$out/model.safetensors" ]
    if [ "$(id -u)" != 0 ]; then
        mkdir -m 555 "$BATS_TEST_TMPDIR/ro"
        refused 1 'Permission denied' "$T/tied" -f nf4 -o "$BATS_TEST_TMPDIR/ro/x"
    fi
}

@test "a full disk leaves nothing behind" {
    disk=$BATS_TEST_TMPDIR/disk
    mkdir "$disk"
    mount -t tmpfs -o size=64k none "$disk" 2>/dev/null || skip "mounting a small tmpfs needs root"
    run --separate-stderr "$B/bin/qquant" -q "$T/tied" -f int8-row -o "$disk/out"
    left=$(ls -A "$disk")
    umount "$disk"
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == *"No space left on device"* ]]
    [ -z "$left" ]
}

@test "a closed or full stdout is a failure" {
    run bash -c '"$B/bin/qquant" -q "$T/tied" -f nf4 --plan >&-'
    [ "$status" = 1 ]
    [[ "$output" == *stdout* ]]
    run bash -c '"$B/bin/qquant" -q "$T/tied" -f nf4 --plan >/dev/full'
    [ "$status" = 1 ]
    [[ "$output" == *"No space left"* ]]
}

@test "SIGINT and SIGKILL half-way: nothing under the final name" {
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/big" --hidden 256 --ff 2048 --layers 12 --heads 4 --kv-heads 4 --dtype f16
    for signal in INT KILL; do
        "$B/bin/qquant" -q -t 1 "$BATS_TEST_TMPDIR/big" -f int4-row+mse -o "$out" >"$r" &
        pid=$!
        for _ in $(seq 200); do # until it writes
            compgen -G "$out.part-*/model.safetensors.part-*" >/dev/null && break
            sleep 0.01
        done
        kill -$signal $pid
        rc=0
        wait $pid || rc=$?
        [ ! -e "$out" ]
        [ ! -s "$r" ]
        if [ $signal = INT ]; then
            [ $rc = 130 ] || { echo "rc $rc"; false; }
            nothing_left
        else
            [ $rc = 137 ]
        fi
    done
    qquant "$BATS_TEST_TMPDIR/big" -f int4-row -o "$out" # and a new run is not in its own way
    [ -e "$out/config.json" ]
}

@test "--help and --version" {
    run "$B/bin/qquant" --help
    [ "$status" = 0 ]
    [[ "$output" == *"--export-recipe"* && "$output" == *"int4-strided128"* ]]
    run "$B/bin/qquant" --version
    [[ "$output" == "qquant "*"(results 1)"* ]]
}
