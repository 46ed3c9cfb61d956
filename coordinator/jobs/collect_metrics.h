// What a collect job's result says about its answers. Pure functions.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// "ties"; with overlap, "agreement", "agreement.kappa", "agreement.alpha" and "agreement.alpha{CRITERION}"; with
// planted questions, "planted_accuracy"; with `against`, "win_rate" of the samples (a tie is one half), both with a
// 95 % interval over prompts (ClusteredMean), the latter also by category, tag and group of raters:
// "CATEGORY.win_rate", "win_rate{tag=value}", "win_rate{raters=GROUP}". Judgements of raters who are left out of the
// set count in "planted_accuracy" alone.
std::map<std::string, v1::Metric> CollectMetrics(const std::vector<v1::Comparison>& comparisons,
                                                 const v1::CollectSpec& spec,
                                                 const std::set<std::string>& left_out = {});

// Raters who answered at least 5 planted questions, and less than this share of them rightly. None when it is 0.
std::set<std::string> RatersBelow(const std::vector<v1::Comparison>& comparisons, double min_planted_accuracy);

}  // namespace rlhf::coordinator
