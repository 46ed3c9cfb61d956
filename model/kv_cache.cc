#include "model/kv_cache.h"

#include <iterator>

#include "model/device.h"

namespace rlhf::model {

KvCache::KvCache(SharedTag, const artifact::ModelConfig& config, int slots, int64_t positions, torch::Dtype dtype,
                 torch::Device device)
    : kv_heads_(config.num_kv_heads), head_dim_(config.head_dim), positions_(positions), slots_(slots) {
  const auto options = torch::TensorOptions().dtype(dtype).device(device);
  // Not filled: a page is the system's until a sequence reaches it.
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(torch::empty({positions * kv_heads_ * head_dim_}, options));
    values_.push_back(torch::empty({positions * kv_heads_ * head_dim_}, options));
    PreferHugePages(keys_.back());
    PreferHugePages(values_.back());
  }
  if (positions > 0) free_[0] = positions;
}

KvCache::KvCache(const artifact::ModelConfig& config, int slots, int max_tokens, torch::Dtype dtype,
                 torch::Device device)
    : KvCache(SharedTag(), config, slots, static_cast<int64_t>(slots) * max_tokens, dtype, device) {
  for (int slot = 0; slot < slots; ++slot) Reserve(slot, max_tokens);
}

KvCache KvCache::Shared(const artifact::ModelConfig& config, int slots, int64_t positions, torch::Dtype dtype,
                        torch::Device device) {
  return {SharedTag(), config, slots, positions, dtype, device};
}

int64_t KvCache::BytesPerPosition(const artifact::ModelConfig& config, torch::Dtype dtype) {
  return 2 * config.num_layers * config.num_kv_heads * config.head_dim * static_cast<int64_t>(c10::elementSize(dtype));
}

bool KvCache::Reserve(int slot, int64_t tokens) {
  TORCH_CHECK(slots_[slot].room == 0, "slot ", slot, " has room already");
  // The first stretch that is long enough: what is freed at the front is used again before the end is touched.
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const auto [begin, count] = *it;
    if (count < tokens) continue;
    free_.erase(it);
    if (count > tokens) free_[begin + tokens] = count - tokens;
    slots_[slot] = {.begin = begin, .room = tokens};
    return true;
  }
  return false;
}

void KvCache::Release(int slot) {
  const Slot freed = slots_[slot];
  slots_[slot] = {};
  if (freed.room == 0) return;
  int64_t begin = freed.begin, end = freed.begin + freed.room;
  auto after = free_.lower_bound(begin);
  if (after != free_.end() && after->first == end) {
    end += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      free_.erase(before);
    }
  }
  free_[begin] = end - begin;
}

void KvCache::Move(int from, int to) {
  TORCH_CHECK(slots_[to].room == 0, "slot ", to, " has room of its own");
  slots_[to] = slots_[from];
  slots_[from] = {};
}

void KvCache::CopyPrefix(int from, int to, int64_t tokens) {
  for (int layer = 0; layer < static_cast<int>(keys_.size()); ++layer) {
    keys(layer, to).narrow(1, 0, tokens).copy_(keys(layer, from).narrow(1, 0, tokens));
    values(layer, to).narrow(1, 0, tokens).copy_(values(layer, from).narrow(1, 0, tokens));
  }
}

torch::Tensor KvCache::View(const torch::Tensor& layer, int slot) const {
  const int64_t room = slots_[slot].room;
  return layer.as_strided({kv_heads_, room, head_dim_}, {room * head_dim_, head_dim_, 1}, begin(slot));
}

}  // namespace rlhf::model
