#!/usr/bin/env bats
# qquant --export-recipe llama.cpp against the real llama-quantize: LLAMA_QUANTIZE=…/llama-quantize, or one in PATH. The file
# it writes has the exported types at the exported tensors and leaves all others alone.

load common
tool=qquant

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    quantize=${LLAMA_QUANTIZE:-$(command -v llama-quantize || true)}
    [ -n "$quantize" ] || skip "no llama-quantize (LLAMA_QUANTIZE names it)"
    [ -x "$quantize" ] || { echo "LLAMA_QUANTIZE: $quantize: not a program"; false; }
}

types() { "$B/bin/qload" -q "$1" --tensors | jq -r '.results.tensors[] | "\(.name) \(.dtype)"' | sort; }

# exported MODEL RECIPE-OPTIONS…: what llama-quantize makes of the recipe, and what it should be (want, got)
exported() {
    local model=$1
    shift
    "$B/bin/qquant" -q "$model" "$@" --export-recipe llama.cpp -o types.txt >r.json
    "$quantize" --tensor-type-file types.txt "$model.gguf" out.gguf Q8_0 2 >log 2>&1 || { tail -5 log; false; }
    # ^blk\.0\.attn_q\.weight=q4_0 → model.layers.0.self_attn.q_proj.weight Q4_0, as qload names it
    sed 's/^^//; s/\\//g; s/^token_embd/model.embed_tokens/; s/^output/lm_head/; s/^blk/model.layers/; s/attn_output/attn_o/
        s/attn_\([qkvo]\)/self_attn.\1_proj/; s/ffn_\([a-z]*\)/mlp.\1_proj/; s/=\(.*\)/ \U\1/' types.txt >asked
}

# Read back by qload: what was asked for, and vectors as they were.
agrees() {
    { cat asked; types "$1.gguf" | grep -E '(norm.weight|bias) '; } | sort >want
    types out.gguf | diff want -
}

@test "a mix of int4, int8 and f16: those types at those tensors and no others" {
    for kind in llama-tied llama-untied-rope3; do
        "$B/tests/mkmodel" -q $kind m --hidden 64 --heads 2 --kv-heads 1 --ff 160 --layers 12 --dtype f16
        "$B/tests/mkgguf" -q m m.gguf >/dev/null
        echo '{"default":"int4-g32-sym","rules":[{"match":"*.1.*down_proj","format":"int8-row"},{"match":"*.11.*","format":"f16"},
            {"match":"*.v_proj","format":"int4-g32"}]}' >mix.json
        exported m -r mix.json
        agrees m
        [ "$(grep -c ' Q4_0$' want)" = 65 ]
        [ "$(grep -c ' Q8_0$' want)" = 1 ]
        [ "$(grep -c ' Q4_1$' want)" = 11 ]
        exported m -r mix.json --head int8-row # a tied GGUF has no head of its own
        agrees m
        [ "$(grep -cE "(lm_head|embed_tokens).weight Q8_0\$" want)" = 1 ]
    done
}

@test "code books become iq4_nl" {
    "$B/tests/mkmodel" -q llama-tied m --dtype f16
    "$B/tests/mkgguf" -q m m.gguf >/dev/null
    echo '{"default":"nf4","rules":[{"match":"*.0.*","format":"int8-row"}]}' >mix.json
    exported m -r mix.json
    [ "$(grep -c ' IQ4_NL$' asked)" = 7 ]
    # not a type qload reads: llama-quantize's own log says what it wrote
    sed -n 's/^llama_tensor_get_type: *\([^ ]*\) .* -> \([a-z0-9_]*\)$/\1 \2/p' log | grep -c 'blk.1.* iq4_nl$' | grep -qx 7
}

@test "a mix that was planned for the default model" {
    f16=$src/pipelines/../out/smollm2-135m/f16/model
    mix=$src/out/smollm2-135m/gen1/mix-portable-5.0.json
    [ -e "$mix" ] || skip "gen1 has not been run on the default model"
    [ -z "${SAN:-}" ] || skip "takes too long under sanitizers"
    ln -s "$f16" m
    "$B/tests/mkgguf" -q m m.gguf --pre smollm >/dev/null
    exported m -r "$mix"
    agrees m
}
