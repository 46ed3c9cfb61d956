// What a text is while it is being split: pieces that point into it, or into texts that a step made.
#pragma once

#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "artifact/tokenizer/regex.h"

namespace rlhf::artifact {

struct Piece {
  absl::string_view text;
  bool at_start = false;  // begins where the whole input begins
};

// Owns the texts that pieces point to. Not thread-safe.
class TextArena {
 public:
  // An empty text with room for that many bytes. ResourceExhausted when all of them would take more than 256 MiB: steps
  // that double a text need no long list to fill a machine.
  absl::StatusOr<std::string*> New(size_t bytes);

 private:
  std::deque<std::string> texts_;
  size_t bytes_ = 0;
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Span {
  size_t begin, end;
  bool is_match;
};

// The matches of a pattern and what lies between them, in order.
absl::Status SpansOf(const Regex& regex, absl::string_view text, std::vector<Span>* spans);
template <typename Predicate>
void SpansOfCharacters(absl::string_view text, Predicate is_delimiter, std::vector<Span>* spans);

// Appends the pieces that the spans of a piece become; empty ones are left out.
void AppendSplit(const Piece& piece, std::vector<Span> spans, SplitBehavior behavior, std::vector<Piece>* out);

}  // namespace rlhf::artifact

#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {

template <typename Predicate>
void SpansOfCharacters(absl::string_view text, Predicate is_delimiter, std::vector<Span>* spans) {
  size_t between = 0;
  for (size_t at = 0; at < text.size();) {
    size_t length = 0;
    const char32_t code = FirstCodePoint(text.substr(at), &length);
    if (is_delimiter(code)) {
      if (between < at) spans->push_back({between, at, false});
      spans->push_back({at, at + length, true});
      between = at + length;
    }
    at += length;
  }
  if (between < text.size()) spans->push_back({between, text.size(), false});
}

}  // namespace rlhf::artifact
