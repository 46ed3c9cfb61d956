#include "coordinator/jobs/step_watch.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

constexpr int kSamplesAPage = 1000;

}  // namespace

StepWatch::StepWatch(std::string job_id, const v1::MonitorSpec& spec, StateStore* store)
    : job_id_(std::move(job_id)), monitor_(spec) {
  (void)store->Scan(Table::kMeta, MonitorStepPrefix(job_id_), [&](absl::string_view, absl::string_view value) {
    v1::MonitorStep seen;
    seen.ParseFromArray(value.data(), static_cast<int>(value.size()));
    (void)monitor_.Add(seen);
    return true;
  });
}

std::vector<v1::Alert> StepWatch::Add(v1::MonitorStep seen, v1::MetricPoint* point, WriteBatch* writes) {
  const auto kl = point->values().find("kl");
  (*seen.mutable_values())["kl"] = kl == point->values().end() ? 0 : kl->second;
  for (const auto& [name, value] : seen.values())
    point->mutable_values()->insert({absl::StrCat("monitor/", name), value});
  writes->Put(Table::kMeta, KeyOf(MonitorStepPrefix(job_id_), {static_cast<uint64_t>(seen.step())}),
              seen.SerializeAsString());
  std::vector<v1::Alert> alarms = monitor_.Add(seen);
  if (const std::optional<double> gap = monitor_.GoldGap(); gap.has_value())
    point->mutable_values()->insert({"monitor/gold_gap", *gap});
  point->mutable_values()->insert({"monitor/alarms", static_cast<double>(alarms.size())});
  return alarms;
}

absl::StatusOr<std::vector<v1::Sample>> ReadBatch(Sampling* sampling, const std::string& job_id, int64_t step) {
  std::vector<v1::Sample> batch;
  std::string after;
  do {
    std::string next;
    RLHF_ASSIGN_OR_RETURN(std::vector<v1::SampleView> page, sampling->List(job_id, step, after, kSamplesAPage, &next));
    for (v1::SampleView& view : page) {
      if (view.row().state() != v1::TRAINED && view.row().state() != v1::ASSIGNED) continue;
      if (!view.problem().empty()) return absl::DataLossError(view.problem());
      batch.push_back(std::move(*view.mutable_sample()));
    }
    after = next;
  } while (!after.empty());
  return batch;
}

}  // namespace rlhf::coordinator
