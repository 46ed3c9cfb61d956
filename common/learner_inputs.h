// Which of a job's references its learners read. What its rollout workers and reward servers alone need, such as
// prompts and models that score, is not among them.
#pragma once

#include <set>
#include <string>

#include "rlhf/v1/job.pb.h"

namespace rlhf {

// Of a complete specification, as written there; none for a kind that does not train.
std::set<std::string> LearnerReferences(const v1::JobSpec& spec);

}  // namespace rlhf
