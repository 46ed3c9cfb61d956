#include "coordinator/jobs/evaluation_against.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/intervals.h"
#include "common/split_mix64.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr uint64_t kBootstrapSeed = 0x626f6f74ULL;
constexpr int kBins = 10;

absl::StatusOr<double> Total(const v1::ScorerSpec& judge, const std::map<std::string, double>& components,
                             const std::string& where) {
  double total = 0;
  for (const v1::RewardComponent& component : judge.components()) {
    if (component.has_weight() && component.weight() == 0)
      continue;  // it judges nothing: an older evaluation may lack it
    const auto found = components.find(component.name());
    if (found == components.end()) {
      return absl::FailedPreconditionError(absl::StrCat("judge: ", where, " has no component \"", component.name(),
                                                        "\": expected it among the graders of both evaluations"));
    }
    total += (component.has_weight() ? component.weight() : 1) * found->second;
  }
  return total;
}

struct Pair {
  std::vector<std::string> slices;  // "{tag=value}"
  double now = 0, before = 0, length_change = 0;
  std::optional<double> refusal_change;
};

std::vector<std::string> SlicesOf(const v1::EvaluateSpec& spec, const v1::Prompt& prompt) {
  const auto wanted = [&](const std::string& tag) {
    return spec.slices().empty() || std::find(spec.slices().begin(), spec.slices().end(), tag) != spec.slices().end();
  };
  std::vector<std::string> slices;
  for (const auto& [tag, value] : std::map<std::string, std::string>(prompt.tags().begin(), prompt.tags().end())) {
    if (wanted(tag)) slices.push_back(absl::StrCat("{", tag, "=", value, "}"));
  }
  if (!prompt.category().empty() && wanted("category"))
    slices.push_back(absl::StrCat("{category=", prompt.category(), "}"));
  return slices;
}

// The largest gap between two slices of one tag. Categories are tasks of another kind and difficulty: they differ by
// nature, and count only where the evaluation declares them.
double Disparity(const std::vector<Pair>& pairs, double Pair::*total, bool categories) {
  std::map<std::string, std::map<std::string, std::pair<double, double>>> sums;  // tag, slice: sum and count
  for (const Pair& pair : pairs) {
    for (const std::string& slice : pair.slices) {
      const std::string tag = slice.substr(1, slice.find('=') - 1);
      if (tag == "category" && !categories) continue;
      auto& entry = sums[tag][slice];
      entry.first += pair.*total;
      entry.second += 1;
    }
  }
  double worst = 0;
  for (const auto& [tag, slices] : sums) {
    double low = 0, high = 0;
    bool first = true;
    for (const auto& [slice, entry] : slices) {
      const double mean = entry.first / entry.second;
      low = first ? mean : std::min(low, mean);
      high = first ? mean : std::max(high, mean);
      first = false;
    }
    worst = std::max(worst, high - low);
  }
  return worst;
}

// How much more an answer refuses than the other policy's, by the abstention grader, if both evaluations have it.
std::optional<double> RefusalChange(const v1::ScorerSpec& graders, const std::map<std::string, double>& now,
                                    const std::map<std::string, double>& before) {
  for (const v1::RewardComponent& grader : graders.components()) {
    if (!grader.has_abstention()) continue;
    const auto mine = now.find(grader.name()), other = before.find(grader.name());
    if (mine != now.end() && other != before.end()) return mine->second - other->second;
  }
  return std::nullopt;
}

// Percentile interval of a statistic of resampled pairs.
template <typename Statistic>
v1::Metric Bootstrapped(const std::vector<Pair>& pairs, int replicates, Statistic statistic) {
  v1::Metric metric;
  metric.set_value(statistic(pairs));
  metric.set_n(static_cast<int64_t>(pairs.size()));
  if (replicates < 2) return metric;
  SplitMix64 random(kBootstrapSeed);
  std::vector<double> drawn;
  std::vector<Pair> sample(pairs.size());
  for (int r = 0; r < replicates; ++r) {
    for (Pair& pair : sample) pair = pairs[random.Below(pairs.size())];
    drawn.push_back(statistic(sample));
  }
  SetPercentiles(&drawn, &metric);
  return metric;
}

class Pattern {
 public:
  static absl::StatusOr<Pattern> Compile(const std::string& text) {
    int code = 0;
    PCRE2_SIZE at = 0;
    Pattern pattern;
    pattern.code_.reset(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), PCRE2_UTF, &code, &at, nullptr),
        pcre2_code_free);
    if (pattern.code_ == nullptr) {
      PCRE2_UCHAR message[200];
      pcre2_get_error_message(code, message, sizeof(message));
      return absl::InvalidArgumentError(
          absl::StrCat("confidence_pattern: ", reinterpret_cast<const char*>(message), " at offset ", at));
    }
    return pattern;
  }
  // The first group of the first match.
  std::optional<std::string> Group(const std::string& text) const {
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr), pcre2_match_data_free);
    const int groups =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match.get(), nullptr);
    if (groups < 2) return std::nullopt;
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match.get());
    return text.substr(offsets[2], offsets[3] - offsets[2]);
  }

 private:
  std::shared_ptr<pcre2_code> code_;
};

}  // namespace

absl::StatusOr<std::map<std::string, v1::Metric>> CompareEvaluations(
    const v1::EvaluateSpec& spec, const std::vector<v1::Sample>& samples,
    const std::vector<artifact::SampleRecord>& against) {
  const v1::ScorerSpec& judge = spec.has_judge() ? spec.judge() : spec.graders();
  std::map<std::pair<std::string, std::string>, const artifact::SampleRecord*> others;
  for (const artifact::SampleRecord& other : against) others.emplace(std::pair(other.id, other.prompt), &other);
  std::vector<Pair> pairs;
  for (const v1::Sample& sample : samples) {
    const auto other = others.find(std::pair(sample.prompt().id(), sample.prompt().text()));
    if (other == others.end()) continue;
    std::map<std::string, double> components;
    for (const v1::ComponentScore& component : sample.score().components())
      components[component.name()] = component.value();
    Pair& pair = pairs.emplace_back();
    pair.slices = SlicesOf(spec, sample.prompt());
    RLHF_ASSIGN_OR_RETURN(pair.now, Total(judge, components, "this evaluation"));
    RLHF_ASSIGN_OR_RETURN(pair.before, Total(judge, other->second->components, "the evaluation it is compared with"));
    pair.refusal_change = RefusalChange(spec.graders(), components, other->second->components);
    pair.length_change =
        static_cast<double>(sample.response_text().size()) - static_cast<double>(other->second->response.size());
  }
  if (pairs.empty())
    return absl::FailedPreconditionError("against: expected an evaluation of the same suite, found no common prompt");

  const int replicates = spec.has_bootstrap() ? spec.bootstrap() : 1000;
  std::map<std::string, std::vector<double>> wins, changes, lengths, refusals;
  for (const Pair& pair : pairs) {
    std::vector<std::string> slices = pair.slices;
    slices.emplace_back();
    for (const std::string& slice : slices) {
      wins[slice].push_back(pair.now > pair.before ? 1 : pair.now < pair.before ? 0 : 0.5);
      changes[slice].push_back(pair.now - pair.before);
      lengths[slice].push_back(pair.length_change);
      if (pair.refusal_change) refusals[slice].push_back(*pair.refusal_change);
    }
  }
  std::map<std::string, v1::Metric> metrics;
  for (const auto& [slice, values] : wins)
    metrics[absl::StrCat("win_rate", slice)] = BootstrapMean(values, Range::kUnit, replicates, kBootstrapSeed);
  for (const auto& [slice, values] : changes)
    metrics[absl::StrCat("score_change", slice)] = BootstrapMean(values, Range::kAny, replicates, kBootstrapSeed);
  for (const auto& [slice, values] : lengths)
    metrics[absl::StrCat("length_change", slice)] = BootstrapMean(values, Range::kAny, replicates, kBootstrapSeed);
  for (const auto& [slice, values] : refusals)
    metrics[absl::StrCat("refusal_change", slice)] = BootstrapMean(values, Range::kAny, replicates, kBootstrapSeed);
  // Rebuilding all slices a replicate is what costs; a tenth of the replicates bounds it.
  const bool categories = std::find(spec.slices().begin(), spec.slices().end(), "category") != spec.slices().end();
  const int fewer = std::min(replicates, std::max(100, replicates / 10));
  metrics["disparity"] =
      Bootstrapped(pairs, fewer, [=](const auto& p) { return Disparity(p, &Pair::now, categories); });
  metrics["disparity_before"] =
      Bootstrapped(pairs, fewer, [=](const auto& p) { return Disparity(p, &Pair::before, categories); });
  metrics["disparity_rise"] = Bootstrapped(pairs, fewer, [=](const auto& p) {
    return Disparity(p, &Pair::now, categories) - Disparity(p, &Pair::before, categories);
  });
  return metrics;
}

namespace {

// What was stated against what was right, by tenths of the confidence.
struct CalibrationBins {
  double confidence[kBins] = {}, right[kBins] = {}, count[kBins] = {};
  void Add(double p, double correct) {
    const int bin = std::min(kBins - 1, static_cast<int>(p * kBins));
    confidence[bin] += p;
    right[bin] += correct;
    count[bin] += 1;
  }
};

}  // namespace

absl::StatusOr<std::map<std::string, v1::Metric>> StatedCalibration(const v1::EvaluateSpec& spec,
                                                                    const std::vector<v1::Sample>& samples) {
  std::map<std::string, v1::Metric> metrics;
  RLHF_ASSIGN_OR_RETURN(const Pattern pattern, Pattern::Compile(spec.confidence_pattern()));
  std::string exact;
  for (const v1::RewardComponent& component : spec.graders().components()) {
    if (component.has_exact_answer()) exact = component.name();
  }
  // The unit is the whole evaluation's: "1" alone does not tell whether it is per cent.
  CalibrationBins as_percents, as_fractions;
  bool percents = false;
  double stated = 0;
  std::vector<double> states;
  for (const v1::Sample& sample : samples) {
    const std::optional<std::string> group = pattern.Group(sample.response_text());
    double p = 0;
    const bool says = group && absl::SimpleAtod(*group, &p) && std::isfinite(p) && p >= 0 && p <= 100;
    states.push_back(says ? 1 : 0);
    if (!says) continue;
    percents = percents || p > 1;
    double correct = 0;
    for (const v1::ComponentScore& component : sample.score().components()) {
      if (component.name() == exact) correct = component.value() > 0.5 ? 1 : 0;
    }
    as_percents.Add(p / 100, correct);
    as_fractions.Add(std::min(p, 1.0), correct);
    ++stated;
  }
  metrics["calibration.stated"] = MeanWithInterval(states, Range::kUnit);
  if (stated == 0 || exact.empty()) return metrics;
  const CalibrationBins& bins = percents ? as_percents : as_fractions;
  double ece = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    const double count = bins.count[bin];
    if (count == 0) continue;
    ece += std::abs(bins.confidence[bin] - bins.right[bin]) / stated;
    v1::Metric& rate = metrics[absl::StrCat("calibration/", bin)];
    rate.set_value(bins.right[bin] / count);
    rate.set_n(static_cast<int64_t>(count));
    v1::Metric& sure = metrics[absl::StrCat("calibration.confidence/", bin)];
    sure.set_value(bins.confidence[bin] / count);
    sure.set_n(static_cast<int64_t>(count));
  }
  metrics["calibration.ece"].set_value(ece);
  metrics["calibration.ece"].set_n(static_cast<int64_t>(stated));
  return metrics;
}

}  // namespace rlhf::coordinator
