// The kernels for x86-64.
#define RLHF_KERNEL_TABLE kTableDefault
#define RLHF_KERNEL_NAME "x86-64"
#include "model/kernels/kernels_impl.h"
