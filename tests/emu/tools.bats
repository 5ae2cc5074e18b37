#!/usr/bin/env bats
# The tools with --device cuda on the emulated device (README.md): a tiny model's perplexity and answers are the CPU's, and
# everything that can be wrong with a device ends in one line.

bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    export E=$PWD/build/emu/bin T=$BATS_FILE_TMPDIR QLAB_CUDA_BLAS=0
    "$E/mkmodel" -q bigram "$T/f16"
    local f
    for f in int8-row int4-g64 nf4; do "$E/qquant" -q "$T/f16" -f "$f" -o "$T/$f" >/dev/null; done
}

setup() { cd "$BATS_TEST_DIRNAME/../.." || exit 1; }

nll() { # FORMAT DEVICE COMPUTE
    "$E/qppl" "$T/$1" --text data/sample.txt --ctx 64 --max-windows 1 -q --device "$2" --compute "$3" | jq .results.nll
}

bench() { # FORMAT ARGS…
    local m=$1
    shift
    "$E/qbench" "$T/$m" -q --prompt 'ab' --gen 4 --warmup 0 "$@"
}

# refused MESSAGE COMMAND…: exit 1, nothing on stdout, one line on stderr that has the message
refused() {
    local message=$1
    shift
    run --separate-stderr "$@"
    [ "$status" = 1 ] || { echo "status $status: $stderr"; false; }
    [ -z "$output" ]
    [[ "$stderr" == *"$message"* ]] || { echo "$stderr"; false; }
    [ "$(wc -l <<<"$stderr")" = 1 ] || { echo "$stderr"; false; }
}

@test "perplexity: exact compute is the CPU's, int8 near it" {
    local f cpu cuda
    for f in f16 int8-row int4-g64 nf4; do
        cpu=$(nll $f cpu f32) cuda=$(nll $f cuda f32)
        jq -en "($cuda / $cpu - 1) | fabs < 1e-6" >/dev/null || { echo "$f, f32: $cuda, not $cpu"; false; }
        cpu=$(nll $f cpu int8) cuda=$(nll $f cuda int8)
        jq -en "($cuda / $cpu - 1) | fabs < 3e-3" >/dev/null || { echo "$f, int8: $cuda, not $cpu"; false; }
    done
    for f in int4-g64 nf4; do
        cpu=$(nll $f cpu int8x2) cuda=$(nll $f cuda int8x2)
        jq -en "($cuda / $cpu - 1) | fabs < 2e-5" >/dev/null || { echo "$f, int8x2: $cuda, not $cpu"; false; }
    done
}

@test "a prompt's answer is the CPU's, by recorded steps and op by op" {
    local f want
    for f in "f16 --compute f32" int4-g64 "nf4 --compute int8x2"; do # exact where two ids are nearly alike
        want=$(bench $f --trials 1 | jq -c .results.generated)
        bench $f --trials 2 --device cuda | jq -e ".results.generated == $want" >/dev/null || { echo "$f: recorded"; false; }
        QLAB_CUDA_GRAPH=0 bench $f --trials 1 --device cuda | jq -e ".results.generated == $want" >/dev/null || { echo "$f"; false; }
    done
}

@test "qbench's record of a device: its name, memory, kernels" {
    bench int4-g64 --trials 1 --device cuda --kernels >"$T/r.json"
    "$E/schema_check" docs/schema/qbench.json "$T/r.json"
    jq -e '.host.gpu == "emulated GPU" and .results.compute == "int8" and .results.bandwidth.read_from == "copy"' "$T/r.json"
    jq -e '.results.memory | (.device_peak_bytes / .predicted_bytes - 1) | fabs < 0.02' "$T/r.json"
    jq -e '[.results.kernels[] | select(.phase == "decode") | .op] | sort ==
        ["argmax", "embed", "gate_up", "matmul_add", "norm_matmul", "rmsnorm", "rope_attention"]' "$T/r.json"
}

@test "qload plans the memory of a device" {
    "$E/qload" "$T/int4-g64" -q --plan-memory --ctx 100 --device cuda >"$T/p.json"
    # 2 layers, 112 tokens (a multiple of 16), 2 heads of 64, K and V, f16
    jq -e '.results.memory | .kv_bytes == 2 * 112 * 2 * 64 * 2 * 2 and
        .predicted_bytes == .weights_bytes + .kv_bytes + .scratch_bytes + .context_bytes' "$T/p.json"
}

@test "qload plans what a GGUF takes on a device" {
    "$E/mkmodel" -q llama-tied "$T/tied"
    "$E/mkmodel" -q llama-untied-rope3 "$T/untied"
    local m dtype
    for m in tied untied; do
        for dtype in bf16 q8_0; do # q and k are expanded, whose rows GGUF permutes; all of blocks, the table too
            "$E/mkgguf" -q "$T/$m" "$T/$m.gguf" --dtype $dtype
            "$E/qload" "$T/$m.gguf" -q --plan-memory --ctx 16 --batch 1 --device cuda >"$T/p.json"
            "$E/qbench" "$T/$m.gguf" -q --prompt-tokens 1 --gen 1 --warmup 0 --trials 1 --device cuda >"$T/r.json"
            diff <(jq .results.memory.weights_bytes "$T/p.json") <(jq .results.memory.weights_bytes "$T/r.json")
        done
    done
}

@test "qsens runs on a device" {
    local cpu=$T/cpu.json cuda=$T/cuda.json
    "$E/qsens" "$T/f16" -f int4-g64 --text data/calibration.txt --chars 40 -q >"$cpu"
    "$E/qsens" "$T/f16" -f int4-g64 --text data/calibration.txt --chars 40 -q --device cuda >"$cuda"
    jq -es '[.[].results.tensors] | transpose | length == 14 and all(.[0].name == .[1].name and (.[1].nmse / .[0].nmse - 1 | fabs) < 1e-3)' \
        "$cpu" "$cuda"
}

@test "no device, no driver, an old one, a number too high, a feature missing" {
    refused 'there is no NVIDIA device (cpu works)' env EMU_DEVICES=0 "$E/qppl" "$T/f16" --text data/sample.txt -q --device cuda
    refused 'no NVIDIA driver is installed' env EMU_DRIVER=0 "$E/qbench" "$T/f16" -q --device cuda
    refused 'the NVIDIA driver is too old: it knows CUDA 11.4' env EMU_DRIVER=11040 "$E/qbench" "$T/f16" -q --device cuda
    refused 'device cuda:3: there is no such device' "$E/qbench" "$T/f16" -q --device cuda:3
    refused 'compute capability 6.1, without' env EMU_CAPABILITY=61 "$E/qbench" "$T/f16" -q --device cuda
    EMU_DEVICES=0 "$E/qbench" "$T/f16" -q --trials 1 --warmup 0 --gen 2 >/dev/null # cpu works
}

@test "out of memory at load says what is missing and what would fit; in the middle, what was wanted" {
    refused 'MiB are missing; ' env EMU_MEMORY=1000000 "$E/qbench" "$T/int4-g64" -q --device cuda
    [[ $stderr == *'bits a parameter would fit)'* ]]
    refused 'KV cache of ' env EMU_MEMORY=2000000 "$E/qbench" "$T/int4-g64" -q --device cuda --prompt-tokens 1000
    [[ $stderr == *'tokens would fit'* ]]
    refused 'out of memory' env EMU_FAIL_ALLOC=45 "$E/qbench" "$T/int4-g64" -q --device cuda --gen 2
    refused 'pinned memory' env EMU_FAIL_HOST_ALLOC=1 "$E/qbench" "$T/int4-g64" -q --device cuda
}

@test "a launch that fails is told with kernel and shape, and nothing half-written is left" {
    refused 'device cuda:0: kernel ' env EMU_FAIL_LAUNCH=40 "$E/qppl" "$T/f16" --text data/sample.txt --ctx 64 --max-windows 1 -q \
        --device cuda --nll "$T/out.nll"
    [[ $stderr == *'(grid '*', block '*'bytes of shared memory): '* ]]
    refused 'at or before kernel ' env EMU_FAIL_RUN=40 "$E/qppl" "$T/f16" --text data/sample.txt --ctx 64 --max-windows 1 -q \
        --device cuda --nll "$T/out.nll"
    refused 'recording a decode step' env EMU_FAIL_CAPTURE=1 "$E/qbench" "$T/f16" -q --prompt-tokens 2 --device cuda
    [ -z "$(compgen -G "$T/out.nll*")" ]
}

@test "interrupted on the device: 130, and nothing half-written is left" {
    "$E/qppl" "$T/f16" --text data/sample.txt -q --device cuda --nll "$T/int.nll" >"$T/int.json" 3>&- &
    local pid=$!
    sleep 1.5
    kill -INT $pid
    local rc=0
    wait $pid || rc=$?
    [ "$rc" = 130 ]
    [ ! -s "$T/int.json" ]
    [ -z "$(compgen -G "$T/int.nll*")" ]
}

@test "docs/cuda.md has the predictions that cuda_cost makes" {
    diff <(sed '1,/cuda_cost:begin/d; /cuda_cost:end/,$d' docs/cuda.md) <("$E/cuda_cost")
}

@test "tests/gpu/run measures speed on a device" {
    mkdir -p "$T/B/gpu"
    ln -s "$E" "$T/B/bin"
    ln -s "$E" "$T/B/tests"
    ln -s "$PWD/build/emu/test_speed-plain" "$T/B/gpu/test_speed"
    B=$T/B OUT=$T/gpu DEVICE=cuda MODEL=$T/int4-g64 SHAPES='' FORMATS=f16 DEPTHS=0 PROMPTS=4 GEN=3 run tests/gpu/run speed bench
    [ "$status" = 0 ] || { echo "$output"; false; }
    jq -e '[.records[] | select(.tool == "test_speed") | .results | (.fraction // .ratio)] | length == 6 and all(. > 0)' "$T/gpu/gpu.json"
    grep -qE '^\| 2048 × 11008 \| [0-9.]+ \| [0-9]+ \| [0-9.e-]+ \| [0-9.e-]+ \|$' "$T/gpu/gpu.md"
    grep -qE '^\| default-f16-p4 \| [0-9.]+ \| [0-9.]+ \| [0-9.e-]+ \| 1.00 \| .* \|$' "$T/gpu/gpu.md"
    jq -e '.device == "cuda" and .records[0].host.gpu == "emulated GPU" and (.records[0].results.kernels | length) > 0' "$T/gpu/gpu.json"
}

@test "tests/gpu/run compares perplexity on a device with the CPU's, and goes on where it was stopped" {
    mkdir -p "$T/B2" "$T/ppl/models/tiny.tmp"
    ln -s "$E" "$T/B2/bin"
    ln -s "$E" "$T/B2/tests"
    echo '{' >"$T/ppl/models/tiny.tmp/config.json" # a model that was being made
    export B=$T/B2 OUT=$T/ppl DEVICE=cuda MODEL=$T/f16 SHAPES='' FORMATS='f16 int4-g64' PPL_ARGS='--ctx 32 --max-windows 1'
    run env EMU_FAIL_LAUNCH=20 FORMATS=f16 tests/gpu/run ppl # stopped in the middle
    [ "$status" = 1 ]
    [[ $output == *'ppl-tiny-f16-f32.json: FAILED (exit 1): qppl: '* ]]
    [ -s "$T/ppl/records/ppl-tiny-f16-cpu.json" ]
    [ ! -e "$T/ppl/records/ppl-tiny-f16-f32.json" ]
    run tests/gpu/run ppl
    [ "$status" = 0 ] || { echo "$output"; false; }
    [[ $output == *'ppl-tiny-f16-cpu.json: done before'* ]]
    [ ! -e "$T/ppl/models/tiny.tmp" ]
    jq -e '[.records[].params.device] == ["cpu", "cuda", "cpu", "cuda", "cuda", "cpu", "cuda", "cpu", "cuda", "cuda"]' "$T/ppl/gpu.json"
    [ "$(grep -cE '^\| (tiny|default)-(f16|int4-g64) \| [0-9.]+ \| [0-9.]+ \| [0-9.]* \| [0-9.-]* \|$' "$T/ppl/gpu.md")" = 4 ]
    run tests/gpu/run ppl
    [ "$status" = 0 ]
    [ "$(grep -c 'done before' <<<"$output")" = 10 ]
}
