// The report of a job: what its tables and curves show.
#include "cli/report/report.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cli/metric_order.h"
#include "cli/report/svg.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::Metric Rate(double value, double low, double high, int64_t n) {
  v1::Metric metric;
  metric.set_value(value);
  metric.set_low(low);
  metric.set_high(high);
  metric.set_n(n);
  return metric;
}

v1::Metric Number(double value) {
  v1::Metric metric;
  metric.set_value(value);
  return metric;
}

ReportStage Stage(const std::string& name, int round = 0) {
  ReportStage stage;
  stage.job.set_stage(name);
  stage.job.set_state(v1::SUCCEEDED);
  stage.job.set_round(round);
  return stage;
}

using Metrics = std::map<std::string, v1::Metric>;

void Set(ReportStage* stage, const Metrics& metrics) {
  for (const auto& [name, metric] : metrics) (*stage->job.mutable_result()->mutable_metrics())[name] = metric;
}

// The part of the page from a text up to the end of the element that follows.
std::string From(const std::string& page, const std::string& text, const std::string& end) {
  const size_t at = page.find(text);
  if (at == std::string::npos) return "";
  return page.substr(at, page.find(end, at) - at);
}

TEST(ReportTest, ProxyAndGoldRewardAreDrawnOverTheRootOfTheKl) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  ReportStage& ppo = data.stages.emplace_back(Stage("ppo"));
  ppo.job.mutable_spec()->mutable_ppo();
  for (int step = 1; step <= 5; ++step) {
    v1::MetricPoint& point = ppo.points.emplace_back();
    point.set_step(step);
    auto& values = *point.mutable_values();
    values["kl"] = step * step;  // √KL: 1 to 5
    values["monitor/score"] = step;
    values["monitor/gold"] = -step;
    values["monitor/gold/known"] = 1 - 0.1 * step;
    values["monitor/gold/action"] = 0.1 * step;
  }
  const std::string page = RenderReport(data);
  const std::string chart = From(page, "aria-label=\"Proxy and gold reward over √KL\"", "</svg>");
  EXPECT_THAT(chart, HasSubstr("reward (proxy)"));
  EXPECT_THAT(chart, HasSubstr(">gold<"));
  EXPECT_THAT(chart, HasSubstr(">5<")) << "the axis is of the root: it ends at 5, not at 25";
  EXPECT_THAT(chart, Not(HasSubstr(">25<")));
  const std::string categories = From(page, "aria-label=\"Gold reward by category\"", "</svg>");
  EXPECT_THAT(categories, HasSubstr(">known<"));
  EXPECT_THAT(categories, HasSubstr(">action<"));
  // A run without a gold scorer has its proxy all the same; one without monitors has no such chart.
  for (auto& point : ppo.points) {
    point.mutable_values()->erase("monitor/gold");
    point.mutable_values()->erase("monitor/gold/known");
    point.mutable_values()->erase("monitor/gold/action");
  }
  EXPECT_THAT(RenderReport(data), HasSubstr("Proxy and gold reward over √KL"));
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("Gold reward by category")));
  for (auto& point : ppo.points) point.mutable_values()->erase("monitor/score");
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("√KL")));
}

TEST(ReportTest, TheKlInTheLossIsDrawnWhereAJobHasIt) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  ReportStage& ppo = data.stages.emplace_back(Stage("ppo"));
  ppo.job.mutable_spec()->mutable_ppo();
  for (int step = 1; step <= 3; ++step) {
    v1::MetricPoint& point = ppo.points.emplace_back();
    point.set_step(step);
    (*point.mutable_values())["kl"] = step;
    (*point.mutable_values())["loss/kl"] = step * 0.125;
  }
  const std::string chart =
      From(RenderReport(data), "aria-label=\"KL in the loss, a token, before its coefficient\"", "</svg>");
  EXPECT_THAT(chart, HasSubstr(">0.3<")) << "its axis, up to 0.375";
  // A number that is not finite is no point of any chart.
  (*ppo.points[1].mutable_values())["loss/kl"] = std::numeric_limits<double>::quiet_NaN();
  (*ppo.points[1].mutable_values())["kl"] = std::numeric_limits<double>::infinity();
  (*ppo.points[1].mutable_values())["monitor/score"] = 1;
  (*ppo.points[2].mutable_values())["monitor/score"] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(RenderReport(data), Not(testing::ContainsRegex("[^a-z](nan|inf)[^a-z]")));
  for (auto& point : ppo.points) point.mutable_values()->erase("loss/kl");
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("KL in the loss")));
}

TEST(ReportTest, ARewardModelStandsBesideItsBaselinesWithItsCalibration) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  ReportStage& reward = data.stages.emplace_back(Stage("reward"));
  reward.job.mutable_spec()->mutable_reward_model();
  Set(&reward, Metrics({{"accuracy", Rate(0.81, 0.77, 0.85, 400)},
                        {"baseline.length.accuracy", Rate(0.62, 0.57, 0.67, 400)},
                        {"baseline.random.accuracy", Number(0.5)},
                        {"accuracy{criterion=honest}", Rate(0.9, 0.85, 0.95, 200)},
                        {"ece", Number(0.043)},
                        {"calibration/5", Number(0.7)},
                        {"calibration.confidence/5", Number(0.78)},
                        {"calibration/9", Number(0.95)},
                        {"calibration.confidence/9", Number(0.97)}}));
  const std::string page = RenderReport(data);
  EXPECT_THAT(page, HasSubstr("<td>baseline.length.accuracy</td><td class=\"n\">62.0 %"));
  EXPECT_THAT(page, HasSubstr("<td>baseline.random.accuracy</td><td class=\"n\">0.5</td>"));
  EXPECT_THAT(page, HasSubstr("<td>accuracy{criterion=honest}</td><td class=\"n\">90.0 %"));
  const std::string chart = From(page, "aria-label=\"Calibration, ECE 0.043\"", "</svg>");
  EXPECT_THAT(chart, HasSubstr(">calibrated<"));
  EXPECT_THAT(chart, HasSubstr("<circle")) << "bins are points";
}

TEST(ReportTest, QualityByRoundIsATable) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  data.job.mutable_spec()->mutable_pipeline()->set_rounds(2);
  ReportStage job;
  Set(&job, Metrics({{"round1.after.unknown.hallucination", Rate(0.12, 0.10, 0.14, 1000)},
                     {"round2.after.unknown.hallucination", Rate(0.06, 0.05, 0.08, 1000)},
                     {"round2.after.win_rate", Rate(0.61, 0.58, 0.64, 1000)},
                     {"round1.collect.comparisons", Number(8500)},
                     {"round2.after.unknown.hallucination{phrasing=heldout}", Rate(0.2, 0.1, 0.3, 10)},
                     {"after.unknown.hallucination", Rate(0.06, 0.05, 0.08, 1000)}}));
  *data.job.mutable_result() = job.job.result();
  const std::string table = From(RenderReport(data), "<h2>By round</h2>", "</table>");
  EXPECT_THAT(table, HasSubstr("<th class=\"n\">Round 2</th>"));
  const std::string row = From(table, "<td>after.unknown.hallucination</td>", "</tr>");
  EXPECT_THAT(row, HasSubstr("12.0 %"));
  EXPECT_LT(row.find("12.0 %"), row.find("6.0 % <span"));
  EXPECT_THAT(From(table, "<td>after.win_rate</td>", "</tr>"),
              HasSubstr("<td class=\"n\"></td><td class=\"n\">61.0 %"));
  EXPECT_THAT(table, HasSubstr("8500"));
  EXPECT_THAT(table, Not(HasSubstr("phrasing=heldout")));
  data.job.mutable_spec()->mutable_pipeline()->set_rounds(1);
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("By round")));
}

TEST(ReportTest, BeforeAndAfterSayWhatChangedAgainstTheEarlierPolicy) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  for (const char* name : {"before", "after"}) {
    ReportStage& stage = data.stages.emplace_back(Stage(name));
    stage.job.mutable_spec()->mutable_evaluate()->set_suite("suite");
    v1::SampleView& view = stage.samples.emplace_back();
    view.mutable_sample()->mutable_prompt()->set_id("1");
    view.mutable_sample()->mutable_prompt()->set_text("Where is <Zark>?");
    view.mutable_sample()->set_response_text(name == std::string("before") ? "In Oslo." : "I do not know.");
  }
  Set(&data.stages[0], Metrics({{"action.length", Rate(0.3, 0.2, 0.4, 300)},
                                {"known.accuracy", Rate(0.99, 0.98, 1, 300)},
                                {"unknown.hallucination", Rate(0.76, 0.72, 0.80, 300)},
                                {"unknown.hallucination{dialect=north}", Rate(0.7, 0.6, 0.8, 50)}}));
  Set(&data.stages[1], Metrics({{"action.length", Rate(0.3, 0.2, 0.4, 300)},
                                {"known.accuracy", Rate(0.98, 0.97, 1, 300)},
                                {"unknown.hallucination", Rate(0.08, 0.05, 0.11, 300)},
                                {"unknown.hallucination{dialect=north}", Rate(0.1, 0.05, 0.15, 50)},
                                {"win_rate", Rate(0.8, 0.7, 0.9, 100)},
                                {"win_rate{dialect=north}", Rate(0.7, 0.6, 0.8, 50)},
                                {"score_change{dialect=south}", Rate(-0.25, -0.5, 0, 50)},
                                {"disparity_rise", Rate(0.4, 0.3, 0.5, 100)}}));
  const std::string page = RenderReport(data);
  const std::string table = From(page, "<h2>Before and after</h2>", "</table>");
  EXPECT_THAT(table, HasSubstr("class=\"n good\">-68<"));
  EXPECT_LT(table.find("unknown.hallucination"), table.find("known.accuracy")) << "what RLHF is for comes first";
  EXPECT_LT(table.find("known.accuracy"), table.find("action.length"));
  EXPECT_THAT(table, Not(HasSubstr("{"))) << "slices are folded, below";
  const std::string folded = From(page, "<details>", "</details>");
  EXPECT_THAT(folded, HasSubstr("unknown.hallucination{dialect=north}"));
  const std::string against = From(page, "<h2>Against the earlier policy</h2>", "<h2>Answers");
  EXPECT_THAT(From(against, "win_rate{dialect=north}", "</tr>"), HasSubstr("70.0 %"));
  EXPECT_THAT(From(against, "score_change{dialect=south}", "</tr>"), HasSubstr("-0.25 <span class=\"dim\">[-0.5, 0]"));
  EXPECT_THAT(against, HasSubstr("disparity_rise"));
  EXPECT_THAT(page, HasSubstr("Where is &lt;Zark&gt;?")) << "what a model says is text, never markup";
  EXPECT_THAT(page, Not(HasSubstr("<Zark>")));
}

TEST(ReportTest, WhatPeoplePreferredIsShownWithItsInterval) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  ReportStage& collect = data.stages.emplace_back(Stage("judged"));
  collect.job.mutable_spec()->mutable_collect()->set_samples("samples");
  Set(&collect, Metrics({{"comparisons", Number(400)}, {"agreement", Rate(0.8, 0.7, 0.9, 100)}}));
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("Preferred by people"))) << "nothing was compared with another policy";
  Set(&collect, Metrics({{"win_rate", Rate(0.63, 0.55, 0.71, 400)},
                         {"known.win_rate", Rate(0.5, 0.4, 0.6, 200)},
                         {"win_rate{raters=east}", Rate(0.25, 0.125, 0.375, 90)}}));
  const std::string section = From(RenderReport(data), "<h2>Preferred by people: judged</h2>", "<h2>Stages");
  EXPECT_THAT(From(section, "<td>win_rate</td>", "</tr>"), HasSubstr("63.0 % <span class=\"dim\">[55.0, 71.0]"));
  EXPECT_THAT(From(section, "<td>win_rate</td>", "</tr>"), HasSubstr(">400<"));
  EXPECT_LT(section.find("<td>known.win_rate"), section.find("<details>"));
  EXPECT_THAT(From(section, "<details>", "</details>"), HasSubstr("win_rate{raters=east}"));
  EXPECT_THAT(section, Not(HasSubstr("agreement")));
}

TEST(MetricOrderTest, IsOneWhereverMetricsAreRead) {
  std::vector<std::string> names;
  std::map<std::string, v1::Metric> metrics;
  for (const char* name : {"after.win_rate", "collect.comparisons", "known.accuracy", "action.over_claim", "a{t=1}",
                           "win_rate{t=1}", "unknown.hallucination", "known.needless_abstention", "agreement"})
    metrics[name] = Number(1);
  for (const auto& [name, metric] : MetricsInOrder(metrics)) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("unknown.hallucination", "action.over_claim", "known.accuracy",
                                          "known.needless_abstention", "after.win_rate", "agreement",
                                          "collect.comparisons", "win_rate{t=1}", "a{t=1}"));
  // The report's tables keep to it, also the one by round.
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  data.job.mutable_spec()->mutable_pipeline()->set_rounds(2);
  ReportStage job;
  Set(&job, Metrics({{"round1.after.known.accuracy", Number(1)},
                     {"round1.after.unknown.hallucination", Number(1)},
                     {"round1.collect.comparisons", Number(1)},
                     {"round1.collect.win_rate", Number(1)}}));
  *data.job.mutable_result() = job.job.result();
  const std::string table = From(RenderReport(data), "<h2>By round</h2>", "</table>");
  size_t last = 0;
  for (const char* name :
       {"after.unknown.hallucination", "after.known.accuracy", "collect.win_rate", "collect.comparisons"}) {
    EXPECT_GT(table.find(name), last) << name;
    last = table.find(name);
    EXPECT_NE(last, std::string::npos) << name;
  }
}

TEST(LineChartTest, OnePointIsSeenAndManyAreALine) {
  EXPECT_THAT(LineChart("one", "x", {{"a", {{1, 2}}}}), HasSubstr("<circle"));
  Series many{"many", {}};
  for (int i = 0; i < 50; ++i) many.points.emplace_back(i, std::sin(i));
  EXPECT_THAT(LineChart("many", "x", {many}), Not(HasSubstr("<circle")));
  EXPECT_EQ(LineChart("none", "x", {{"a", {}}}), "");
}

}  // namespace
}  // namespace rlhf::cli
