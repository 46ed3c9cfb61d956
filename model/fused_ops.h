// Differentiable operations between the matrix products. On the CPU they use the kernels, whose rows do not depend on
// one another, in float32 (of bfloat16 too, rounded once at the end); elsewhere LibTorch's own operations.
#pragma once

#include "artifact/model_config.h"
#include "model/kernels/cpu_kernels.h"
#include "model/libtorch.h"
#include "model/rotary.h"

namespace rlhf::model {

kernels::Unary ToKernel(artifact::Activation kind);

// Root-mean-square norm over the last dimension, computed in float32: x [rows, width] · weight [width]. offset: the
// scale is 1 + weight (Gemma), rounded once at the end.
torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool offset);

// Layer norm over the last dimension: x [rows, width] · weight + bias [width].
torch::Tensor LayerNorm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias, double eps);

// Rotates the first rows.dim of each of the first `heads` heads of qkv [T, all_heads, dim]; the rest pass through.
torch::Tensor ApplyRotary(const torch::Tensor& qkv, int64_t heads, const RotaryRows& rows);

// f(x), or with gated: f(first half) · second half of x [T, 2 · width].
torch::Tensor Activate(const torch::Tensor& x, artifact::Activation kind, bool gated);

// cap · tanh(x / cap), without a gradient of its own when x needs none.
torch::Tensor Softcap(const torch::Tensor& x, double cap);

}  // namespace rlhf::model
