// The kernels for x86-64-v3.
#define RLHF_KERNEL_TABLE kTableV3
#define RLHF_KERNEL_NAME "x86-64-v3"
#include "model/kernels/kernels_impl.h"
