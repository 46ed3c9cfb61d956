#include "coordinator/jobs/monitor.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/jobs/cut_answers.h"

namespace rlhf::coordinator {
namespace {

constexpr char kNoCategory[] = "uncategorised";

v1::MonitorSpec Completed(v1::MonitorSpec spec) {
  if (spec.window() < 1) spec.set_window(3);
  if (!spec.has_outside_deviations()) spec.set_outside_deviations(4);
  if (spec.min_steps() < spec.window()) spec.set_min_steps(spec.window());
  return spec;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double Deviation(const std::vector<double>& values) {
  const double mean = Mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double deviation = values.size() > 1 ? std::sqrt(squares / static_cast<double>(values.size() - 1)) : 0;
  // A model's scores of equal answers differ by the rounding of the batches they were computed in.
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return deviation > 1e-6 * largest ? deviation : 0;
}

double ValueOf(const std::map<std::string, double>& values, const std::string& name) {
  const auto found = values.find(name);
  return found == values.end() ? 0.0 : found->second;
}

v1::Alert Alarm(const char* monitor, double value, double bound, std::string text, std::string slice = "") {
  v1::Alert alert;
  alert.set_monitor(monitor);
  alert.set_value(value);
  alert.set_bound(bound);
  alert.set_text(std::move(text));
  alert.set_slice(std::move(slice));
  return alert;
}

}  // namespace

double Repetition(const std::vector<int32_t>& tokens) {
  if (tokens.size() < 4) return 0;
  absl::flat_hash_set<std::tuple<int32_t, int32_t, int32_t>> seen;  // of thousands of answers at a step's commit
  seen.reserve(tokens.size());
  int repeated = 0;
  for (size_t i = 2; i < tokens.size(); ++i)
    repeated += seen.emplace(tokens[i - 2], tokens[i - 1], tokens[i]).second ? 0 : 1;
  return repeated / static_cast<double>(tokens.size() - 2);
}

double Correlation(const std::vector<double>& x, const std::vector<double>& y) {
  const double mx = Mean(x), my = Mean(y);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mx) * (y[i] - my);
    xx += (x[i] - mx) * (x[i] - mx);
    yy += (y[i] - my) * (y[i] - my);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

v1::MonitorStep ObserveStep(int64_t step, const std::vector<v1::Sample>& batch, double kl, double outside_deviations,
                            int max_new_tokens) {
  std::vector<double> scores, gold, lengths, repetitions, outside, cut;
  std::map<std::string, std::vector<double>> gold_by_category;
  std::map<std::string, std::map<std::string, std::vector<double>>> gold_by_prompt;
  for (const v1::Sample& sample : batch) {
    scores.push_back(sample.score().total());
    outside.push_back(std::abs(sample.score().total()) > outside_deviations ? 1 : 0);
    lengths.push_back(sample.response_tokens_size());
    cut.push_back(CutByContext(sample, max_new_tokens) ? 1 : 0);
    repetitions.push_back(
        Repetition(std::vector<int32_t>(sample.response_tokens().begin(), sample.response_tokens().end())));
    if (sample.score().gold().empty()) continue;
    gold.push_back(sample.score().gold_total());
    const std::string& category = sample.prompt().category();
    const std::string named = category.empty() ? kNoCategory : category;
    gold_by_category[named].push_back(sample.score().gold_total());
    gold_by_prompt[named][sample.prompt().id()].push_back(sample.score().gold_total());
  }
  v1::MonitorStep out;
  out.set_step(step);
  auto& values = *out.mutable_values();
  values["score"] = Mean(scores);
  values["score_std"] = Deviation(scores);
  values["length"] = Mean(lengths);
  values["repetition"] = Mean(repetitions);
  values["outside"] = Mean(outside);
  values[kCutByContext] = Mean(cut);
  values["reward_length"] = Correlation(scores, lengths);
  values["kl"] = kl;
  if (!gold.empty()) {
    values["gold"] = Mean(gold);
    values["gold_std"] = Deviation(gold);
  }
  for (const auto& [category, list] : gold_by_category) values[absl::StrCat(kGoldPrefix, category)] = Mean(list);
  for (const auto& [category, prompts] : gold_by_prompt) {
    std::vector<double> means;
    means.reserve(prompts.size());
    for (const auto& [id, list] : prompts) means.push_back(Mean(list));
    v1::GoldSpread& spread = (*out.mutable_gold())[category];
    spread.set_prompts(static_cast<int64_t>(means.size()));
    spread.set_mean(Mean(means));
    for (const double mean : means)
      spread.set_squares(spread.squares() + (mean - spread.mean()) * (mean - spread.mean()));
  }
  return out;
}

Monitor::Monitor(v1::MonitorSpec spec) : spec_(Completed(std::move(spec))), gold_windows_(spec_.window()) {
  on_ = spec_.max_kl() > 0 || spec_.max_gold_drop() > 0 || spec_.max_gold_gap() > 0 || spec_.max_length_ratio() > 0 ||
        spec_.max_repetition() > 0 || spec_.max_reward_length_correlation() > 0 || spec_.max_outside_share() > 0;
}

std::vector<v1::Alert> Monitor::Add(const v1::MonitorStep& step) {
  std::erase_if(steps_, [&](const v1::MonitorStep& seen) { return seen.step() >= step.step(); });
  steps_.push_back(step);
  if (spec_.max_gold_drop() > 0) gold_windows_.Add(steps_);
  if (!on_ || static_cast<int>(steps_.size()) < spec_.min_steps()) return {};
  return Check();
}

Monitor::Values Monitor::Window(size_t end) const {
  const auto size = static_cast<size_t>(spec_.window());
  Values means;
  for (const auto& [name, first] : steps_[end - size].values()) {
    double sum = 0;
    bool all = true;
    for (size_t i = end - size; i < end; ++i) {
      const auto found = steps_[i].values().find(name);
      all = all && found != steps_[i].values().end();
      if (all) sum += found->second;
    }
    if (all) means[name] = sum / static_cast<double>(size);
  }
  return means;
}

std::optional<double> Monitor::GoldGap() const {
  // Of a job without gold scores, as most are, its windows since the beginning are not gone through at every step.
  if (steps_.empty() || steps_.back().values().count("gold") == 0) return std::nullopt;
  const auto size = static_cast<size_t>(spec_.window());
  Values first;
  for (size_t end = size; end <= steps_.size() && first.empty(); ++end) {
    Values window = Window(end);
    // In deviations of scores that do not vary every rise is without bound.
    if (ValueOf(window, "score_std") > 0 && ValueOf(window, "gold_std") > 0) first = std::move(window);
  }
  if (first.empty()) return std::nullopt;
  const Values now = Window(steps_.size());
  if (now.count("gold") == 0) return std::nullopt;
  const auto rise = [&](const char* mean, const char* deviation) {
    return (ValueOf(now, mean) - ValueOf(first, mean)) / ValueOf(first, deviation);
  };
  return rise("score", "score_std") - rise("gold", "gold_std");
}

std::vector<v1::Alert> Monitor::Check() const {
  std::vector<v1::Alert> alarms;
  const auto size = static_cast<size_t>(spec_.window());
  const Values now = Window(steps_.size()), first = Window(size);
  const auto over = [&](const char* monitor, double bound, double value, const char* what) {
    if (bound > 0 && value > bound)
      alarms.push_back(
          Alarm(monitor, value, bound, absl::StrFormat("%s is %.3g; the bound is %.3g", what, value, bound)));
  };
  over("kl", spec_.max_kl(), ValueOf(now, "kl"), "the KL to the reference policy, nats a sequence,");
  over("repetition", spec_.max_repetition(), ValueOf(now, "repetition"), "the share of repeated 3-grams in answers");
  over("outside", spec_.max_outside_share(), ValueOf(now, "outside"),
       "the share of answers whose score lies outside the reward model's range");
  over("reward_length", spec_.max_reward_length_correlation(), std::abs(ValueOf(now, "reward_length")),
       "the correlation of reward and length");
  if (spec_.max_length_ratio() > 0 && ValueOf(first, "length") > 0 && ValueOf(now, "length") > 0) {
    const double ratio = ValueOf(now, "length") / ValueOf(first, "length");
    if (ratio > spec_.max_length_ratio() || ratio < 1 / spec_.max_length_ratio()) {
      alarms.push_back(
          Alarm("length", ratio, spec_.max_length_ratio(),
                absl::StrFormat("answers went from %.3g to %.3g tokens; the bound on their ratio is %.3g",
                                ValueOf(first, "length"), ValueOf(now, "length"), spec_.max_length_ratio())));
    }
  }
  if (const std::optional<double> gap = GoldGap(); gap.has_value())
    over("gold_gap", spec_.max_gold_gap(), *gap, "the rise of the score over that of the gold score, in deviations,");
  if (spec_.max_gold_drop() > 0) {
    for (const GoldWindows::Fall& fall : gold_windows_.FallsOver(spec_.max_gold_drop())) {
      alarms.push_back(Alarm(
          "gold_drop", fall.from - fall.to, spec_.max_gold_drop(),
          absl::StrFormat(
              "the gold score of \"%s\" fell from %.3g to %.3g; the bound on the fall is %.3g (its mean over "
              "all categories went from %.3g to %.3g)",
              fall.category, fall.from, fall.to, spec_.max_gold_drop(), ValueOf(first, "gold"), ValueOf(now, "gold")),
          fall.category));
    }
  }
  return alarms;
}

}  // namespace rlhf::coordinator
