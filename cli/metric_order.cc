#include "cli/metric_order.h"

#include <algorithm>
#include <iterator>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace rlhf::cli {
namespace {

size_t Rank(const std::string& name) {
  static constexpr absl::string_view kHeadlines[] = {"hallucination", "over_claim", "accuracy", "needless_abstention",
                                                     "win_rate"};
  size_t at = 0;
  while (at < std::size(kHeadlines) && !absl::StrContains(name, kHeadlines[at])) ++at;
  return at;
}

}  // namespace

bool MetricComesBefore(const std::string& a, const std::string& b) {
  const auto key = [](const std::string& name) { return std::tuple(absl::StrContains(name, '{'), Rank(name)); };
  return std::tuple(key(a), absl::string_view(a)) < std::tuple(key(b), absl::string_view(b));
}

std::vector<std::pair<std::string, v1::Metric>> MetricsInOrder(const std::map<std::string, v1::Metric>& metrics) {
  std::vector<std::pair<std::string, v1::Metric>> rows(metrics.begin(), metrics.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return MetricComesBefore(a.first, b.first); });
  return rows;
}

}  // namespace rlhf::cli
