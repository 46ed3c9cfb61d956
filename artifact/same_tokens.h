// Whether a model numbers tokens as another does, so that ids of the one mean the same to the other.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rlhf::artifact {

// By the tokens of each model's tokenizer.json, added ones too: what else is in it (a normalizer, a template) may
// differ, and a vocabulary that config.json pads. `other_dir` may have more, as a reward model has that was given a
// token to pad with. InvalidArgument names the first id of `model_dir` that is another token's or nobody's, or the file
// that cannot be read as one. NotFound where a folder has no tokenizer.json. Reads and parses both files.
absl::Status CheckSameTokens(const std::string& model_dir, const std::string& other_dir);

}  // namespace rlhf::artifact
