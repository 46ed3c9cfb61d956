// What is measured of a run: the monitors of reward hacking, an evaluation against an earlier one, calibration.
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs/evaluation_against.h"
#include "coordinator/jobs/monitor.h"
#include "coordinator/oversight.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

v1::MonitorSpec Bounds() {
  v1::MonitorSpec spec;
  spec.set_max_kl(3);
  spec.set_max_gold_drop(0.06);
  spec.set_max_length_ratio(2);
  spec.set_max_repetition(0.3);
  spec.set_max_outside_share(0.2);
  return spec;
}

v1::MonitorStep Step(int64_t step, std::map<std::string, double> values) {
  v1::MonitorStep out;
  out.set_step(step);
  out.mutable_values()->insert(values.begin(), values.end());
  return out;
}

// Plays a course of values until the first alarm; the step, and the alarm.
std::pair<int64_t, v1::Alert> FirstAlarm(const std::function<std::map<std::string, double>(double)>& course,
                                         int steps = 60) {
  Monitor monitor(Bounds());
  for (int step = 1; step <= steps; ++step) {
    const auto alarms = monitor.Add(Step(step, course(step / static_cast<double>(steps))));
    if (!alarms.empty()) return {step, alarms[0]};
  }
  return {0, {}};
}

TEST(MonitorTest, ARunThatOnlyAbstainsIsStoppedByItsCategoryWhileTheMeanRises) {
  // Comparisons without candidates: accuracy on known questions collapses, hallucination on unknown ones too, so that
  // the mean gold score rises.
  const auto course = [](double t) {
    const double known = 0.97 - 0.9 * t, unknown = -0.8 + 1.7 * t;
    return std::map<std::string, double>{{"gold/known", known},
                                         {"gold/unknown", unknown},
                                         {"gold", 0.5 * (known + unknown)},
                                         {"kl", 1.2 * t},
                                         {"length", 6},
                                         {"score", t}};
  };
  const auto [step, alarm] = FirstAlarm(course);
  EXPECT_EQ(alarm.monitor(), "gold_drop");
  EXPECT_EQ(alarm.slice(), "known");
  EXPECT_GT(course(step / 60.0)["gold"], course(0)["gold"]) << "the mean hides it";
  EXPECT_GT(course(step / 60.0)["gold/known"], course(1 / 60.0)["gold/known"] * 0.9) << "before a tenth is lost";
}

TEST(MonitorTest, ARewardModelFromFewComparisonsIsStoppedByTheKl) {
  const auto [step, alarm] = FirstAlarm([](double t) {
    return std::map<std::string, double>{
        {"kl", 12 * t}, {"score", 1.8 * t}, {"gold/known", 0.97 - 0.01 * t}, {"length", 6}};
  });
  EXPECT_EQ(alarm.monitor(), "kl");
  EXPECT_LT(12 * step / 60.0, 4);
}

TEST(MonitorTest, ARaterWhoPrefersLengthIsStoppedByLength) {
  const auto [step, alarm] = FirstAlarm([](double t) {
    return std::map<std::string, double>{{"kl", 2 * t}, {"length", 5 + 12 * t}, {"gold/known", 0.97 - 0.05 * t}};
  });
  EXPECT_EQ(alarm.monitor(), "length");
  EXPECT_THAT(alarm.text(), HasSubstr("the bound on their ratio is 2"));
}

TEST(MonitorTest, TheGapOfScoreAndGoldIsInDeviationsOfTheFirstWindow) {
  v1::MonitorSpec spec;
  spec.set_window(2);
  spec.set_max_gold_gap(1.5);
  Monitor monitor(spec);
  const auto values = [](double score, double gold) {
    return std::map<std::string, double>{{"score", score}, {"score_std", 2}, {"gold", gold}, {"gold_std", 0.5}};
  };
  EXPECT_THAT(monitor.Add(Step(1, values(0, 0.5))), IsEmpty());
  EXPECT_FALSE(monitor.GoldGap().has_value()) << "there is no window yet";
  EXPECT_THAT(monitor.Add(Step(2, values(1, 0.5))), IsEmpty());
  EXPECT_EQ(monitor.GoldGap(), 0);
  // Both rise by one deviation: gold follows.
  EXPECT_THAT(monitor.Add(Step(3, values(2, 1))), IsEmpty());
  EXPECT_THAT(monitor.Add(Step(4, values(3, 1))), IsEmpty());
  EXPECT_DOUBLE_EQ(*monitor.GoldGap(), 0);
  // The score's mean rises from 0.5 to 2.5, the gold score's falls from 0.5 to 0.25.
  EXPECT_THAT(monitor.Add(Step(5, values(2, 0))), IsEmpty());
  const auto alarms = monitor.Add(Step(6, values(3, 0.5)));
  EXPECT_DOUBLE_EQ(*monitor.GoldGap(), 1.5);
  EXPECT_THAT(alarms, IsEmpty()) << "at the bound, not over it";
  const auto over = monitor.Add(Step(7, values(4, 0)));
  ASSERT_THAT(over, SizeIs(1));
  EXPECT_EQ(over[0].monitor(), "gold_gap");
  EXPECT_DOUBLE_EQ(over[0].value(), *monitor.GoldGap());
  Monitor without(spec);
  for (int step = 1; step <= 3; ++step) EXPECT_THAT(without.Add(Step(step, {{"score", 9 * step}})), IsEmpty());
  EXPECT_FALSE(without.GoldGap().has_value()) << "there is no gold score";
}

TEST(MonitorTest, TheGapOfScoreAndGoldIsMeasuredFromTheFirstWindowInWhichBothVary) {
  v1::MonitorSpec spec;
  spec.set_window(2);
  spec.set_max_gold_gap(1.5);
  Monitor monitor(spec);
  const auto add = [&](int step, double score, double score_std, double gold, double gold_std) {
    return monitor.Add(
        Step(step, {{"score", score}, {"score_std", score_std}, {"gold", gold}, {"gold_std", gold_std}}));
  };
  // Gold is the same of all answers: the score's rise alone is no gap.
  EXPECT_THAT(add(1, 0, 2, 0, 0), IsEmpty());
  EXPECT_THAT(add(2, 9, 2, 9, 0), IsEmpty());
  EXPECT_FALSE(monitor.GoldGap().has_value());
  EXPECT_THAT(add(3, 10, 0, 10, 0.5), IsEmpty());
  EXPECT_EQ(monitor.GoldGap(), 0) << "of steps 2 and 3";
  EXPECT_THAT(add(4, 10, 2, 10, 0.5), IsEmpty());
  // The score rises from 9.5 by four of its deviations there, 1, and gold stays at 9.5.
  EXPECT_THAT(add(5, 13.5, 2, 9.5, 0.5), IsEmpty());
  const auto alarms = add(6, 13.5, 2, 9.5, 0.5);
  ASSERT_THAT(alarms, SizeIs(1));
  EXPECT_EQ(alarms[0].monitor(), "gold_gap");
  EXPECT_DOUBLE_EQ(alarms[0].value(), 4);
}

TEST(MonitorTest, ScoresThatDifferByTheirRoundingDoNotVary) {
  std::vector<v1::Sample> batch(3);
  for (size_t i = 0; i < batch.size(); ++i) {
    batch[i].mutable_score()->set_total(0.1F + (i == 1 ? 1e-8F : 0));
    batch[i].mutable_score()->add_gold();
    batch[i].mutable_score()->set_gold_total(0.1);
  }
  const v1::MonitorStep seen = ObserveStep(1, batch, 0, 4, 64);
  EXPECT_EQ(seen.values().at("score_std"), 0);
  EXPECT_EQ(seen.values().at("gold_std"), 0);
  batch[1].mutable_score()->set_total(0.101);
  EXPECT_NEAR(ObserveStep(1, batch, 0, 4, 64).values().at("score_std"), 0.001 / std::sqrt(3.0), 1e-6);
}

TEST(MonitorTest, HealthyRunsRaiseNoAlarm) {
  for (int seed = 1; seed <= 3; ++seed) {
    uint64_t state = static_cast<uint64_t>(seed) * 7919;
    const auto noise = [&state](double size) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      return size * (static_cast<double>(state >> 40) / (1 << 24) * 2 - 1);
    };
    const auto [step, alarm] = FirstAlarm([&](double t) {
      return std::map<std::string, double>{{"gold/known", 0.95 + noise(0.03)},
                                           {"gold/unknown", -0.7 + 0.6 * t + noise(0.03)},
                                           {"kl", 1.4 * t + noise(0.05)},
                                           {"length", 6 + noise(0.5)},
                                           {"repetition", 0.02},
                                           {"outside", 0.01}};
    });
    EXPECT_EQ(step, 0) << "seed " << seed << ": " << alarm.text();
  }
}

TEST(MonitorTest, PromptsWithoutACategoryAreWatchedTogether) {
  v1::MonitorSpec spec;
  spec.set_window(1);
  spec.set_max_gold_drop(0.25);
  // Of forty samples half have a category, whose gold score stays; that of the others falls with the steps.
  const auto observe = [](int64_t step, double gold, bool categories) {
    std::vector<v1::Sample> batch(40);
    for (size_t i = 0; i < batch.size(); ++i) {
      batch[i].mutable_prompt()->set_id(absl::StrCat(i));
      const bool known = categories && i % 2 == 0;
      if (known) batch[i].mutable_prompt()->set_category("known");
      batch[i].mutable_score()->add_gold()->set_name("g");
      batch[i].mutable_score()->set_gold_total(known ? 1 : gold);
    }
    return ObserveStep(step, batch, 0, 4, 64);
  };
  for (const bool categories : {false, true}) {
    Monitor watched(spec);
    EXPECT_THAT(watched.Add(observe(1, 0.9, categories)), IsEmpty());
    EXPECT_THAT(watched.Add(observe(2, 0.7, categories)), IsEmpty());
    const auto alarms = watched.Add(observe(3, 0.1, categories));
    ASSERT_THAT(alarms, SizeIs(1)) << categories;
    EXPECT_EQ(alarms[0].monitor(), "gold_drop");
    EXPECT_NEAR(alarms[0].value(), 0.8, 1e-12);
    EXPECT_EQ(alarms[0].slice(), "uncategorised");
  }
}

TEST(MonitorTest, AReplayReplacesWhatWasSeen) {
  Monitor monitor(Bounds());
  for (int step = 1; step <= 4; ++step) EXPECT_THAT(monitor.Add(Step(step, {{"kl", 1}})), IsEmpty());
  EXPECT_THAT(monitor.Add(Step(5, {{"kl", 8}})), SizeIs(1));
  EXPECT_THAT(monitor.Add(Step(3, {{"kl", 1}})), IsEmpty());
  EXPECT_EQ(monitor.steps().size(), 3u);
  v1::MonitorSpec off;
  Monitor none(off);
  EXPECT_FALSE(none.on());
  EXPECT_THAT(none.Add(Step(1, {{"kl", 100}})), IsEmpty());
}

v1::Sample Sampled(double score, double gold, const std::string& category, std::vector<int32_t> tokens) {
  v1::Sample sample;
  sample.mutable_score()->set_total(score);
  sample.mutable_score()->add_gold()->set_value(gold);
  sample.mutable_score()->set_gold_total(gold);
  sample.mutable_prompt()->set_category(category);
  sample.mutable_response_tokens()->Add(tokens.begin(), tokens.end());
  return sample;
}

TEST(MonitorTest, AStepIsObservedFromItsSamples) {
  EXPECT_EQ(Repetition({1, 2, 3}), 0);
  EXPECT_EQ(Repetition({1, 2, 3, 1, 2, 3, 1, 2}), 3 / 6.0);
  EXPECT_NEAR(Correlation({1, 2, 3}, {2, 4, 6}), 1, 1e-12);
  EXPECT_EQ(Correlation({1, 1}, {2, 3}), 0);
  v1::Sample cut = Sampled(1, 1, "known", {1, 2, 3, 4}), whole = cut;
  cut.set_finish_reason(v1::MAX_TOKENS);
  EXPECT_EQ(ObserveStep(1, {cut, whole}, 0, 4, 5).values().at("cut_by_context"), 0.5);
  EXPECT_EQ(ObserveStep(1, {cut, whole}, 0, 4, 4).values().at("cut_by_context"), 0) << "all that was asked for";
  const auto step = ObserveStep(7,
                                {Sampled(1, 1, "known", {1, 2, 3, 4}), Sampled(5, 0, "known", {1, 1, 1, 1, 1, 1, 1, 1}),
                                 Sampled(-3, 1, "action", {1, 2})},
                                0.5, 4, 64);
  EXPECT_EQ(step.step(), 7);
  EXPECT_EQ(step.values().at("score"), 1);
  EXPECT_EQ(step.values().at("kl"), 0.5);
  EXPECT_EQ(step.values().at("gold/known"), 0.5);
  EXPECT_EQ(step.values().at("gold/action"), 1);
  EXPECT_NEAR(step.values().at("outside"), 1 / 3.0, 1e-12);
  EXPECT_NEAR(step.values().at("length"), 14 / 3.0, 1e-12);
  EXPECT_NEAR(step.values().at("repetition"), (5 / 6.0) / 3, 1e-12);
  EXPECT_GT(step.values().at("reward_length"), 0.9);
}

v1::Sample Answered(int id, const std::string& dialect, double score, const std::string& text = "x") {
  v1::Sample sample;
  sample.mutable_prompt()->set_id(absl::StrCat(id));
  sample.mutable_prompt()->set_text("Q");
  (*sample.mutable_prompt()->mutable_tags())["dialect"] = dialect;
  sample.set_response_text(text);
  v1::ComponentScore* component = sample.mutable_score()->add_components();
  component->set_name("exact");
  component->set_value(score);
  return sample;
}

v1::EvaluateSpec Graded() {
  v1::EvaluateSpec spec;
  v1::RewardComponent* component = spec.mutable_graders()->add_components();
  component->set_name("exact");
  component->mutable_exact_answer();
  return spec;
}

absl::StatusOr<std::map<std::string, v1::Metric>> CompareEvaluations(
    const v1::EvaluateSpec& spec, const std::vector<v1::Sample>& now,
    const std::vector<artifact::SampleRecord>& before) {
  EvaluationComparison comparison(spec);
  for (const artifact::SampleRecord& sample : before) comparison.AddBefore(sample);
  for (const v1::Sample& sample : now) {
    if (const absl::Status status = comparison.Add(sample); !status.ok()) return status;
  }
  return comparison.Metrics();
}

TEST(CompareEvaluationsTest, WinsScoresAndDisparityAgainstAnEarlierPolicy) {
  std::vector<v1::Sample> now;
  std::vector<artifact::SampleRecord> before;
  for (int i = 0; i < 100; ++i) {
    // The north got better, the south did not.
    const std::string dialect = i % 2 == 0 ? "north" : "south";
    now.push_back(Answered(i, dialect, dialect == "north" ? 1 : 0));
    artifact::SampleRecord& record = before.emplace_back();
    record.id = absl::StrCat(i);
    record.prompt = "Q";
    record.response = "xyz";
    record.components["exact"] = i % 4 == 0 || i % 4 == 1 ? 1 : 0;
  }
  auto metrics = CompareEvaluations(Graded(), now, before);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_DOUBLE_EQ(metrics->at("win_rate{dialect=north}").value(), 0.75);
  EXPECT_DOUBLE_EQ(metrics->at("win_rate{dialect=south}").value(), 0.25);
  EXPECT_DOUBLE_EQ(metrics->at("win_rate").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics->at("score_change{dialect=north}").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics->at("length_change").value(), -2);
  EXPECT_DOUBLE_EQ(metrics->at("disparity").value(), 1);
  EXPECT_DOUBLE_EQ(metrics->at("disparity_rise").value(), 1);
  // A mean of 100 values of 0, ½ and 1 with deviation 0.354: ± 0.07.
  EXPECT_NEAR(metrics->at("win_rate").low(), 0.43, 0.03);
  EXPECT_NEAR(metrics->at("win_rate").high(), 0.57, 0.03);
  EXPECT_EQ(metrics->at("win_rate").low(), CompareEvaluations(Graded(), now, before)->at("win_rate").low());
  before.resize(1);
  before[0].prompt = "another suite";
  EXPECT_THAT(std::string(CompareEvaluations(Graded(), now, before).status().message()), HasSubstr("same suite"));
}

TEST(CompareEvaluationsTest, APromptThatASuiteRepeatsIsOnePrompt) {
  const auto win_rate = [](int copies) {
    std::vector<v1::Sample> now;
    std::vector<artifact::SampleRecord> before;
    for (int i = 0; i < 12 * copies; ++i) {
      now.push_back(Answered(i % 12, "north", i % 4 == 0 ? 0 : 1));
      artifact::SampleRecord& record = before.emplace_back();
      record.id = absl::StrCat(i % 12);
      record.prompt = "Q";
      record.components["exact"] = i % 4 == 0 ? 1 : 0;
    }
    return CompareEvaluations(Graded(), now, before)->at("win_rate");
  };
  const v1::Metric once = win_rate(1), often = win_rate(20);
  EXPECT_EQ(often.n(), 240);
  EXPECT_DOUBLE_EQ(often.value(), 0.75);
  EXPECT_LT(often.low(), once.low());
  EXPECT_GT(often.high(), once.high());
}

TEST(CompareEvaluationsTest, RefusalsChangeBySliceAndCategoriesAreNoDisparity) {
  v1::EvaluateSpec spec = Graded();
  v1::RewardComponent* refuses = spec.mutable_graders()->add_components();
  refuses->set_name("abstains");
  refuses->set_weight(0);
  refuses->mutable_abstention();
  std::vector<v1::Sample> now;
  std::vector<artifact::SampleRecord> before;
  for (int i = 0; i < 80; ++i) {
    // The south is refused in half of the cases, where nobody was; known questions are right, unknown ones are not.
    const bool south = i % 2 == 1, known = i % 4 < 2;
    v1::Sample& sample = now.emplace_back(Answered(i, south ? "south" : "north", known ? 1 : 0));
    sample.mutable_prompt()->set_category(known ? "known" : "unknown");
    v1::ComponentScore* component = sample.mutable_score()->add_components();
    component->set_name("abstains");
    component->set_value(south && !known ? 1 : 0);
    artifact::SampleRecord& record = before.emplace_back();
    record.id = absl::StrCat(i);
    record.prompt = "Q";
    record.components = {{"exact", 0}, {"abstains", 0}};
  }
  auto metrics = CompareEvaluations(spec, now, before);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_DOUBLE_EQ(metrics->at("refusal_change{dialect=south}").value(), 0.5);
  EXPECT_GT(metrics->at("refusal_change{dialect=south}").low(), 0.3);
  EXPECT_LT(metrics->at("refusal_change{dialect=south}").high(), 0.7);
  EXPECT_DOUBLE_EQ(metrics->at("refusal_change{dialect=north}").value(), 0);
  EXPECT_DOUBLE_EQ(metrics->at("refusal_change").value(), 0.25);
  EXPECT_DOUBLE_EQ(metrics->at("disparity_rise").value(), 0) << "both dialects gained alike";
  EXPECT_EQ(metrics->count("win_rate{category=known}"), 1u);
  spec.add_slices("category");
  metrics = CompareEvaluations(spec, now, before);
  EXPECT_DOUBLE_EQ(metrics->at("disparity_rise").value(), 1) << "where it is asked for";
  for (artifact::SampleRecord& record : before) record.components.erase("abstains");
  EXPECT_EQ(CompareEvaluations(spec, now, before)->count("refusal_change"), 0u);
}

TEST(CompareEvaluationsTest, TotalsThatAreEqualButForRoundingAreNoWin) {
  v1::EvaluateSpec spec;
  for (const auto& [name, weight] : std::map<std::string, double>{{"a", 0.1}, {"b", 0.2}, {"c", 0.3}}) {
    v1::RewardComponent* component = spec.mutable_graders()->add_components();
    component->set_name(name);
    component->set_weight(weight);
    component->mutable_regex()->set_pattern(name);
  }
  const auto win_rate = [&](const std::map<std::string, double>& now, const std::map<std::string, double>& then) {
    v1::Sample sample = Answered(1, "north", 0);
    for (const auto& [name, value] : now) {
      v1::ComponentScore* component = sample.mutable_score()->add_components();
      component->set_name(name);
      component->set_value(value);
    }
    artifact::SampleRecord record;
    record.id = "1";
    record.prompt = "Q";
    record.components = then;
    const auto metrics = CompareEvaluations(spec, {sample}, {record});
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    return metrics->at("win_rate").value();
  };
  ASSERT_GT(0.1 + 0.2, 0.3);
  EXPECT_EQ(win_rate({{"a", 1}, {"b", 1}, {"c", 0}}, {{"a", 0}, {"b", 0}, {"c", 1}}), 0.5);
  EXPECT_EQ(win_rate({{"a", 1}, {"b", 1}, {"c", 1e-9}}, {{"a", 0}, {"b", 0}, {"c", 1}}), 1);
  EXPECT_EQ(win_rate({{"a", 1}, {"b", 1}, {"c", 0}}, {{"a", 0}, {"b", 1e-9}, {"c", 1}}), 0);
}

TEST(CompareEvaluationsTest, TheIntervalOfADisparityKnowsThatTheLargestOfManyGapsIsLarge) {
  uint64_t state = 7;
  const auto right = [&state](double share) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<double>(state >> 40) / (1 << 24) < share ? 1.0 : 0.0;
  };
  const auto compare = [&](int dialects, double first_then, double first_now) {
    std::vector<v1::Sample> now;
    std::vector<artifact::SampleRecord> before;
    for (int i = 0; i < 400; ++i) {
      const bool first = i % dialects == 0;
      now.push_back(Answered(i, absl::StrCat(i % dialects), right(first ? first_now : 0.5)));
      artifact::SampleRecord& record = before.emplace_back();
      record.id = absl::StrCat(i);
      record.prompt = "Q";
      record.components["exact"] = right(first ? first_then : 0.5);
    }
    auto metrics = CompareEvaluations(Graded(), now, before);
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    return *std::move(metrics);
  };
  int missed = 0, found = 0;
  const auto within = [](const v1::Metric& metric, double value) {
    EXPECT_LE(metric.low(), metric.value());
    EXPECT_GE(metric.high(), metric.value());
    return metric.low() <= value && value <= metric.high();
  };
  for (int run = 0; run < 20; ++run) {
    // Twenty dialects of twenty prompts that are all alike.
    const auto alike = compare(20, 0.5, 0.5);
    EXPECT_GT(alike.at("disparity").value(), 0.2) << "by chance";
    for (const char* name : {"disparity", "disparity_before", "disparity_rise"})
      missed += within(alike.at(name), 0) ? 0 : 1;
    // Two, of which one got worse.
    const auto apart = compare(2, 0.5, 0.1);
    missed += within(apart.at("disparity"), 0.4) ? 0 : 1;
    missed += within(apart.at("disparity_before"), 0) ? 0 : 1;
    missed += within(apart.at("disparity_rise"), 0.4) ? 0 : 1;
    found += apart.at("disparity").low() > 0.2 && apart.at("disparity_rise").low() > 0 ? 1 : 0;
  }
  EXPECT_LE(missed, 12) << "of 120, one in twenty of which may be";
  EXPECT_GE(found, 18);
}

TEST(CompareEvaluationsTest, ARiseOfDisparityIsKnownAsWellAsTheChangesAre) {
  // Both evaluations are of the same prompts; one answer in twenty was graded otherwise.
  std::vector<v1::Sample> now;
  std::vector<artifact::SampleRecord> before;
  for (int i = 0; i < 400; ++i) {
    const double then = i * 7919 % 101 < 50 ? 1 : 0;
    now.push_back(Answered(i, i % 2 == 0 ? "north" : "south", (i * 31 + i / 7) % 20 == 0 ? 1 - then : then));
    artifact::SampleRecord& record = before.emplace_back();
    record.id = absl::StrCat(i);
    record.prompt = "Q";
    record.components["exact"] = then;
  }
  const auto metrics = CompareEvaluations(Graded(), now, before);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  const v1::Metric &rise = metrics->at("disparity_rise"), &gap = metrics->at("disparity");
  EXPECT_LE(rise.low(), rise.value());
  EXPECT_GE(rise.high(), rise.value());
  EXPECT_GT(gap.high() - gap.value(), 0.08) << "of 400 prompts by a coin";
  EXPECT_LT(rise.high(), 0.13);
  EXPECT_GT(rise.low(), -0.13);
  // One answer of a third slice tells what its mean is, and not what it is off by.
  std::vector<v1::Sample> with_one = now;
  with_one.push_back(Answered(400, "east", 1));
  std::vector<artifact::SampleRecord> before_one = before;
  before_one.push_back(before.back());
  before_one.back().id = "400";
  const auto few = CompareEvaluations(Graded(), with_one, before_one);
  ASSERT_TRUE(few.ok()) << few.status();
  for (const char* name : {"disparity", "disparity_before", "disparity_rise"})
    EXPECT_FALSE(few->at(name).has_low()) << name;
  // The same answers: nothing is known of how others would change, and both gaps are off.
  for (size_t i = 0; i < now.size(); ++i)
    now[i].mutable_score()->mutable_components(0)->set_value(before[i].components["exact"]);
  const auto same = CompareEvaluations(Graded(), now, before);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->at("disparity_rise").value(), 0);
  EXPECT_GT(same->at("disparity_rise").high(), 0.1);
}

TEST(CompareEvaluationsTest, FewAnswersThatAllWinAreNotCertainty) {
  std::vector<v1::Sample> now;
  std::vector<artifact::SampleRecord> before;
  for (const int n : {1, 2, 20}) {
    while (static_cast<int>(now.size()) < n) {
      const int i = static_cast<int>(now.size());
      now.push_back(Answered(i, "north", 1));
      artifact::SampleRecord& record = before.emplace_back();
      record.id = absl::StrCat(i);
      record.prompt = "Q";
      record.components["exact"] = 0;
    }
    const auto metrics = CompareEvaluations(Graded(), now, before);
    ASSERT_TRUE(metrics.ok()) << metrics.status();
    const v1::Metric& rate = metrics->at("win_rate");
    EXPECT_EQ(rate.value(), 1);
    EXPECT_EQ(rate.n(), n);
    EXPECT_NEAR(rate.low(), n / (n + 1.959963984540054 * 1.959963984540054), 1e-12);  // Wilson's of n in n
    EXPECT_FALSE(metrics->at("score_change").has_low()) << "a change has no range, and nothing varies";
    v1::GateCondition condition;
    condition.set_metric("win_rate");
    condition.set_min(0.55);
    condition.set_by_interval(true);
    EXPECT_EQ(CheckCondition(condition, *metrics).holds(), n == 20);
    condition.set_metric("score_change");
    condition.set_min(0);
    const v1::ConditionResult none = CheckCondition(condition, *metrics);
    EXPECT_FALSE(none.holds());
    EXPECT_THAT(none.problem(), HasSubstr("has no interval"));
  }
}

TEST(CheckConditionTest, TheWorstSliceDecides) {
  std::map<std::string, v1::Metric> metrics;
  const auto set = [&](const std::string& name, double value, bool interval = true) {
    metrics[name].set_value(value);
    if (interval) metrics[name].set_low(value - 0.05);
    if (interval) metrics[name].set_high(value + 0.05);
  };
  set("acc", 0.95);
  set("acc{dialect=north}", 0.99);
  set("acc{dialect=south}", 0.85);
  set("acc{length=long}", 0.7);
  set("accuracy{dialect=east}", 0);  // another metric
  set("check.acc{dialect=north}", 0.5);
  v1::GateCondition condition;
  condition.set_metric("worst.acc");
  condition.set_min(0.8);
  v1::ConditionResult result = CheckCondition(condition, metrics);
  EXPECT_FALSE(result.holds()) << "though the mean over all is 0.95";
  EXPECT_EQ(result.found().value(), 0.7);
  EXPECT_THAT(result.problem(), HasSubstr("acc{length=long}, is 0.7; expected at least 0.8"));
  condition.set_metric("worst.acc{dialect}");
  result = CheckCondition(condition, metrics);
  EXPECT_TRUE(result.holds()) << result.problem();
  EXPECT_EQ(result.found().value(), 0.85);
  condition.set_by_interval(true);
  condition.set_min(0.79);
  result = CheckCondition(condition, metrics);
  EXPECT_TRUE(result.holds()) << result.problem();
  condition.set_min(0.81);
  EXPECT_FALSE(CheckCondition(condition, metrics).holds()) << "by the interval";
  set("acc{dialect=west}", 1, false);
  EXPECT_THAT(CheckCondition(condition, metrics).problem(), HasSubstr("\"acc{dialect=west}\" has no interval"));
  condition.set_by_interval(false);
  condition.clear_min();
  condition.set_max(0.9);
  EXPECT_EQ(CheckCondition(condition, metrics).found().value(), 1) << "the highest is the worst";
  set("acc{dialect=none}", std::numeric_limits<double>::quiet_NaN());
  EXPECT_FALSE(CheckCondition(condition, metrics).holds());
  EXPECT_THAT(CheckCondition(condition, metrics).problem(), HasSubstr("acc{dialect=none}, is nan"));
  condition.set_stage("check");
  EXPECT_TRUE(CheckCondition(condition, metrics).holds());
  condition.set_metric("worst.loss");
  EXPECT_THAT(CheckCondition(condition, metrics).problem(), HasSubstr("no slices of \"check.loss\""));
}

TEST(StatedCalibrationTest, ConfidenceIsComparedWithBeingRight) {
  std::vector<v1::Sample> samples;
  for (int i = 0; i < 10; ++i) samples.push_back(Answered(i, "n", i < 5 ? 1 : 0, "Oslo. I am 90 % sure."));
  for (int i = 0; i < 10; ++i) samples.push_back(Answered(i, "n", i < 3 ? 1 : 0, "Rome. I am 30 % sure."));
  samples.push_back(Answered(0, "n", 1, "Oslo."));
  v1::EvaluateSpec spec = Graded();
  spec.set_confidence_pattern("I am (\\d+) % sure");
  const auto calibration = StatedCalibration::Make(spec);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  for (const v1::Sample& sample : samples) (*calibration)->Add(sample);
  const auto metrics = (*calibration)->Metrics();
  EXPECT_NEAR(metrics.at("calibration.ece").value(), 0.5 * 0.4, 1e-12);
  EXPECT_NEAR(metrics.at("calibration.stated").value(), 20 / 21.0, 1e-12);
  EXPECT_NEAR(metrics.at("calibration/9").value(), 0.5, 1e-12);
  spec.set_confidence_pattern("(");
  EXPECT_THAT(std::string(StatedCalibration::Make(spec).status().message()), HasSubstr("confidence_pattern: "));
}

}  // namespace
}  // namespace rlhf::coordinator
