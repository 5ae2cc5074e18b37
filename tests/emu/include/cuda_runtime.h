/* What <cuda_runtime.h> gives, for CUDA sources compiled as plain C++ and run on the CPU (tests/emu/README.md). */
#ifndef EMU_CUDA_RUNTIME_H
#define EMU_CUDA_RUNTIME_H

#include "emu_types.h"

#include "emu_api.h"
#include "emu_device.h"

#endif
