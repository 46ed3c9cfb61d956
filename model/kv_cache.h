// Keys and values of the sequences being generated. A sequence is a slot; a finished one's slot is reused at once.
//
// All slots share one store of token positions, of which each holds a contiguous room: either as many as the longest
// sequence, from the start, or as many as were reserved for it. Not thread-safe.
#pragma once

#include <map>
#include <vector>

#include "artifact/model_config.h"
#include "model/libtorch.h"

namespace rlhf::model {

class KvCache {
 public:
  // Every slot has room for max_tokens.
  KvCache(const artifact::ModelConfig& config, int slots, int max_tokens, torch::Dtype dtype, torch::Device device);
  // `positions` are shared; a slot has room for what Reserve gives it, at first none.
  static KvCache Shared(const artifact::ModelConfig& config, int slots, int64_t positions, torch::Dtype dtype,
                        torch::Device device);
  // Of one position: 2 · layers · kv_heads · head_dim elements.
  static int64_t BytesPerPosition(const artifact::ModelConfig& config, torch::Dtype dtype);

  int slots() const { return static_cast<int>(slots_.size()); }
  int64_t positions() const { return positions_; }

  // Gives an empty slot room for `tokens`; false when no free stretch of positions is that long. What the room held
  // before is undefined.
  bool Reserve(int slot, int64_t tokens);
  // Gives a slot's room back.
  void Release(int slot);
  // Hands a slot's room with what is in it to a slot without room.
  void Move(int from, int to);
  int64_t room(int slot) const { return slots_[slot].room; }

  int64_t length(int slot) const { return slots_[slot].length; }
  void Reset(int slot) { slots_[slot].length = 0; }
  void SetLength(int slot, int64_t length) { slots_[slot].length = length; }
  // Copies the first `tokens` positions of one slot to another.
  void CopyPrefix(int from, int to, int64_t tokens);
  // A slot's part of a layer, [kv_heads, room, head_dim], contiguous: it begins `begin(slot)` elements into the
  // layer's store.
  torch::Tensor keys(int layer, int slot) const { return View(keys_[layer], slot); }
  torch::Tensor values(int layer, int slot) const { return View(values_[layer], slot); }
  int64_t begin(int slot) const { return slots_[slot].begin * kv_heads_ * head_dim_; }
  // A layer's whole store, flat.
  const torch::Tensor& keys(int layer) const { return keys_[layer]; }
  const torch::Tensor& values(int layer) const { return values_[layer]; }

 private:
  struct Slot {
    int64_t begin = 0, room = 0, length = 0;  // positions
  };
  struct SharedTag {};
  KvCache(SharedTag, const artifact::ModelConfig& config, int slots, int64_t positions, torch::Dtype dtype,
          torch::Device device);
  torch::Tensor View(const torch::Tensor& layer, int slot) const;

  int64_t kv_heads_, head_dim_, positions_;
  std::vector<Slot> slots_;
  std::map<int64_t, int64_t> free_;  // begin -> how many positions; no two touch
  std::vector<torch::Tensor> keys_, values_;
};

}  // namespace rlhf::model
