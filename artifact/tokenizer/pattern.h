// {"String": …} or {"Regex": …}, as tokenizer.json writes patterns.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/json_object.h"
#include "artifact/tokenizer/regex.h"

namespace rlhf::artifact {

struct Pattern {
  std::string literal;  // not empty: a plain text; else `regex`
  Regex regex;
};

// The pattern under the key "pattern". InvalidArgument with the path.
absl::StatusOr<Pattern> ReadPattern(JsonObject* json);
// Every match of the pattern becomes `content`.
// ResourceExhausted when the outcome would have more than `limit` bytes.
absl::StatusOr<std::string> ReplaceMatches(const Pattern& pattern, absl::string_view text, absl::string_view content,
                                           size_t limit);
// Whether the first match of a text that is not empty begins where the text does.
absl::StatusOr<bool> MatchesAtStart(const Pattern& pattern, absl::string_view text);
// `content`: what is put in for a match, at most kMaxContentBytes.
absl::StatusOr<std::string> ReadContent(JsonObject* json);

}  // namespace rlhf::artifact
