// A comparison as a line of a reward model's data.
#pragma once

#include <string>

#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

// {"prompt","chosen","rejected","tie"?,"strength"?,"category"?,"tags"?,"ratings"?}; the prompt's tags and the rater's,
// joined. Nothing in it says who judged.
std::string ComparisonLine(const v1::Comparison& comparison);
// May the comparison stand in a reward model's data? Not planted, not a rating alone. Ties may: a reward model's
// job leaves them out if it wants to.
bool IsTrainingComparison(const v1::Comparison& comparison);
// An edit, or an answer its writer preferred, as a line of SFT data: {"prompt","response","category"?,"tags"?}; empty
// for anything else.
std::string SftLine(const v1::Comparison& comparison);

}  // namespace rlhf::coordinator
