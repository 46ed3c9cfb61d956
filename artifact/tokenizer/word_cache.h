// Remembers the ids of words. One thread at a time; WordCachePool lends caches to concurrent callers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"

namespace rlhf::artifact {

class WordCache {
 public:
  static constexpr size_t kWordBytes = 64;  // longer words are not kept

  WordCache() : slots_(kSlots) {}
  static uint64_t Hash(absl::string_view word);
  // True on a hit; the ids stay valid until Insert.
  bool Find(absl::string_view word, uint64_t hash, absl::Span<const int32_t>* ids) const;
  // Takes the place of what was there; forgets everything when the memory for words (4 MiB) is used up.
  void Insert(absl::string_view word, uint64_t hash, absl::Span<const int32_t> ids);

 private:
  static constexpr size_t kSlots = 1 << 16;
  struct Slot {
    uint64_t hash = 0;
    uint32_t word = 0, ids = 0;
    uint16_t word_size = 0, ids_size = 0;  // word_size 0: empty
  };
  std::vector<Slot> slots_;
  std::string words_;
  std::vector<int32_t> ids_;
};

// Thread-safe. Holds as many caches as there were callers at one time, at most 16.
class WordCachePool {
 public:
  std::unique_ptr<WordCache> Take();
  void Give(std::unique_ptr<WordCache> cache);

 private:
  absl::Mutex mu_;
  std::vector<std::unique_ptr<WordCache>> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::artifact
