// One function for each file of this folder: reads the settings of its types. `type` has been read already.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/json_object.h"
#include "artifact/tokenizer/pre_tokenizer.h"

namespace rlhf::artifact {

absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeByteLevel(JsonObject* json);  // byte_level_step.cc
absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeSplit(JsonObject* json);      // split.cc
absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeMetaspace(JsonObject* json);  // metaspace.cc
// Digits, Punctuation, WhitespaceSplit, Whitespace, BertPreTokenizer, CharDelimiterSplit: characters.cc
absl::StatusOr<std::unique_ptr<PreTokenizer>> MakeCharacterSplit(JsonObject* json, const std::string& type);

// "Removed", "Isolated", …
absl::StatusOr<SplitBehavior> ReadBehavior(JsonObject* json, const std::optional<std::string>& fallback);  // split.cc

}  // namespace rlhf::artifact
