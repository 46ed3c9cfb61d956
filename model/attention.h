// Causal attention with grouped queries, sliding windows and soft-capping.
//
// On the CPU by kernels over the packed rows, whose sums have a fixed order: in float32, of bfloat16 rows too unless
// the processor has instructions for those (bf16_attention.h); on a GPU by flash attention over the packed rows.
// LibTorch's attention over a padded grid serves what neither does: processors without AVX2, unless the order must be
// fixed or scores are soft-capped, and shapes and types that flash attention lacks.
#pragma once

#include <vector>

#include "model/kernels/cpu_kernels.h"
#include "model/libtorch.h"

namespace rlhf::model {

// Packed sequences: where their rows begin.
struct PackedLayout {
  std::vector<int64_t> lengths, begins;
  int64_t longest = 0;
  torch::Tensor borders;  // where not on the CPU: int32 [batch + 1], `begins` and the number of rows
  static PackedLayout Of(const std::vector<int64_t>& lengths, torch::Device device);
};

// Whether AttendPacked takes such rows as they are, not in a padded grid.
bool AttendsUnpadded(const kernels::AttentionShape& shape, const torch::Tensor& qkv, bool fixed_order);

// Over whole sequences: qkv [T, heads + 2 · kv_heads, dim] -> [T, heads · dim]. With a gradient where enabled.
torch::Tensor AttendPacked(const kernels::AttentionShape& shape, const torch::Tensor& qkv, const PackedLayout& layout,
                           bool fixed_order);

// The newest positions of one sequence against all its keys and values: q [count, heads, dim]; keys, values [kv_heads,
// length, dim], a cache's rows -> [count, heads · dim]. No gradient.
torch::Tensor AttendCached(const kernels::AttentionShape& shape, const torch::Tensor& q, const torch::Tensor& keys,
                           const torch::Tensor& values, bool fixed_order);

}  // namespace rlhf::model
