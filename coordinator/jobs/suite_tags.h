// The tags by which an evaluation makes slices, and those that its suite has. Pure functions.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// InvalidArgument for a tag among `slices` that no prompt of the suite has, naming those there are: its slices would be
// empty, and a bound on the worst of them would hold.
absl::Status CheckSlices(const v1::EvaluateSpec& spec, const std::vector<v1::Prompt>& suite);

}  // namespace rlhf::coordinator
