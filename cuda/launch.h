/* What has been launched, and what went wrong. A launcher returns nothing: the backend asks launch_failed when it
 * waits for the device. */
#ifndef QLAB_CUDA_LAUNCH_H
#define QLAB_CUDA_LAUNCH_H

#include <cuda_runtime.h>

#include <cstddef>

struct err;

/* Whether this kernel is to be launched so that it may start before the one in front of it has ended (programmatic
 * dependent launch): QLAB_CUDA_PDL=1 in the environment, a driver of CUDA 12.3 or newer, which knows it in graphs too,
 * and code compiled for sm_90 or newer, which waits (kernel_begin in device.cuh). */
bool launch_early(const void *kernel);
/* Kept for each launch: the first refused one and the newest. QLAB_CUDA_SYNC=1 in the environment waits after every
 * launch, so that an error inside a kernel is told with its name (not while a graph is captured). */
void launch_note(const char *name, dim3 grid, dim3 block, size_t smem, cudaStream_t s, cudaError_t rc);
/* rc: of the call that waited. 0 if that and every launch since the last call went well; else -1 with e set to
 * "kernel NAME (grid …, block …, N bytes of shared memory): …". */
int launch_failed(cudaError_t rc, struct err *e);
/* Kernels launched or captured so far by this process. */
unsigned long long launch_count();

#endif
