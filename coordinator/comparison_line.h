// A comparison as a line of a reward model's data.
#pragma once

#include <string>

#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

// {"prompt","chosen","rejected","tie"?,"strength"?,"category"?,"tags"?}; the prompt's tags and the rater's, joined.
std::string ComparisonLine(const v1::Comparison& comparison);

}  // namespace rlhf::coordinator
