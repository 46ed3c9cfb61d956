// Means with 95 % intervals, as every metric of a result, a report and a gate has them. Pure functions; bootstraps are
// seeded, so the same values give the same interval.
//
// A bootstrap of values that are all alike has no width, however few they are, and a gate that looks at an interval
// would take that for certainty. So where nothing varies the interval is Wilson's (1927) if the values have a range, 0
// to 1, and there is none if they have not: a metric without `low` and `high` opens no gate that asks for them.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "rlhf/v1/common.pb.h"

namespace rlhf {

enum class Range { kUnit, kAny };  // what values may be: 0 to 1, or anything

// Values of 0 and 1 alone, in kUnit: Wilson's interval. Others: BootstrapMean, with 200 to 1000 replicates by how many
// values there are.
v1::Metric MeanWithInterval(const std::vector<double>& values, Range range);

// The same of values that come one by one, in bounded memory. Up to kKept values the metric is MeanWithInterval's of
// them; of more, unless all are 0 and 1 in kUnit, the interval is the normal approximation, ± 1.96 standard errors:
// with so many values a bootstrap's differs by less than its own noise. Not thread-safe.
class MeanTally {
 public:
  static constexpr size_t kKept = 65'536;
  void Add(double value);
  size_t size() const { return count_; }
  v1::Metric Metric(Range range) const;

 private:
  std::vector<double> values_;  // none any more once there are more than kKept
  size_t count_ = 0;
  bool binary_ = true, alike_ = true;
  double first_ = 0, sum_ = 0;
  double mean_ = 0, squares_ = 0;  // of the differences from the mean, as they come (Welford 1962)
};

// Percentile bootstrap (Efron 1979), its percentiles as far out as Student's t of so few values is (Hesterberg 2015).
// Fewer than 2 replicates: no interval.
v1::Metric BootstrapMean(const std::vector<double>& values, Range range, int replicates, uint64_t seed);

// Mean of all values with a percentile bootstrap interval over clusters: those of one prompt are drawn together, as
// they are not independent. n counts values. No interval from fewer than two clusters; where all clusters are alike it
// is, in kUnit, Wilson's for as many observations as there are clusters, else none.
v1::Metric ClusterBootstrapMean(const std::vector<std::vector<double>>& clusters, Range range, int replicates,
                                uint64_t seed);
// Mean of values that come in clusters, as the judgements of one prompt do, which are not independent. In kUnit
// Wilson's interval for as many independent values as would vary as the clusters do (the effective sample size by the
// design effect, Kish 1965; Dean and Pagano 2015), which is no more than the values would be worth if they were
// independent; with Student's t of as many degrees of freedom as there are clusters less one, for their variance is
// estimated by them. Where each cluster has one value, 0 or 1, that is MeanWithInterval's. In kAny
// ClusterBootstrapMean's, with 200 to 1000 replicates by how many clusters there are. From fewer than two clusters no
// interval, but for one value alone in kUnit.
v1::Metric ClusteredMean(const std::vector<std::vector<double>>& clusters, Range range);
// The same of clusters by what they belong to.
template <typename Key>
v1::Metric ClusteredMean(const std::map<Key, std::vector<double>>& clusters, Range range) {
  std::vector<std::vector<double>> values;
  values.reserve(clusters.size());
  for (const auto& [key, cluster] : clusters) values.push_back(cluster);
  return ClusteredMean(values, range);
}

}  // namespace rlhf
