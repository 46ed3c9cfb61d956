// Whether two models number their tokens alike, so that ids of one mean the same to the other.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rlhf::artifact {

// By the tokens of each model's tokenizer.json, added ones too: what else is in it (a normalizer, a template) may
// differ, and a vocabulary that config.json pads. InvalidArgument names the first id that is another token's, or the
// file that cannot be read as one. NotFound where a folder has no tokenizer.json. Reads and parses both files.
absl::Status CheckSameTokens(const std::string& model_dir, const std::string& other_dir);

}  // namespace rlhf::artifact
