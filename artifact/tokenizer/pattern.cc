#include "artifact/tokenizer/pattern.h"

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {

absl::StatusOr<Pattern> ReadPattern(JsonObject* json) {
  JsonObject object(json->Get("pattern"), json->PathOf("pattern"));
  Pattern out;
  const bool literal = object.Has("String");
  const std::string text = literal ? object.Text("String") : object.Text("Regex");
  if (absl::Status status = object.Finish(); !status.ok()) return status;
  if (literal) out.literal = text;
  auto regex = Regex::Compile(literal ? EscapeRegex(text) : text);
  if (!regex.ok()) return object.Bad(literal ? "String" : "Regex", regex.status().message());
  out.regex = *std::move(regex);
  return out;
}

absl::StatusOr<std::string> ReadContent(JsonObject* json) {
  std::string content = json->Text("content");
  if (content.size() <= kMaxContentBytes) return content;
  return json->Bad("content", absl::StrCat("expected at most ", kMaxContentBytes, " bytes, found ", content.size()));
}

absl::StatusOr<bool> MatchesAtStart(const Pattern& pattern, absl::string_view text) {
  if (!pattern.literal.empty()) return absl::StartsWith(text, pattern.literal);
  return pattern.regex.MatchesAtStart(text);
}

absl::StatusOr<std::string> ReplaceMatches(const Pattern& pattern, absl::string_view text, absl::string_view content,
                                           size_t limit) {
  std::string out;
  size_t done = 0;
  const auto replace = [&](size_t begin, size_t end) {
    if (out.size() <= limit) absl::StrAppend(&out, text.substr(done, begin - done), content);
    done = end;
  };
  if (!pattern.literal.empty()) {
    // memmem's time is linear whatever the two texts are; string_view's find is not.
    while (const void* hit =
               memmem(text.data() + done, text.size() - done, pattern.literal.data(), pattern.literal.size())) {
      const auto begin = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
      replace(begin, begin + pattern.literal.size());
    }
  } else if (absl::Status status = pattern.regex.Each(text, replace); !status.ok()) {
    return status;
  }
  absl::StrAppend(&out, text.substr(done));
  if (out.size() > limit)
    return absl::ResourceExhaustedError(absl::StrCat("replacing made a text longer than ", limit, " bytes"));
  return out;
}

}  // namespace rlhf::artifact
