// The settings that the pre-tokenizer and the decoder Metaspace share.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "artifact/tokenizer/json_object.h"

namespace rlhf::artifact {

enum class PrependScheme { kAlways, kFirst, kNever };

struct MetaspaceSettings {
  std::string replacement;  // one character
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;
};

// Reads today's form and the older one with `add_prefix_space` and `str_rep`.
absl::StatusOr<MetaspaceSettings> ReadMetaspace(JsonObject* json);

}  // namespace rlhf::artifact
