#include "coordinator/jobs/collect_metrics.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/intervals.h"
#include "coordinator/feedback/agreement.h"

namespace rlhf::coordinator {
namespace {

constexpr int kFewestPlantedAnswers = 5;

std::string PromptKey(const v1::Prompt& prompt) {
  std::string key = absl::StrCat(prompt.id(), "\n", prompt.text());
  for (const v1::ChatMessage& message : prompt.messages())
    absl::StrAppend(&key, "\n", message.role(), "\n", message.content());
  return key;
}

void AddWinRates(const std::vector<v1::Comparison>& comparisons, std::map<std::string, v1::Metric>* metrics) {
  // By metric and prompt: different raters' judgements of a prompt are not independent.
  std::map<std::string, std::map<std::string, std::vector<double>>> wins;
  for (const v1::Comparison& c : comparisons) {
    if (c.planted() || c.preference() == v1::PREFERENCE_UNSPECIFIED) continue;
    const bool other_first = c.first().source() == "against";
    if (!other_first && c.second().source() != "against") continue;
    const double win = c.preference() == v1::TIE ? 0.5 : (c.preference() == v1::FIRST) != other_first ? 1 : 0;
    const std::string prompt = PromptKey(c.prompt());
    const auto add = [&](const std::string& name) { wins[name][prompt].push_back(win); };
    add("win_rate");
    if (!c.prompt().category().empty()) add(absl::StrCat(c.prompt().category(), ".win_rate"));
    for (const auto& [tag, value] : c.prompt().tags()) add(absl::StrCat("win_rate{", tag, "=", value, "}"));
    if (!c.rater_group().empty()) add(absl::StrCat("win_rate{raters=", c.rater_group(), "}"));
  }
  for (const auto& [name, by_prompt] : wins) (*metrics)[name] = ClusteredMean(by_prompt, Range::kUnit);
}

void AddNumber(const std::string& name, double value, int64_t n, std::map<std::string, v1::Metric>* metrics) {
  if (std::isnan(value)) return;
  (*metrics)[name].set_value(value);
  (*metrics)[name].set_n(n);
}

}  // namespace

std::map<std::string, v1::Metric> CollectMetrics(const std::vector<v1::Comparison>& all, const v1::CollectSpec& spec,
                                                 const std::set<std::string>& left_out) {
  std::map<std::string, v1::Metric> metrics;
  std::map<std::string, std::vector<double>> planted;  // by prompt
  for (const v1::Comparison& c : all) {
    if (c.planted()) planted[PromptKey(c.prompt())].push_back(c.preference() == c.known() ? 1 : 0);
  }
  std::vector<v1::Comparison> rest;
  if (!left_out.empty()) {
    std::copy_if(all.begin(), all.end(), std::back_inserter(rest),
                 [&](const v1::Comparison& c) { return left_out.count(c.rater()) == 0; });
  }
  const std::vector<v1::Comparison>& comparisons = left_out.empty() ? all : rest;
  const int64_t ties = std::count_if(comparisons.begin(), comparisons.end(),
                                     [](const v1::Comparison& c) { return !c.planted() && c.preference() == v1::TIE; });
  metrics["ties"].set_value(static_cast<double>(ties));
  if (!planted.empty()) metrics["planted_accuracy"] = ClusteredMean(planted, Range::kUnit);
  if (!spec.against().empty()) AddWinRates(comparisons, &metrics);
  const v1::AgreementReport report = MeasureAgreement(comparisons);
  if (report.preference().items() > 0) {
    metrics["agreement"] = report.preference().raw();
    AddNumber("agreement.kappa", report.preference().cohen_kappa(), report.preference().items(), &metrics);
    AddNumber("agreement.alpha", report.preference().krippendorff_alpha(), report.preference().items(), &metrics);
  }
  for (const auto& [criterion, agreement] : report.by_criterion()) {
    AddNumber(absl::StrCat("agreement.alpha{", criterion, "}"), agreement.krippendorff_alpha(), agreement.items(),
              &metrics);
  }
  return metrics;
}

std::set<std::string> RatersBelow(const std::vector<v1::Comparison>& comparisons, double min_planted_accuracy) {
  std::map<std::string, std::pair<int, int>> counts;  // right, all
  for (const v1::Comparison& c : comparisons) {
    if (!c.planted()) continue;
    counts[c.rater()].first += c.preference() == c.known() ? 1 : 0;
    ++counts[c.rater()].second;
  }
  std::set<std::string> below;
  for (const auto& [rater, count] : counts) {
    if (count.second >= kFewestPlantedAnswers && count.first < min_planted_accuracy * count.second) below.insert(rater);
  }
  return below;
}

}  // namespace rlhf::coordinator
