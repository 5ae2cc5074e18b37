# Included by the top Makefile. CUDA is optional: with nvcc on the machine (12.x, 13.x) the sources of cuda/ become part
# of libq.a; NVCC= builds without. cudart is linked statically; the driver, NVML and cuBLAS are found at run time.
CUDA_SRC := $(sort $(wildcard cuda/*.cu))
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
# The backend itself may be missing; sanitizers and fuzzers see the kernels in tests/emu.
WITH_CUDA := $(if $(SAN)$(FUZZING),,$(if $(wildcard cuda/backend_cuda.cu),$(NVCC)))
CUDA_OBJ := $(if $(WITH_CUDA),$(CUDA_SRC:%.cu=$(B)/%.o))

# Code for sm_80 runs on 8.6 and 8.9 too (A100, GeForce 30 and 40), for sm_90 on Hopper; the PTX of the newest one
# is compiled by the driver where a GPU is newer than all. Turing and binaries for Blackwell: CUDA_ARCHS=all, which
# takes what the toolkit still or already knows.
CUDA_ARCHS ?= 80 90
CUDA_KNOWN = $(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch))
CUDA_ALL = $(filter $(CUDA_KNOWN),75 80 86 89 90 100 120)
CUDA_LIST := $(if $(WITH_CUDA),$(if $(filter all,$(CUDA_ARCHS)),$(CUDA_ALL),$(CUDA_ARCHS)))
CUDA_GENCODE := $(foreach a,$(CUDA_LIST),-gencode arch=compute_$(a),code=sm_$(a)) \
    $(foreach a,$(lastword $(CUDA_LIST)),-gencode arch=compute_$(a),code=compute_$(a))

# Host code without exceptions, RTTI and guards of statics needs no C++ library.
NVCCFLAGS ?=
CUDA_FLAGS = -std=c++17 -O3 -lineinfo -Ilib -Icuda $(CUDA_GENCODE) -Werror all-warnings \
    -Xcompiler -Wall,-Wextra,-Wno-unused-parameter,-fno-exceptions,-fno-rtti \
    -Xcompiler -fno-threadsafe-statics,-fno-strict-aliasing $(NVCCFLAGS)
CUDA_HOME := $(if $(WITH_CUDA),$(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC)))))
CUDA_LIBS := $(if $(WITH_CUDA),$(addprefix -L,$(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib)) \
    -lcudart_static -ldl -lrt -lpthread)

$(B)/cuda/%.o: cuda/%.cu $(B)/cuda.stamp
	@mkdir -p $(@D)
	$(call say,NVCC)$(NVCC) $(CUDA_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

$(B)/cuda.stamp: FORCE
	$(call put,printf '%s\n' '$(CUDA_FLAGS)'; $(NVCC) --version)
