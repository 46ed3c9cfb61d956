// The questions a collect job asks its raters, made from samples. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/dataset.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// `spec.comparisons` tasks over the samples' prompts in a seeded order, as many rounds as it takes; no question twice.
// A share of them, by `written_candidate_fraction`, shows one sample and asks for an answer in the rater's own words;
// the others compare two different samples of a prompt, in a random order. FailedPrecondition when the samples do not
// give that many.
absl::StatusOr<std::vector<v1::FeedbackTask>> MakeTasks(const std::vector<artifact::SampleRecord>& samples,
                                                        const v1::CollectSpec& spec, uint64_t seed,
                                                        const std::string& job_id, const std::string& project);

}  // namespace rlhf::coordinator
