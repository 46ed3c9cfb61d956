// Samples of one job that were generated and not handed out yet, so that they need not be read from the disk again.
// What does not fit is: nothing is lost by that. Not thread-safe.
#pragma once

#include <cstddef>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "coordinator/ledger.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

class SampleCache {
 public:
  static constexpr size_t kUnbounded = std::numeric_limits<size_t>::max();
  explicit SampleCache(size_t most_bytes = kUnbounded) : most_bytes_(most_bytes) {}

  void Put(const SampleKey& key, v1::Sample sample) {
    Erase(key);
    const size_t bytes = sample.SpaceUsedLong();
    if (bytes > most_bytes_ - bytes_) return;
    bytes_ += bytes;
    samples_.emplace(key, Held{std::move(sample), bytes});
  }
  const v1::Sample* Find(const SampleKey& key) const {
    const auto it = samples_.find(key);
    return it == samples_.end() ? nullptr : &it->second.sample;
  }
  std::optional<v1::Sample> Take(const SampleKey& key) {
    const auto it = samples_.find(key);
    if (it == samples_.end()) return std::nullopt;
    v1::Sample sample = std::move(it->second.sample);
    bytes_ -= it->second.bytes;
    samples_.erase(it);
    return sample;
  }
  void Erase(const SampleKey& key) { (void)Take(key); }
  void Clear() {
    samples_.clear();
    bytes_ = 0;
  }
  size_t size() const { return samples_.size(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Held {
    v1::Sample sample;
    size_t bytes;  // when it was put
  };
  const size_t most_bytes_;
  std::map<SampleKey, Held> samples_;
  size_t bytes_ = 0;
};

}  // namespace rlhf::coordinator
