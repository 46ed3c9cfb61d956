// Byte-pair encoding of one pre-token. Thread-safe: const after construction, but for a bounded cache of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace rlhf::artifact {

struct BpeOptions {
  bool byte_fallback = false;  // unknown characters become <0xNN> tokens
  bool ignore_merges = false;  // a pre-token that is a token is taken whole
  bool fuse_unk = false;
  std::string unk_token;  // empty: none
};

class BpeModel {
 public:
  // vocabulary: token to id. merges: pairs in order of rank. InvalidArgument for a merge whose parts or result are not
  // in the vocabulary.
  static absl::StatusOr<std::unique_ptr<BpeModel>> Make(absl::flat_hash_map<std::string, int32_t> vocabulary,
                                                        const std::vector<std::pair<std::string, std::string>>& merges,
                                                        const BpeOptions& options);
  // Appends the ids of a pre-token. InvalidArgument for a character that the vocabulary cannot express.
  absl::Status Encode(absl::string_view word, std::vector<int32_t>* ids) const;

  const absl::flat_hash_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  absl::Status Symbols(absl::string_view word, std::vector<int32_t>* symbols) const;
  void MergeAll(std::vector<int32_t>* symbols) const;

  absl::flat_hash_map<std::string, int32_t> vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by (left id << 32 | right id)
  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  mutable absl::Mutex mu_;
  mutable absl::flat_hash_map<std::string, std::vector<int32_t>> cache_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::artifact
