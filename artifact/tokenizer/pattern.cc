#include "artifact/tokenizer/pattern.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

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

absl::StatusOr<std::string> ReplaceMatches(const Pattern& pattern, absl::string_view text, absl::string_view content) {
  if (!pattern.literal.empty()) return absl::StrReplaceAll(text, {{pattern.literal, content}});
  std::string out;
  size_t done = 0;
  absl::Status status = pattern.regex.Each(text, [&](size_t begin, size_t end) {
    absl::StrAppend(&out, text.substr(done, begin - done), content);
    done = end;
  });
  if (!status.ok()) return status;
  absl::StrAppend(&out, text.substr(done));
  return out;
}

}  // namespace rlhf::artifact
