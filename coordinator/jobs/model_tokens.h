// A PPO job's models that are given the policy's token ids: with another tokenizer's numbers they would read other
// text.
#pragma once

#include <string>

#include "absl/functional/any_invocable.h"
#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

// Compares the tokenizers of those that are other models than the policy, in the background; `then` runs on the loop,
// unless the job has ended. It fails, with the field and the first token that differs, where one is another's. What is
// not read (a critic of an estimator without one, a reference of a policy with adapters), is not here, or has no
// tokenizer is passed over, and so is all of a job that has trained already, by an earlier release as well. While the
// artifacts' volume is not there it waits for it.
void CheckModelTokens(JobHost* host, const std::string& job_id, absl::AnyInvocable<void()> then);

}  // namespace rlhf::coordinator
