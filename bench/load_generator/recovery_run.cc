#include "bench/load_generator/recovery_run.h"

#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "common/status_util.h"

namespace rlhf::bench {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<RecoveryResult> RunRecovery(const LoadOptions& options, int64_t samples) {
  RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<LoadCluster> cluster, LoadCluster::Start(options));
  RecoveryResult result;
  const absl::Time began = absl::Now();
  while (result.before.issued() < samples || result.before.leased() == 0) {
    RLHF_ASSIGN_OR_RETURN(const v1::GetLedgerResponse ledger, CheckLedger(cluster->api(), cluster->job_id(), false));
    result.before = ledger.counts();
    absl::SleepFor(kPoll);
  }
  result.fill_seconds = absl::ToDoubleSeconds(absl::Now() - began);
  const absl::Time started = absl::Now();
  RLHF_RETURN_IF_ERROR(cluster->Restart());
  result.ready_seconds = absl::ToDoubleSeconds(cluster->coordinator().ready_after());
  RLHF_ASSIGN_OR_RETURN(const v1::GetLedgerResponse ledger, CheckLedger(cluster->api(), cluster->job_id(), false));
  result.answered_seconds = absl::ToDoubleSeconds(absl::Now() - started);
  result.after = ledger.counts();
  RLHF_ASSIGN_OR_RETURN(const ProcessUsage usage, UsageOf(cluster->coordinator().pid()));
  result.resident_mb = usage.resident_mb;
  for (const auto& file : std::filesystem::recursive_directory_iterator(cluster->data_dir()))
    result.store_mb += file.is_regular_file() ? static_cast<double>(file.file_size()) / 1e6 : 0;
  RLHF_ASSIGN_OR_RETURN(const v1::GetLedgerResponse checked, CheckLedger(cluster->api(), cluster->job_id(), true));
  result.violations.assign(checked.violations().begin(), checked.violations().end());
  return result;
}

std::string ToJson(const RecoveryResult& result) {
  nlohmann::ordered_json json;
  json["samples"] = result.after.issued();
  json["open"] = result.after.queued() + result.after.leased() + result.after.generated() + result.after.scored() +
                 result.after.assigned();
  json["fill_seconds"] = result.fill_seconds;
  json["store_mb"] = result.store_mb;
  json["ready_seconds"] = result.ready_seconds;
  json["answered_seconds"] = result.answered_seconds;
  json["resident_mb"] = result.resident_mb;
  json["violations"] = result.violations;
  return json.dump(2);
}

}  // namespace rlhf::bench
