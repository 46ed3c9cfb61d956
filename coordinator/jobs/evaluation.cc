#include "coordinator/jobs/evaluation.h"

#include <vector>

#include "absl/strings/str_cat.h"

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
  const auto in_unit = [](double value) { return value >= 0 && value <= 1; };
  switch (component.kind_case()) {
    case v1::RewardComponent::kExactAnswer:
    case v1::RewardComponent::kAbstention:
    case v1::RewardComponent::kActionClaim:
    case v1::RewardComponent::kSentenceShare:
      return true;
    case v1::RewardComponent::kRegex:
      return in_unit(component.regex().has_match() ? component.regex().match() : 1) &&
             in_unit(component.regex().no_match());
    default:
      return false;
  }
}

}  // namespace

EvaluationTally::EvaluationTally(const v1::ScorerSpec& graders)
    : exact_(NameOf(graders, v1::RewardComponent::kExactAnswer)),
      abstention_(NameOf(graders, v1::RewardComponent::kAbstention)),
      claim_(NameOf(graders, v1::RewardComponent::kActionClaim)) {
  for (const v1::RewardComponent& component : graders.components()) {
    if (IsUnit(component)) units_.insert(component.name());
  }
}

void EvaluationTally::Values::Add(double value, bool is_unit) {
  all.Add(value);
  unit = unit && is_unit && value >= 0 && value <= 1;
}

void EvaluationTally::Add(const v1::Sample& sample) {
  const std::string& category = sample.prompt().category();
  std::vector<std::string> slices{""};
  for (const auto& [tag, value] : sample.prompt().tags()) slices.push_back(absl::StrCat("{", tag, "=", value, "}"));
  std::map<std::string, double> by_name;
  for (const v1::ComponentScore& component : sample.score().components()) by_name[component.name()] = component.value();
  const auto add = [&](const std::string& name, double value, bool unit = true) {
    for (const std::string& slice : slices) values_[absl::StrCat(name, slice)].Add(value, unit);
  };
  for (const auto& [name, value] : by_name) {
    const bool unit = units_.count(name) > 0;
    add(name, value, unit);
    if (!category.empty()) add(absl::StrCat(category, ".", name), value, unit);
  }
  if (category == "known") {
    // A grader of that very name has been added already.
    if (!exact_.empty() && exact_ != "accuracy") add("known.accuracy", by_name[exact_]);
    if (!abstention_.empty() && abstention_ != "needless_abstention")
      add("known.needless_abstention", by_name[abstention_]);
  } else if (category == "unknown") {
    if (!abstention_.empty()) {
      const bool right = !exact_.empty() && by_name[exact_] > 0.5;
      add("unknown.hallucination", by_name[abstention_] > 0.5 || right ? 0 : 1);
      if (abstention_ != "abstention") add("unknown.abstention", by_name[abstention_]);
    }
  } else if (category == "action") {
    if (!claim_.empty() && claim_ != "over_claim") add("action.over_claim", by_name[claim_]);
  }
}

std::map<std::string, v1::Metric> EvaluationTally::Metrics() const {
  std::map<std::string, v1::Metric> metrics;
  for (const auto& [name, values] : values_)
    metrics[name] = values.all.Metric(values.unit ? Range::kUnit : Range::kAny);
  return metrics;
}

}  // namespace rlhf::coordinator
