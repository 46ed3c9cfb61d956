#include "model/kv_cache.h"

namespace rlhf::model {

KvCache::KvCache(const artifact::ModelConfig& config, int slots, int max_tokens, torch::Dtype dtype,
                 torch::Device device)
    : max_tokens_(max_tokens), lengths_(slots, 0) {
  const auto options = torch::TensorOptions().dtype(dtype).device(device);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(torch::zeros({slots, config.num_kv_heads, max_tokens, config.head_dim}, options));
    values_.push_back(torch::zeros({slots, config.num_kv_heads, max_tokens, config.head_dim}, options));
  }
}

void KvCache::CopyPrefix(int from, int to, int64_t tokens) {
  for (size_t layer = 0; layer < keys_.size(); ++layer) {
    keys_[layer][to].narrow(1, 0, tokens).copy_(keys_[layer][from].narrow(1, 0, tokens));
    values_[layer][to].narrow(1, 0, tokens).copy_(values_[layer][from].narrow(1, 0, tokens));
  }
}

}  // namespace rlhf::model
