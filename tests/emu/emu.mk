# The CUDA sources compiled as C++ and run on the CPU (tests/emu/README.md): each tests/emu/test_X.cpp in three builds,
# build/emu/test_X-plain, -asan (with UBSan), -tsan. They need g++ and no CUDA toolkit.
EMU := build/emu
EMU_CXX ?= g++
EMU_BUILDS ?= plain asan tsan
EMU_HAVE := $(if $(SAN)$(FUZZING),,$(shell command -v $(EMU_CXX)))
EMU_SRC := $(sort $(wildcard tests/emu/test_*.cpp))
EMU_BIN := $(if $(EMU_HAVE),$(foreach b,$(EMU_BUILDS),$(EMU_SRC:tests/emu/%.cpp=$(EMU)/%-$(b))))
EMU_PARTS := $(CUDA_SRC) $(sort $(wildcard tests/emu/engine/*.cpp)) tests/emu/check.cpp tests/emu/mm.cpp

EMU_WARN ?= -Wall -Wextra -Werror -Wno-unknown-pragmas
EMU_FLAGS = -std=c++17 -g $(EMU_WARN) -fno-strict-aliasing -D_GNU_SOURCE -DQLAB_CUDA \
    -Itests/emu/include -Itests/emu -Ilib -Icuda -Itests/lib
EMU_FLAGS_plain := -O2
EMU_FLAGS_asan := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
EMU_FLAGS_tsan := -O1 -fsanitize=thread

# The tools, and what tests need beside them, on the emulated device: tools.bats.
EMU_TOOLS := $(if $(EMU_HAVE),$(EMU)/test_speed-plain $(TOOLS:%=$(EMU)/bin/%) $(EMU)/bin/mkmodel $(EMU)/bin/mkgguf $(EMU)/bin/schema_check $(EMU)/bin/cuda_cost)
EMU_WHOLE = $(patsubst %,$(EMU)/plain/%.o,$(CUDA_SRC) $(filter tests/emu/engine/%,$(EMU_PARTS))) $(EMU)/libq.a
emu_tool = mkdir -p $(@D); $(EMU_CXX) $(EMU_FLAGS_plain) -o $@ $^ $(filter-out -lcudart_static,$(LDLIBS)) -pthread
$(EMU)/bin/%: $(B)/tools/%.o $(EMU_WHOLE)
	$(call say,LD)$(emu_tool)
$(EMU)/bin/%: $(B)/tests/tools/%.o $(EMU_WHOLE)
	$(call say,LD)$(emu_tool)
EMU_BATS := $(if $(EMU_HAVE),tests/emu/tools.bats)

# What the compiled kernels consist of; says so where there is no nvcc or cuobjdump.
EMU_SASS := $(if $(SAN),,tests/emu/sass)

.PHONY: check-emu check-sass
check-sass: all
	@B='$(abspath $(B))' SHOW=1 tests/run-checks $(EMU_SASS)
check-emu: $(EMU_BIN) $(EMU_TOOLS)
	@$(if $(EMU_HAVE),,echo 'check-emu: no C++ compiler ($(EMU_CXX)): nothing was run'; exit 1)
	@B='$(abspath $(B))' SHOW=1 CHECK_JOBS='$(CHECK_JOBS)' CHECK_TIMEOUT='$(CHECK_TIMEOUT)' tests/run-checks $(EMU_BATS) $(EMU_BIN)

define emu_build
$(EMU)/$(1)/%.o: % $(EMU)/flags.stamp | $(B)/deps-tests.stamp
	@mkdir -p $$(@D)
	$$(call say,CXX)$(EMU_CXX) $$(EMU_FLAGS) $$(EMU_FLAGS_$(1)) -MMD -MP -c -o $$@ -x c++ $$<
$(EMU)/%-$(1): $(EMU)/$(1)/tests/emu/%.cpp.o $(EMU_PARTS:%=$(EMU)/$(1)/%.o) $(EMU)/libq.a
	$$(call say,LD)$(EMU_CXX) $$(EMU_FLAGS_$(1)) -o $$@ $$^ -lcmocka $$(filter-out -lcudart_static,$$(LDLIBS)) -pthread
.SECONDARY: $(EMU_SRC:%=$(EMU)/$(1)/%.o) $(EMU_PARTS:%=$(EMU)/$(1)/%.o)
-include $(EMU_SRC:%=$(EMU)/$(1)/%.d) $(EMU_PARTS:%=$(EMU)/$(1)/%.d)
endef
$(foreach b,$(EMU_BUILDS),$(eval $(call emu_build,$(b))))

# The library and the tests' helpers, with a backend.c that knows CUDA and without objects of nvcc.
EMU_LIB := $(filter-out $(B)/lib/backend/backend.o,$(LIB_OBJ)) $(TEST_LIB_OBJ) $(EMU)/backend.o
$(EMU)/libq.a: $(EMU_LIB)
	@rm -f $@
	$(call say,AR)$(AR) rcsT $@ $^
$(EMU)/backend.o: lib/backend/backend.c $(B)/flags.stamp
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(QCFLAGS) $(if $(wildcard cuda/backend_cuda.cu),-DQLAB_CUDA) -MMD -MP -c -o $@ $<
-include $(EMU)/backend.d
$(EMU)/flags.stamp: FORCE
	$(call put,printf '%s\n' '$(EMU_CXX) $(EMU_FLAGS) $(foreach b,$(EMU_BUILDS),$(EMU_FLAGS_$(b)))'; $(EMU_CXX) --version | head -n 1)

# The same tests for a GPU: all but those of the emulation itself. tests/gpu/run runs them.
GPU_BIN := $(if $(WITH_CUDA),$(patsubst tests/emu/%.cpp,$(B)/gpu/%,$(filter-out %/test_engine.cpp %/test_runtime.cpp %/test_failures.cpp,$(EMU_SRC))))
.PHONY: gpu-tests
gpu-tests: all $(GPU_BIN) $(TEST_TOOL_BIN)
$(B)/gpu/%.o: tests/emu/%.cpp $(B)/cuda.stamp
	@mkdir -p $(@D)
	$(call say,NVCC)$(NVCC) -x cu -std=c++17 -O2 -Ilib -Icuda -Itests/emu -Itests/lib $(CUDA_GENCODE) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(B)/gpu/%: $(B)/gpu/%.o $(B)/gpu/check.o $(B)/gpu/mm.o $(TEST_LIB_OBJ) $(B)/libq.a
	$(call say,LD)$(NVCC) $(CUDA_GENCODE) -o $@ $^ -lcmocka $(LDLIBS)
.SECONDARY: $(GPU_BIN:=.o) $(B)/gpu/check.o $(B)/gpu/mm.o
-include $(GPU_BIN:=.d) $(B)/gpu/check.d $(B)/gpu/mm.d
