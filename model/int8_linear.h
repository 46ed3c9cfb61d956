// y = x Wᵀ + b with W as int8, one scale an output channel, and x quantized on the way, one scale a row: what
// generation reads most is a quarter as large, and its products are whole numbers.
//
// The sums are exact int32, so a row's result depends on neither the other rows nor the threads nor the library that
// multiplies. Only projections are int8: an embedding is looked up, not multiplied; a norm has as many numbers as a
// row; the head's errors would be those of the log-probabilities themselves. No gradient.
#pragma once

#include <cstdint>

#include "model/libtorch.h"

namespace rlhf::model {

// Symmetric: weight ≈ values · scales, with |weight − values · scales| ≤ scales / 2. On the CPU. Not thread-safe.
struct Int8Weight {
  // Uninitialised. Throws c10::Error when a sum over `in` products does not fit an int32.
  Int8Weight(int64_t out, int64_t in);
  // The rows from `first` on become those of weight [n, in], of any floating type.
  void SetRows(int64_t first, const torch::Tensor& weight);

  torch::Tensor values;  // int8 [out, in]
  torch::Tensor scales;  // float32 [out]
};

// x float32 [rows, in], bias float32 [out] or undefined: float32 [rows, out]. With e and f the largest magnitudes of a
// row of x and of a row of the weight, the error is at most Σ_k (|x_k| f + |w_k| e) / 254 + in · e f / 254², and what
// float32 rounds.
torch::Tensor Int8Linear(const torch::Tensor& x, const Int8Weight& weight, const torch::Tensor& bias);

}  // namespace rlhf::model
