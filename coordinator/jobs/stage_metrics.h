// Which metrics the result of a stage can have, by its completed specification alone: a gate on any other would close
// only once the stage has run. What the data decide (categories, tags, criteria of imported comparisons) is left open,
// so a metric that is possible may be missing all the same. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// "accuracy{pair=a}", a slice, is a metric like any other.
bool MayHaveMetric(const v1::StageSpec& stage, absl::string_view metric);
// Whether it may have METRIC{TAG=VALUE}.
bool MayHaveSlices(const v1::StageSpec& stage, absl::string_view metric);
// For people: all of them but slices, with what the data decide in capitals ("CATEGORY.exact_answer").
std::vector<std::string> MetricsOfStage(const v1::StageSpec& stage);

}  // namespace rlhf::coordinator
