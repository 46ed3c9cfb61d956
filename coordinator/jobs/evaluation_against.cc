#include "coordinator/jobs/evaluation_against.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include <xxhash.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/intervals.h"
#include "common/split_mix64.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr uint64_t kBootstrapSeed = 0x626f6f74ULL;
constexpr int kBins = 10;
constexpr size_t kFewestInSlice = 5;

absl::StatusOr<RoundedSum> Total(const v1::ScorerSpec& judge, const std::map<std::string, double>& components,
                                 const std::string& where) {
  RoundedSum total;
  for (const v1::RewardComponent& component : judge.components()) {
    if (component.has_weight() && component.weight() == 0)
      continue;  // it judges nothing: an older evaluation may lack it
    const auto found = components.find(component.name());
    if (found == components.end()) {
      return absl::FailedPreconditionError(absl::StrCat("judge: ", where, " has no component \"", component.name(),
                                                        "\": expected it among the graders of both evaluations"));
    }
    total.Add((component.has_weight() ? component.weight() : 1) * found->second);
  }
  return total;
}

std::map<std::string, double> ComponentsOf(const v1::Sample& sample) {
  std::map<std::string, double> components;
  for (const v1::ComponentScore& component : sample.score().components())
    components[component.name()] = component.value();
  return components;
}

absl::uint128 KeyOfPrompt(const std::string& id, const std::string& text) {
  const std::string both = absl::StrCat(id.size(), "/", id, text);
  const XXH128_hash_t hash = XXH3_128bits(both.data(), both.size());
  return absl::MakeUint128(hash.high64, hash.low64);
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
  // The first group of the first match, and what comes after it.
  struct Found {
    std::string group, rest;
  };
  std::optional<Found> Find(const std::string& text) const {
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr), pcre2_match_data_free);
    const int groups =
        pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match.get(), nullptr);
    if (groups < 2) return std::nullopt;
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match.get());
    return Found{text.substr(offsets[2], offsets[3] - offsets[2]), text.substr(offsets[3])};
  }

 private:
  std::shared_ptr<pcre2_code> code_;
};

// What was stated against what was right, by tenths of the confidence.
struct CalibrationBins {
  double confidence[kBins] = {}, right[kBins] = {}, count[kBins] = {};
  void Add(double p, double correct) { AddMany(p, 1, correct); }
  void AddMany(double p, double answers, double correct) {
    const int bin = std::min(kBins - 1, static_cast<int>(p * kBins));
    confidence[bin] += p * answers;
    right[bin] += correct;
    count[bin] += answers;
  }
};

bool SaysPerCent(absl::string_view rest) {
  rest = absl::StripLeadingAsciiWhitespace(rest);
  return absl::StartsWith(rest, "%") || absl::StartsWithIgnoreCase(rest, "percent") ||
         absl::StartsWithIgnoreCase(rest, "per cent");
}

class StatedCalibrationImpl final : public StatedCalibration {
 public:
  StatedCalibrationImpl(Pattern pattern, std::string exact) : pattern_(std::move(pattern)), exact_(std::move(exact)) {}
  void Add(const v1::Sample& sample) override;
  std::map<std::string, v1::Metric> Metrics() const override;

 private:
  const Pattern pattern_;
  const std::string exact_;  // the exact_answer component's name
  CalibrationBins bins_;     // of answers that tell their unit
  // A bare "1" does not: it is one per cent, or certainty, by what most of the others mean.
  double ones_ = 0, right_ones_ = 0;
  int64_t percents_ = 0, fractions_ = 0;
  MeanTally states_;
};

void StatedCalibrationImpl::Add(const v1::Sample& sample) {
  const std::optional<Pattern::Found> found = pattern_.Find(sample.response_text());
  double p = 0;
  const bool says = found && absl::SimpleAtod(found->group, &p) && std::isfinite(p) && p >= 0 && p <= 100;
  states_.Add(says ? 1 : 0);
  if (!says) return;
  double correct = 0;
  for (const v1::ComponentScore& component : sample.score().components()) {
    if (component.name() == exact_) correct = component.value() > 0.5 ? 1 : 0;
  }
  const bool percent = p > 1 || SaysPerCent(found->rest);
  if (p == 1 && !percent && !absl::StrContains(found->group, '.')) {
    ++ones_;
    right_ones_ += correct;
    return;
  }
  bins_.Add(percent ? p / 100 : p, correct);
  if (p > 0) ++(percent ? percents_ : fractions_);  // nothing is nothing in either
}

std::map<std::string, v1::Metric> StatedCalibrationImpl::Metrics() const {
  std::map<std::string, v1::Metric> metrics;
  metrics["calibration.stated"] = states_.Metric(Range::kUnit);
  CalibrationBins bins = bins_;
  const double one = percents_ > fractions_ ? 0.01 : 1;
  bins.AddMany(one, ones_, right_ones_);
  const double stated = std::accumulate(std::begin(bins.count), std::end(bins.count), 0.0);
  if (stated == 0 || exact_.empty()) return metrics;
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

}  // namespace

bool EvaluationComparison::Declares(const std::string& tag) const {
  return std::find(spec_.slices().begin(), spec_.slices().end(), tag) != spec_.slices().end();
}

std::vector<int> EvaluationComparison::SlicesOf(const v1::Prompt& prompt) {
  std::vector<int> slices;
  const auto add = [&](const std::string& tag, const std::string& value) {
    if (!spec_.slices().empty() && !Declares(tag)) return;
    const std::string name = absl::StrCat("{", tag, "=", value, "}");
    const auto [it, fresh] = slice_ids_.try_emplace(name, static_cast<int>(slices_.size()));
    if (fresh) slices_.push_back({name, tag});
    slices.push_back(it->second);
  };
  for (const auto& [tag, value] : prompt.tags()) add(tag, value);
  if (!prompt.category().empty()) add("category", prompt.category());
  return slices;
}

std::vector<std::optional<double>> EvaluationComparison::RefusalsIn(
    const std::map<std::string, double>& components) const {
  std::vector<std::optional<double>> refusals;
  for (const v1::RewardComponent& grader : spec_.graders().components()) {
    if (!grader.has_abstention()) continue;
    const auto found = components.find(grader.name());
    refusals.push_back(found == components.end() ? std::nullopt : std::optional<double>(found->second));
  }
  return refusals;
}

void EvaluationComparison::AddBefore(const artifact::SampleRecord& sample) {
  before_.try_emplace(
      KeyOfPrompt(sample.id, sample.prompt),
      Before{Total(judge(), sample.components, "the evaluation it is compared with"), RefusalsIn(sample.components),
             static_cast<double>(sample.response.size()), before_.size()});
}

absl::Status EvaluationComparison::Add(const v1::Sample& sample) {
  const auto other = before_.find(KeyOfPrompt(sample.prompt().id(), sample.prompt().text()));
  if (other == before_.end()) return absl::OkStatus();
  const Before& before = other->second;
  const std::map<std::string, double> components = ComponentsOf(sample);
  Pair pair;
  pair.slices = SlicesOf(sample.prompt());
  RLHF_ASSIGN_OR_RETURN(const RoundedSum now, Total(judge(), components, "this evaluation"));
  RLHF_RETURN_IF_ERROR(before.total.status());
  const double ahead = Difference(now, *before.total);
  pair.win = ahead > 0 ? 1 : ahead < 0 ? 0 : 0.5;
  pair.now = now.sum;
  pair.before = before.total->sum;
  const std::vector<std::optional<double>> refusals = RefusalsIn(components);
  for (size_t i = 0; i < refusals.size() && !pair.refusal_change; ++i) {
    if (refusals[i] && before.refusals[i]) pair.refusal_change = *refusals[i] - *before.refusals[i];
  }
  pair.prompt = before.prompt;
  pair.length_change = static_cast<double>(sample.response_text().size()) - before.length;
  pairs_.push_back(std::move(pair));
  return absl::OkStatus();
}

EvaluationComparison::SliceMeans EvaluationComparison::MeansOf(const std::vector<Pair>& pairs,
                                                               double Pair::*total) const {
  std::vector<std::pair<double, double>> sums(slices_.size());  // sum and count
  for (const Pair& pair : pairs) {
    for (const int slice : pair.slices) {
      sums[static_cast<size_t>(slice)].first += pair.*total;
      sums[static_cast<size_t>(slice)].second += 1;
    }
  }
  SliceMeans means(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    if (sums[i].second > 0) means[i] = sums[i].first / sums[i].second;
  }
  return means;
}

EvaluationComparison::SliceMeans EvaluationComparison::Minus(SliceMeans a, const SliceMeans& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].has_value()) *a[i] -= *b[i];
  }
  return a;
}

// Categories are tasks of another kind and difficulty: they differ by nature, and count only where the evaluation
// declares them.
bool EvaluationComparison::Counts(const Slice& slice) const {
  return slice.tag != "category" || Declares("category");
}

size_t EvaluationComparison::SmallestSlice() const {
  std::vector<size_t> prompts(slices_.size());
  for (const Pair& pair : pairs_) {
    for (const int slice : pair.slices) ++prompts[static_cast<size_t>(slice)];
  }
  size_t smallest = pairs_.size();
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i] > 0 && Counts(slices_[i])) smallest = std::min(smallest, prompts[i]);
  }
  return smallest;
}

double EvaluationComparison::LargestGap(const SliceMeans& by_slice) const {
  std::map<std::string, std::pair<double, double>> ranges;  // tag: the lowest and the highest
  for (size_t i = 0; i < slices_.size(); ++i) {
    if (!by_slice[i].has_value() || !Counts(slices_[i])) continue;
    const auto [range, first] = ranges.try_emplace(slices_[i].tag, *by_slice[i], *by_slice[i]);
    range->second = {std::min(range->second.first, *by_slice[i]), std::max(range->second.second, *by_slice[i])};
  }
  double worst = 0;
  for (const auto& [tag, range] : ranges) worst = std::max(worst, range.second - range.first);
  return worst;
}

// The largest of many gaps is large by chance, and larger again in a resample: its percentiles there are those of a
// larger number. What the slices' means are off by in a resample is what these are off by, and the largest gap is off
// by no more than the largest gap of that. It rose by no more than the slices' changes part, either: they are of the
// same prompts, and known better.
void EvaluationComparison::AddDisparities(int replicates, std::map<std::string, v1::Metric>* metrics) const {
  const SliceMeans now = MeansOf(pairs_, &Pair::now), before = MeansOf(pairs_, &Pair::before);
  const double gap = LargestGap(now), gap_before = LargestGap(before), parted = LargestGap(Minus(now, before));
  // A resample of few answers does not tell what their mean is off by.
  if (SmallestSlice() < kFewestInSlice) replicates = 0;
  std::vector<double> off_now, off_before, off_both, off_parted;
  SplitMix64 random(kBootstrapSeed);
  std::vector<Pair> sample(pairs_.size());
  for (int r = 0; r < replicates; ++r) {
    for (Pair& pair : sample) pair = pairs_[random.Below(pairs_.size())];
    const SliceMeans errors = Minus(MeansOf(sample, &Pair::now), now),
                     errors_before = Minus(MeansOf(sample, &Pair::before), before);
    off_now.push_back(LargestGap(errors));
    off_before.push_back(LargestGap(errors_before));
    off_both.push_back(off_now.back() + off_before.back());
    off_parted.push_back(LargestGap(Minus(errors, errors_before)));
  }
  const auto most = [](std::vector<double>* off, double share) {  // 0: nothing varies, or is not known
    if (off->size() < 2) return 0.0;
    std::sort(off->begin(), off->end());
    return (*off)[static_cast<size_t>(std::lround(share * static_cast<double>(off->size() - 1)))];
  };
  const auto add = [&](const char* name, double value, double half, double least, double greatest) {
    v1::Metric& metric = (*metrics)[name];
    metric.set_value(value);
    metric.set_n(static_cast<int64_t>(pairs_.size()));
    if (half == 0) return;
    metric.set_low(std::max(least, value - half));
    metric.set_high(std::min(greatest, value + half));
  };
  constexpr double kAny = std::numeric_limits<double>::max();
  add("disparity", gap, most(&off_now, 0.95), 0, kAny);
  add("disparity_before", gap_before, most(&off_before, 0.95), 0, kAny);
  // Two bounds that hold at once: each may fail half as often.
  const double off = most(&off_parted, 0.975), rise = off > 0 ? parted + off : kAny;
  add("disparity_rise", gap - gap_before, most(&off_both, 0.975), -rise, rise);
}

absl::StatusOr<std::map<std::string, v1::Metric>> EvaluationComparison::Metrics() const {
  if (pairs_.empty())
    return absl::FailedPreconditionError("against: expected an evaluation of the same suite, found no common prompt");
  const int replicates = spec_.has_bootstrap() ? spec_.bootstrap() : 1000;
  std::map<std::string, std::map<size_t, std::vector<double>>> wins;  // by prompt, of which a suite may have several
  std::map<std::string, std::vector<double>> changes, lengths, refusals;
  for (const Pair& pair : pairs_) {
    const auto add = [&](const std::string& slice) {
      wins[slice][pair.prompt].push_back(pair.win);
      changes[slice].push_back(pair.now - pair.before);
      lengths[slice].push_back(pair.length_change);
      if (pair.refusal_change) refusals[slice].push_back(*pair.refusal_change);
    };
    for (const int slice : pair.slices) add(slices_[static_cast<size_t>(slice)].name);
    add("");
  }
  std::map<std::string, v1::Metric> metrics;
  const auto mean = [&](const char* name, const std::map<std::string, std::vector<double>>& by_slice) {
    for (const auto& [slice, values] : by_slice)
      metrics[absl::StrCat(name, slice)] = BootstrapMean(values, Range::kAny, replicates, kBootstrapSeed);
  };
  for (const auto& [slice, by_prompt] : wins)
    metrics[absl::StrCat("win_rate", slice)] = ClusteredMean(by_prompt, Range::kUnit);
  mean("score_change", changes);
  mean("length_change", lengths);
  mean("refusal_change", refusals);
  // Rebuilding all slices a replicate is what costs; a tenth of the replicates bounds it.
  AddDisparities(std::min(replicates, std::max(100, replicates / 10)), &metrics);
  return metrics;
}

absl::StatusOr<std::unique_ptr<StatedCalibration>> StatedCalibration::Make(const v1::EvaluateSpec& spec) {
  RLHF_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Compile(spec.confidence_pattern()));
  std::string exact;
  for (const v1::RewardComponent& component : spec.graders().components()) {
    if (component.has_exact_answer()) exact = component.name();
  }
  return std::make_unique<StatedCalibrationImpl>(std::move(pattern), std::move(exact));
}

}  // namespace rlhf::coordinator
