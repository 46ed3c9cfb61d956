// A compiled PCRE2 pattern with bounded matching. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace rlhf::reward {

class Pattern {
 public:
  static absl::StatusOr<Pattern> Compile(const std::string& pattern);
  // InvalidArgument naming the pattern when matching needs more than 1,000,000 steps, as it then always does.
  absl::StatusOr<bool> Found(const std::string& text) const;

 private:
  Pattern(std::string source, std::shared_ptr<void> code) : source_(std::move(source)), code_(std::move(code)) {}
  std::string source_;
  std::shared_ptr<void> code_;
};

}  // namespace rlhf::reward
