// y = x Wᵀ + b, by LibTorch's products or in a fixed order of sums.
#pragma once
#include "model/libtorch.h"

namespace rlhf::model {

// x [rows, in], weight [out, in], bias [out] or undefined. Float32 on the CPU. Forward and both gradients go through
// kernels::MatmulNT: a row's result depends on neither the other rows nor the threads.
torch::Tensor FixedOrderLinear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias);

// a [m, k] · bᵀ, b [n, k]: the same without a gradient, over as many threads as LibTorch uses. Both contiguous rows.
torch::Tensor FixedOrderMatmulNT(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& bias = {});

}  // namespace rlhf::model
