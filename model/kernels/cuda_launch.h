// How the kernels are launched and share memory: by nvcc here; by the host's compiler, for tests without a GPU, as
// tests/testing/cuda_emulation.h has it, which is then included first.
#pragma once

#ifndef RLHF_EMULATE_CUDA
#include <cuda_bf16.h>
#include <cuda_runtime.h>

// The memory of a block that its launch asked for.
#define RLHF_DYNAMIC_SHARED(name) extern __shared__ float name[]

namespace rlhf::model::kernels::cuda {

// shared: bytes a block.
template <class... Parameters, class... Arguments>
void Launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream, void (*kernel)(Parameters...),
            Arguments... arguments) {
  kernel<<<grid, threads, shared, stream>>>(arguments...);
}

}  // namespace rlhf::model::kernels::cuda
#endif
