// Splits text by a PCRE2 pattern. Thread-safe after construction.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::artifact {

class RegexSplit {
 public:
  static absl::StatusOr<RegexSplit> Compile(const std::string& pattern);
  // Calls for matches and for what lies between them, in order (behaviour "Isolated"). Bytes that are not UTF-8 must
  // have been replaced before.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>* pieces) const;

 private:
  explicit RegexSplit(std::shared_ptr<void> code) : code_(std::move(code)) {}
  std::shared_ptr<void> code_;
};

}  // namespace rlhf::artifact
