#!/usr/bin/env bats
# mkmodel's published shapes, random models for measurements, in the small; and mkgguf, which writes the same for other
# programs.

tool=mkmodel
load common

small=(--layers 2 --hidden 64 --heads 4 --kv-heads 2 --vocab 300 --max-position 256 -q)

holds_r() { holds "$1" "$r"; }

setup() {
    cd "$src" || exit 1
    d=$BATS_TEST_TMPDIR/m
    r=$BATS_TEST_TMPDIR/r.json
}

@test "the weights of a seed are the same bytes everywhere, for any number of threads" {
    "$B/tests/mkmodel" qwen2.5-3b "$d" "${small[@]}" -t 1
    "$B/tests/mkmodel" qwen2.5-3b "$d.3" "${small[@]}" -t 3
    cmp "$d/model.safetensors" "$d.3/model.safetensors"
    [ "$(sha256sum <"$d/model.safetensors")" = "8c5f316a34f58b58b3ff6a1546ded870fb1f395deb2a0c4092e1e13ec29771be  -" ]
    "$B/tests/mkmodel" qwen2.5-3b "$d.3" "${small[@]}" --seed 1
    ! cmp -s "$d/model.safetensors" "$d.3/model.safetensors"
}

@test "the models open, and are what they are named after" {
    for shape in smollm2-135m smollm2-360m qwen2.5-0.5b llama-3.2-1b qwen2.5-1.5b smollm2-1.7b llama-3.2-3b qwen2.5-3b; do
        "$B/tests/mkmodel" "$shape" "$d" "${small[@]}"
        "$B/bin/qload" -q "$d" >"$r"
        holds_r '.results | .tied_embeddings and .n_layers == 2 and .unused_tensors == [] and .tokenizer.vocab_size == 256'
    done
    "$B/bin/qload" -q "$d" --tensors >"$r"
    holds_r '.results | .architecture == "Qwen2ForCausalLM" and .rope.theta == 1000000 and
           ([.tensors[] | select(.name | endswith("v_proj.bias"))] | length == 2)'
    "$B/bin/qbench" -q "$d" --prompt-tokens 20 --gen 4 --warmup 0 --trials 2 >"$r"
    holds_r '.results.decode_tps.p50 > 0'
}

@test "parameters of the real size, from the plan of a single layer" {
    "$B/tests/mkmodel" llama-3.2-3b "$d" --layers 1 --vocab 256 -q
    "$B/bin/qload" -q "$d" >"$r"
    # q and o 3072², k and v 3072·1024, three times 3072·8192; two norms; embedding and last norm
    holds_r '.results | .n_params == 2*3072*3072 + 2*3072*1024 + 3*3072*8192 + 2*3072 + 257*3072 and .rope.type == "llama3"'
}

@test "a folder that is not mkmodel's stays; an unknown name is a usage error" {
    mkdir "$d"
    echo mine >"$d/notes"
    run -1 --separate-stderr "$B/tests/mkmodel" qwen2.5-3b "$d" "${small[@]}"
    [ "$(ls "$d")" = notes ]
    run -2 --separate-stderr "$B/tests/mkmodel" qwen2.5-4b "$d.x"
    [[ "$stderr" == *"unknown kind qwen2.5-4b"* ]]
}

# What qload makes of a GGUF is tested against llama.cpp's own files elsewhere; this is the way back.
@test "mkgguf: a folder as GGUF and back is the same folder" {
    for kind in llama-tied llama-untied-rope3 llama-headdim32 qwen2-tied qwen2-untied llama-bias; do
        "$B/tests/mkmodel" -q "$kind" "$d.$kind"
        "$B/tests/mkgguf" -q "$d.$kind" "$d.gguf" --dtype bf16
        "$B/bin/qload" -q "$d.gguf" -o "$d.back" >"$r"
        "$B/bin/qload" -q "$d.$kind" -o "$d.there" >"$r" # its tensors in the same order
        cmp "$d.there/model.safetensors" "$d.back/model.safetensors"
        "$B/bin/qload" -q "$d.$kind" --encode data/sample.txt >"$r.1"
        "$B/bin/qload" -q "$d.gguf" --encode data/sample.txt >"$r.2"
        cmp <(jq '.results | .token_ids, .rope, .head_dim' "$r.1") <(jq '.results | .token_ids, .rope, .head_dim' "$r.2")
    done
}

@test "mkgguf: what it does not write is refused and leaves nothing" {
    "$B/tests/mkmodel" -q qwen3 "$d"
    run -1 --separate-stderr "$B/tests/mkgguf" -q "$d" "$d.gguf"
    [[ "$stderr" == *"Qwen3 is not written"* ]]
    run -1 --separate-stderr "$B/tests/mkgguf" -q "$d/none" "$d.gguf"
    "$B/tests/mkmodel" -q llama-tied "$d" --no-tokenizer
    rm -f "$d/tokenizer.json"
    run -1 --separate-stderr "$B/tests/mkgguf" -q "$d" "$d.gguf"
    [ ! -e "$d.gguf" ]
}
