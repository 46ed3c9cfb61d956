// The report of a job: what its tables and curves show.
#include "cli/report/report.h"

#include <algorithm>
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
  // Whatever order the steps are in; an estimate below zero has no root.
  const std::string line = From(chart, "class=\"line\"", "/>");
  std::reverse(ppo.points.begin(), ppo.points.end());
  v1::MetricPoint& below = ppo.points.emplace_back(ppo.points.front());
  (*below.mutable_values())["kl"] = -0.5;
  EXPECT_EQ(
      From(From(RenderReport(data), "aria-label=\"Proxy and gold reward over √KL\"", "</svg>"), "class=\"line\"", "/>"),
      line);
  ppo.points.pop_back();
  std::reverse(ppo.points.begin(), ppo.points.end());
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
                        {"log_loss{criterion=honest}", Rate(0.45, 0.4, 0.5, 200)},
                        {"ece", Number(0.043)},
                        {"log_loss", Rate(0.5, 0.4, 0.6, 400)},
                        {"calibration/5", Number(0.7)},
                        {"calibration.confidence/5", Number(0.78)},
                        {"calibration/9", Number(0.95)},
                        {"calibration.confidence/9", Number(0.97)}}));
  const std::string page = RenderReport(data);
  EXPECT_THAT(page, HasSubstr("<td>baseline.length.accuracy</td><td class=\"n\">62.0 %"));
  EXPECT_THAT(page, HasSubstr("<td>baseline.random.accuracy</td><td class=\"n\">0.5</td>"));
  EXPECT_THAT(page, HasSubstr("<td>accuracy{criterion=honest}</td><td class=\"n\">90.0 %"));
  EXPECT_THAT(page, HasSubstr("<td>log_loss{criterion=honest}</td><td class=\"n\">0.45"));
  const std::string chart = From(page, "aria-label=\"Calibration, ECE 0.043\"", "</svg>");
  EXPECT_THAT(chart, HasSubstr(">calibrated<"));
  EXPECT_THAT(chart, HasSubstr("<circle")) << "bins are points";
  EXPECT_THAT(page, HasSubstr("<td>log_loss</td><td class=\"n\">0.5 <span class=\"dim\">[0.4, 0.6]")) << "in nats";
  const Series ideal{"calibrated", {{0.78, 0.78}, {0.97, 0.97}}}, found{"found", {{0.78, 0.7}, {0.97, 0.95}}};
  EXPECT_THAT(page, HasSubstr(LineChart("Calibration, ECE 0.043", "how sure", {ideal, found})));
  // Of the confidence that an evaluation's answers state, too; of that nothing else is drawn.
  data.stages[0].job.mutable_spec()->mutable_evaluate();
  Set(&reward, Metrics({{"calibration.ece", Number(0.25)}}));
  for (int step = 1; step < 3; ++step) {
    v1::MetricPoint& point = reward.points.emplace_back();
    point.set_step(step);
    (*point.mutable_values())["samples_per_second"] = step;
  }
  const std::string evaluated = RenderReport(data);
  EXPECT_THAT(evaluated, HasSubstr(LineChart("Calibration, ECE 0.250", "how sure", {ideal, found})));
  EXPECT_THAT(evaluated, Not(HasSubstr("Samples a second")));
  EXPECT_THAT(evaluated, Not(HasSubstr("On held-out prompts")));
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
                     {"round2.ppo.kl", Number(3.25)},
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
  EXPECT_THAT(From(table, "<td>ppo.kl</td>", "</tr>"), HasSubstr("3.25"));
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
                                {"helpful", Rate(-1.5, -1.75, -1.25, 300)},
                                {"known.needless_abstention", Rate(0.25, 0.2, 0.3, 300)},
                                {"known.accuracy", Rate(0.99, 0.98, 1, 300)},
                                {"unknown.hallucination", Rate(0.76, 0.72, 0.80, 300)},
                                {"unknown.hallucination{dialect=north}", Rate(0.7, 0.6, 0.8, 50)}}));
  Set(&data.stages[1], Metrics({{"action.length", Rate(0.3, 0.2, 0.4, 300)},
                                {"helpful", Rate(0.5, 0.25, 0.75, 300)},
                                {"known.needless_abstention", Rate(0.125, 0.1, 0.15, 300)},
                                {"only.after", Rate(0.125, 0.1, 0.15, 300)},
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
  EXPECT_THAT(From(table, "<td>known.needless_abstention", "</tr>"), HasSubstr("class=\"n good\">-12.5<"));
  EXPECT_THAT(From(table, "<td>known.accuracy", "</tr>"), HasSubstr("class=\"n dim\">-1<")) << "within the interval";
  EXPECT_THAT(
      From(table, "<td>helpful", "</tr>"),
      HasSubstr("-1.5 <span class=\"dim\">[-1.75, -1.25]</span></td><td class=\"n\">0.5 <span class=\"dim\">[0.25, "
                "0.75]</span></td><td class=\"n dim\">+2<"))
      << "a score is no rate";
  EXPECT_THAT(page, Not(HasSubstr("only.after")));
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

TEST(ReportTest, EvaluationsAreComparedWithinTheirSuite) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  const auto evaluation = [&data](const std::string& suite, double value) {
    ReportStage& stage = data.stages.emplace_back(Stage(suite));
    stage.job.mutable_spec()->mutable_evaluate()->set_suite(suite);
    Set(&stage, Metrics({{"known.accuracy", Rate(value, value - 0.01, value + 0.01, 100)}}));
  };
  evaluation("suite", 0.25);
  EXPECT_THAT(RenderReport(data), Not(HasSubstr("Before and after"))) << "there is only one";
  data.stages.clear();
  evaluation("gate", 0.125);
  evaluation("suite", 0.25);
  evaluation("suite", 0.75);
  const std::string row = From(RenderReport(data), "<td>known.accuracy", "</tr>");
  EXPECT_THAT(row, testing::AllOf(HasSubstr("25.0 %"), HasSubstr("75.0 %"), HasSubstr("class=\"n good\">+50<")));
}

TEST(ReportTest, SideBySideAreAFewAnswersOfEachCategory) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  for (const char* name : {"before", "after"}) {
    ReportStage& stage = data.stages.emplace_back(Stage(name));
    stage.job.mutable_spec()->mutable_evaluate()->set_suite("suite");
    for (int i = 0; i < 40; ++i) {
      v1::Sample& sample = *stage.samples.emplace_back().mutable_sample();
      sample.mutable_prompt()->set_id(absl::StrCat(i));
      sample.mutable_prompt()->set_category(i < 20 ? "known" : "unknown");
      sample.set_response_text(name);
    }
  }
  const std::string table = From(RenderReport(data), "<h2>Answers side by side</h2>", "</table>");
  for (const char* category : {"<td>known</td>", "<td>unknown</td>"}) {
    size_t rows = 0;
    for (size_t at = table.find(category); at != std::string::npos; at = table.find(category, at + 1)) ++rows;
    EXPECT_EQ(rows, 8u) << category;
  }
}

TEST(ReportTest, StagesAreNamedWithTheirRoundAndTook) {
  ReportData data;
  data.job.mutable_spec()->set_name("run");
  ReportStage& stage = data.stages.emplace_back(Stage("ppo", 1));
  stage.job.set_repeat(2);
  stage.job.mutable_started_at()->set_seconds(100);
  stage.job.mutable_finished_at()->set_seconds(112);
  stage.job.mutable_finished_at()->set_nanos(500'000'000);
  EXPECT_THAT(From(RenderReport(data), "<h2>Stages</h2>", "</table>"),
              HasSubstr("<td>ppo, round 1.2</td><td>SUCCEEDED</td><td class=\"n\">12.5</td>"));
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

TEST(LineChartTest, WhatIsGreaterIsFurtherUpAndRight) {
  const std::string chart = LineChart("up", "x", {{"a", {{0, 0}, {10, 1}}}, {"b", {{0, 1}}}});
  EXPECT_THAT(chart, HasSubstr("d=\"M52.0 177.5L410.0 36.5\""));
  EXPECT_THAT(chart, HasSubstr("cx=\"52.0\" cy=\"177.5\" style=\"fill:var(--c0)\""));
  EXPECT_THAT(chart, HasSubstr("cx=\"52.0\" cy=\"36.5\" style=\"fill:var(--c1)\""));
  for (const char* tick : {"end\">0<", "end\">0.5<", "end\">1<", "middle\">0<", "middle\">2<", "middle\">10<"})
    EXPECT_THAT(chart, HasSubstr(tick));
  // Neither a line that stands still nor one point divides by nothing; what is nearly zero is zero.
  for (const auto& points : {std::vector<std::pair<double, double>>{{3, 7}}, {{1, 2}, {2, 2}}})
    EXPECT_THAT(LineChart("flat", "x", {{"a", points}}), Not(testing::ContainsRegex("nan|inf")));
  EXPECT_THAT(LineChart("around", "x", {{"a", {{0, -0.3}, {1, 0.3}}}}), Not(HasSubstr("e-1")));
}

}  // namespace
}  // namespace rlhf::cli
