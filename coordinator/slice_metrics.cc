#include "coordinator/slice_metrics.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace rlhf::coordinator {
namespace {

// The grader that evaluations are judged by; its metrics are named after it ("known.exact", "exact{dialect=north}").
std::string GraderOf(const v1::EvaluateSpec& spec) {
  for (const v1::RewardComponent& component : spec.graders().components()) {
    if (!component.has_weight() || component.weight() != 0) return component.name();
  }
  return "";
}

// The slice that a metric's name speaks of, when it is `base` of a slice: "C.base" or "base{tag=value}"; else empty.
std::string SliceOf(absl::string_view name, absl::string_view base) {
  absl::string_view rest = name;
  if (absl::ConsumeSuffix(&rest, base) && absl::ConsumeSuffix(&rest, ".") && !rest.empty())
    return absl::StrCat("category=", rest);
  rest = name;
  if (absl::ConsumePrefix(&rest, base) && absl::ConsumePrefix(&rest, "{") && absl::ConsumeSuffix(&rest, "}"))
    return std::string(rest);
  return "";
}

std::map<std::string, double> BySlice(const v1::Job& job, absl::string_view base) {
  std::map<std::string, double> slices;
  if (base.empty()) return slices;
  for (const auto& [name, metric] : job.result().metrics()) {
    if (const std::string slice = SliceOf(name, base); !slice.empty()) slices[slice] = metric.value();
  }
  while (slices.size() > kMostSlices) slices.erase(std::prev(slices.end()));
  return slices;
}

}  // namespace

std::map<std::string, double> SliceRewardMeans(const v1::Job& job) {
  return BySlice(job, job.spec().has_evaluate() ? GraderOf(job.spec().evaluate()) : "");
}

std::map<std::string, double> SliceWinRates(const v1::Job& job) {
  return BySlice(job, job.spec().has_evaluate() || job.spec().has_collect() ? "win_rate" : "");
}

}  // namespace rlhf::coordinator
