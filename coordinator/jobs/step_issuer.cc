#include "coordinator/jobs/step_issuer.h"

#include <algorithm>
#include <utility>

namespace rlhf::coordinator {
namespace {

constexpr int kSliceSamples = 256;  // issued in one turn of the loop and one transaction

}  // namespace

void StepIssuer::Resume() {
  of_next_ = host_->deps().sampling->SamplesIssued(job_id_, row().issued_through_step() + 1);
}

bool StepIssuer::More() const {
  const int64_t next = row().issued_through_step() + 1;
  return next <= row().total_steps() && (of_next_ > 0 || next <= row().version().step() + 1 + spec().max_policy_lag());
}

void StepIssuer::IssueSlice(WriteBatch* batch) {
  v1::Job& job = row();
  const int per_prompt = std::max(1, spec().samples_per_prompt()), of_step = spec().prompts_per_step() * per_prompt;
  // Whole prompts where they fit: a worker computes a prompt once for those of its samples that it is leased.
  int samples = per_prompt < kSliceSamples ? kSliceSamples - kSliceSamples % per_prompt : kSliceSamples;
  while (samples > 0 && More()) {
    const int64_t step = job.issued_through_step() + 1;
    const int count = std::min(samples, of_step - of_next_);
    host_->deps().sampling->IssueSlice(job_id_, step, job.prompt_cursor(), of_next_, count, batch);
    samples -= count;
    of_next_ += count;
    if (of_next_ < of_step) continue;
    job.set_prompt_cursor(job.prompt_cursor() + spec().prompts_per_step());
    job.set_issued_through_step(step);
    of_next_ = 0;
  }
}

void StepIssuer::IssueRest(std::function<void()> issued) {
  if (issuing_ || !More()) return;
  issuing_ = true;
  WriteBatch batch;
  IssueSlice(&batch);
  host_->Commit(job_id_, std::move(batch), host_->WhileActive(job_id_, [this, issued = std::move(issued)] {
    issuing_ = false;
    issued();
    IssueRest(issued);
  }));
}

void StepIssuer::FinishStep(WriteBatch* batch) {
  while (of_next_ > 0 && More()) IssueSlice(batch);
}

}  // namespace rlhf::coordinator
