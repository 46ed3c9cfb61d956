// A compiled PCRE2 pattern with bounded matching. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace rlhf::reward {

class Pattern {
 public:
  static absl::StatusOr<Pattern> Compile(const std::string& pattern);
  // ResourceExhausted when matching needs more than 1,000,000 steps.
  absl::StatusOr<bool> Found(const std::string& text) const;

 private:
  explicit Pattern(std::shared_ptr<void> code) : code_(std::move(code)) {}
  std::shared_ptr<void> code_;
};

}  // namespace rlhf::reward
