// Where a text that is too long may be cut.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace rlhf {

// The greatest length up to `most` that does not end inside a UTF-8 character.
inline size_t Utf8Cut(absl::string_view text, size_t most) {
  if (text.size() <= most) return text.size();
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xc0) == 0x80) --most;
  return most;
}

}  // namespace rlhf
