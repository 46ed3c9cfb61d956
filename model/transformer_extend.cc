// Generation's forward pass: new tokens against the keys and values that their slots hold.
#include <algorithm>

#include <c10/core/InferenceMode.h>

#include "model/attention.h"
#include "model/cpu_generation.h"
#include "model/device.h"
#include "model/device_ops.h"
#include "model/fused_ops.h"
#include "model/kv_cache.h"
#include "model/rotary.h"
#include "model/transformer_parts.h"

namespace rlhf::model {

// One call of Extend: which sequences only add a token, which are prompts, and the attention of both.
class ExtendPass {
 public:
  ExtendPass(const Transformer& model, const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache)
      : model_(model), batch_(batch), slots_(slots), cache_(cache) {
    int64_t row = 0;
    for (size_t i = 0; i < slots.size(); ++i) {
      const int64_t length = cache.length(slots[i]) + batch.lengths[i];
      TORCH_CHECK(length <= cache.room(slots[i]), "slot ", slots[i], " is full: ", cache.length(slots[i]),
                  " tokens and ", batch.lengths[i], " more, of ", cache.room(slots[i]));
      begins_.push_back(row);
      row += batch.lengths[i];
      end_ = std::max(end_, length);
      if (batch.lengths[i] == 1) {
        decode_slots_.push_back(slots[i]);
        decode_rows_.push_back(begins_[i]);
        decode_lengths_.push_back(length);
        decode_begins_.push_back(cache.begin(slots[i]));
        decode_rooms_.push_back(cache.room(slots[i]));
      } else {
        prefills_.push_back(i);
      }
    }
    FindWhole();
    scratch_.resize(static_cast<size_t>(kernels::RoundUpTo16(end_)));
    on_device_ = HasDecodeKernel(AttentionShapeOf(model.config(), 0), model.dtype(), model.device());
    if (on_device_) {
      places_ = Places(decode_rows_, decode_begins_, decode_rooms_, decode_lengths_);
      FindPromptPlaces();
    } else if (!prefills_.empty() && !decode_rows_.empty()) {
      decode_index_ = ToDevice(decode_rows_, model.device());
    }
  }

  int64_t end() const { return end_; }  // beyond the highest position

  torch::Tensor Attend(size_t l, const torch::Tensor& qkv) {
    Append(static_cast<int>(l), qkv);
    const auto shape = AttentionShapeOf(model_.config(), model_.Window(l));
    const int layer = static_cast<int>(l);
    torch::Tensor attended = torch::empty({qkv.size(0), shape.heads * shape.dim}, qkv.options());
    const bool together = whole_.lengths.size() > 1 && AttendsUnpadded(shape, qkv, model_.deterministic());
    if (together) {
      const int64_t begin = begins_[whole_first_], count = whole_.begins.back() + whole_.lengths.back();
      attended.narrow(0, begin, count)
          .copy_(AttendPacked(shape, qkv.narrow(0, begin, count), whole_, model_.deterministic()));
    }
    for (const size_t i : prefills_) {
      if (together && i >= whole_first_ && i < whole_first_ + whole_.lengths.size()) continue;
      const int64_t length = cache_.length(slots_[i]) + batch_.lengths[i], count = batch_.lengths[i];
      attended.narrow(0, begins_[i], count)
          .copy_(AttendCached(shape, qkv.narrow(0, begins_[i], count).narrow(1, 0, shape.heads),
                              cache_.keys(layer, slots_[i]).narrow(1, 0, length),
                              cache_.values(layer, slots_[i]).narrow(1, 0, length), model_.deterministic()));
    }
    if (decode_rows_.empty()) return attended;
    if (on_device_) {
      DecodeOnDevice(shape, qkv, places_, cache_.keys(layer), cache_.values(layer), attended);
      return attended;
    }
    if (IsFloatOnCpu(qkv)) {
      const torch::Tensor decoding = prefills_.empty() ? qkv : qkv.index_select(0, decode_index_);
      const torch::Tensor q = decoding.narrow(1, 0, shape.heads).contiguous();
      torch::Tensor out = prefills_.empty() ? attended : torch::empty({q.size(0), attended.size(1)}, qkv.options());
      std::vector<kernels::CachedQuery> queries(decode_rows_.size());
      for (size_t i = 0; i < queries.size(); ++i) {
        const auto at = static_cast<int64_t>(i) * shape.heads * shape.dim;
        queries[i] = {q.data_ptr<float>() + at, decode_begins_[i], decode_rooms_[i], decode_lengths_[i],
                      out.data_ptr<float>() + at};
      }
      kernels::DecodeAttention(shape, queries.data(), q.size(0), cache_.keys(layer).data_ptr<float>(),
                               cache_.values(layer).data_ptr<float>(), scratch_.data());
      if (!prefills_.empty()) attended.index_copy_(0, decode_index_, out);
      return attended;
    }
    for (size_t i = 0; i < decode_rows_.size(); ++i) {
      attended.narrow(0, decode_rows_[i], 1)
          .copy_(AttendCached(shape, qkv.narrow(0, decode_rows_[i], 1).narrow(1, 0, shape.heads),
                              cache_.keys(layer, decode_slots_[i]).narrow(1, 0, decode_lengths_[i]),
                              cache_.values(layer, decode_slots_[i]).narrow(1, 0, decode_lengths_[i]), false));
    }
    return attended;
  }

 private:
  // The longest run of prompts, one behind the other, of which nothing is cached: they attend to themselves alone,
  // together, as sequences that are trained on do.
  void FindWhole() {
    size_t first = 0;
    std::vector<int64_t> lengths;
    for (size_t i = 0; i <= slots_.size(); ++i) {
      if (i < slots_.size() && batch_.lengths[i] > 1 && cache_.length(slots_[i]) == 0) {
        if (lengths.empty()) first = i;
        lengths.push_back(batch_.lengths[i]);
        continue;
      }
      if (lengths.size() > std::max<size_t>(1, whole_.lengths.size())) {
        whole_first_ = first;
        whole_.lengths = lengths;
      }
      lengths.clear();
    }
    if (!whole_.lengths.empty()) whole_ = PackedLayout::Of(whole_.lengths, model_.device());
  }

  // See device_ops.h.
  torch::Tensor Places(const std::vector<int64_t>& rows, const std::vector<int64_t>& begins,
                       const std::vector<int64_t>& rooms, const std::vector<int64_t>& lengths) const {
    std::vector<int64_t> places;
    for (const auto* part : {&rows, &begins, &rooms, &lengths}) places.insert(places.end(), part->begin(), part->end());
    return ToDevice(places, model_.device()).view({4, -1});
  }
  // Of every token of the prompts.
  void FindPromptPlaces() {
    std::vector<int64_t> rows, begins, rooms, lengths;
    for (const size_t i : prefills_) {
      for (int64_t t = 0; t < batch_.lengths[i]; ++t) {
        rows.push_back(begins_[i] + t);
        begins.push_back(cache_.begin(slots_[i]));
        rooms.push_back(cache_.room(slots_[i]));
        lengths.push_back(cache_.length(slots_[i]) + t + 1);
      }
    }
    if (!rows.empty()) prompt_places_ = Places(rows, begins, rooms, lengths);
  }

  // The new keys and values into the slots' rows.
  void Append(int l, const torch::Tensor& qkv) {
    if (on_device_) {  // DecodeOnDevice does it for sequences that extend by a token
      if (prompt_places_.defined()) {
        AppendOnDevice(AttentionShapeOf(model_.config(), 0), qkv, prompt_places_, cache_.keys(l), cache_.values(l));
      }
      return;
    }
    const int64_t heads = model_.config().num_heads, kv_heads = model_.config().num_kv_heads,
                  dim = model_.config().head_dim;
    const bool direct = IsFloatOnCpu(qkv);
    for (size_t i = 0; i < slots_.size(); ++i) {
      const int64_t at = cache_.length(slots_[i]), count = batch_.lengths[i];
      if (direct && count == 1) {
        float *const keys = cache_.keys(l).data_ptr<float>(), *const values = cache_.values(l).data_ptr<float>();
        const float* source = qkv.data_ptr<float>() + (begins_[i] * (heads + 2 * kv_heads) + heads) * dim;
        for (int64_t h = 0; h < kv_heads; ++h) {
          const int64_t target = cache_.begin(slots_[i]) + (h * cache_.room(slots_[i]) + at) * dim;
          std::copy_n(source + h * dim, dim, keys + target);
          std::copy_n(source + (kv_heads + h) * dim, dim, values + target);
        }
        continue;
      }
      const torch::Tensor part = qkv.narrow(0, begins_[i], count);
      cache_.keys(l, slots_[i]).narrow(1, at, count).copy_(part.narrow(1, heads, kv_heads).transpose(0, 1));
      cache_.values(l, slots_[i])
          .narrow(1, at, count)
          .copy_(part.narrow(1, heads + kv_heads, kv_heads).transpose(0, 1));
    }
  }

  const Transformer& model_;
  const PackedBatch& batch_;
  const std::vector<int>& slots_;
  KvCache& cache_;
  std::vector<int64_t> begins_, decode_rows_, decode_lengths_, decode_begins_, decode_rooms_;
  std::vector<int> decode_slots_;
  std::vector<size_t> prefills_;
  torch::Tensor decode_index_;
  bool on_device_ = false;
  torch::Tensor places_, prompt_places_;  // where on_device_; the latter undefined without prompts
  size_t whole_first_ = 0;
  PackedLayout whole_;  // of sequences whole_first_ and on; empty: of fewer than two
  std::vector<float> scratch_;
  int64_t end_ = 0;
};

CpuGeneration* Transformer::Generation() const {
  if (!CpuGeneration::Serves(*this)) return nullptr;
  if (generation_ == nullptr) generation_ = std::make_unique<CpuGeneration>(*this);
  return generation_.get();
}

torch::Tensor Transformer::Extend(const PackedBatch& batch, const std::vector<int>& slots, KvCache& cache) const {
  const c10::InferenceMode inference;
  if (CpuGeneration* const generation = Generation(); generation != nullptr)
    return generation->Extend(batch, slots, cache);
  ExtendPass pass(*this, batch, slots, cache);
  CheckPositions(pass.end());
  RotaryRows rotary, local;
  if (rotary_) rotary = rotary_->ForCache(batch.position_ids, pass.end());
  if (local_rotary_) local = local_rotary_->ForCache(batch.position_ids, pass.end());
  const torch::Tensor x = Run(
      Embed(batch.token_ids, batch.position_ids), rotary_ ? &rotary : nullptr, local_rotary_ ? &local : nullptr,
      [&](size_t l, const torch::Tensor& qkv) { return pass.Attend(l, qkv.contiguous()); },
      batch.token_ids.size(0) > static_cast<int64_t>(slots.size()) ? batch.LastRows() : torch::Tensor());
  for (size_t i = 0; i < slots.size(); ++i) cache.SetLength(slots[i], cache.length(slots[i]) + batch.lengths[i]);
  return Norm(x, final_norm_weight_, final_norm_bias_);
}

torch::Tensor Transformer::Decode(const torch::Tensor& token_ids, const torch::Tensor& position_ids,
                                  const torch::Tensor& places, int64_t end, KvCache& cache) const {
  RotaryRows rotary, local;
  if (rotary_) rotary = rotary_->ForCache(position_ids, end);
  if (local_rotary_) local = local_rotary_->ForCache(position_ids, end);
  const torch::Tensor x = Run(
      Embed(token_ids, position_ids), rotary_ ? &rotary : nullptr, local_rotary_ ? &local : nullptr,
      [&](size_t l, const torch::Tensor& joined) {
        const torch::Tensor qkv = joined.contiguous();
        const torch::Tensor attended = torch::empty({qkv.size(0), config_.num_heads * config_.head_dim}, qkv.options());
        const int layer = static_cast<int>(l);
        DecodeOnDevice(AttentionShapeOf(config_, Window(l)), qkv, places, cache.keys(layer), cache.values(layer),
                       attended);
        return attended;
      },
      {});
  return Norm(x, final_norm_weight_, final_norm_bias_);
}

std::vector<const void*> Transformer::RotaryTables(int64_t end) const {
  std::vector<const void*> out;
  for (Rotary* rotary : {rotary_.get(), local_rotary_.get()}) {
    if (rotary != nullptr) out.push_back(rotary->ForCache({}, end).cos.data_ptr());
  }
  return out;
}

}  // namespace rlhf::model
