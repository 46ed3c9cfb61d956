#include "cli/progress.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace rlhf::cli {
namespace {

struct Shown {
  const char* key;
  const char* label;
  bool only_above_0 = false;
};
constexpr Shown kShown[] = {{"samples_per_second", "samples/s"},
                            {"tokens_per_second", "tokens/s"},
                            {"loss", "loss"},
                            {"accuracy", "accuracy"},
                            {"reward/mean", "reward"},
                            {"gold/mean", "gold"},
                            {"kl", "KL"},
                            {"first_minibatch_ratio_error", "ratio error"},
                            {"monitor/cut_by_context", "cut by context", /*only_above_0=*/true}};

std::string Value(double value) {
  if (std::abs(value) >= 1000) return absl::StrFormat("%.1fk", value / 1000);
  return absl::StrFormat("%.3g", value);
}

std::string Metrics(const std::map<std::string, double>& metrics) {
  std::string out;
  for (const Shown& shown : kShown) {
    const auto found = metrics.find(shown.key);
    if (found != metrics.end() && (found->second > 0 || !shown.only_above_0))
      absl::StrAppend(&out, "  ", shown.label, " ", Value(found->second));
  }
  return out;
}

// Whose event it is: a pipeline tells its stages' metrics as its own.
const std::string& JobOf(const v1::JobEvent& event) {
  return event.has_metrics() && !event.metrics().job_id().empty() ? event.metrics().job_id() : event.job_id();
}

}  // namespace

void ProgressView::SetJob(const v1::Job& job) {
  Stage& stage = stages_[job.id()];
  stage.name = job.stage().empty() ? job.spec().name() : job.stage();
  if (!job.stage().empty() && job.round() > 1) absl::StrAppend(&stage.name, " (round ", job.round(), ")");
  stage.total = job.total_steps();
  stage.step = std::max(stage.step, job.step());
}

void ProgressView::Apply(const v1::JobEvent& event) {
  if (!event.has_metrics()) return;
  const v1::MetricPoint& point = event.metrics();
  const std::string& id = JobOf(event);
  Stage& stage = stages_[id];
  if (stage.name.empty()) stage.name = id;
  stage.step = std::max(stage.step, point.step());
  for (const auto& [key, value] : point.values()) {
    if (key == "total_steps") {
      stage.total = static_cast<int64_t>(value);
    } else {
      stage.metrics[key] = value;
    }
  }
  current_ = id;
}

std::string ProgressView::Bar(int width) const {
  const auto found = stages_.find(current_);
  if (found == stages_.end()) return "";
  const Stage& stage = found->second;
  std::string out = absl::StrFormat("%-14s ", stage.name);
  if (stage.total > 0) {
    constexpr int kCells = 24;
    const int filled = static_cast<int>(std::min<int64_t>(kCells, stage.step * kCells / stage.total));
    for (int i = 0; i < kCells; ++i) out += i < filled ? "━" : "╌";
    absl::StrAppend(&out, absl::StrFormat("  %d/%d", stage.step, stage.total));
  } else {
    absl::StrAppend(&out, "step ", stage.step);
  }
  out += Metrics(stage.metrics);
  // Cut at the terminal's width, never inside a UTF-8 sequence.
  int columns = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if ((static_cast<unsigned char>(out[i]) & 0xC0) == 0x80) continue;
    if (++columns > width) return out.substr(0, i);
  }
  return out;
}

std::string ProgressView::NameOf(const v1::JobEvent& event) const {
  const auto found = stages_.find(JobOf(event));
  return found == stages_.end() ? JobOf(event) : found->second.name;
}

std::string ProgressView::Line(const v1::JobEvent& event) const {
  switch (event.what_case()) {
    case v1::JobEvent::kState:
      return absl::StrCat(NameOf(event), " ", v1::JobState_Name(event.state().to()),
                          event.state().reason().empty() ? "" : ": ", event.state().reason());
    case v1::JobEvent::kMessage:
      return absl::StrCat(NameOf(event), ": ", event.message());
    case v1::JobEvent::kAlert:
      return absl::StrCat(NameOf(event), " ALERT ", event.alert().monitor(), ": ", event.alert().text());
    case v1::JobEvent::kMetrics: {
      const auto found = stages_.find(JobOf(event));
      const int64_t total = found == stages_.end() ? 0 : found->second.total;
      std::map<std::string, double> values(event.metrics().values().begin(), event.metrics().values().end());
      return absl::StrCat(NameOf(event), " step ", event.metrics().step(), total > 0 ? absl::StrCat("/", total) : "",
                          Metrics(values));
    }
    default:
      return "";
  }
}

}  // namespace rlhf::cli
