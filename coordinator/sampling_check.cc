// Whether a job's rows, their payloads and its ledger in memory agree, while the job goes on.
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/digest.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {

void SamplingImpl::Check(const std::string& job_id, Background* thread, std::function<bool()> gone,
                         absl::AnyInvocable<void(absl::StatusOr<Findings>)> done) {
  std::optional<Ledger::Snapshot> snapshot;
  if (const ActiveJob* job = Find(job_id); job != nullptr) snapshot = job->ledger.TakeSnapshot();
  // Behind this write the rows are at least as new as the snapshot; those of a step that does not change, just as new.
  store_->Commit(WriteBatch(), [this, job_id, thread, snapshot = std::move(snapshot), gone = std::move(gone),
                                done = std::move(done)](absl::Status status) mutable {
    if (!status.ok()) return loop_->Post([status, done = std::move(done)]() mutable { done(status); });
    thread->Run([this, job_id, thread, snapshot = std::move(snapshot), gone = std::move(gone),
                 done = std::move(done)]() mutable {
      CountsByStep recounted;
      int64_t freed = 0;
      absl::StatusOr<std::vector<std::string>> violations = CheckRows(job_id, gone, &recounted, &freed);
      loop_->Post([this, job_id, thread, snapshot = std::move(snapshot), gone = std::move(gone),
                   recounted = std::move(recounted), freed, violations = std::move(violations),
                   done = std::move(done)]() mutable {
        if (!violations.ok()) return done(violations.status());
        Findings findings;
        findings.violations = *std::move(violations);
        if (freed > 0) {
          findings.notes.push_back(
              absl::StrCat("the payloads of ", freed, " samples were not read: the job's retention has freed them"));
        }
        // A job that ended meanwhile changes no more: the second time there is something to compare.
        if (!Compare(job_id, snapshot, std::move(recounted), &findings))
          return Check(job_id, thread, std::move(gone), std::move(done));
        done(std::move(findings));
      });
    });
  });
}

absl::StatusOr<std::vector<std::string>> SamplingImpl::CheckRows(const std::string& job_id,
                                                                 const std::function<bool()>& gone,
                                                                 CountsByStep* recounted, int64_t* freed) const {
  std::vector<std::string> violations;
  bool stopped = false;
  const absl::Status status =
      store_->Scan(Table::kSamples, Ledger::Prefix(job_id), [&](absl::string_view, absl::string_view value) {
        stopped = gone && gone();
        if (stopped) return false;
        v1::SampleRow row;
        row.ParseFromArray(value.data(), static_cast<int>(value.size()));
        CountSample(row.state(), &(*recounted)[row.id().step()]);
        const std::string name =
            absl::StrCat("sample ", row.id().step(), "/", row.id().ordinal(), "/", row.id().index());
        if (row.has_payload()) {
          const absl::StatusOr<std::string> bytes = payloads_->Read(row.payload());
          if (!bytes.ok()) {
            violations.push_back(absl::StrCat(name, ": ", bytes.status().message()));
          } else if (artifact::Sha256Hex(*bytes) != row.digest()) {
            violations.push_back(absl::StrCat(name, ": its payload's digest differs from its row's"));
          }
        } else if (row.freed()) {
          ++*freed;
        } else if (row.state() >= v1::GENERATED && row.state() <= v1::DELIVERED) {
          violations.push_back(absl::StrCat(name, ": ", v1::SampleState_Name(row.state()), " without a payload"));
        }
        if (row.state() == v1::TRAINED && row.assigned_step() != row.id().step())
          violations.push_back(absl::StrCat(name, ": trained in step ", row.assigned_step()));
        return true;
      });
  if (stopped) return absl::CancelledError("nobody waits for the check any more");
  if (!status.ok()) violations.push_back(std::string(status.message()));
  for (const auto& [step, counts] : *recounted) {
    if (!Balanced(counts))
      violations.push_back(absl::StrCat("step ", step, ": the states' counts do not add up to issued"));
  }
  return violations;
}

bool SamplingImpl::Compare(const std::string& job_id, const std::optional<Ledger::Snapshot>& snapshot,
                           CountsByStep recounted, Findings* findings) const {
  const auto compare = [&](const std::string& what, const v1::LedgerCounts& rows, const v1::LedgerCounts& ledger) {
    if (rows.SerializeAsString() == ledger.SerializeAsString()) return;
    findings->violations.push_back(
        absl::StrCat(what, "rows say {", rows.ShortDebugString(), "}, the ledger {", ledger.ShortDebugString(), "}"));
  };
  const ActiveJob* job = Find(job_id);
  if ((job != nullptr) != snapshot.has_value()) return false;
  if (job == nullptr) {
    v1::LedgerCounts all;
    for (const auto& [step, counts] : recounted) AddCounts(counts, &all);
    const v1::LedgerCounts ended = Counts(job_id);
    const int64_t scored = all.scored();
    CountSample(v1::SCORED, &all, -scored);
    CountSample(Ledger::EndState(v1::SCORED, ended), &all, scored);
    compare("", all, ended);
    return true;
  }
  // Settled steps are counted together: one that changed (a rollback) leaves them all without a comparison.
  v1::LedgerCounts settled;
  bool settled_changed = false;
  CountsByStep expected = snapshot->steps;
  for (const auto& [step, counts] : recounted) {
    if (step > snapshot->base.through_step()) {
      expected.try_emplace(step);
      continue;
    }
    AddCounts(counts, &settled);
    settled_changed = settled_changed || job->ledger.ChangedSince(step, *snapshot);
  }
  if (!settled_changed) {
    compare("settled steps: ", settled, snapshot->base.counts());
  } else {
    findings->notes.push_back(absl::StrCat("the counts of steps up to ", snapshot->base.through_step(),
                                           " were not compared: some of them changed while they were read"));
  }
  std::vector<int64_t> changed;
  for (const auto& [step, counts] : expected) {
    if (job->ledger.ChangedSince(step, *snapshot)) {
      changed.push_back(step);
    } else {
      compare(absl::StrCat("step ", step, ": "), recounted[step], counts);
    }
  }
  if (!changed.empty()) {
    findings->notes.push_back(absl::StrCat("the counts of ", changed.size() == 1 ? "step " : "steps ",
                                           absl::StrJoin(changed, ", "),
                                           " were not compared: they changed while they were read"));
  }
  return true;
}

}  // namespace rlhf::coordinator
