#include "coordinator/jobs/evaluation.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "common/intervals.h"

namespace rlhf::coordinator {
namespace {

std::string NameOf(const v1::ScorerSpec& graders, v1::RewardComponent::KindCase kind) {
  for (const v1::RewardComponent& component : graders.components()) {
    if (component.kind_case() == kind) return component.name();
  }
  return "";
}

// Values are 0 to 1 whatever the answer; a reward model's, an ensemble's or a program's may be anything.
bool IsUnit(const v1::RewardComponent& component) {
  switch (component.kind_case()) {
    case v1::RewardComponent::kExactAnswer:
    case v1::RewardComponent::kAbstention:
    case v1::RewardComponent::kActionClaim:
    case v1::RewardComponent::kRegex:
    case v1::RewardComponent::kSentenceShare:
      return true;
    default:
      return false;
  }
}

struct Values {
  std::vector<double> all;
  bool unit = true;

  void Add(double value, bool is_unit) {
    all.push_back(value);
    unit = unit && is_unit && value >= 0 && value <= 1;
  }
};

}  // namespace

std::map<std::string, v1::Metric> EvaluationMetrics(const v1::ScorerSpec& graders,
                                                    const std::vector<v1::Sample>& samples) {
  const std::string exact = NameOf(graders, v1::RewardComponent::kExactAnswer);
  const std::string abstention = NameOf(graders, v1::RewardComponent::kAbstention);
  const std::string claim = NameOf(graders, v1::RewardComponent::kActionClaim);
  std::set<std::string> units;
  for (const v1::RewardComponent& component : graders.components()) {
    if (IsUnit(component)) units.insert(component.name());
  }
  std::map<std::string, Values> values;
  for (const v1::Sample& sample : samples) {
    const std::string& category = sample.prompt().category();
    std::vector<std::string> slices{""};
    for (const auto& [tag, value] : sample.prompt().tags()) slices.push_back(absl::StrCat("{", tag, "=", value, "}"));
    std::map<std::string, double> by_name;
    for (const v1::ComponentScore& component : sample.score().components())
      by_name[component.name()] = component.value();
    const auto add = [&](const std::string& name, double value, bool unit = true) {
      for (const std::string& slice : slices) values[absl::StrCat(name, slice)].Add(value, unit);
    };
    const std::string prefix = category.empty() ? "" : absl::StrCat(category, ".");
    for (const auto& [name, value] : by_name) {
      const bool unit = units.count(name) > 0;
      add(absl::StrCat(prefix, name), value, unit);
      if (!category.empty()) values[name].Add(value, unit);
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
  for (const auto& [name, list] : values)
    metrics[name] = MeanWithInterval(list.all, list.unit ? Range::kUnit : Range::kAny);
  return metrics;
}

}  // namespace rlhf::coordinator
