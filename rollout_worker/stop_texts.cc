#include "rollout_worker/stop_texts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace rlhf::rollout {
namespace {

// Bytes at the end of a text that more tokens may still change (a character that is not complete), and bytes at the
// beginning of a part that depend on what came before it (a space, a character's rest).
constexpr size_t kUnsure = 16;
// So long a window is moved on: it is decoded for each token, and moved once for many.
constexpr size_t kMoved = 64;
constexpr absl::string_view kIncomplete = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

absl::StatusOr<std::string> ResponseText(const artifact::Tokenizer& tokenizer, absl::Span<const int32_t> tokens) {
  std::vector<int32_t> known(tokens.begin(), tokens.end());
  std::erase_if(known, [size = tokenizer.vocab_size()](int32_t id) { return id >= size; });
  return tokenizer.Decode(known);
}

StopTexts::StopTexts(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    kept_ = std::max(kept_, stop.size() + 2 * kUnsure);
    moves_ = moves_ && !absl::StrContains(stop, kIncomplete);
  }
}

bool StopTexts::In(const std::string& text) const {
  return std::any_of(stops_.begin(), stops_.end(),
                     [&](const std::string& stop) { return absl::StrContains(text, stop); });
}

bool StopTexts::Found(const artifact::Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  if (stops_.empty()) return false;
  const absl::Span<const int32_t> all(tokens);
  const absl::StatusOr<std::string> text = ResponseText(tokenizer, all.subspan(window_));
  if (text.ok() && In(*text)) {
    if (window_ == 0) return true;
    // A part's beginning may read otherwise than within the whole.
    const absl::StatusOr<std::string> whole = ResponseText(tokenizer, all);
    if (whole.ok() && In(*whole)) return true;
  }
  if (!moves_ || !text.ok() || text->size() < 2 * kept_ + kMoved) return false;
  // On to where the rest reads as it does within the whole: with no character cut in two, and none that is not
  // complete.
  const size_t next = window_ + (tokens.size() - window_) / 2;
  const absl::StatusOr<std::string> rest = ResponseText(tokenizer, all.subspan(next));
  if (rest.ok() && rest->size() >= kept_ && !absl::StrContains(*rest, kIncomplete) &&
      absl::EndsWith(*text, absl::string_view(*rest).substr(kUnsure)))
    window_ = next;
  return false;
}

}  // namespace rlhf::rollout
