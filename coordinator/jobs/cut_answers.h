// Answers that the model's context cut before `max_new_tokens`: they are shorter than the job asked for.
#pragma once

#include <string>

#include "absl/strings/str_format.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

// The share of answers that were, in results and metrics.
inline constexpr char kCutByContext[] = "cut_by_context";

inline bool CutByContext(const v1::Sample& sample, int max_new_tokens) {
  return sample.finish_reason() == v1::MAX_TOKENS && sample.response_tokens_size() < max_new_tokens;
}

// For people.
inline std::string CutByContextMessage(double share, int max_new_tokens) {
  return absl::StrFormat(
      "%.3g %% of the answers ended before max_new_tokens (%d), because prompt and answer filled the model's context: "
      "lower max_new_tokens, shorten the prompts, or use a model with a longer context",
      100 * share, max_new_tokens);
}

}  // namespace rlhf::coordinator
