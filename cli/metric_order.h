// One order of a result's metrics wherever people read them: the report's tables and a gate on the terminal.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "rlhf/v1/common.pb.h"

namespace rlhf::cli {

// Totals before slices ("name{tag=value}"); within each what RLHF is for first (hallucination, over-claims, accuracy,
// needless abstention, win rate), then the others; within those by name.
bool MetricComesBefore(const std::string& a, const std::string& b);
std::vector<std::pair<std::string, v1::Metric>> MetricsInOrder(const std::map<std::string, v1::Metric>& metrics);

}  // namespace rlhf::cli
