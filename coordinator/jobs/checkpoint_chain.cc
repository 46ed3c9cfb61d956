#include "coordinator/jobs/checkpoint_chain.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/payload_retention.h"

namespace rlhf::coordinator {
namespace {

int64_t StepOfCheckpoint(const std::string& job_id, absl::string_view key) {
  int64_t step = 0;
  for (const char c : key.substr(CheckpointPrefix(job_id).size())) step = step << 8 | static_cast<uint8_t>(c);
  return step;
}

}  // namespace

std::string CheckpointKey(const std::string& job_id, int64_t step) {
  return KeyOf(CheckpointPrefix(job_id), {static_cast<uint64_t>(step)});
}

std::map<int64_t, std::string> CheckpointsOf(const v1::Job& job, StateStore* store) {
  std::map<int64_t, std::string> checkpoints;
  (void)store->Scan(Table::kMeta, CheckpointPrefix(job.id()), [&](absl::string_view key, absl::string_view digest) {
    checkpoints[StepOfCheckpoint(job.id(), key)] = std::string(digest);
    return true;
  });
  if (!job.checkpoint().empty()) checkpoints[job.checkpoint_step()] = job.checkpoint();
  return checkpoints;
}

void CheckpointChain::Add(int64_t step, const std::string& digest, WriteBatch* batch) {
  v1::Job* row = host_->Find(job_id_);
  batch->Put(Table::kMeta, CheckpointKey(job_id_, step), digest);
  if (step <= row->checkpoint_step()) return;
  // The one before stays something to fall back to; only where both are damaged does the job go behind that one.
  const int64_t before = row->checkpoint_step();
  host_->deps().sampling->Settle(job_id_, before, batch);
  row->set_checkpoint(digest);
  row->set_checkpoint_step(step);
  LetGo(before, digest, batch);
}

void CheckpointChain::LetGo(int64_t before, const std::string& newest, WriteBatch* batch) {
  const v1::Job* row = host_->Find(job_id_);
  const v1::RetentionSpec& retention = row->spec().retention();
  std::vector<std::string> deleted;
  int64_t oldest = before;  // that the job may go back to
  if (retention.checkpoints() > 0) {
    std::vector<std::pair<std::string, std::string>> older;  // by step; the newest is in the batch only
    const absl::Status read = host_->deps().store->Scan(Table::kMeta, CheckpointPrefix(job_id_),
                                                        [&](absl::string_view key, absl::string_view digest) {
                                                          if (key < CheckpointKey(job_id_, row->checkpoint_step()))
                                                            older.emplace_back(key, digest);
                                                          return true;
                                                        });
    if (!read.ok()) return;  // the next one tries again
    const size_t kept = std::min(older.size(), static_cast<size_t>(retention.checkpoints()) - 1);
    for (size_t i = 0; i + kept < older.size(); ++i) {
      batch->Erase(Table::kMeta, older[i].first);
      if (older[i].second != newest) deleted.push_back(older[i].second);
    }
    if (kept > 0) oldest = StepOfCheckpoint(job_id_, older[older.size() - kept].first);
  }
  if (deleted.empty() && retention.sample_steps() == 0) return;
  // Once this turn's commit is durable, which says that nobody goes back there.
  host_->deps().loop->Post([host = host_, job_id = job_id_, oldest, deleted] {
    host->Commit(job_id, WriteBatch(), [host, job_id, oldest, deleted] {
      for (const std::string& digest : deleted) host->DeleteCheckpoint(digest);
      const v1::Job* job = host->Find(job_id);
      if (job == nullptr) return;
      const int64_t kept = job->spec().retention().sample_steps();
      if (kept > 0 && host->deps().retention != nullptr)
        host->deps().retention->FreeThrough(job_id, std::min(oldest, job->step() - kept));
    });
  });
}

void CheckpointChain::DropNewest(const std::string& why, WriteBatch* batch) {
  v1::Job* row = host_->Find(job_id_);
  const std::map<int64_t, std::string> all = CheckpointsOf(*row, host_->deps().store);
  const auto newest = all.find(row->checkpoint_step());
  const bool any = newest != all.end() && newest != all.begin();
  const int64_t step = any ? std::prev(newest)->first : 0;
  const std::string digest = any ? std::prev(newest)->second : "";
  batch->Erase(Table::kMeta, CheckpointKey(job_id_, row->checkpoint_step()));
  host_->AppendMessage(
      row,
      absl::StrCat("the checkpoint of step ", row->checkpoint_step(), " is damaged (", why, "): ",
                   digest.empty() ? "training begins anew" : absl::StrCat("going back to the one of step ", step)),
      batch);
  row->set_checkpoint(digest);
  row->set_checkpoint_step(step);
}

bool CheckpointChain::due(bool leaving) const {
  const v1::Job& row = *host_->Find(job_id_);
  const v1::JobSpec& spec = row.spec();
  const int every = spec.has_ppo()   ? spec.ppo().checkpoint_every()
                    : spec.has_sft() ? spec.sft().checkpoint_every()
                                     : spec.reward_model().checkpoint_every();
  return row.step() > row.checkpoint_step() && (leaving || (every > 0 && row.step() % every == 0));
}

}  // namespace rlhf::coordinator
