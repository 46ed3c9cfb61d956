// Differentiable operations between the matrix products. Float32 on the CPU uses the fused kernels; everything else
// LibTorch's own operations.
#pragma once

#include <torch/torch.h>

namespace rlhf::model {

// Root-mean-square norm, computed in float32: x [T, hidden] · weight [hidden].
torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

// cos and sin of rotary positions: float32 [positions, dim / 2].
struct RotaryTable {
  torch::Tensor cos, sin;
};
RotaryTable MakeRotaryTable(int64_t positions, int64_t dim, double theta, torch::Device device);

// Rotates the first `heads` heads of qkv [T, all_heads, dim]; the rest pass through.
torch::Tensor ApplyRotary(const torch::Tensor& qkv, int64_t heads, const torch::Tensor& positions,
                          const RotaryTable& table);

// silu(first half) · second half of gate_up [T, 2 · width].
torch::Tensor SiluMul(const torch::Tensor& gate_up);

}  // namespace rlhf::model
