#include "coordinator/jobs/checkpoint_chain.h"

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

std::string CheckpointKey(const std::string& job_id, int64_t step) {
  return KeyOf(CheckpointPrefix(job_id), {static_cast<uint64_t>(step)});
}

}  // namespace

void CheckpointChain::Add(int64_t step, const std::string& digest, WriteBatch* batch) {
  v1::Job* row = host_->Find(job_id_);
  batch->Put(Table::kMeta, CheckpointKey(job_id_, step), digest);
  if (step <= row->checkpoint_step()) return;
  // The one before stays something to fall back to; only where both are damaged does the job go behind that one.
  host_->deps().sampling->Settle(job_id_, row->checkpoint_step(), batch);
  row->set_checkpoint(digest);
  row->set_checkpoint_step(step);
}

void CheckpointChain::DropNewest(const std::string& why, WriteBatch* batch) {
  v1::Job* row = host_->Find(job_id_);
  int64_t step = 0;
  std::string digest;
  for (int64_t before = row->checkpoint_step() - 1; before > 0 && digest.empty(); --before) {
    const absl::StatusOr<std::string> found = host_->deps().store->Get(Table::kMeta, CheckpointKey(job_id_, before));
    if (!found.ok()) continue;
    step = before;
    digest = *found;
  }
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
