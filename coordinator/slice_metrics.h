// What an ended job's result says about slices (groups of prompts, of people), for the metrics. Pure functions.
#pragma once

#include <map>
#include <string>

#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

inline constexpr size_t kMostSlices = 50;  // of a job; what comes later in the alphabet is left out

// Of an evaluation: the mean of its first grader that counts, by slice ("category=known", "dialect=north").
std::map<std::string, double> SliceRewardMeans(const v1::Job& job);
// Of collected comparisons or an evaluation against another one: the share of wins, by slice.
std::map<std::string, double> SliceWinRates(const v1::Job& job);

}  // namespace rlhf::coordinator
