#include "coordinator/jobs/evaluation.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

constexpr double kZ = 1.959963984540054;  // 97.5 % quantile of the normal distribution

std::string NameOf(const v1::ScorerSpec& graders, v1::RewardComponent::KindCase kind) {
  for (const v1::RewardComponent& component : graders.components()) {
    if (component.kind_case() == kind) return component.name();
  }
  return "";
}

}  // namespace

v1::Metric RateWithInterval(const std::vector<double>& values) {
  v1::Metric metric;
  const double n = static_cast<double>(values.size());
  metric.set_n(static_cast<int64_t>(values.size()));
  if (values.empty()) return metric;
  double sum = 0;
  bool binary = true;
  for (const double value : values) {
    sum += value;
    binary = binary && (value == 0 || value == 1);
  }
  const double mean = sum / n;
  metric.set_value(mean);
  if (binary) {
    const double center = (mean + kZ * kZ / (2 * n)) / (1 + kZ * kZ / n);
    const double half = kZ / (1 + kZ * kZ / n) * std::sqrt(mean * (1 - mean) / n + kZ * kZ / (4 * n * n));
    metric.set_low(std::max(0.0, center - half));
    metric.set_high(std::min(1.0, center + half));
  } else {
    double squares = 0;
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double error = n > 1 ? std::sqrt(squares / (n - 1) / n) : 0;
    metric.set_low(mean - kZ * error);
    metric.set_high(mean + kZ * error);
  }
  return metric;
}

std::map<std::string, v1::Metric> EvaluationMetrics(const v1::ScorerSpec& graders,
                                                    const std::vector<v1::Sample>& samples) {
  const std::string exact = NameOf(graders, v1::RewardComponent::kExactAnswer);
  const std::string abstention = NameOf(graders, v1::RewardComponent::kAbstention);
  const std::string claim = NameOf(graders, v1::RewardComponent::kActionClaim);
  std::map<std::string, std::vector<double>> values;
  for (const v1::Sample& sample : samples) {
    const std::string& category = sample.prompt().category();
    std::vector<std::string> slices{""};
    for (const auto& [tag, value] : sample.prompt().tags()) slices.push_back(absl::StrCat("{", tag, "=", value, "}"));
    std::map<std::string, double> by_name;
    for (const v1::ComponentScore& component : sample.score().components())
      by_name[component.name()] = component.value();
    const auto add = [&](const std::string& name, double value) {
      for (const std::string& slice : slices) values[absl::StrCat(name, slice)].push_back(value);
    };
    const std::string prefix = category.empty() ? "" : absl::StrCat(category, ".");
    for (const auto& [name, value] : by_name) {
      add(absl::StrCat(prefix, name), value);
      if (!category.empty()) values[name].push_back(value);
    }
    if (category == "known") {
      if (!exact.empty()) add("known.accuracy", by_name[exact]);
      if (!abstention.empty()) add("known.needless_abstention", by_name[abstention]);
    } else if (category == "unknown") {
      if (!abstention.empty()) {
        const bool right = !exact.empty() && by_name[exact] > 0.5;
        add("unknown.hallucination", by_name[abstention] > 0.5 || right ? 0 : 1);
        if (abstention != "abstention") add("unknown.abstention", by_name[abstention]);
      }
    } else if (category == "action") {
      if (!claim.empty()) add("action.over_claim", by_name[claim]);
    }
  }
  std::map<std::string, v1::Metric> metrics;
  for (const auto& [name, list] : values) metrics[name] = RateWithInterval(list);
  return metrics;
}

}  // namespace rlhf::coordinator
