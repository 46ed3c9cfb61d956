// What sampling reads back from rows and payloads: after a restart, for lists, of jobs that have ended.
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {
namespace {

bool IsArchived(const std::string& job_id, absl::string_view key) {
  return key.size() > Ledger::RowKey(job_id, {0, 0, 0}).size();
}

}  // namespace

absl::StatusOr<v1::LedgerBase> SamplingImpl::BaseOf(const std::string& job_id) const {
  v1::LedgerBase base;
  const absl::StatusOr<std::string> stored = store_->Get(Table::kMeta, Ledger::BaseKey(job_id));
  if (absl::IsNotFound(stored.status())) {
    base.set_through_step(-1);
    return base;
  }
  RLHF_RETURN_IF_ERROR(stored.status());
  if (!base.ParseFromString(*stored)) return absl::DataLossError(absl::StrCat("ledger of ", job_id, " is damaged"));
  return base;
}

absl::Status SamplingImpl::ScanRows(const std::string& job_id, int64_t after_step,
                                    absl::FunctionRef<void(const v1::SampleRow&, bool)> fn) const {
  const std::string prefix = Ledger::Prefix(job_id);
  // Keys of a step are longer than its number: the next step's number alone comes before all of them.
  const std::string after = after_step < 0 ? "" : KeyOf(prefix, {static_cast<uint64_t>(after_step) + 1});
  v1::SampleRow row;
  bool damaged = false;
  RLHF_RETURN_IF_ERROR(
      store_->ScanAfter(Table::kSamples, prefix, after, [&](absl::string_view key, absl::string_view value) {
        if (!row.ParseFromArray(value.data(), static_cast<int>(value.size()))) damaged = true;
        if (!damaged) fn(row, IsArchived(job_id, key));
        return !damaged;
      }));
  if (damaged) return absl::DataLossError(absl::StrCat("a sample row of ", job_id, " is damaged; restore a backup"));
  return absl::OkStatus();
}

absl::StatusOr<v1::Sample> SamplingImpl::ReadSample(const v1::SampleRow& row) const {
  if (row.freed()) return absl::DataLossError("its text and tokens were freed by the job's retention");
  v1::Sample sample;
  RLHF_ASSIGN_OR_RETURN(const std::string bytes, payloads_->Read(row.payload()));
  if (!sample.ParseFromString(bytes)) return absl::DataLossError("a sample's payload is not a sample");
  if (row.has_score()) {
    RLHF_ASSIGN_OR_RETURN(const std::string score, payloads_->Read(row.score()));
    if (!sample.mutable_score()->ParseFromString(score)) return absl::DataLossError("a score's payload is not a score");
  }
  return sample;
}

std::optional<v1::SampleRow> SamplingImpl::LetGoRow(const ActiveJob& job, const SampleKey& key) const {
  if (job.ledger.let_go() == 0) return std::nullopt;
  const absl::StatusOr<std::string> stored = store_->Get(Table::kSamples, Ledger::RowKey(job.plan.job_id, key));
  v1::SampleRow row;
  // One whose newest row is on its way to the disk still is taken for one that is not there.
  if (!stored.ok() || !row.ParseFromString(*stored) || row.state() != v1::SCORED) return std::nullopt;
  return row;
}

v1::LedgerCounts SamplingImpl::Counts(const std::string& job_id) const {
  if (const ActiveJob* job = Find(job_id)) return job->ledger.counts();
  if (const auto it = ended_.find(job_id); it != ended_.end()) return it->second;
  const absl::StatusOr<v1::LedgerBase> base = BaseOf(job_id);
  v1::LedgerCounts counts = base.ok() ? base->counts() : v1::LedgerCounts();
  absl::Status status = base.status();
  if (base.ok() && !base->ended()) {
    status = ScanRows(job_id, base->through_step(),
                      [&](const v1::SampleRow& row, bool) { CountSample(row.state(), &counts); });
  }
  const LogScope scope({.job_id = job_id});
  if (!status.ok()) spdlog::error("ledger of {}: {}", job_id, std::string(status.message()));
  return counts;
}

void SamplingImpl::CancelStored(const std::string& job_id, bool delivers, WriteBatch* batch) {
  if (Find(job_id) != nullptr || ended_.count(job_id) > 0) return;
  const absl::StatusOr<v1::LedgerBase> base = BaseOf(job_id);
  if (!base.ok() || base->ended()) return;
  Ledger ledger(job_id);
  ledger.RestoreBase(*base);
  const absl::Status read = ScanRows(job_id, base->through_step(), [&](const v1::SampleRow& row, bool archived) {
    if (delivers && !archived && row.state() == v1::SCORED) return ledger.RestoreLetGo(row);
    ledger.Restore(row, archived, /*keep=*/false);
  });
  if (!read.ok()) return;  // Counts says so
  for (const SampleKey& key : ledger.Open()) ledger.Cancel(key, batch);
  ledger.CancelLetGo();
  ended_[job_id] = ledger.counts();
}

absl::StatusOr<std::vector<v1::SampleView>> SamplingImpl::List(const std::string& job_id, int64_t step_or_minus_one,
                                                               const std::string& after_key, PageLimit page,
                                                               std::string* next_key) const {
  std::vector<v1::SampleView> views;
  next_key->clear();
  const std::string prefix = step_or_minus_one < 0
                                 ? Ledger::Prefix(job_id)
                                 : KeyOf(Ledger::Prefix(job_id), {static_cast<uint64_t>(step_or_minus_one)});
  const absl::StatusOr<v1::LedgerBase> base = BaseOf(job_id);
  RLHF_RETURN_IF_ERROR(base.status());
  std::string last;
  absl::Status problem;
  RLHF_RETURN_IF_ERROR(
      store_->ScanAfter(Table::kSamples, prefix, after_key, [&](absl::string_view key, absl::string_view value) {
        v1::SampleView view;
        view.mutable_row()->ParseFromArray(value.data(), static_cast<int>(value.size()));
        if (base->ended()) view.mutable_row()->set_state(Ledger::EndState(view.row().state(), base->counts()));
        if (view.row().has_payload() || view.row().freed()) {
          absl::StatusOr<v1::Sample> sample = ReadSample(view.row());
          if (sample.ok()) *view.mutable_sample() = *std::move(sample);
          // One that is gone or damaged is no reason to hide the others; a disk that does not answer is.
          if (absl::IsDataLoss(sample.status())) {
            view.set_problem(std::string(sample.status().message()));
          } else {
            problem.Update(sample.status());
          }
        }
        if (!problem.ok()) return false;
        if (!page.Take(view.ByteSizeLong())) {
          *next_key = last;
          return false;
        }
        views.push_back(std::move(view));
        last = std::string(key);
        return true;
      }));
  RLHF_RETURN_IF_ERROR(problem);
  return views;
}

}  // namespace rlhf::coordinator
