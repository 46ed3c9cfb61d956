#include "common/intervals.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "common/split_mix64.h"

namespace rlhf {
namespace {

constexpr double kZ = 1.959963984540054;  // 97.5 % quantile of the normal distribution
constexpr uint64_t kSeed = 0x6d65616eULL;
constexpr size_t kMostDraws = 4'000'000;  // of one interval, as long as 200 replicates stay within

// 97.5 % quantile of Student's t, within 1e-3: Abramowitz and Stegun 1964, 26.7.5, which is far off for the first four.
double StudentT(double freedom) {
  constexpr double kFew[] = {12.70620, 4.30265, 3.18245, 2.77645};
  if (freedom < 5) return kFew[static_cast<size_t>(std::max(1.0, freedom)) - 1];
  const double z2 = kZ * kZ;
  const double terms[] = {(z2 + 1) / 4, ((5 * z2 + 16) * z2 + 3) / 96, (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384,
                          ((((79 * z2 + 776) * z2 + 1482) * z2 - 1920) * z2 - 945) / 92160};
  double sum = 1, power = 1;
  for (const double term : terms) sum += term * (power /= freedom);
  return kZ * sum;
}

void SetWilson(double mean, double n, v1::Metric* metric, double z = kZ) {
  const double center = (mean + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(mean * (1 - mean) / n + z * z / (4 * n * n));
  // The mean lies within, also where rounding has it otherwise.
  metric->set_low(std::min(mean, std::max(0.0, center - half)));
  metric->set_high(std::max(mean, std::min(1.0, center + half)));
}

bool IsBinary(const std::vector<double>& values, Range range) {
  return range == Range::kUnit &&
         std::all_of(values.begin(), values.end(), [](double value) { return value == 0 || value == 1; });
}

int Replicates(size_t values) {
  return static_cast<int>(std::clamp<size_t>(kMostDraws / std::max<size_t>(1, values), 200, 1000));
}

bool AllAlike(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [&](double value) { return value == values.front(); });
}

// The 95 % interval over bootstrap replicates of at least two values or clusters. Sorts the replicates. The variance
// of a resample of n is (n − 1)/n of the one that is meant, and an estimate: percentiles as far out as Student's t is
// (Hesterberg 2015, "What teachers should know about the bootstrap", 3.3).
void SetPercentiles(std::vector<double>* drawn, size_t n, v1::Metric* metric) {
  std::sort(drawn->begin(), drawn->end());
  const auto units = static_cast<double>(n);
  const double tail = std::erfc(std::sqrt(units / (units - 1)) * StudentT(units - 1) / std::sqrt(2.0)) / 2;
  const auto at = [&](double q) {
    return (*drawn)[static_cast<size_t>(std::lround(q * static_cast<double>(drawn->size() - 1)))];
  };
  metric->set_low(at(tail));
  metric->set_high(at(1 - tail));
}

}  // namespace

v1::Metric MeanWithInterval(const std::vector<double>& values, Range range) {
  if (!IsBinary(values, range) || values.empty()) {
    return BootstrapMean(values, range, Replicates(values.size()), kSeed);
  }
  v1::Metric metric;
  const auto n = static_cast<double>(values.size());
  metric.set_n(static_cast<int64_t>(values.size()));
  metric.set_value(std::accumulate(values.begin(), values.end(), 0.0) / n);
  SetWilson(metric.value(), n, &metric);
  return metric;
}

void MeanTally::Add(double value) {
  if (count_++ == 0) first_ = value;
  binary_ = binary_ && (value == 0 || value == 1);
  alike_ = alike_ && value == first_;
  sum_ += value;
  const double before = value - mean_;
  mean_ += before / static_cast<double>(count_);
  squares_ += before * (value - mean_);
  if (count_ <= kKept) {
    values_.push_back(value);
  } else if (!values_.empty()) {
    values_ = std::vector<double>();
  }
}

v1::Metric MeanTally::Metric(Range range) const {
  if (count_ <= kKept) return MeanWithInterval(values_, range);
  v1::Metric metric;
  const auto n = static_cast<double>(count_);
  metric.set_n(static_cast<int64_t>(count_));
  metric.set_value(alike_ ? first_ : sum_ / n);
  if (range == Range::kUnit && (binary_ || alike_)) {
    SetWilson(metric.value(), n, &metric);
  } else if (!alike_) {
    const double half = kZ * std::sqrt(squares_ / (n - 1) / n);
    metric.set_low(metric.value() - half);
    metric.set_high(metric.value() + half);
  }
  return metric;
}

v1::Metric BootstrapMean(const std::vector<double>& values, Range range, int replicates, uint64_t seed) {
  v1::Metric metric;
  metric.set_n(static_cast<int64_t>(values.size()));
  if (values.empty()) return metric;
  const auto n = static_cast<double>(values.size());
  const bool alike = AllAlike(values);
  metric.set_value(alike ? values.front() : std::accumulate(values.begin(), values.end(), 0.0) / n);
  if (replicates < 2) return metric;
  if (alike) {
    if (range == Range::kUnit) SetWilson(metric.value(), n, &metric);
    return metric;
  }
  SplitMix64 random(seed);
  std::vector<double> means;
  for (int r = 0; r < replicates; ++r) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) sum += values[random.Below(values.size())];
    means.push_back(sum / n);
  }
  SetPercentiles(&means, values.size(), &metric);
  return metric;
}

v1::Metric ClusterBootstrapMean(const std::vector<std::vector<double>>& clusters, Range range, int replicates,
                                uint64_t seed) {
  std::vector<std::pair<double, double>> totals;  // sum and count of each
  std::vector<double> means;
  double sum = 0, count = 0;
  for (const std::vector<double>& cluster : clusters) {
    if (cluster.empty()) continue;
    totals.emplace_back(std::accumulate(cluster.begin(), cluster.end(), 0.0), static_cast<double>(cluster.size()));
    means.push_back(totals.back().first / totals.back().second);
    sum += totals.back().first;
    count += totals.back().second;
  }
  v1::Metric metric;
  metric.set_n(static_cast<int64_t>(count));
  if (totals.empty()) return metric;
  metric.set_value(sum / count);
  if (totals.size() < 2 || replicates < 2) return metric;
  if (AllAlike(means)) {
    if (range == Range::kUnit) SetWilson(metric.value(), static_cast<double>(totals.size()), &metric);
    return metric;
  }
  SplitMix64 random(seed);
  std::vector<double> drawn;
  for (int r = 0; r < replicates; ++r) {
    double drawn_sum = 0, drawn_count = 0;
    for (size_t i = 0; i < totals.size(); ++i) {
      const auto& one = totals[random.Below(totals.size())];
      drawn_sum += one.first;
      drawn_count += one.second;
    }
    drawn.push_back(drawn_sum / drawn_count);
  }
  SetPercentiles(&drawn, totals.size(), &metric);
  return metric;
}

v1::Metric ClusteredMean(const std::vector<std::vector<double>>& clusters, Range range) {
  std::vector<double> all;
  double count = 0;
  for (const std::vector<double>& cluster : clusters) {
    all.insert(all.end(), cluster.begin(), cluster.end());
    count += cluster.empty() ? 0 : 1;
  }
  if (static_cast<double>(all.size()) == count && (range == Range::kAny || all.size() < 2 || IsBinary(all, range)))
    return MeanWithInterval(all, range);
  if (range == Range::kAny) return ClusterBootstrapMean(clusters, range, Replicates(clusters.size()), kSeed);
  const auto n = static_cast<double>(all.size()), total = std::accumulate(all.begin(), all.end(), 0.0);
  v1::Metric metric;
  metric.set_n(static_cast<int64_t>(all.size()));
  metric.set_value(total / n);
  if (count < 2) return metric;
  // Of by how much the mean would be another without each cluster, times n (the jackknife): one that has most of the
  // values draws the mean to itself, and would seem to add nothing to its error.
  double squares = 0, apart = 0;
  for (const std::vector<double>& cluster : clusters) {
    const auto size = static_cast<double>(cluster.size());
    const double error = (std::accumulate(cluster.begin(), cluster.end(), 0.0) * n - total * size) / (n - size);
    squares += error * error;
    for (const double value : cluster) apart += (value - metric.value()) * (value - metric.value());
  }
  // Below this they are alike but for rounding: as many observations as there are clusters.
  const double variance = (count - 1) / count * squares / (n * n), least = 1e-24;
  if (variance < least) {
    SetWilson(metric.value(), count, &metric);
    return metric;
  }
  const double independent = apart / (n * n);
  const double spread = metric.value() * (1 - metric.value());
  SetWilson(metric.value(), spread / std::max(variance, independent), &metric, StudentT(count - 1));
  return metric;
}

}  // namespace rlhf
