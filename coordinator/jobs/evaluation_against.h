// An evaluation measured against an earlier one of the same suite, and the calibration of stated confidence. Pure
// functions.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/dataset.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// Of prompts that both answered:
//   win_rate, win_rate{SLICE}: an answer with the higher total of the judge wins, equal ones count one half;
//   score_change, score_change{SLICE}: mean total minus that of the other policy's answers;
//   length_change{SLICE}: the same of response texts, in bytes;
//   refusal_change{SLICE}: the same of the abstention grader, where both evaluations have one;
//   disparity, disparity_before, disparity_rise: the largest gap in mean total between two slices of one tag, now,
//   then, and how much it grew. Slices by `category` count only where the evaluation declares them.
// 95 % intervals by percentile bootstrap over prompts (common/intervals.h), seeded: the same samples give the same
// numbers; no interval for a change that is the same for every prompt. The
// judge's components are looked up by name among what both evaluations' graders recorded. FailedPrecondition when no
// prompt is in both, or a component was not recorded.
absl::StatusOr<std::map<std::string, v1::Metric>> CompareEvaluations(
    const v1::EvaluateSpec& spec, const std::vector<v1::Sample>& samples,
    const std::vector<artifact::SampleRecord>& against);

// Of answers that state a confidence (the pattern's first group; above 1 it is per cent) and were graded by an
// exact_answer component: calibration.ece over ten bins, calibration.stated (how many state one), calibration/BIN and
// calibration.confidence/BIN. InvalidArgument for a bad pattern.
absl::StatusOr<std::map<std::string, v1::Metric>> StatedCalibration(const v1::EvaluateSpec& spec,
                                                                    const std::vector<v1::Sample>& samples);

}  // namespace rlhf::coordinator
