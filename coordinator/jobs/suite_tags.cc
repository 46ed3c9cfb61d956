#include "coordinator/jobs/suite_tags.h"

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rlhf::coordinator {

absl::Status CheckSlices(const v1::EvaluateSpec& spec, const std::vector<v1::Prompt>& suite) {
  if (spec.slices().empty()) return absl::OkStatus();
  std::set<std::string> tags;
  for (const v1::Prompt& prompt : suite) {
    for (const auto& [tag, value] : prompt.tags()) tags.insert(tag);
    if (!prompt.category().empty()) tags.insert("category");
  }
  for (const std::string& slice : spec.slices()) {
    if (tags.count(slice) > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("evaluate.slices: expected tags of the suite's prompts (",
                                                   tags.empty() ? "they have none" : absl::StrJoin(tags, ", "),
                                                   "), found \"", slice, "\""));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
