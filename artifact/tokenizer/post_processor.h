// What is put around an encoded text: tokenizer.json's `post_processor`, for a single sequence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace rlhf::artifact {

struct PostProcessor {
  std::vector<int32_t> prefix, suffix;
};

// From JSON; null puts nothing around. TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel (which only
// moves offsets), Sequence. InvalidArgument with the path for what is not supported.
absl::StatusOr<PostProcessor> MakePostProcessor(const nlohmann::json& json, const std::string& path, int depth = 0);

}  // namespace rlhf::artifact
