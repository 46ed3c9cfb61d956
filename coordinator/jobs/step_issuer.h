// Issues a PPO job's samples, step by step and ahead of the committed one by the lag bound. Thousands of samples,
// of many prompts or of one, are issued a slice a turn of the loop, each durable before the next one, so that nobody
// waits for all of them. The job's row counts a step with its last slice: after a crash in between, Resume goes on
// behind what exists.
//
// Loop thread only; owned by the job's driver.
#pragma once

#include <functional>
#include <string>

#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

class StepIssuer {
 public:
  StepIssuer(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  // At the start, when sampling knows the job.
  void Resume();
  // A slice, into the caller's batch; the others, if there are any, by IssueRest once that is durable.
  void IssueSlice(WriteBatch* batch);
  // Slices in commits of their own, as long as there is more to issue; `issued` runs after each.
  void IssueRest(std::function<void()> issued);
  // All of a step of which a part is issued, into the caller's batch: what comes then gets the prompts after its own.
  void FinishStep(WriteBatch* batch);

 private:
  // At most S + 1 steps are open. A step that was begun is issued to its end.
  bool More() const;
  v1::Job& row() const { return *host_->Find(job_id_); }
  const v1::PpoSpec& spec() const { return row().spec().ppo(); }

  JobHost* const host_;
  const std::string job_id_;
  bool issuing_ = false;
  int of_next_ = 0;  // samples of the step after those that the job's row counts as issued
};

}  // namespace rlhf::coordinator
