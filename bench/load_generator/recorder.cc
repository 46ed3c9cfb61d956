#include "bench/load_generator/recorder.h"

#include <algorithm>

namespace rlhf::bench {
namespace {

double Quantile(const std::vector<float>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1, static_cast<size_t>(q * static_cast<double>(sorted.size())))];
}

}  // namespace

void Recorder::Begin() {
  absl::MutexLock lock(&mu_);
  on_ = true;
}

void Recorder::End() {
  absl::MutexLock lock(&mu_);
  on_ = false;
}

void Recorder::Add(const std::string& what, absl::Duration took, int64_t items) {
  absl::MutexLock lock(&mu_);
  if (!on_) return;
  Series& series = series_[what];
  series.milliseconds.push_back(static_cast<float>(absl::ToDoubleMilliseconds(took)));
  series.items += items;
}

void Recorder::Fail(const std::string& what, const std::string& why) {
  absl::MutexLock lock(&mu_);
  ++failures_[what + ": " + why];
  if (on_) ++series_[what].failures;
}

std::map<std::string, Recorder::Summary> Recorder::Summaries() const {
  absl::MutexLock lock(&mu_);
  std::map<std::string, Summary> out;
  for (const auto& [what, series] : series_) {
    std::vector<float> sorted = series.milliseconds;
    std::sort(sorted.begin(), sorted.end());
    Summary& summary = out[what];
    summary.calls = static_cast<int64_t>(sorted.size());
    summary.failures = series.failures;
    summary.items = series.items;
    summary.p50_ms = Quantile(sorted, 0.5);
    summary.p90_ms = Quantile(sorted, 0.9);
    summary.p99_ms = Quantile(sorted, 0.99);
    summary.p999_ms = Quantile(sorted, 0.999);
    summary.max_ms = sorted.empty() ? 0 : sorted.back();
  }
  return out;
}

std::map<std::string, int64_t> Recorder::Failures() const {
  absl::MutexLock lock(&mu_);
  return failures_;
}

}  // namespace rlhf::bench
