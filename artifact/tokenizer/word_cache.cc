#include "artifact/tokenizer/word_cache.h"

#include <algorithm>
#include <cstring>

#include "absl/hash/hash.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kWordsBytes = 4 << 20;
constexpr size_t kMaxIdle = 16;

}  // namespace

uint64_t WordCache::Hash(absl::string_view word) {
  return absl::Hash<absl::string_view>()(word);
}

bool WordCache::Find(absl::string_view word, uint64_t hash, absl::Span<const int32_t>* ids) const {
  const Slot& slot = slots_[hash % kSlots];
  if (slot.hash != hash || slot.word_size != word.size() ||
      std::memcmp(words_.data() + slot.word, word.data(), word.size()) != 0)
    return false;
  *ids = absl::MakeConstSpan(ids_.data() + slot.ids, slot.ids_size);
  return true;
}

void WordCache::Insert(absl::string_view word, uint64_t hash, absl::Span<const int32_t> ids) {
  if (word.empty() || word.size() > kWordBytes || ids.size() > UINT16_MAX) return;
  if (words_.size() + word.size() > kWordsBytes || ids_.size() + ids.size() > kWordsBytes) {
    std::fill(slots_.begin(), slots_.end(), Slot());
    words_.clear();
    ids_.clear();
  }
  slots_[hash % kSlots] = {hash, static_cast<uint32_t>(words_.size()), static_cast<uint32_t>(ids_.size()),
                           static_cast<uint16_t>(word.size()), static_cast<uint16_t>(ids.size())};
  words_.append(word.data(), word.size());
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

std::unique_ptr<WordCache> WordCachePool::Take() {
  {
    absl::MutexLock lock(&mu_);
    if (!idle_.empty()) {
      auto cache = std::move(idle_.back());
      idle_.pop_back();
      return cache;
    }
  }
  return std::make_unique<WordCache>();
}

void WordCachePool::Give(std::unique_ptr<WordCache> cache) {
  absl::MutexLock lock(&mu_);
  if (idle_.size() < kMaxIdle) idle_.push_back(std::move(cache));
}

}  // namespace rlhf::artifact
