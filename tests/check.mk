# Included by the top Makefile: what `make check` and `make lint` run.
include tests/emu/emu.mk
# One job a program or file; a few jobs at a time (CHECK_JOBS), each within CHECK_TIMEOUT seconds.
CHECK_JOBS ?= 2
CHECK_TIMEOUT ?= 900
BATS := $(sort $(wildcard tests/pipeline/*.bats)) $(sort $(wildcard tests/cli/*.bats))

.PHONY: check check-unit check-cli lint fuzz
# CHECK="tests/cli/qload.bats build/tests/test_json" runs just these.
check: all tests $(if $(CHECK),$(filter $(EMU_BIN),$(CHECK)),$(EMU_BIN)) $(if $(or $(filter $(EMU_BATS),$(CHECK)),$(if $(CHECK),,1)),$(EMU_TOOLS))
	@B='$(abspath $(B))' SAN='$(SAN)' CHECK_JOBS='$(CHECK_JOBS)' CHECK_TIMEOUT='$(CHECK_TIMEOUT)' \
	    tests/run-checks $(or $(CHECK),$(BATS) $(EMU_BATS) $(UNIT_BIN) $(EMU_BIN) $(EMU_SASS))
check-unit: tests
	@$(MAKE) --no-print-directory check CHECK='$(UNIT_BIN)'
check-cli: all tests
	@$(MAKE) --no-print-directory check CHECK='$(BATS)'

# What runs beside other threads, under ThreadSanitizer: the pool, qquant's write queue.
.PHONY: check-tsan
check-tsan:
	@$(MAKE) --no-print-directory NVCC= B=build/tsan OPT=-O1 SANFLAGS=-fsanitize=thread tsan
.PHONY: tsan
tsan: $(B)/tests/test_par $(B)/tests/test_writequeue
	@B='$(abspath $(B))' CHECK_JOBS='$(CHECK_JOBS)' CHECK_TIMEOUT='$(CHECK_TIMEOUT)' TSAN_OPTIONS=halt_on_error=1 tests/run-checks $^

lint:
	@tests/lint

# Fuzz targets, built by clang into build/fuzz; each runs for FUZZ_SECONDS on a corpus kept in build/fuzz/corpus.
FUZZ_SECONDS ?= 20
FUZZ_SRC := $(sort $(wildcard tests/fuzz/*.c))
fuzz:
	@if ! command -v clang >/dev/null; then \
	    echo "fuzz: clang is missing (Debian package clang; ./bootstrap fuzz gets it): nothing was fuzzed"; exit 1; fi
	@$(MAKE) --no-print-directory B=build/fuzz CC=clang OPT=-O1 \
	    WARN='-Wall -Wno-unknown-warning-option' SANFLAGS='-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all' \
	    FUZZING=1 $(FUZZ_SRC:tests/fuzz/%.c=build/fuzz/bin/%)
	@tests/run-fuzz '$(FUZZ_SECONDS)' $(FUZZ_SRC:tests/fuzz/%.c=build/fuzz/bin/%)
ifdef FUZZING
$(B)/bin/%: $(B)/tests/fuzz/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(call say,LD)$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)
.SECONDARY: $(FUZZ_SRC:%.c=$(B)/%.o)
-include $(FUZZ_SRC:%.c=$(B)/%.d)
endif
