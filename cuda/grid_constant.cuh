/* GRID_CONSTANT before a kernel's struct argument: it stays where the launch put it, also where it is indexed. */
#ifndef QLAB_CUDA_GRID_CONSTANT_CUH
#define QLAB_CUDA_GRID_CONSTANT_CUH
#ifdef CUDA_EMU
#define GRID_CONSTANT
#else
#define GRID_CONSTANT __grid_constant__
#endif
#endif
