// The kernels for x86-64-v4.
#define RLHF_KERNEL_TABLE kTableV4
#define RLHF_KERNEL_NAME "x86-64-v4"
#include "model/kernels/kernels_impl.h"
