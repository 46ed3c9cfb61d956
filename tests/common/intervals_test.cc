// Means with intervals: how often they hold, and of what they are.
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "common/intervals.h"

namespace rlhf {
namespace {

TEST(MeanWithIntervalTest, OfRatesItIsWilsons) {
  std::vector<double> values(100, 0.0);
  for (int i = 0; i < 10; ++i) values[static_cast<size_t>(i)] = 1;
  const v1::Metric metric = MeanWithInterval(values, Range::kUnit);
  EXPECT_NEAR(metric.low(), 0.05523, 1e-4);  // R: prop.test(10, 100, correct = FALSE)
  EXPECT_NEAR(metric.high(), 0.17437, 1e-4);
  EXPECT_EQ(MeanWithInterval({}, Range::kUnit).n(), 0);
}

TEST(ClusteredMeanTest, ManyAnswersOfFewPromptsAreNotManyPrompts) {
  // Forty prompts: each answer five times, once, or of five that are independent.
  std::vector<std::vector<double>> repeated, alone, independent;
  uint64_t state = 3;
  const auto coin = [&state] {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (state >> 40) % 4 == 0 ? 0.0 : 1.0;
  };
  for (int i = 0; i < 40; ++i) {
    const double right = coin();
    repeated.emplace_back(5, right);
    alone.push_back({right});
    independent.push_back({coin(), coin(), coin(), coin(), coin()});
  }
  const auto width = [](const v1::Metric& metric) { return metric.high() - metric.low(); };
  const v1::Metric one = ClusteredMean(alone, Range::kUnit), many = ClusteredMean(repeated, Range::kUnit);
  EXPECT_EQ(one.n(), 40);
  EXPECT_EQ(many.n(), 200);
  EXPECT_DOUBLE_EQ(many.value(), one.value());
  EXPECT_GT(width(many), width(one)) << "the variance of forty clusters is estimated";
  EXPECT_NEAR(width(many), width(one), 0.05 * width(one));
  EXPECT_EQ(width(one), width(MeanWithInterval(
                            [&] {
                              std::vector<double> values;
                              for (const auto& cluster : alone) values.push_back(cluster[0]);
                              return values;
                            }(),
                            Range::kUnit)));
  EXPECT_NEAR(width(ClusteredMean(independent, Range::kUnit)), width(one) / std::sqrt(5.0), 0.15 * width(one));
  EXPECT_NEAR(width(ClusteredMean(repeated, Range::kAny)), width(ClusteredMean(alone, Range::kAny)), 0.1 * width(one));
  // Nothing varies: as many observations as there are prompts, or none.
  const std::vector<std::vector<double>> right(10, std::vector<double>(5, 1.0));
  EXPECT_NEAR(ClusteredMean(right, Range::kUnit).low(), 10 / (10 + 1.959963984540054 * 1.959963984540054), 1e-12);
  EXPECT_FALSE(ClusteredMean(right, Range::kAny).has_low());
  const v1::Metric third = ClusteredMean(std::vector<std::vector<double>>(12, {1, 0, 0}), Range::kUnit);
  EXPECT_NEAR(third.low(), 0.1381, 1e-4);  // R: prop.test(4, 12, correct = FALSE)
  // A prompt with most of the answers draws the mean to itself: without it little is known.
  std::vector<std::vector<double>> one_of_many{std::vector<double>(50, 1.0)};
  for (int i = 0; i < 10; ++i) one_of_many.push_back({i % 2 == 0 ? 1.0 : 0.0});
  const v1::Metric drawn = ClusteredMean(one_of_many, Range::kUnit);
  EXPECT_NEAR(drawn.value(), 55.0 / 60, 1e-12);
  EXPECT_LT(drawn.low(), 0.5);
  EXPECT_FALSE(ClusteredMean({{1, 0, 1}}, Range::kUnit).has_low()) << "of one prompt nothing is known of others";
  EXPECT_EQ(ClusteredMean({}, Range::kUnit).n(), 0);
}

TEST(ClusteredMeanTest, AnIntervalOfFewPromptsHoldsAsOftenAsItSays) {
  // Each prompt has a win rate of its own, uniform in 0 to 1; ten judgements of each, of which some are ties.
  uint64_t state = 11;
  const auto uniform = [&state] {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state >> 40) / (1 << 24);
  };
  for (const int prompts : {2, 3, 5, 8, 20, 60}) {
    for (const double ties : {0.0, 0.3}) {
      int held = 0;
      double width = 0;
      constexpr int kRuns = 2000;
      for (int run = 0; run < kRuns; ++run) {
        std::vector<std::vector<double>> clusters;
        for (int i = 0; i < prompts; ++i) {
          const double rate = uniform();
          std::vector<double>& cluster = clusters.emplace_back();
          for (int j = 0; j < 10; ++j) cluster.push_back(uniform() < ties ? 0.5 : uniform() < rate ? 1 : 0);
        }
        const v1::Metric metric = ClusteredMean(clusters, Range::kUnit);
        held += metric.low() <= 0.5 && 0.5 <= metric.high() ? 1 : 0;
        width += (metric.high() - metric.low()) / kRuns;
      }
      EXPECT_GT(held, 0.93 * kRuns) << prompts << " prompts, ties " << ties;
      if (prompts < 20) continue;
      EXPECT_LT(width, 5.0 / std::sqrt(prompts) * 0.3) << prompts << " prompts, ties " << ties;
    }
  }
  // Two prompts that disagree tell nothing: R: qt(0.975, 1) = 12.706.
  const v1::Metric two = ClusteredMean({{1, 1, 0}, {0, 0, 1}}, Range::kUnit);
  EXPECT_LT(two.low(), 0.05);
  EXPECT_GT(two.high(), 0.95);
}

TEST(MeanTallyTest, IsTheMeanOfAllAndItsIntervalThatOfMoreThanItKeeps) {
  const auto close = [](const v1::Metric& a, const v1::Metric& b, double within) {
    EXPECT_EQ(a.n(), b.n());
    EXPECT_NEAR(a.value(), b.value(), 1e-12);
    EXPECT_NEAR(a.low(), b.low(), within);
    EXPECT_NEAR(a.high(), b.high(), within);
  };
  for (const size_t n : {size_t{1}, size_t{1000}, MeanTally::kKept, MeanTally::kKept + 1}) {
    std::vector<double> scores, rates, alike(n, 0.5);
    MeanTally score, rate, same;
    for (size_t i = 0; i < n; ++i) {
      scores.push_back(static_cast<double>(i % 7) * static_cast<double>(i % 11) + 100);
      rates.push_back(i % 3 == 0 ? 1 : 0);
      score.Add(scores.back());
      rate.Add(rates.back());
      same.Add(0.5);
    }
    const bool kept = n <= MeanTally::kKept;
    const v1::Metric expected = MeanWithInterval(scores, Range::kAny);
    // A bootstrap of 200 replicates knows the interval's ends to about a tenth of its width.
    close(score.Metric(Range::kAny), expected, kept ? 0 : 0.15 * (expected.high() - expected.low()));
    close(rate.Metric(Range::kUnit), MeanWithInterval(rates, Range::kUnit), 1e-12);
    close(same.Metric(Range::kUnit), MeanWithInterval(alike, Range::kUnit), 1e-12);
    EXPECT_EQ(same.Metric(Range::kAny).has_low(), false);
    EXPECT_EQ(score.Metric(Range::kAny).has_low(), n > 1);
  }
  EXPECT_EQ(MeanTally().Metric(Range::kUnit).n(), 0);
}

TEST(BootstrapMeanTest, OfFewValuesItHoldsAboutAsOftenAsOfMany) {
  uint64_t state = 5;
  const auto normal = [&state] {
    double sum = -6;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      sum += static_cast<double>(state >> 40) / (1 << 24);
    }
    return sum;
  };
  // With the resamples' own 2.5 % it was 82, 89 and 92 % of the time.
  for (const auto& [values, at_least] : {std::pair{5, 0.89}, {10, 0.92}, {20, 0.93}}) {
    int held = 0, held_of_clusters = 0;
    constexpr int kRuns = 2000;
    for (int run = 0; run < kRuns; ++run) {
      std::vector<double> drawn;
      std::vector<std::vector<double>> clusters;  // of pairs that are alike: what is known is as much
      for (int i = 0; i < values; ++i) {
        drawn.push_back(normal());
        clusters.push_back({drawn.back(), drawn.back()});
      }
      const auto holds = [](const v1::Metric& metric) { return metric.low() <= 0 && 0 <= metric.high() ? 1 : 0; };
      held += holds(BootstrapMean(drawn, Range::kAny, 1000, 1));
      held_of_clusters += holds(ClusterBootstrapMean(clusters, Range::kAny, 1000, 1));
    }
    EXPECT_GT(held, at_least * kRuns) << values;
    EXPECT_LT(held, 0.97 * kRuns) << values;
    EXPECT_EQ(held_of_clusters, held) << values;
  }
}

}  // namespace
}  // namespace rlhf
