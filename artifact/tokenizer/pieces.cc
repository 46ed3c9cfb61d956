#include "artifact/tokenizer/pieces.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {
namespace {

// Neighbouring spans become one where merge(previous is a match, this is a match) says so.
template <typename Merge>
std::vector<Span> Fold(const std::vector<Span>& spans, Merge merge) {
  std::vector<Span> out;
  bool previous = false;
  for (const Span& span : spans) {
    if (!out.empty() && merge(previous, span.is_match)) {
      out.back().begin = std::min(out.back().begin, span.begin);
      out.back().end = std::max(out.back().end, span.end);
    } else {
      out.push_back({span.begin, span.end, false});
    }
    previous = span.is_match;
  }
  return out;
}

constexpr size_t kMostBytes = 32 << 20;

}  // namespace

absl::StatusOr<std::string*> TextArena::New(size_t bytes) {
  if (bytes > kMostBytes - bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("splitting a text takes more than ", kMostBytes,
                                                     " bytes: shorten the text, or simplify the pre-tokenizer"));
  }
  bytes_ += bytes;
  texts_.emplace_back().reserve(bytes);
  return &texts_.back();
}

absl::Status SpansOf(const Regex& regex, absl::string_view text, std::vector<Span>* spans) {
  size_t between = 0;
  absl::Status status = regex.Each(text, [&](size_t begin, size_t end) {
    if (between != begin) spans->push_back({between, begin, false});
    spans->push_back({begin, end, true});
    between = end;
  });
  if (between != text.size()) spans->push_back({between, text.size(), false});
  return status;
}

void AppendSplit(const Piece& piece, std::vector<Span> spans, SplitBehavior behavior, std::vector<Piece>* out) {
  const auto delimiter_begins = [](bool previous, bool now) { return now && !previous; };
  switch (behavior) {
    case SplitBehavior::kRemoved:
      spans.erase(std::remove_if(spans.begin(), spans.end(), [](const Span& span) { return span.is_match; }),
                  spans.end());
      break;
    case SplitBehavior::kIsolated:
      break;
    case SplitBehavior::kContiguous:
      spans = Fold(spans, [](bool previous, bool now) { return previous == now; });
      break;
    case SplitBehavior::kMergedWithPrevious:
      spans = Fold(spans, delimiter_begins);
      break;
    case SplitBehavior::kMergedWithNext:
      std::reverse(spans.begin(), spans.end());
      spans = Fold(spans, delimiter_begins);
      std::reverse(spans.begin(), spans.end());
      break;
  }
  for (const Span& span : spans) {
    if (span.begin < span.end)
      out->push_back({piece.text.substr(span.begin, span.end - span.begin), piece.at_start && span.begin == 0});
  }
}

}  // namespace rlhf::artifact
