#include "bench/load_generator/load_run.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

namespace fs = std::filesystem;

constexpr int kMemorySamples = 40;  // in the window

double SizeMb(const std::string& dir) {
  double bytes = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(dir, ignored))
    bytes += entry.is_regular_file(ignored) ? static_cast<double>(entry.file_size(ignored)) : 0;
  return bytes / 1e6;
}

// Of the least-squares line through values that are `every` apart; 0 for fewer than two.
double SlopePerMinute(const std::vector<double>& values, absl::Duration every) {
  const auto n = static_cast<double>(values.size());
  double x_mean = (n - 1) / 2, y_mean = 0, products = 0, squares = 0;
  for (const double value : values) y_mean += value / n;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = static_cast<double>(i) - x_mean;
    products += x * (values[i] - y_mean);
    squares += x * x;
  }
  return squares > 0 ? products / squares / absl::ToDoubleMinutes(every) : 0;
}

absl::Status Measure(const LoadOptions& options, LoadCluster& cluster, LoadResult* result) {
  CoordinatorProcess& coordinator = cluster.coordinator();
  Recorder& recorder = cluster.recorder();
  SimulatedLearner& learner = cluster.learner();
  const std::string data_dir = cluster.data_dir();
  absl::SleepFor(absl::Seconds(options.warmup_seconds));
  RLHF_ASSIGN_OR_RETURN(const ProcessUsage before, UsageOf(coordinator.pid()));
  RLHF_ASSIGN_OR_RETURN(const ProcessUsage own_before, UsageOf(getpid()));
  const double size_before = SizeMb(data_dir);
  const int64_t steps_before = learner.committed();
  const absl::Time started = absl::Now();
  recorder.Begin();
  const absl::Duration every = absl::Seconds(options.seconds) / kMemorySamples;
  for (int i = 1; i <= kMemorySamples; ++i) {
    absl::SleepFor(std::max(absl::ZeroDuration(), started + i * every - absl::Now()));
    RLHF_ASSIGN_OR_RETURN(const ProcessUsage now, UsageOf(coordinator.pid()));
    result->resident_mb.push_back(now.resident_mb);
  }
  recorder.End();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - started);
  RLHF_ASSIGN_OR_RETURN(const ProcessUsage after, UsageOf(coordinator.pid()));
  RLHF_ASSIGN_OR_RETURN(const ProcessUsage own_after, UsageOf(getpid()));
  result->window_seconds = seconds;
  result->calls = recorder.Summaries();
  result->leases_per_second = static_cast<double>(result->calls["LeasePrompts"].items) / seconds;
  result->samples_per_second = static_cast<double>(result->calls["SubmitSamples"].items) / seconds;
  result->coordinator_cores = (after.cpu_seconds - before.cpu_seconds) / seconds;
  result->generator_cores = (own_after.cpu_seconds - own_before.cpu_seconds) / seconds;
  result->resident_mb_begin = before.resident_mb;
  result->resident_mb_end = after.resident_mb;
  result->peak_mb = after.peak_mb;
  // The first half may still fill caches.
  result->resident_mb_per_minute = SlopePerMinute(
      std::vector<double>(result->resident_mb.begin() + kMemorySamples / 2, result->resident_mb.end()), every);
  result->payload_mb_per_second = (SizeMb(data_dir) - size_before) / seconds;
  result->steps = learner.committed() - steps_before;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options) {
  RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<LoadCluster> cluster, LoadCluster::Start(options));
  LoadResult result;
  RLHF_RETURN_IF_ERROR(Measure(options, *cluster, &result));
  cluster->StopFleet();
  if (!options.leave_running) RLHF_RETURN_IF_ERROR(CancelJob(cluster->api(), cluster->job_id()));
  if (options.limits) {
    RLHF_ASSIGN_OR_RETURN(result.disk, MeasureDisk(cluster->dir()));
    RLHF_ASSIGN_OR_RETURN(result.refused_submits_per_second,
                          MeasureRefusedSubmits(cluster->some_channels(), options.response_tokens));
  }
  RLHF_ASSIGN_OR_RETURN(const v1::GetLedgerResponse ledger, CheckLedger(cluster->api(), cluster->job_id(), true));
  result.issued = ledger.counts().issued();
  result.trained = ledger.counts().trained();
  result.violations.assign(ledger.violations().begin(), ledger.violations().end());
  result.failures = cluster->recorder().Failures();
  cluster->coordinator().Signal(SIGTERM);
  if (const int code = cluster->coordinator().Wait(); code != 0)
    return absl::InternalError(absl::StrCat("the coordinator ended with ", code));
  return result;
}

std::string ToJson(const LoadOptions& options, const LoadResult& result) {
  nlohmann::ordered_json json;
  json["workers"] = options.workers;
  json["response_tokens"] = options.response_tokens;
  json["samples_per_lease"] = options.samples_per_lease;
  json["tls"] = !options.insecure;
  json["window_seconds"] = result.window_seconds;
  json["leases_per_second"] = result.leases_per_second;
  json["samples_per_second"] = result.samples_per_second;
  for (const auto& [name, call] : result.calls) {
    json["calls"][name] = {{"calls", call.calls},     {"items", call.items},   {"failures", call.failures},
                           {"p50_ms", call.p50_ms},   {"p90_ms", call.p90_ms}, {"p99_ms", call.p99_ms},
                           {"p999_ms", call.p999_ms}, {"max_ms", call.max_ms}};
  }
  json["steps"] = result.steps;
  json["coordinator_cores"] = result.coordinator_cores;
  json["generator_cores"] = result.generator_cores;
  json["resident_mb"] = {{"begin", result.resident_mb_begin},
                         {"end", result.resident_mb_end},
                         {"peak", result.peak_mb},
                         {"growth_per_minute", result.resident_mb_per_minute},
                         {"through_the_window", result.resident_mb}};
  json["data_mb_per_second"] = result.payload_mb_per_second;
  json["ledger"] = {{"issued", result.issued}, {"trained", result.trained}, {"violations", result.violations}};
  if (options.limits) {
    json["limits"] = {
        {"disk_append_mb_per_second", result.disk.append_mb_per_second},
        {"disk_syncs_per_second", result.disk.syncs_per_second},
        {"refused_submits_per_second", result.refused_submits_per_second},
        {"share_of_disk", result.payload_mb_per_second / result.disk.append_mb_per_second},
        {"share_of_grpc", result.samples_per_second / options.samples_per_lease / result.refused_submits_per_second}};
  }
  if (!result.failures.empty()) json["failures"] = result.failures;
  return json.dump(2);
}

}  // namespace rlhf::bench
