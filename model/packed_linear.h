// Projections that read the same input as one, packed for the CPU's kernels: y = x Wᵀ + b, for generation. Activations
// are float32; W is float32, bfloat16 (x is rounded to it) or int8 (x quantized by row, as in int8_linear.h), and every
// sum of a bfloat16 product is float32. A row's result depends on neither the other rows nor the threads.
#pragma once

#include <cstdint>
#include <vector>

#include "model/int8_linear.h"
#include "model/libtorch.h"

namespace rlhf::model {

class PackedLinear {
 public:
  // Whether weights of this type have kernels on this processor (int8: torch::kInt8).
  static bool Serves(torch::Dtype dtype);

  // weights [out, in] each (transposed views are as good), all of one type; biases as many or none, of any float type.
  void Pack(const std::vector<torch::Tensor>& weights, const std::vector<torch::Tensor>& biases);
  // values [out, in] and their scales; biases as above.
  void Pack(const Int8Weight& weight, const std::vector<torch::Tensor>& biases);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

  // A caller's own memory for rounded or quantized inputs; one for each thread that multiplies.
  struct Scratch {
    std::vector<uint32_t> words;
    std::vector<float> scales;
  };
  // x [rows, in], y [rows, out]; y may not overlap x. Divides the columns over LibTorch's threads, unless it is called
  // from one of them.
  void Multiply(const float* x, int64_t rows, float* y, Scratch* scratch) const;

 private:
  void PackBiases(const std::vector<torch::Tensor>& biases);
  void PackWords(const uint32_t* words);

  torch::Dtype dtype_ = torch::kFloat32;
  int64_t in_ = 0, out_ = 0, words_ = 0;  // words: of 4 bytes, an input row
  torch::Tensor packed_;                  // int32, in huge pages: all of it is read for every token
  std::vector<float> bias_, column_scales_;
  std::vector<int32_t> offsets_;
};

}  // namespace rlhf::model
