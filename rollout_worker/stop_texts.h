// Whether an answer has come to one of the texts that end it, token by token: only its end is decoded, as much as the
// longest of them and what its beginning may be off by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "artifact/tokenizer.h"

namespace rlhf::rollout {

// The text of a response's tokens. A padded vocabulary has ids that no tokenizer knows; they are tokens like others,
// without a text.
absl::StatusOr<std::string> ResponseText(const artifact::Tokenizer& tokenizer, absl::Span<const int32_t> tokens);

// Of one answer. Not thread-safe.
class StopTexts {
 public:
  explicit StopTexts(std::vector<std::string> stops);
  // Whether the text of all tokens contains one of the stop texts; to be asked after each token, until it does.
  bool Found(const artifact::Tokenizer& tokenizer, const std::vector<int32_t>& tokens);

 private:
  bool In(const std::string& text) const;

  std::vector<std::string> stops_;
  size_t kept_ = 0;    // bytes of text that the window keeps at least
  size_t window_ = 0;  // tokens before it need not be looked at any more
  bool moves_ = true;  // not where a stop text has U+FFFD, which bytes of long ago may turn into
};

}  // namespace rlhf::rollout
