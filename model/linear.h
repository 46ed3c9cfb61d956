// Matrix products in float32 on the CPU by kernels::Product: a row's result depends on neither the other rows nor the
// threads, and LibTorch's own product is slower on many processors.
#pragma once
#include "model/libtorch.h"

namespace rlhf::model {

// Whether the kernels are compiled for this processor's vectors; without them LibTorch's product is faster.
bool HasFastProducts();

// a [m, k] · b [k, n] + bias [n] (or undefined), no gradient. float32 on the CPU; views of any strides. With `out`
// [m, n], contiguous, adds to it and returns it. As many threads as LibTorch uses.
torch::Tensor MatmulFixedOrder(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& bias = {},
                               const torch::Tensor& out = {});

// x [rows, in] · weight [in, out] (a transposed view is as good) + bias [out] or undefined, with gradients.
torch::Tensor LinearFixedOrder(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias);

}  // namespace rlhf::model
