# qlab: libq.a, the six tools, tests. Derived files are under build/ only.   make help
.DEFAULT_GOAL := all
MAKEFLAGS += -r
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
DESTDIR ?=
SAN ?=
B := build$(if $(SAN),/san)

CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
OPT ?= $(if $(SAN),-O1,-O3)
WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes
comma := ,
SANFLAGS := $(if $(SAN),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
DEFS := -D_GNU_SOURCE
CFLAGS ?= -g
# No contraction outside the kernel files: quantized bytes and the oracle must not depend on the compiler's mood.
QCFLAGS = -std=c11 $(OPT) $(CFLAGS) $(WARN) $(DEFS) -fopenmp -ffp-contract=off -Ilib $(SANFLAGS)
LDLIBS = -ljansson -lcsv -lpcre2-8 -lutf8proc -lcurl -lcrypto -lm
LDFLAGS = -fopenmp $(SANFLAGS)

# Kernel files say their instruction set in their name.
isa_flags = $(if $(filter %_avx2,$(1)),-mavx2 -mfma -mf16c)$(if $(filter %_avx512,$(1)),-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)$(if $(filter %_vnni,$(1)),-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mfma -mf16c)

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

.PHONY: all help tests clean
all: $(TOOLS:%=$(B)/bin/%)
tests: $(UNIT_BIN) $(TEST_TOOL_BIN)

include tests/check.mk

help:
	@echo 'make                 the tools, into $(B)/bin'
	@echo 'make check           all tests (SAN=1: the same under ASan and UBSan)'
	@echo 'make lint            shellcheck, static analysis, include directions'
	@echo 'make fuzz            fuzz targets for a bounded time (clang)'
	@echo 'make install         PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'make clean           remove build/'
	@echo 'make -C pipelines help   the experiments'

$(B)/libq.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) rcs $@ $^

$(B)/bin/%: $(B)/tools/%.o $(B)/libq.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/tests/%: $(B)/tests/unit/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

$(B)/tests/%: $(B)/tests/tools/%.o $(TEST_LIB_OBJ) $(B)/libq.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(QCFLAGS) $(call isa_flags,$*) $(EXTRA_$(subst /,_,$*)) -Itests/lib -MMD -MP -c -o $@ $<

# The commit is compiled into one object, which is rebuilt when the commit changes.
EXTRA_lib_base_version = -DQLAB_GIT='"$(shell git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)"'
$(B)/lib/base/version.o: $(B)/git.stamp
$(B)/git.stamp: FORCE
	@mkdir -p $(@D); git describe --always --dirty --exclude '*' > $@.tmp 2>/dev/null || echo unknown > $@.tmp; cmp -s $@.tmp $@ && rm $@.tmp || mv $@.tmp $@
.PHONY: FORCE
FORCE:

# A change of flags rebuilds.
clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(TEST_LIB_OBJ:.o=.d) $(UNIT_SRC:%.c=$(B)/%.d) $(TEST_TOOL_SRC:%.c=$(B)/%.d) $(TOOLS:%=$(B)/tools/%.d)
.SECONDARY: $(LIB_OBJ) $(TEST_LIB_OBJ) $(TOOLS:%=$(B)/tools/%.o) $(UNIT_SRC:%.c=$(B)/%.o) $(TEST_TOOL_SRC:%.c=$(B)/%.o)
