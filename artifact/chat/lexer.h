// A template's text into tokens, with the white-space rules that `transformers` sets: trim_blocks and lstrip_blocks on,
// the newline at the template's end dropped.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::artifact::chat {

enum class TokenKind {
  kText,        // outside of {{ }} and {% %}
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kTagBegin,    // {%
  kTagEnd,      // %}
  kName,
  kString,  // with escapes resolved
  kInteger,
  kFloat,
  kOperator,  // "+", "==", "(", …
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 1;
};

// InvalidArgument "line N: …" for what does not end, or cannot be read.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace rlhf::artifact::chat
