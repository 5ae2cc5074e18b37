#!/usr/bin/env bats
# Instruction sets: what is compiled into the kernels, so that none can fault on a processor they are chosen for, and the
# names QLAB_ISA takes.

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    o=$B/lib/backend/cpu
    [ "$(uname -m)" = x86_64 ] || skip "not x86-64"
}

# code OBJECT: its instructions, one a line: bytes, tab, text
code() { objdump -d -w --no-show-raw-insn "$1" | sed -nE 's/^ *[0-9a-f]+:\t *//p'; }
# evex OBJECT: those encoded with EVEX, which only AVX-512 has (the byte 62 begins nothing else in 64-bit code)
evex() { objdump -d -w "$1" | grep -P '^ *[0-9a-f]+:\t62 ' || true; }

@test "AVX2 and AVX-VNNI kernels hold no AVX-512 instruction" {
    command -v objdump || skip "no objdump"
    for f in "$o"/*_avx2.o "$o"/int8_avxvnni.o "$B"/lib/eval/peak_avx2.o; do
        [ "$(code "$f" | grep -c ymm)" -gt 20 ] || { echo "$f: no ymm"; false; }
        [ -z "$(evex "$f")" ] || { echo "$f:"; evex "$f" | head; false; }
        ! code "$f" | grep -E '%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23][0-9])' || { echo "$f"; false; }
    done
    [ "$(evex "$o/kernels_avx512.o" | wc -l)" -gt 100 ]
}

@test "vpdpbusd is in the AVX-VNNI kernels with VEX, in the AVX2 kernels not at all" {
    command -v objdump || skip "no objdump"
    [ "$(code "$o/int8_avxvnni.o" | grep -c '^{vex} vpdpbusd')" -gt 90 ]
    for f in "$o"/*_avx2.o; do ! code "$f" | grep vpdpbusd || { echo "$f"; false; }; done
}

@test "the kernels that stand in for AVX-VNNI's differ from them in the encoding of vpdpbusd alone" {
    command -v objdump || skip "no objdump"
    [ -z "$(evex "$o/int8_avxvnni_evex.o" | grep -v 'vpdpbusd %ymm')" ]
    for f in int8_avxvnni int8_avxvnni_evex; do
        # without what depends on addresses: targets of jumps, relocated operands, padding
        code "$o/$f.o" | sed -E 's/^\{vex\} //; s/^(j[a-z]+|call) .*/\1/; s/[-0-9a-fx]*\(%rip\).*//; /nop|xchg +%ax,%ax/d' \
            >"$BATS_TEST_TMPDIR/$f"
    done
    diff "$BATS_TEST_TMPDIR"/int8_avxvnni{,_evex}
}

@test "QLAB_ISA: names that are unknown or not there are refused in one line" {
    "$B/tests/mkmodel" -q llama-tied "$BATS_TEST_TMPDIR/m" --no-tokenizer
    run --separate-stderr env QLAB_ISA=avx3 "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/m" --prompt-tokens 4 --gen 1
    [ "$status" = 1 ]
    [ -z "$output" ]
    [[ "$stderr" == *"QLAB_ISA=avx3: unknown (plain, avx2, avxvnni, avx512 or auto was expected)"* ]]
    for isa in plain avx2 avxvnni avx512; do
        run --separate-stderr env QLAB_ISA=$isa "$B/bin/qbench" -q "$BATS_TEST_TMPDIR/m" --prompt-tokens 4 --gen 1 \
            --warmup 0 --trials 1 --compute int8
        if [ "$status" = 0 ]; then
            [ "$(jq -r .host.isa_used <<<"$output")" = $isa ]
        else
            [ $isa != plain ]
            [ -z "$output" ]
            [[ "$stderr" == *"QLAB_ISA=$isa: this processor offers "* ]]
        fi
    done
}
