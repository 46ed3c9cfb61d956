#include "coordinator/jobs/step_watch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

constexpr int kSamplesAPage = 1000;

// The samples of a step that was assigned or trained, in issue order, from the store; the store's error. Any thread.
absl::StatusOr<std::vector<v1::Sample>> ReadBatch(Sampling* sampling, const std::string& job_id, int64_t step) {
  std::vector<v1::Sample> batch;
  std::string after;
  do {
    std::string next;
    RLHF_ASSIGN_OR_RETURN(std::vector<v1::SampleView> page,
                          sampling->List(job_id, step, after, PageLimit(kSamplesAPage), &next));
    for (v1::SampleView& view : page) {
      if (view.row().state() != v1::TRAINED && view.row().state() != v1::ASSIGNED) continue;
      if (!view.problem().empty()) return absl::DataLossError(view.problem());
      batch.push_back(std::move(*view.mutable_sample()));
    }
    after = next;
  } while (!after.empty());
  return batch;
}

}  // namespace

StepWatch::StepWatch(JobHost* host, std::string job_id, const v1::MonitorSpec& spec)
    : host_(host), job_id_(std::move(job_id)), monitor_(spec) {
  (void)host_->deps().store->Scan(Table::kMeta, MonitorStepPrefix(job_id_),
                                  [&](absl::string_view, absl::string_view value) {
                                    v1::MonitorStep seen;
                                    seen.ParseFromArray(value.data(), static_cast<int>(value.size()));
                                    for (const v1::Alert& alarm : monitor_.Add(seen)) (void)IsNew(seen.step(), alarm);
                                    return true;
                                  });
}

void StepWatch::Begin(int64_t step, Driver::Batch batch) {
  if (observation_ != nullptr && observation_->step == step) return;
  auto observation = std::make_shared<Observation>();
  observation->step = step;
  observation_ = observation;
  const JobsDeps& deps = host_->deps();
  auto ready = host_->WhileActive(job_id_, [this, observation](std::optional<v1::MonitorStep> seen) {
    observation->seen = std::move(seen);
    observation->ready = true;
    if (observation_ != observation) return;  // of a batch that was given back
    for (auto& fn : std::exchange(waiting_, {})) fn(absl::OkStatus());
  });
  deps.batches->Run([loop = deps.loop, sampling = deps.sampling, job_id = job_id_,
                     outside_deviations = monitor_.outside_deviations(),
                     max_new_tokens = host_->Find(job_id_)->spec().ppo().sampling().max_new_tokens(), step,
                     batch = std::move(batch), ready = std::move(ready)]() mutable {
    std::optional<v1::MonitorStep> seen;
    if (batch == nullptr) {
      absl::StatusOr<std::vector<v1::Sample>> read = ReadBatch(sampling, job_id, step);
      if (read.ok()) batch = std::make_shared<const std::vector<v1::Sample>>(*std::move(read));
    }
    if (batch != nullptr) seen = ObserveStep(step, *batch, /*kl=*/0, outside_deviations, max_new_tokens);
    loop->Post([ready = std::move(ready), seen = std::move(seen)]() mutable { ready(std::move(seen)); });
  });
}

void StepWatch::WhenSeen(absl::AnyInvocable<void(absl::Status)> fn) {
  if (observation_ != nullptr && observation_->ready) return fn(absl::OkStatus());
  waiting_.push_back(std::move(fn));
}

void StepWatch::FailWaiting(const absl::Status& why) {
  for (auto& fn : std::exchange(waiting_, {})) fn(why);
}

void StepWatch::Drop(const absl::Status& why) {
  observation_ = nullptr;
  FailWaiting(why);
}

bool StepWatch::IsNew(int64_t step, const v1::Alert& alarm) {
  return told_.emplace(host_->Find(job_id_)->version().lineage(), step, alarm.monitor(), alarm.slice()).second;
}

void StepWatch::ForgetSteps(int64_t first, int64_t last, WriteBatch* writes) const {
  for (int64_t step = first; step <= last; ++step)
    writes->Erase(Table::kMeta, KeyOf(MonitorStepPrefix(job_id_), {static_cast<uint64_t>(step)}));
}

std::vector<v1::Alert> StepWatch::Add(v1::MetricPoint* point, WriteBatch* writes) {
  if (observation_ == nullptr || !observation_->seen.has_value()) return {};
  v1::MonitorStep& seen = *observation_->seen;
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
  for (const v1::Alert& alarm : alarms) {
    if (IsNew(seen.step(), alarm)) host_->AppendAlert(host_->Find(job_id_), alarm, writes);
  }
  return alarms;
}

}  // namespace rlhf::coordinator
