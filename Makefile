# qlab: libq.a, the six tools, tests. Derived files are under build/ only.   make help
# Needs GNU Make 4, a C11 compiler and six libraries; ./bootstrap finds or installs them.
.DEFAULT_GOAL := all
MAKEFLAGS += -r
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
DESTDIR ?=
SAN ?=
B := build$(if $(SAN),/san)

# V=1 shows the commands, -s nothing.
say = $(if $(V),,@$(if $(findstring s,$(firstword -$(MAKEFLAGS))),,printf '  %s %s\n' $(1) $@;))

CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
OPT ?= $(if $(SAN),-O1,-O3)
WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes
comma := ,
SANFLAGS := $(if $(SAN),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
DEFS := -D_GNU_SOURCE
CFLAGS ?= -g
# No contraction outside the kernel files: quantized bytes and the oracle must not depend on the compiler's mood.
QCFLAGS = -std=c11 $(OPT) $(CFLAGS) $(WARN) $(DEFS) -pthread -ffp-contract=off -Ilib $(SANFLAGS)
LDLIBS = -ljansson -lcsv -lpcre2-8 -lutf8proc -lcurl -lcrypto $(CUDA_LIBS) -lm
LDFLAGS = -pthread $(SANFLAGS)

include cuda/cuda.mk

# Kernel files say their instruction set in their name.
isa_flags = $(if $(filter %_avx2 %_avxvnni %_avxvnni_evex,$(1)),-mavx2 -mfma -mf16c)$(if $(filter %_avx512,$(1)),-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)$(if $(filter %_vnni,$(1)),-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c)

TOOLS := qload qquant qsens qppl qbench qreport
TOOLS := $(filter $(basename $(notdir $(wildcard tools/*.c))),$(TOOLS))
LIB_SRC := $(sort $(wildcard lib/*/*.c lib/*/*/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o)
TEST_LIB_SRC := $(sort $(wildcard tests/lib/*.c))
TEST_LIB_OBJ := $(TEST_LIB_SRC:%.c=$(B)/%.o)
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(B)/tests/%)
TEST_TOOL_SRC := $(sort $(wildcard tests/tools/*.c))
TEST_TOOL_BIN := $(TEST_TOOL_SRC:tests/tools/%.c=$(B)/tests/%)

.PHONY: all help tests install clean
all: $(TOOLS:%=$(B)/bin/%)
tests: $(UNIT_BIN) $(TEST_TOOL_BIN)

include tests/check.mk

help:
	@echo 'make                 the tools, into $(B)/bin'
	@echo 'make check           all tests (SAN=1: the same under ASan and UBSan)'
	@echo '                     CHECK="tests/cli/x.bats $(B)/tests/test_y": just these'
	@echo 'make check-emu       the CUDA kernels, run on the CPU: a line a kernel'
	@echo '     check-sass      instructions and registers of the compiled kernels (cuobjdump)'
	@echo '     check-tsan      threads under ThreadSanitizer: the pool, the write queue'
	@echo 'make lint            shellcheck, cppcheck, include directions, lengths of files'
	@echo 'make fuzz            fuzz targets, FUZZ_SECONDS=$(FUZZ_SECONDS) each (clang)'
	@echo 'make install         PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo '                     V=1: show the commands'
	@echo '                     NVCC=: without CUDA; CUDA_ARCHS="$(CUDA_ARCHS)" or all'
	@echo 'make clean           remove build/'
	@echo 'make gen2 | gen1 | smoke   the experiments; make -C pipelines help'

$(B)/libq.a: $(LIB_OBJ) $(CUDA_OBJ)
	@rm -f $@
	$(call say,AR)$(AR) rcs $@ $^

$(B)/bin/%: $(B)/tools/%.o $(B)/libq.a
	@mkdir -p $(@D)
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(UNIT_BIN): | $(B)/deps-tests.stamp
$(UNIT_SRC:%.c=$(B)/%.o): | $(B)/deps-tests.stamp
$(B)/tests/%: $(B)/tests/unit/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# Measurements, by hand: make build/bench/bench_matmul
$(B)/bench/%: $(B)/tests/bench/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/tests/%: $(B)/tests/tools/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(call say,LD)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/%.o: %.c $(B)/flags.stamp | $(B)/deps-all.stamp
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(QCFLAGS) $(call isa_flags,$*) $(EXTRA_$(subst /,_,$*)) -Itests/lib -MMD -MP -c -o $@ $<

# The commit is compiled into one object, which is rebuilt when the commit changes; a change of flags or of the
# compiler rebuilds everything. Both stamps are written only when they change.
put = @mkdir -p $(@D); { $(1); } > $@.tmp; cmp -s $@.tmp $@ && rm $@.tmp || mv $@.tmp $@
git_version := git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown
# Tests find the source tree by this, or by the environment.
EXTRA_tests_lib_golden = -DQLAB_SRC='"$(CURDIR)"'
EXTRA_lib_base_version = -DQLAB_GIT='"$(shell cat $(B)/git.stamp)"' $(if $(WITH_CUDA),-DQLAB_CUDA)
EXTRA_lib_backend_backend = $(if $(WITH_CUDA),-DQLAB_CUDA)
$(B)/lib/base/version.o: $(B)/git.stamp
$(B)/git.stamp: FORCE
	$(call put,$(git_version))
$(B)/flags.stamp: FORCE | $(B)/deps-all.stamp
	$(call put,printf '%s\n' '$(CC) $(QCFLAGS) $(LDFLAGS) $(LDLIBS) $(WITH_CUDA)'; $(CC) --version | head -n 1)
.PHONY: FORCE
FORCE:

# What is missing is said once, by package, before anything is compiled.
$(B)/deps-all.stamp $(B)/deps-tests.stamp: $(B)/deps-%.stamp: bootstrap
	@mkdir -p $(@D); CC='$(CC)' ./bootstrap --no-install $* 2> $@.tmp && mv $@.tmp $@ || { cat $@.tmp >&2; rm $@.tmp; exit 1; }

# The experiments, after the tools are built; variables on the command line go along.
.PHONY: gen1 gen2 smoke
gen1 gen2 smoke: all
	@$(MAKE) --no-print-directory -C pipelines $@

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/qlab/docs/schema
	install -m 755 $(TOOLS:%=$(B)/bin/%) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(wildcard pipelines/plan.jq) $(wildcard README.md) LICENSE $(DESTDIR)$(PREFIX)/share/qlab
	install -m 644 $(wildcard docs/*.md) $(DESTDIR)$(PREFIX)/share/qlab/docs
	install -m 644 $(wildcard docs/schema/*.json) $(DESTDIR)$(PREFIX)/share/qlab/docs/schema

clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(CUDA_OBJ:.o=.d) $(TEST_LIB_OBJ:.o=.d) $(UNIT_SRC:%.c=$(B)/%.d) $(TEST_TOOL_SRC:%.c=$(B)/%.d) $(TOOLS:%=$(B)/tools/%.d)
.SECONDARY: $(LIB_OBJ) $(CUDA_OBJ) $(TEST_LIB_OBJ) $(TOOLS:%=$(B)/tools/%.o) $(UNIT_SRC:%.c=$(B)/%.o) $(TEST_TOOL_SRC:%.c=$(B)/%.o)
