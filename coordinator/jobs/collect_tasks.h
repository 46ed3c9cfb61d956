// The questions a collect job asks its raters, made from samples. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/dataset.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

struct TaskSources {
  std::vector<artifact::SampleRecord> samples;
  std::vector<artifact::SampleRecord> against;      // another policy's, or none
  std::vector<artifact::ComparisonRecord> planted;  // questions with known answers, or none
};

// `spec.comparisons` tasks over the samples' prompts in a seeded order, as many rounds as it takes; no question twice.
// Shares of them ask to write an answer beside a sample, to rate one, or to improve one; the others compare two
// different samples of a prompt in a random order: any two, one of each policy with `against`, or those about which the
// ensemble that scored them disagrees most. Planted questions come after them. FailedPrecondition when the samples do
// not give that many, carry no ensemble's scores, or make more pairs than memory should hold to order them.
absl::StatusOr<std::vector<v1::FeedbackTask>> MakeTasks(const TaskSources& sources, const v1::CollectSpec& spec,
                                                        uint64_t seed, const std::string& job_id,
                                                        const std::string& project);

// How much the members of an ensemble disagree about a pair: the standard deviation (Bessel's) over members of
// P(first wins) = σ(r_first − r_second). Members' scores are the components NAME/0, NAME/1, …; 0 when there are less
// than two.
double Disagreement(const artifact::SampleRecord& first, const artifact::SampleRecord& second);

}  // namespace rlhf::coordinator
