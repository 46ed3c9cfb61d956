// Keys and values of fixed slots. A slot is one sequence being generated; a finished one's slot is reused at once.
#pragma once

#include <vector>

#include "artifact/model_config.h"
#include "model/libtorch.h"

namespace rlhf::model {

class KvCache {
 public:
  // Memory: 2 · layers · slots · max_tokens · kv_heads · head_dim elements.
  KvCache(const artifact::ModelConfig& config, int slots, int max_tokens, torch::Dtype dtype, torch::Device device);
  int slots() const { return static_cast<int>(lengths_.size()); }
  int max_tokens() const { return max_tokens_; }
  int64_t length(int slot) const { return lengths_[slot]; }
  void Reset(int slot) { lengths_[slot] = 0; }
  void SetLength(int slot, int64_t length) { lengths_[slot] = length; }
  // Copies the first `tokens` positions of one slot to another: a prompt's samples share one prefill.
  void CopyPrefix(int from, int to, int64_t tokens);
  // [slots, kv_heads, max_tokens, head_dim]
  torch::Tensor keys(int layer) const { return keys_[layer]; }
  torch::Tensor values(int layer) const { return values_[layer]; }

 private:
  int max_tokens_;
  std::vector<int64_t> lengths_;
  std::vector<torch::Tensor> keys_, values_;
};

}  // namespace rlhf::model
