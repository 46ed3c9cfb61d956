// Marks what the host's compiler and CUDA's both compile: one body, which the tests of a machine without a GPU run.
#pragma once

#ifdef __CUDACC__
#define RLHF_HOST_DEVICE __device__
#else
#define RLHF_HOST_DEVICE
#endif
