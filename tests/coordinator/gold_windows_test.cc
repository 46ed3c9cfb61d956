// The monitor's bound on a category's fall: what is more than chance, and what is not.
#include <map>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs/gold_windows.h"
#include "coordinator/jobs/monitor.h"

namespace rlhf::coordinator {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

// One answer each to so many prompts of each category, right with the category's probability, else wrong (-1).
v1::MonitorStep Answered(int64_t step, int prompts, const std::map<std::string, double>& right,
                         std::mt19937_64* random) {
  std::vector<v1::Sample> batch;
  for (const auto& [category, probability] : right) {
    for (int i = 0; i < prompts; ++i) {
      v1::Sample& sample = batch.emplace_back();
      sample.mutable_prompt()->set_id(absl::StrCat(category, step, "-", i));
      sample.mutable_prompt()->set_category(category);
      sample.mutable_score()->add_gold()->set_name("g");
      sample.mutable_score()->set_gold_total(std::bernoulli_distribution(probability)(*random) ? 1 : -1);
    }
  }
  return ObserveStep(step, batch, 0, 4, 64);
}

// What ObserveStep has of gold in such a step, without its samples.
v1::MonitorStep Drawn(int64_t step, int prompts, const std::map<std::string, double>& right, std::mt19937_64* random) {
  v1::MonitorStep drawn;
  drawn.set_step(step);
  for (const auto& [category, probability] : right) {
    const double mean = 2.0 * std::binomial_distribution(prompts, probability)(*random) / prompts - 1;
    (*drawn.mutable_values())[absl::StrCat("gold/", category)] = mean;
    v1::GoldSpread& spread = (*drawn.mutable_gold())[category];
    spread.set_prompts(prompts);
    spread.set_mean(mean);
    spread.set_squares(prompts * (1 - mean * mean));
  }
  return drawn;
}

v1::MonitorSpec Bound(double drop, int window) {
  v1::MonitorSpec spec;
  spec.set_max_gold_drop(drop);
  spec.set_window(window);
  return spec;
}

TEST(GoldWindowsTest, WhatDoesNotFallRaisesNoAlarmInManyJobs) {
  // Windows of 90 answers whose means have a deviation of 0.1: the best of 66 independent ones lies a quarter above the
  // rest, which is five times the bound.
  std::mt19937_64 random(7);
  int alarms = 0, over_bound = 0;
  for (int job = 0; job < 120; ++job) {
    const int steps = job < 100 ? 200 : 1000;
    Monitor monitor(Bound(0.05, 3));
    bool alarmed = false;
    double best = -1, largest = 0;
    for (int64_t step = 1; step <= steps; ++step) {
      alarmed = !monitor.Add(Drawn(step, 30, {{"action", 0.2}, {"known", 0.9}, {"unknown", 0.5}}, &random)).empty() ||
                alarmed;
      const double value = monitor.steps().back().values().at("gold/unknown");
      best = std::max(best, value);
      largest = std::max(largest, best - value);
    }
    alarms += alarmed ? 1 : 0;
    over_bound += largest > 0.05 ? 1 : 0;
  }
  EXPECT_EQ(over_bound, 120) << "the bound alone stops every job";
  EXPECT_LE(alarms, 2);
}

TEST(GoldWindowsTest, AFallIsFoundOnceItIsMoreThanChance) {
  std::mt19937_64 random(11);
  for (int job = 0; job < 20; ++job) {
    Monitor monitor(Bound(0.05, 3));
    for (int64_t step = 1; step <= 20; ++step)
      ASSERT_THAT(monitor.Add(Answered(step, 85, {{"known", 0.97}, {"unknown", 0.3}}, &random)), IsEmpty());
    // A point of the share of right answers a step: two of the score's 200.
    int64_t step = 20;
    std::vector<v1::Alert> alarms;
    while (alarms.empty() && step < 60) {
      ++step;
      alarms = monitor.Add(
          Answered(step, 85, {{"known", 0.97 - 0.01 * static_cast<double>(step - 20)}, {"unknown", 0.3}}, &random));
    }
    ASSERT_THAT(alarms, SizeIs(1)) << job;
    EXPECT_EQ(alarms[0].slice(), "known");
    EXPECT_LE(step, 36) << "job " << job << ": a sixth of the answers lost";
  }
}

TEST(GoldWindowsTest, AFewPromptsAreNeverCertain) {
  // All right, then all wrong: nothing varies within a window, but of three prompts chance can do that.
  for (const int prompts : {3, 40}) {
    std::mt19937_64 random(1);
    Monitor monitor(Bound(0.05, 1));
    EXPECT_THAT(monitor.Add(Answered(1, prompts, {{"known", 1}}, &random)), IsEmpty());
    EXPECT_THAT(monitor.Add(Answered(2, prompts, {{"known", 0}}, &random)), SizeIs(prompts == 40 ? 1 : 0)) << prompts;
  }
}

TEST(GoldWindowsTest, AnswersOfOnePromptAreOneValue) {
  // Forty answers, but to two prompts: as uncertain as two prompts are.
  const auto step = [](int64_t number, double gold) {
    std::vector<v1::Sample> batch(40);
    for (size_t i = 0; i < batch.size(); ++i) {
      batch[i].mutable_prompt()->set_id(absl::StrCat(i % 2));
      batch[i].mutable_prompt()->set_category("known");
      batch[i].mutable_score()->add_gold()->set_name("g");
      batch[i].mutable_score()->set_gold_total(gold + (i % 2 == 0 ? 0.5 : -0.5));
    }
    return ObserveStep(number, batch, 0, 4, 64);
  };
  const v1::MonitorStep seen = step(1, 1);
  EXPECT_EQ(seen.gold().at("known").prompts(), 2);
  EXPECT_EQ(seen.gold().at("known").mean(), 1);
  EXPECT_EQ(seen.gold().at("known").squares(), 0.5);
  Monitor monitor(Bound(0.05, 1));
  EXPECT_THAT(monitor.Add(seen), IsEmpty());
  EXPECT_THAT(monitor.Add(step(2, 0)), IsEmpty());
}

TEST(GoldWindowsTest, ACategoryThatNotEveryStepHasIsWatched) {
  std::mt19937_64 random(3);
  Monitor monitor(Bound(0.05, 2));
  std::vector<v1::Alert> alarms;
  for (int64_t step = 1; step <= 40; ++step) {
    std::map<std::string, double> right = {{"known", 0.9}};
    if (step % 2 == 0) right["rare"] = step <= 20 ? 1 : 0;
    alarms = monitor.Add(Answered(step, 40, right, &random));
    EXPECT_THAT(alarms, SizeIs(step >= 22 ? 1 : 0)) << step;
  }
  ASSERT_THAT(alarms, SizeIs(1));
  EXPECT_EQ(alarms[0].slice(), "rare");
  EXPECT_EQ(alarms[0].value(), 2);
}

TEST(GoldWindowsTest, StepsOfEarlierReleasesAreComparedByTheBound) {
  std::mt19937_64 random(3);
  Monitor monitor(Bound(0.05, 1));
  v1::MonitorStep old;
  old.set_step(1);
  (*old.mutable_values())["gold/known"] = 0.7;
  EXPECT_THAT(monitor.Add(old), IsEmpty());
  EXPECT_THAT(monitor.Add(Answered(2, 5, {{"known", 0}}, &random)), SizeIs(1));
  EXPECT_THAT(monitor.Add(Answered(2, 5, {{"known", 1}}, &random)), IsEmpty()) << "the step was given back";
}

}  // namespace
}  // namespace rlhf::coordinator
