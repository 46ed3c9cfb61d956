// Rotary positions: cosines and sines by position, for every kind of scaling.
//
// Formulas: transformers' modeling_rope_utils; frequencies are float32 as there. A table grows when a position beyond
// it is asked for. The kinds whose frequencies depend on a sequence's length (dynamic beyond the context, longrope
// beyond the trained length) get rows of their own for such sequences.
#pragma once

#include <vector>

#include "artifact/model_config.h"
#include "model/libtorch.h"

namespace rlhf::model {

// Row index[t] of cos and sin [rows, dim / 2] (float32) turns token t.
struct RotaryRows {
  torch::Tensor cos, sin, index;
  // Those rows themselves, [T, 1, dim / 2] of a model's type, where they were gathered.
  torch::Tensor token_cos, token_sin;
};
// With the rows of each token in a model's type: for operations that look up no index, once for all layers.
RotaryRows Gathered(const RotaryRows& rows, torch::Dtype dtype);

class Rotary {
 public:
  // dim: how many dimensions of a head turn. context: positions the table begins with, and dynamic's trained length.
  Rotary(const artifact::Rope& rope, int64_t dim, int64_t context, torch::Device device);

  // For packed sequences that begin at position 0: positions int64 [T]; lengths sum to T.
  RotaryRows ForSequences(const torch::Tensor& positions, const std::vector<int64_t>& lengths);
  // For tokens that extend cached sequences; `end` is beyond the highest position. Throws c10::Error when a sequence
  // grows to where its cached keys would have had to turn by other frequencies.
  RotaryRows ForCache(const torch::Tensor& positions, int64_t end);

 private:
  // Longest sequence that the table's frequencies serve.
  int64_t Reach() const;
  std::vector<float> Frequencies(int64_t length) const;
  void Fill(const std::vector<float>& frequencies, int64_t positions, torch::Tensor* cos, torch::Tensor* sin) const;
  void Grow(int64_t positions);

  artifact::Rope rope_;
  int64_t dim_, context_;
  torch::Device device_;
  torch::Tensor cos_, sin_;
};

}  // namespace rlhf::model
