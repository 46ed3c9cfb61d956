#include "coordinator/feedback/agreement.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/intervals.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kFewestCommon = 10, kFewestPlanted = 5;
constexpr double kFarOff = 0.1;
// Many raters are tested, and honest ones lean a little to one side: a flag needs a test that chance passes once in
// thousands, and a share that is far from a half.
constexpr int64_t kFewestSides = 20;
constexpr double kSideSignificance = 0.001, kSideFarOff = 0.2;
constexpr double kLongestPause = 600;  // seconds; a longer one was no thinking

using Items = std::map<std::string, Judgements>;

double Distance(double a, double b, MeasurementLevel level) {
  return level == MeasurementLevel::kNominal ? (a == b ? 0 : 1) : (a - b) * (a - b);
}

std::string KeyOf(const v1::Comparison& c, const std::string& a, const std::string& b) {
  return absl::StrCat(c.prompt().text(), absl::string_view("\0", 1), a, absl::string_view("\0", 1), b);
}

// 0: the lesser text is better; 1: the greater; 2: a tie. So the order on the screen does not matter.
void AddPreference(const v1::Comparison& c, Items* items) {
  if (c.preference() == v1::PREFERENCE_UNSPECIFIED || c.kind() == v1::FEEDBACK_EDIT) return;
  const std::string &a = c.first().text(), &b = c.second().text();
  const bool swapped = b < a;
  const bool first = c.preference() == v1::FIRST;
  (*items)[swapped ? KeyOf(c, b, a) : KeyOf(c, a, b)][c.rater()] = c.preference() == v1::TIE ? 2 : first == swapped;
}

std::vector<Judgements> Shared(const Items& items) {
  std::vector<Judgements> shared;
  for (const auto& [key, judgements] : items) {
    if (judgements.size() > 1) shared.push_back(judgements);
  }
  return shared;
}

// Of every two raters with common items, weighted by how many.
double MeanKappa(const std::vector<Judgements>& items) {
  std::map<std::pair<std::string, std::string>, std::vector<std::pair<double, double>>> both;
  for (const Judgements& item : items) {
    for (auto a = item.begin(); a != item.end(); ++a) {
      for (auto b = std::next(a); b != item.end(); ++b) both[{a->first, b->first}].emplace_back(a->second, b->second);
    }
  }
  double sum = 0, weight = 0;
  for (const auto& [raters, values] : both) {
    const double kappa = CohenKappa(values);
    if (std::isnan(kappa)) continue;
    sum += kappa * static_cast<double>(values.size());
    weight += static_cast<double>(values.size());
  }
  return weight > 0 ? sum / weight : kNan;
}

v1::Agreement Measure(const Items& all, MeasurementLevel level) {
  const std::vector<Judgements> items = Shared(all);
  v1::Agreement out;
  std::vector<double> raw;
  for (const Judgements& item : items) {
    double agree = 0, pairs = 0;
    for (auto a = item.begin(); a != item.end(); ++a) {
      for (auto b = std::next(a); b != item.end(); ++b) {
        agree += a->second == b->second ? 1 : 0;
        ++pairs;
      }
    }
    raw.push_back(agree / pairs);
    out.set_judgements(out.judgements() + static_cast<int64_t>(item.size()));
  }
  *out.mutable_raw() = MeanWithInterval(raw, Range::kUnit);
  out.set_items(static_cast<int64_t>(items.size()));
  out.set_cohen_kappa(MeanKappa(items));
  out.set_krippendorff_alpha(KrippendorffAlpha(items, level));
  return out;
}

// What more than half of the others say, or nothing.
bool MajorityOfOthers(const Judgements& item, const std::string& rater, double* value) {
  std::map<double, size_t> votes;
  for (const auto& [other, vote] : item) {
    if (other != rater) ++votes[vote];
  }
  for (const auto& [vote, count] : votes) {
    if (2 * count > item.size() - 1) {
      *value = vote;
      return true;
    }
  }
  return false;
}

double Median(std::vector<double> values) {
  if (values.empty()) return kNan;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

struct RaterData {
  int64_t judgements = 0;
  std::vector<double> with_others, planted, seconds, first;
  std::vector<std::pair<double, double>> against_majority;
};

std::map<std::string, RaterData> ByRater(const std::vector<v1::Comparison>& judgements, const Items& items) {
  std::map<std::string, RaterData> raters;
  std::map<std::string, std::vector<absl::Time>> times;
  for (const v1::Comparison& c : judgements) {
    RaterData& data = raters[c.rater()];
    ++data.judgements;
    if (c.planted()) data.planted.push_back(c.preference() == c.known() ? 1 : 0);
    // The right answer of a planted question stands where its author put it.
    if (!c.planted() && c.has_second_shown_first() && (c.preference() == v1::FIRST || c.preference() == v1::SECOND))
      data.first.push_back((c.preference() == v1::SECOND) == c.second_shown_first() ? 1 : 0);
    if (c.has_created_at()) times[c.rater()].push_back(FromTimestamp(c.created_at()));
  }
  for (auto& [rater, list] : times) {
    std::sort(list.begin(), list.end());
    for (size_t i = 1; i < list.size(); ++i) {
      const double pause = absl::ToDoubleSeconds(list[i] - list[i - 1]);
      if (pause <= kLongestPause) raters[rater].seconds.push_back(pause);
    }
  }
  for (const auto& [key, item] : items) {
    if (item.size() < 2) continue;
    for (const auto& [rater, value] : item) {
      double agree = 0, majority = 0;
      for (const auto& [other, theirs] : item) agree += other != rater && theirs == value ? 1 : 0;
      raters[rater].with_others.push_back(agree / static_cast<double>(item.size() - 1));
      if (MajorityOfOthers(item, rater, &majority)) raters[rater].against_majority.emplace_back(value, majority);
    }
  }
  return raters;
}

void Flag(v1::AgreementReport* report) {
  std::vector<double> agreements, planted;
  for (const v1::RaterQuality& rater : report->raters()) {
    if (rater.agreement().n() >= kFewestCommon) agreements.push_back(rater.agreement().value());
    if (rater.planted().n() >= kFewestPlanted) planted.push_back(rater.planted().value());
  }
  const double usual = Median(agreements), usual_planted = Median(planted);
  for (v1::RaterQuality& rater : *report->mutable_raters()) {
    const auto flag = [&rater](const std::string& why) {
      rater.set_flagged(true);
      rater.set_why(absl::StrCat(rater.why(), rater.why().empty() ? "" : "; ", why));
    };
    const auto far = [&](const v1::Metric& metric, int64_t fewest, double median, const char* what) {
      if (metric.n() < fewest || !(metric.high() < median - kFarOff)) return;
      flag(absl::StrFormat("%s %.3f over %d; the raters' median is %.3f", what, metric.value(), metric.n(), median));
    };
    far(rater.agreement(), kFewestCommon, usual, "agrees with the others in");
    far(rater.planted(), kFewestPlanted, usual_planted, "answers planted questions rightly in");
    const v1::Metric& first = rater.first_preferred();
    if (first.n() < kFewestSides || std::abs(first.value() - 0.5) <= kSideFarOff) continue;
    const double p = FairCoinP(std::llround(first.value() * static_cast<double>(first.n())), first.n());
    if (p < kSideSignificance) {
      flag(absl::StrFormat("prefers the answer shown %s in %.3f of %d; chance, %.3f, is ruled out with p = %.1g",
                           first.value() > 0.5 ? "first" : "second", std::max(first.value(), 1 - first.value()),
                           first.n(), 0.5, p));
    }
  }
}

}  // namespace

double KrippendorffAlpha(const std::vector<Judgements>& items, MeasurementLevel level) {
  double observed = 0, n = 0;
  std::map<double, double> marginals;  // value to how often it is pairable
  for (const Judgements& item : items) {
    if (item.size() < 2) continue;
    double within = 0;
    for (const auto& [rater, a] : item) {
      for (const auto& [other, b] : item) within += Distance(a, b, level);
      marginals[a] += 1;
    }
    observed += within / static_cast<double>(item.size() - 1);
    n += static_cast<double>(item.size());
  }
  if (n < 2) return kNan;
  double expected = 0;
  for (const auto& [a, count] : marginals) {
    for (const auto& [b, other] : marginals) expected += count * other * Distance(a, b, level);
  }
  expected /= n - 1;
  return expected > 0 ? 1 - observed / expected : kNan;
}

double CohenKappa(const std::vector<std::pair<double, double>>& both) {
  const auto n = static_cast<double>(both.size());
  std::map<double, std::pair<double, double>> marginals;
  double agree = 0;
  for (const auto& [a, b] : both) {
    agree += a == b ? 1 : 0;
    marginals[a].first += 1;
    marginals[b].second += 1;
  }
  double by_chance = 0;
  for (const auto& [value, counts] : marginals) by_chance += counts.first / n * counts.second / n;
  return both.empty() || by_chance >= 1 ? kNan : (agree / n - by_chance) / (1 - by_chance);
}

double FairCoinP(int64_t heads, int64_t n) {
  const int64_t tail = std::min(heads, n - heads);
  const auto size = static_cast<double>(n);
  double p = 0;
  for (int64_t k = 0; k <= tail; ++k) {
    const auto i = static_cast<double>(k);
    p += std::exp(std::lgamma(size + 1) - std::lgamma(i + 1) - std::lgamma(size - i + 1) - size * std::log(2));
  }
  return std::min(1.0, 2 * p);
}

v1::AgreementReport MeasureAgreement(const std::vector<v1::Comparison>& judgements) {
  Items preferences;
  std::map<std::string, Items> by_criterion, by_group;
  for (const v1::Comparison& c : judgements) {
    if (c.planted()) continue;  // they judge the rater: everybody gets them, and most know them
    AddPreference(c, &preferences);
    if (!c.rater_group().empty()) AddPreference(c, &by_group[c.rater_group()]);
    for (const auto& [criterion, value] : c.first_ratings())
      by_criterion[criterion][KeyOf(c, c.first().text(), "")][c.rater()] = value;
    for (const auto& [criterion, value] : c.second_ratings())
      by_criterion[criterion][KeyOf(c, c.second().text(), "")][c.rater()] = value;
  }
  v1::AgreementReport report;
  *report.mutable_preference() = Measure(preferences, MeasurementLevel::kNominal);
  for (const auto& [criterion, items] : by_criterion)
    (*report.mutable_by_criterion())[criterion] = Measure(items, MeasurementLevel::kInterval);
  for (const auto& [group, items] : by_group)
    (*report.mutable_by_group())[group] = Measure(items, MeasurementLevel::kNominal);
  for (const auto& [name, data] : ByRater(judgements, preferences)) {
    v1::RaterQuality& rater = *report.add_raters();
    rater.set_rater(name);
    rater.set_judgements(data.judgements);
    *rater.mutable_agreement() = MeanWithInterval(data.with_others, Range::kUnit);
    rater.set_cohen_kappa(CohenKappa(data.against_majority));
    *rater.mutable_planted() = MeanWithInterval(data.planted, Range::kUnit);
    *rater.mutable_first_preferred() = MeanWithInterval(data.first, Range::kUnit);
    if (!data.seconds.empty()) rater.set_seconds_median(Median(data.seconds));
  }
  Flag(&report);
  return report;
}

}  // namespace rlhf::coordinator
