// The result of an evaluation: rates by category, component and slice, with 95 % intervals. Pure functions.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// For every category C (and "" for all) and component K: "C.K", the mean; for every tag: "C.K{tag=value}". Besides,
// from the components of these kinds:
//   known.accuracy (exact_answer), known.needless_abstention (abstention), unknown.hallucination (neither an abstention
//   nor the exact answer), unknown.abstention, action.over_claim (action_claim).
// Intervals are MeanWithInterval's: Wilson's of 0 and 1, else a bootstrap.
std::map<std::string, v1::Metric> EvaluationMetrics(const v1::ScorerSpec& graders,
                                                    const std::vector<v1::Sample>& samples);

}  // namespace rlhf::coordinator
