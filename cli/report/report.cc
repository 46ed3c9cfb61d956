#include "cli/report/report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "cli/metric_order.h"
#include "cli/report/svg.h"
#include "google/protobuf/util/time_util.h"

namespace rlhf::cli {
namespace {

constexpr int kSideBySideEach = 8;  // answers a category

constexpr char kHead[] =
    R"(<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root{--bg:#fff;--fg:#1c2024;--dim:#60646c;--line:#d9d9e0;--card:#f9f9fb;--good:#18794e;--bad:#c62a2f;--c0:#0b68cb;--c1:#c2410c;--c2:#18794e;--c3:#7c3aed}
@media (prefers-color-scheme:dark){:root{--bg:#111113;--fg:#edeef0;--dim:#b0b4ba;--line:#363a3f;--card:#18191b;--good:#3dd68c;--bad:#ff9592;--c0:#70b8ff;--c1:#ffa057;--c2:#3dd68c;--c3:#baa7ff}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--bg);color:var(--fg);max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:1rem}.chart{background:var(--card);border:1px solid var(--line);border-radius:8px;width:100%}
.chart .title{font:600 12px system-ui;fill:var(--fg)}.chart .tick{font:10px system-ui;fill:var(--dim)}.chart .grid{stroke:var(--line);stroke-width:.5}
.chart .line{fill:none;stroke-width:1.6}.good{color:var(--good)}.bad{color:var(--bad)}code{font-size:.85em}.answer{white-space:pre-wrap}
</style>)";

std::string Interval(const v1::Metric& metric) {
  if (!metric.has_low() || !metric.has_high()) return absl::StrFormat("%.4g", metric.value());
  return absl::StrFormat("%.4g <span class=\"dim\">[%.4g, %.4g]</span>", metric.value(), metric.low(), metric.high());
}

// Means of scores have intervals, too, that are not between 0 and 1.
bool IsRate(const v1::Metric& metric) {
  return metric.has_low() && metric.low() >= 0 && metric.has_high() && metric.high() <= 1;
}

std::string Percent(const v1::Metric& metric) {
  if (!IsRate(metric)) return Interval(metric);
  return absl::StrFormat("%.1f %% <span class=\"dim\">[%.1f, %.1f]</span>", 100 * metric.value(), 100 * metric.low(),
                         100 * metric.high());
}

bool SmallerIsBetter(const std::string& name) {
  return absl::StrContains(name, "hallucination") || absl::StrContains(name, "over_claim") ||
         absl::StrContains(name, "needless");
}

// Metrics as a reader looks for them; slices ("name{tag=value}") apart.
struct Rows {
  std::vector<std::pair<std::string, v1::Metric>> totals, slices;
};
Rows InOrder(const std::map<std::string, v1::Metric>& metrics) {
  Rows rows;
  for (auto& row : MetricsInOrder(metrics))
    (absl::StrContains(row.first, '{') ? rows.slices : rows.totals).push_back(std::move(row));
  return rows;
}

// A table of the totals and, folded, one of the slices. `row` gives a <tr> of a metric.
std::string Tables(const std::string& head, const Rows& rows,
                   absl::FunctionRef<std::string(const std::string&, const v1::Metric&)> row) {
  const auto table = [&](const auto& list) {
    std::string out = absl::StrCat("<table><thead><tr>", head, "</tr></thead><tbody>");
    for (const auto& [name, metric] : list) absl::StrAppend(&out, row(name, metric));
    return out + "</tbody></table>";
  };
  std::string out;
  if (!rows.totals.empty()) absl::StrAppend(&out, table(rows.totals));
  if (!rows.slices.empty())
    absl::StrAppend(&out, "<details><summary>By slice</summary>", table(rows.slices), "</details>");
  return out;
}

std::string BeforeAfter(const ReportStage& before, const ReportStage& after) {
  const auto& first = before.job.result().metrics();
  std::map<std::string, v1::Metric> both;
  for (const auto& [name, metric] : after.job.result().metrics()) {
    if (first.contains(name)) both[name] = metric;
  }
  const auto row = [&first](const std::string& name, const v1::Metric& metric) {
    const v1::Metric& old = first.at(name);
    const bool rate = IsRate(old) && IsRate(metric);
    const double change = (metric.value() - old.value()) * (rate ? 100 : 1);
    const bool judged = absl::StrContains(name, "hallucination") || absl::StrContains(name, "over_claim") ||
                        absl::StrContains(name, "accuracy") || absl::StrContains(name, "needless");
    // Inside the other's interval: no news.
    const bool clear = rate && (metric.value() < old.low() || metric.value() > old.high());
    const char* tone = !judged || !clear ? "dim" : (change < 0) == SmallerIsBetter(name) ? "good" : "bad";
    return absl::StrFormat(
        "<tr><td>%s</td><td class=\"n\">%s</td><td class=\"n\">%s</td><td class=\"n %s\">%+.3g</td><td "
        "class=\"n\">%d</td></tr>",
        HtmlEscape(name), rate ? Percent(old) : Interval(old), rate ? Percent(metric) : Interval(metric), tone, change,
        metric.n());
  };
  return Tables(
             "<th>Metric</th><th class=\"n\">Before</th><th class=\"n\">After</th><th class=\"n\">Change</th><th "
             "class=\"n\">n</th>",
             InOrder(both), row) +
         "<p class=\"dim\">Rates in per cent with 95 % intervals; changes of rates in points.</p>";
}

// What an evaluation measured against an earlier policy, overall and by slice.
std::string Against(const ReportStage& stage) {
  std::map<std::string, v1::Metric> chosen;
  for (const auto& [name, metric] : stage.job.result().metrics()) {
    const std::string kind = name.substr(0, name.find('{'));
    if (kind == "win_rate" || kind == "score_change" || kind == "length_change" || kind.rfind("disparity", 0) == 0)
      chosen[name] = metric;
  }
  if (chosen.empty()) return "";
  const auto row = [](const std::string& name, const v1::Metric& metric) {
    const bool rate = absl::StartsWith(name, "win_rate");
    return absl::StrFormat("<tr><td>%s</td><td class=\"n\">%s</td><td class=\"n\">%d</td></tr>", HtmlEscape(name),
                           rate ? Percent(metric) : Interval(metric), metric.n());
  };
  return Tables("<th>Metric</th><th class=\"n\">Value</th><th class=\"n\">n</th>", InOrder(chosen), row) +
         "<p class=\"dim\">With 95 % intervals over prompts; win rates in per cent, lengths in bytes.</p>";
}

// How often people preferred a stage's samples to those of another policy.
std::string WinRatesByPeople(const v1::Job& job) {
  std::map<std::string, v1::Metric> chosen;
  if (!job.spec().has_collect()) return "";
  for (const auto& [name, metric] : job.result().metrics()) {
    const std::string kind = name.substr(0, name.find('{'));
    if (kind == "win_rate" || absl::EndsWith(kind, ".win_rate")) chosen[name] = metric;
  }
  if (chosen.empty()) return "";
  const auto row = [](const std::string& name, const v1::Metric& metric) {
    return absl::StrFormat("<tr><td>%s</td><td class=\"n\">%s</td><td class=\"n\">%d</td></tr>", HtmlEscape(name),
                           Percent(metric), metric.n());
  };
  return Tables("<th>Metric</th><th class=\"n\">Won</th><th class=\"n\">n</th>", InOrder(chosen), row) +
         "<p class=\"dim\">In per cent, a tie is one half, with 95 % intervals over prompts; n is "
         "judgements.</p>";
}

std::string SideBySide(const ReportStage& before, const ReportStage& after) {
  std::map<std::string, const v1::Sample*> old;
  for (const auto& view : before.samples) old[view.sample().prompt().id()] = &view.sample();
  std::map<std::string, int> shown;
  std::string rows;
  for (const auto& view : after.samples) {
    const v1::Sample& sample = view.sample();
    const auto found = old.find(sample.prompt().id());
    if (found == old.end() || shown[sample.prompt().category()] >= kSideBySideEach) continue;
    ++shown[sample.prompt().category()];
    absl::StrAppend(&rows, "<tr><td>", HtmlEscape(sample.prompt().category()), "</td><td class=\"answer\">",
                    HtmlEscape(sample.prompt().text()), "</td><td class=\"answer\">",
                    HtmlEscape(found->second->response_text()), "</td><td class=\"answer\">",
                    HtmlEscape(sample.response_text()), "</td><td class=\"dim\">",
                    HtmlEscape(sample.prompt().reference()), "</td></tr>");
  }
  if (rows.empty()) return "";
  return absl::StrCat(
      "<table><thead><tr><th>Category</th><th>Prompt</th><th>Before</th><th>After</th><th>Known "
      "answer</th></tr></thead><tbody>",
      rows, "</tbody></table>");
}

// Curves that belong on one chart.
struct Panel {
  const char* title;
  std::vector<std::pair<const char*, const char*>> series;  // metric, label
  bool only_above_0 = false;
};
const std::vector<Panel>& Panels() {
  static const auto* panels = new std::vector<Panel>{
      {"Reward", {{"reward/mean", "reward"}, {"gold/mean", "gold"}}},
      {"KL to the reference, nats a sequence", {{"kl", "kl"}}},
      {"Loss", {{"loss", "loss"}}},
      {"Policy loss", {{"loss/policy", "policy"}}},
      {"KL in the loss, a token, before its coefficient", {{"loss/kl", "kl"}}},
      {"Value loss", {{"loss/value", "value"}}},
      {"Supervised loss (ptx)", {{"loss/ptx", "ptx"}}},
      {"Accuracy", {{"accuracy", "accuracy"}}},
      {"Entropy, nats a token", {{"entropy", "entropy"}}},
      {"Response length, tokens", {{"response_length", "tokens"}}},
      {"Share of answers that the model's context cut", {{"monitor/cut_by_context", "cut"}}, /*only_above_0=*/true},
      {"Clipped share", {{"clip_ratio", "clipped"}}},
      {"Gradient norm", {{"grad_norm", "model"}, {"grad_norm/policy", "policy"}, {"grad_norm/critic", "critic"}}},
      {"First minibatch: largest |ratio − 1|", {{"first_minibatch_ratio_error", "error"}}},
      {"Explained variance of the critic", {{"explained_variance", "explained"}}},
      {"Samples a second", {{"samples_per_second", "samples/s"}}},
  };
  return *panels;
}

std::string OverOptimization(const ReportStage& stage);
std::string GoldByCategory(const ReportStage& stage);
std::string Calibration(const v1::Job& job);
std::string RewardModelTable(const v1::Job& job);

std::string Curves(const ReportStage& stage) {
  // Of a stage that learns nothing the only curve would be its speed.
  const bool learns =
      !stage.job.spec().has_evaluate() && !stage.job.spec().has_sample() && !stage.job.spec().has_collect();
  std::string charts;
  for (const Panel& panel : learns ? Panels() : std::vector<Panel>()) {
    std::vector<Series> series;
    for (const auto& [metric, label] : panel.series) {
      Series one{label, {}};
      for (const auto& point : stage.points) {
        const auto value = point.values().find(metric);
        if (value != point.values().end() && std::isfinite(value->second))
          one.points.emplace_back(point.step(), value->second);
      }
      const bool shown = !panel.only_above_0 || std::any_of(one.points.begin(), one.points.end(),
                                                            [](const auto& point) { return point.second > 0; });
      if (shown && one.points.size() > 1) series.push_back(std::move(one));
    }
    if (!series.empty()) charts += LineChart(panel.title, "step", series);
  }
  absl::StrAppend(&charts, OverOptimization(stage), GoldByCategory(stage), Calibration(stage.job));
  const std::string table = stage.job.spec().has_reward_model() ? RewardModelTable(stage.job) : "";
  return charts.empty() ? table : absl::StrCat(table, "<div class=\"charts\">", charts, "</div>");
}

std::string NameOf(const v1::Job& job) {
  const std::string name = job.stage().empty() ? job.spec().name() : job.stage();
  return job.round() > 1 || job.repeat() > 0
             ? absl::StrCat(name, ", round ", job.round(), job.repeat() > 0 ? absl::StrCat(".", job.repeat()) : "")
             : name;
}

// How proxy and gold reward part as the policy leaves the reference (Gao et al. 2022).
std::string OverOptimization(const ReportStage& stage) {
  std::vector<Series> series;
  for (const auto& [metric, label] :
       {std::pair("monitor/score", "reward (proxy)"), std::pair("monitor/gold", "gold")}) {
    Series one{label, {}};
    for (const auto& point : stage.points) {
      const auto kl = point.values().find("kl"), value = point.values().find(metric);
      if (kl == point.values().end() || value == point.values().end() || !(kl->second >= 0)) continue;
      if (!std::isfinite(kl->second) || !std::isfinite(value->second)) continue;
      one.points.emplace_back(std::sqrt(kl->second), value->second);
    }
    std::sort(one.points.begin(), one.points.end());
    if (one.points.size() > 1) series.push_back(std::move(one));
  }
  if (series.empty()) return "";
  return LineChart("Proxy and gold reward over √KL", "√KL, nats½ a sequence", series);
}

// Gold by category: the mean hides a category that is lost.
std::string GoldByCategory(const ReportStage& stage) {
  std::map<std::string, Series> by_category;
  for (const auto& point : stage.points) {
    for (const auto& [name, value] : point.values()) {
      if (!absl::StartsWith(name, "monitor/gold/") || !std::isfinite(value)) continue;
      Series& series = by_category[name];
      series.name = name.substr(13);
      series.points.emplace_back(point.step(), value);
    }
  }
  std::vector<Series> series;
  for (auto& [name, one] : by_category) {
    if (one.points.size() > 1) series.push_back(std::move(one));
  }
  return series.empty() ? "" : LineChart("Gold reward by category", "step", series);
}

// How sure a model was against how often it was right; a calibrated one lies on the diagonal.
std::string Calibration(const v1::Job& job) {
  Series found{"found", {}}, ideal{"calibrated", {}};
  for (int bin = 0; bin < 10; ++bin) {
    const auto sure = job.result().metrics().find(absl::StrCat("calibration.confidence/", bin));
    const auto right = job.result().metrics().find(absl::StrCat("calibration/", bin));
    if (sure == job.result().metrics().end() || right == job.result().metrics().end()) continue;
    found.points.emplace_back(sure->second.value(), right->second.value());
    ideal.points.emplace_back(sure->second.value(), sure->second.value());
  }
  if (found.points.empty()) return "";
  const auto ece = job.result().metrics().find(job.spec().has_evaluate() ? "calibration.ece" : "ece");
  return LineChart(
      absl::StrFormat("Calibration, ECE %.3f", ece == job.result().metrics().end() ? 0 : ece->second.value()),
      "how sure", {ideal, found});
}

// A reward model beside what needs no model.
std::string RewardModelTable(const v1::Job& job) {
  std::string rows;
  const auto add = [&rows](const std::string& name, const v1::Metric& metric) {
    const bool rate = !absl::StrContains(name, "loss") && !absl::StrContains(name, "correlation");
    absl::StrAppendFormat(&rows, "<tr><td>%s</td><td class=\"n\">%s</td><td class=\"n\">%d</td></tr>", HtmlEscape(name),
                          rate ? Percent(metric) : Interval(metric), metric.n());
  };
  for (const char* name : {"accuracy", "baseline.length.accuracy", "baseline.random.accuracy",
                           "accuracy{against length}", "length_correlation", "log_loss", "ece"}) {
    const auto metric = job.result().metrics().find(name);
    if (metric != job.result().metrics().end()) add(name, metric->second);
  }
  for (const auto& [name, metric] :
       std::map<std::string, v1::Metric>(job.result().metrics().begin(), job.result().metrics().end())) {
    if (absl::StrContains(name, "{criterion=")) add(name, metric);
  }
  if (rows.empty()) return "";
  return absl::StrCat(
      "<table><thead><tr><th>On held-out prompts</th><th class=\"n\">Value</th><th "
      "class=\"n\">n</th></tr></thead><tbody>",
      rows, "</tbody></table>");
}

// The last evaluation of every round side by side.
std::string ByRound(const v1::Job& job) {
  const int rounds = job.spec().pipeline().rounds();
  if (rounds < 2) return "";
  std::map<std::string, std::map<int, v1::Metric>, decltype(&MetricComesBefore)> rows(&MetricComesBefore);
  for (const auto& [name, metric] : job.result().metrics()) {
    if (!absl::StartsWith(name, "round")) continue;
    const size_t dot = name.find('.');
    const int round = std::atoi(name.c_str() + 5);
    const std::string rest = name.substr(dot + 1);
    const bool shown = absl::StrContains(rest, "accuracy") || absl::StrContains(rest, "hallucination") ||
                       absl::StrContains(rest, "over_claim") || absl::StrContains(rest, "needless") ||
                       absl::StrContains(rest, "win_rate") || absl::EndsWith(rest, ".comparisons") ||
                       absl::EndsWith(rest, ".kl");
    if (shown && !absl::StrContains(rest, "{")) rows[rest][round] = metric;
  }
  if (rows.empty()) return "";
  std::string out = "<h2>By round</h2><table><thead><tr><th>Metric</th>";
  for (int round = 1; round <= rounds; ++round) absl::StrAppend(&out, "<th class=\"n\">Round ", round, "</th>");
  absl::StrAppend(&out, "</tr></thead><tbody>");
  for (const auto& [name, values] : rows) {
    absl::StrAppend(&out, "<tr><td>", HtmlEscape(name), "</td>");
    for (int round = 1; round <= rounds; ++round) {
      const auto value = values.find(round);
      absl::StrAppend(&out, "<td class=\"n\">", value == values.end() ? "" : Percent(value->second), "</td>");
    }
    absl::StrAppend(&out, "</tr>");
  }
  return out + "</tbody></table>";
}

std::string StageTable(const ReportData& data) {
  std::string out =
      "<table><thead><tr><th>Stage</th><th>State</th><th class=\"n\">Seconds</th><th "
      "class=\"n\">Steps</th><th>Made</th></tr></thead><tbody>";
  for (const ReportStage& stage : data.stages) {
    double seconds = 0;
    if (stage.job.has_finished_at() && stage.job.has_started_at()) {
      seconds = static_cast<double>(google::protobuf::util::TimeUtil::DurationToMilliseconds(stage.job.finished_at() -
                                                                                             stage.job.started_at())) /
                1e3;
    }
    std::string made;
    for (const auto& [name, digest] : std::map<std::string, std::string>(stage.job.result().artifacts().begin(),
                                                                         stage.job.result().artifacts().end())) {
      absl::StrAppend(&made, made.empty() ? "" : "<br>", HtmlEscape(name), " <code>", HtmlEscape(digest.substr(0, 19)),
                      "</code>");
    }
    absl::StrAppendFormat(
        &out, "<tr><td>%s</td><td>%s</td><td class=\"n\">%.1f</td><td class=\"n\">%d</td><td>%s</td></tr>",
        HtmlEscape(NameOf(stage.job)), v1::JobState_Name(stage.job.state()), seconds, stage.job.step(), made);
  }
  return out + "</tbody></table>";
}

// The last evaluation, and the first of the same suite; null where there is only one (a gate may have a suite of its
// own).
std::pair<const ReportStage*, const ReportStage*> FirstAndLast(const ReportData& data) {
  const ReportStage* last = nullptr;
  for (const ReportStage& stage : data.stages) {
    if (stage.job.spec().has_evaluate()) last = &stage;
  }
  if (last == nullptr) return {nullptr, nullptr};
  for (const ReportStage& stage : data.stages) {
    if (stage.job.spec().has_evaluate() && stage.job.spec().evaluate().suite() == last->job.spec().evaluate().suite())
      return {&stage == last ? nullptr : &stage, last};
  }
  return {nullptr, nullptr};
}

}  // namespace

std::string RenderReport(const ReportData& data) {
  std::string out =
      absl::StrCat(kHead, "<title>", HtmlEscape(data.job.spec().name()), "</title></head><body><h1>",
                   HtmlEscape(data.job.spec().name()), "</h1><p class=\"dim\">", HtmlEscape(data.job.id()), " · ",
                   v1::JobState_Name(data.job.state()), data.job.reason().empty() ? "" : " · ",
                   HtmlEscape(data.job.reason()), " · seed ", data.job.spec().seed(), "</p>");
  const auto [before, after] = FirstAndLast(data);
  if (before != nullptr && after != nullptr) {
    absl::StrAppend(&out, "<h2>Before and after</h2>", BeforeAfter(*before, *after));
    if (const std::string rows = Against(*after); !rows.empty())
      absl::StrAppend(&out, "<h2>Against the earlier policy</h2>", rows);
    if (const std::string rows = SideBySide(*before, *after); !rows.empty())
      absl::StrAppend(&out, "<h2>Answers side by side</h2>", rows);
  }
  for (const ReportStage& stage : data.stages) {
    const std::string rows = WinRatesByPeople(stage.job);
    if (!rows.empty()) absl::StrAppend(&out, "<h2>Preferred by people: ", HtmlEscape(NameOf(stage.job)), "</h2>", rows);
  }
  absl::StrAppend(&out, ByRound(data.job), "<h2>Stages</h2>", StageTable(data));
  for (const ReportStage& stage : data.stages) {
    const std::string curves = Curves(stage);
    if (!curves.empty()) absl::StrAppend(&out, "<h2>", HtmlEscape(NameOf(stage.job)), "</h2>", curves);
  }
  return out + "</body></html>\n";
}

}  // namespace rlhf::cli
